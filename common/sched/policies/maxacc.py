"""MaxAcc: accuracy first, then batch. The paper's section 4."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.sched.policies.base import Late, View, fitting_rows, late_choice, most_accurate
from common.sched.profile import Profile, Quantile
from common.sched.types import Choice


@dataclass(frozen=True, slots=True)
class MaxAcc:
    """The most accurate subnet that serves the head alone within the slack, then its largest batch that still fits."""

    quantile: Quantile = field(default="p95", metadata={"doc": "which latency of the profile must fit the slack"})
    late: Late = field(
        default="shed",
        metadata={"doc": "no batch fits: let the head go, run the largest batch, or what the median allows"},
    )

    def cheapest(self, profile: Profile) -> str:
        """Return the smallest subnet."""
        return profile.smallest

    def choose(self, view: View) -> Choice | None:
        """Return the best subnet for the head, and the batch that it has time for."""
        profile, head = view.profile, view.head
        index = most_accurate(profile, head.rows, view.slack_us, self.quantile)
        if index < view.worker.eligible(head.min_accuracy):
            return late_choice(view, self.late)
        return Choice(
            profile.subnets[index].id, max(head.rows, fitting_rows(profile, index, view.slack_us, self.quantile))
        )
