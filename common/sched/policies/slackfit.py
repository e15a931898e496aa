"""SlackFit: the paper's policy, section 4.

Offline, latency is cut into evenly spaced buckets from l_smallest(1) to l_largest(max_batch), and each bucket keeps
the pair (subnet, batch) with the largest batch whose latency lies in it. Online, the slack theta of the queue's head
picks the bucket whose latency is closest to theta from below: little slack means small subnets and, by property P3,
large batches; much slack means accuracy.

The paper leaves open what follows; each is an option, whose default `docs/scheduling.md` justifies by measurement:

- how many buckets there are, and which batches they are filled with: the profiled sizes, or every size between;
- what a bucket's latency is: that of its pair, or its upper edge, which never uses the last fraction of the slack;
- which of several pairs with the same batch it keeps;
- what an empty bucket does: it takes over the bucket below, or the best pair of all below it (MaxBatch's rule);
- what happens with fewer rows queued than the batch: the bucket's latency is spent on a more accurate subnet, or not;
- what happens when theta is below every bucket, and a full batch, or all that is queued, does not fit either;
- which latency is meant: the profile's median, its p95, or the median times what batches lately took over it.

"Below" includes equality: a batch that ends on its deadline has met it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias

from common.sched.policies.base import LateChoice, PolicyError, View, late_choice, most_accurate
from common.sched.profile import Profile, Quantile
from common.sched.types import Choice

Pair: TypeAlias = tuple[int, int, int]
"""(rows, subnet index, latency in microseconds)"""


@dataclass(frozen=True, slots=True)
class SlackFit:
    """The latency bucket closest below the head's slack: little slack for large batches, much slack for accuracy."""

    buckets: int = field(default=6, metadata={"doc": "number of latency buckets"})
    batches: Literal["every", "profiled"] = field(
        default="every", metadata={"doc": "batch sizes that fill the buckets"}
    )
    edge: Literal["pair", "upper"] = field(
        default="upper", metadata={"doc": "a bucket's latency: its pair's, or its upper edge"}
    )
    ties: Literal["accurate", "fast"] = field(
        default="accurate", metadata={"doc": "among pairs of one bucket and batch"}
    )
    empty: Literal["below", "best"] = field(
        default="below", metadata={"doc": "an empty bucket takes the one below, or the best below"}
    )
    partial: Literal["accuracy", "keep"] = field(
        default="accuracy",
        metadata={"doc": "fewer rows than the batch: spend its latency on accuracy, or keep the subnet"},
    )
    late: LateChoice = field(
        default="shed",
        metadata={"doc": "no bucket fits: let the head go, run the largest batch, or what the median allows"},
    )
    quantile: Literal["learned", "median", "p95"] = field(
        default="learned",
        metadata={"doc": "which latency is meant: the profile's median or p95, or its median times what is learned"},
    )
    margin: float = field(
        default=0.99, metadata={"doc": "of quantile=learned: this quantile of observed / predicted latency, in [0, 1)"}
    )

    def __post_init__(self) -> None:
        if not 1 <= self.buckets <= 100_000:
            raise PolicyError(f"slackfit: buckets: expected 1 to 100000, got {self.buckets}")
        if not 0.0 <= self.margin < 1.0:
            raise PolicyError(f"slackfit: margin: expected a number in [0, 1), got {self.margin}")

    def cheapest(self, profile: Profile) -> str:
        """Return the smallest subnet."""
        return profile.smallest

    def choose(self, view: View) -> Choice | None:
        """Return the pair of the bucket closest below the slack."""
        profile, head = view.profile, view.head
        quantile: Quantile = "p95" if self.quantile == "p95" else "median"
        budget_us = float(view.slack_us)
        if self.quantile == "learned":
            budget_us /= view.worker.correction * view.residuals.quantile(self.margin)
        floor = view.worker.eligible(head.min_accuracy)
        edges, pairs = _buckets(profile, self, quantile, floor)
        bucket = bisect_right(edges, budget_us) - 1
        below_all: Pair = (profile.max_batch, -1, int(budget_us))
        rows, index, latency_us = pairs[bucket] if bucket >= 0 else below_all
        packed = min(rows, view.queue.rows)
        if head.rows > rows:
            rows, latency_us = head.rows, int(budget_us)
            index = most_accurate(profile, rows, latency_us, quantile)
        elif index < 0 or (packed < rows and self.partial == "accuracy"):
            index = most_accurate(profile, packed, latency_us, quantile)
        if index < floor:
            if self.quantile == "learned" and (choice := _expected_choice(view, rows)) is not None:
                return choice
            return late_choice(view, self.late)
        return Choice(profile.subnets[index].id, rows)


def _expected_choice(view: View, rows: int) -> Choice | None:
    """Return the cheapest subnet for a head that will probably make it, though the learned margin says it may not.

    The margin, and with it the start that the view assumes behind a running batch, is a high quantile, and of few
    batches the worst: a reason to be quick, not to let a query go. None if the batch would not make it at the latency
    and the start expected, so that shedding still protects those behind.
    """
    profile, head = view.profile, view.head
    subnet = view.worker.cheapest_for(head.min_accuracy, head.rows)
    packed = max(head.rows, min(rows, view.queue.rows))
    expected_us = profile.latency_us(subnet, packed, "median") * view.worker.correction
    slack_us = view.slack_us + view.start_us - max(view.now_us, view.worker.free_us)
    return Choice(subnet, max(head.rows, rows)) if expected_us <= slack_us else None


@lru_cache(maxsize=256)
def _buckets(profile: Profile, policy: SlackFit, quantile: Quantile, floor: int) -> tuple[list[int], list[Pair]]:
    """Fill the buckets from the subnets of index `floor` on. Return their latencies, ascending, and their pairs."""
    table = profile.latencies(quantile)
    sizes = range(1, profile.max_batch + 1) if policy.batches == "every" else profile.batch_sizes
    pairs: list[Pair] = [(rows, index, table[index][rows]) for index in range(floor, len(table)) for rows in sizes]
    low, high = min(pair[2] for pair in pairs), max(pair[2] for pair in pairs)
    width = max(1.0, (high - low) / policy.buckets)
    kept: dict[int, Pair] = {}
    for pair in pairs:
        bucket = min(int((pair[2] - low) / width), policy.buckets - 1)
        if bucket not in kept or _preference(pair, policy) > _preference(kept[bucket], policy):
            kept[bucket] = pair
    if policy.empty == "best":
        for bucket in range(policy.buckets):
            if bucket not in kept:
                upper = low + (bucket + 1) * width
                kept[bucket] = max((p for p in pairs if p[2] < upper), key=lambda p: _preference(p, policy))
    buckets = sorted(kept)
    if policy.edge == "upper":
        return [min(high, int(low + (bucket + 1) * width)) for bucket in buckets], [kept[b] for b in buckets]
    chosen = sorted((kept[bucket] for bucket in buckets), key=lambda p: (p[2], p))
    return [pair[2] for pair in chosen], chosen


def _preference(pair: Pair, policy: SlackFit) -> tuple[int, int, int]:
    rows, index, latency_us = pair
    return (rows, index, -latency_us) if policy.ties == "accurate" else (rows, -latency_us, -index)
