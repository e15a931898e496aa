"""MaxAcc: accuracy first, then batch. The paper's section 4."""

from __future__ import annotations

from dataclasses import dataclass

from common.sched.policies.base import Fitting, View, fitting_rows, late_choice, most_accurate
from common.sched.types import Choice


@dataclass(frozen=True, slots=True)
class MaxAcc(Fitting):
    """The most accurate subnet that serves the head alone within the slack, then its largest batch that still fits."""

    def choose(self, view: View) -> Choice | None:
        """Return the best subnet for the head, and the batch that it has time for."""
        profile, head = view.profile, view.head
        index = most_accurate(profile, head.rows, view.slack_us, self.quantile)
        if index < view.worker.eligible(head.min_accuracy):
            return late_choice(view, self.late)
        return Choice(
            profile.subnets[index].id, max(head.rows, fitting_rows(profile, index, view.slack_us, self.quantile))
        )
