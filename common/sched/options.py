"""Options of the scheduling core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Late: TypeAlias = Literal["drop", "serve"]
"""What becomes of a query that cannot meet its deadline."""


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Options of the core. Raises ValueError, naming key and value, for one that is out of range.

    - `late`: a query that cannot meet its deadline is rejected (`drop`), or served all the same (`serve`).
    - `reply_margin_us`: taken off every slack; the time a reply needs back to the client.
    - `max_in_flight`: batches that one worker may hold, the running one included. 1 switches dispatching ahead off.
    - `ahead_floor_us`, `ahead_cap_us`: bounds of the measured dispatch delay.
    - `start_quantile`: a batch dispatched ahead starts when the running one ends. For the slack that the policy sees,
      that is this quantile of what batches lately took over what was predicted: one that overruns must not cost the
      next its deadline.
    - `max_queue_rows`: a query that would exceed it is rejected.
    - `max_attempts`: a query that was running on this many workers when they died is rejected.
    - `first_batch`: the first batch id. A scheduler that restarts must not repeat ids, or an old report could be
      taken for new.
    """

    late: Late = "drop"
    reply_margin_us: int = 0
    max_in_flight: int = 2
    ahead_floor_us: int = 0
    ahead_cap_us: int = 10_000
    start_quantile: float = 0.99
    max_queue_rows: int = 100_000
    max_attempts: int = 3
    first_batch: int = 1

    def __post_init__(self) -> None:
        if self.late not in ("drop", "serve"):
            raise ValueError(f"late: expected drop or serve, got {self.late!r}")
        if not 0.0 <= self.start_quantile < 1.0:
            raise ValueError(f"start_quantile: expected a number in [0, 1), got {self.start_quantile!r}")
        least = {"reply_margin_us": 0, "max_in_flight": 1, "ahead_floor_us": 0, "ahead_cap_us": self.ahead_floor_us}
        least |= {"max_queue_rows": 1, "max_attempts": 1, "first_batch": 0}
        for key, minimum in least.items():
            if getattr(self, key) < minimum:
                raise ValueError(f"{key}: expected at least {minimum}, got {getattr(self, key)!r}")
