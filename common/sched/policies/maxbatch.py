"""MaxBatch: batch first, then accuracy. The paper's section 4."""

from __future__ import annotations

from dataclasses import dataclass

from common.sched.policies.base import Fitting, View, fitting_rows, late_choice, most_accurate
from common.sched.types import Choice


@dataclass(frozen=True, slots=True)
class MaxBatch(Fitting):
    """The largest batch that the smallest subnet runs within the slack, then the most accurate subnet for that batch.

    With fewer rows queued than that batch, the rows queued count: the slack is spent on accuracy.
    """

    def choose(self, view: View) -> Choice | None:
        """Return the largest batch that fits at all, and the best subnet for it."""
        profile, head = view.profile, view.head
        floor = view.worker.eligible(head.min_accuracy)
        rows = max(head.rows, min(fitting_rows(profile, floor, view.slack_us, self.quantile), view.queue.rows))
        index = most_accurate(profile, rows, view.slack_us, self.quantile)
        if index < floor:
            return late_choice(view, self.late)
        return Choice(profile.subnets[index].id, rows)
