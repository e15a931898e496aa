"""One fixed subnet with adaptive batching: the paper's Clipper+(accuracy), section 6."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.sched.policies.base import Late, PolicyError, View, fitting_rows, late_choice
from common.sched.profile import Profile, Quantile
from common.sched.types import Choice


@dataclass(frozen=True, slots=True)
class Fixed:
    """One subnet for all; the largest batch that fits the head's slack.

    Stands for Clipper, Clockwork and TF-Serving, and with `smallest` for INFaaS without accuracy thresholds. A query
    that demands more accuracy than the subnet has gets the cheapest subnet that reaches it.
    """

    subnet: str = field(metadata={"doc": "id of the subnet, or `smallest` or `largest`", "positional": True})
    quantile: Quantile = field(default="p95", metadata={"doc": "which latency of the profile must fit the slack"})
    late: Late = field(
        default="shed",
        metadata={"doc": "no batch fits: let the head go, run the largest batch, or what the median allows"},
    )

    def cheapest(self, profile: Profile) -> str:
        """Return the fixed subnet itself. Raises PolicyError if the profile lacks it."""
        subnet = {"smallest": profile.smallest, "largest": profile.largest}.get(self.subnet, self.subnet)
        known = [entry.id for entry in profile.subnets]
        if subnet not in known:
            raise PolicyError(f"fixed: no subnet {subnet!r} on {profile.device!r}; it has {', '.join(known)}")
        return subnet

    def choose(self, view: View) -> Choice | None:
        """Return the subnet with the largest batch that fits."""
        profile, head = view.profile, view.head
        index = view.worker.eligible(head.min_accuracy)
        rows = fitting_rows(profile, index, view.slack_us, self.quantile)
        if rows < min(head.rows, profile.max_batch):
            return late_choice(view, self.late)
        return Choice(profile.subnets[index].id, max(rows, head.rows))
