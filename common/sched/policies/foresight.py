"""Foresight: accuracy as far as everybody behind can still be saved. Ours; it goes past the paper's SlackFit.

SlackFit sees the slack of the head and trusts one latency. Both cost it: a batch that is right for the head can be
wrong for the hundred queries behind it, and where latencies vary, half of all batches exceed their median. This policy
asks six questions, and each has its reason:

1. *Which subnets?* Only those on the concave hull of accuracy over time per row in a full batch. A mix of two hull
   subnets is at least as accurate as any subnet between them for the same work, and a scheduler always mixes.
2. *How long does a batch take?* Its median, times the worker's correction, times the `target` quantile of what batches
   lately took over what was predicted. If the residuals stay as they were, that share of the batches ends in time: so
   the quantile is the attainment target that the operator states. While few batches were seen a rare slow one may not
   have shown yet, so the margin starts high and shrinks with what was seen (`Residuals.margin`). A batch that took so
   long that no plan which carries the load could have saved it is not planned for.
3. *Does it fill?* Only a subnet that runs `fill` of the largest batch, or all that is queued, within the head's slack:
   part-filled batches of a large subnet waste the capacity that a burst needs.
4. *What about those behind?* The batch is taken if the queue behind it, and the arrivals of the next `horizon_ms` at
   the measured rate, could all be met afterwards by the next lower hull subnet, on the times at which workers are
   predicted to be free. Otherwise one step down, and asked again. So accuracy falls one step before it must, not when
   it is late. What is behind runs on many workers, which are not all at their worst at once: three quarters of the
   margin count there. Those to come have the shortest SLO that waits, not the head's, which may have time to spare.
5. *What if a burst came now?* The worst surprise lately (rows that arrived in 20 ms beyond what the rate announced),
   `burst` times, must fit into what the workers can run with the smallest subnet within an SLO. More than once, because
   a burst may fall into two windows, or be larger than the last. The smallest subnet has much room where the rate is
   high and steady, so this binds where it must: where workers sit in long batches between bursts.
6. *Is the head worth it?* If the smallest subnet can run only a part of a batch for the head, and serving it would cost
   those behind their deadlines, the head is let go: one is lost instead of many. And if they cannot be met either way
   since more arrives than the workers can run, heads are let go until a batch fills: part-filled batches would leave
   every head less time than the one before, down to batches of one. But for nothing that cannot follow nobody is let
   go, and a worker that idles takes whom it would: estimates that let everybody go would never be corrected.

docs/scheduling.md has its figures beside SlackFit's, and where it fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from common.sched.policies.base import PolicyError, View
from common.sched.policies.lookahead import decide
from common.sched.profile import Profile
from common.sched.types import Choice


@dataclass(frozen=True, slots=True)
class Foresight:
    """The most accurate subnet after which everybody behind can still be saved by the next one down."""

    target: float = field(
        default=0.999, metadata={"doc": "SLO attainment to hold, in [0, 1): the quantile of residuals allowed for"}
    )
    fill: float = field(
        default=0.75, metadata={"doc": "share of the largest batch that a subnet must have time for, in (0, 1]"}
    )
    horizon_ms: float = field(default=20.0, metadata={"doc": "arrivals of that long, at the measured rate, count"})
    burst: float = field(
        default=1.5, metadata={"doc": "times the worst surprise in arrivals that must be met if it came now; 0: none"}
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.target < 1.0:
            raise PolicyError(f"foresight: target: expected a number in [0, 1), got {self.target}")
        if not 0.0 < self.fill <= 1.0:
            raise PolicyError(f"foresight: fill: expected a number in (0, 1], got {self.fill}")
        if not 0.0 <= self.horizon_ms <= 10_000.0:
            raise PolicyError(f"foresight: horizon_ms: expected 0 to 10000, got {self.horizon_ms}")
        if not 0.0 <= self.burst <= 100.0:
            raise PolicyError(f"foresight: burst: expected 0 to 100, got {self.burst}")

    def cheapest(self, profile: Profile) -> str:
        """Return the smallest subnet."""
        return profile.smallest

    def choose(self, view: View) -> Choice | None:
        """Return the most accurate choice that leaves those behind a way out, or the quickest there is."""
        return decide(view, self)
