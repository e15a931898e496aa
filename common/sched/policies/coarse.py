"""Coarse-grained switching: any policy, where a change of model costs the profile's actuation delay.

What a system does that loads another model to change it, and knows what that costs. Another policy decides; this one
decides whether the worker may follow, in this order:

1. The policy wants the subnet that is loaded: it runs, on the largest batch that fits.
2. It wants another one. Then it is asked again as if the worker were busy for the delay longer. If it still wants
   another one, and the batch is expected to end in time in spite of the delay, the worker changes.
3. Else the change does not fit: the subnet that is loaded runs, on the largest batch that fits.
4. That subnet cannot serve the head, for lack of speed or of accuracy: the head is lost either way. It alone carries
   the change, late, so that those behind it find the subnet that the policy wants. So does the first query of all.
5. The policy lets the head go even without a delay: that is overload. The head alone carries a change to the cheapest
   subnet that may serve it; with that one loaded, it goes.

With a delay longer than the slack, 2 never applies and a worker changes by 4 and 5 alone: to what is faster, and never
back but for a query that demands accuracy. Without a delay the policy alone decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from common.sched.policies.base import Learner, Policy, PolicyError, View, best_of, largest_batch, learner_of
from common.sched.profile import Profile, Quantile
from common.sched.types import Choice


@dataclass(frozen=True, slots=True)
class Coarse:
    """Another policy where a change of subnet costs `actuation_us`: a worker changes only when there is time for it."""

    policy: str = field(metadata={"doc": "spec of the policy that decides, with ; for each comma", "positional": True})
    quantile: Quantile = field(
        default="p95", metadata={"doc": "which latency of the profile must fit the slack where nothing changes"}
    )

    def __post_init__(self) -> None:
        """Spell the inner spec out. Raises PolicyError if it cannot be read."""
        from common.sched.policies import spec_of

        object.__setattr__(self, "policy", spec_of(_inner(self.policy)).replace(",", ";"))

    def learner(self) -> Learner | None:
        """Return the learner of the policy that decides."""
        return learner_of(_inner(self.policy))

    def cheapest(self, profile: Profile) -> str:
        """Return the cheapest subnet of the policy that decides."""
        return _inner(self.policy).cheapest(profile)

    def best(self, profile: Profile) -> str:
        """Return the best subnet of the policy that decides."""
        return profile.subnets[best_of(_inner(self.policy), profile)].id

    def choose(self, view: View) -> Choice | None:
        """Return what the policy wants if there is time for it, else what the subnet that is loaded can do."""
        inner, profile, head, loaded = _inner(self.policy), view.profile, view.head, view.worker.subnet
        wanted = inner.choose(view)
        if profile.actuation_us == 0:
            return wanted
        if wanted is None:
            cheapest = view.worker.cheapest_for(head.min_accuracy, head.rows)
            return None if cheapest == loaded else Choice(cheapest, head.rows)
        if wanted.subnet != loaded:
            changed = inner.choose(_later(view, profile.actuation_us))
            if changed is not None and changed.subnet != loaded and _in_time(view, changed):
                return changed
        index = next((i for i, subnet in enumerate(profile.subnets) if subnet.id == loaded), -1)
        if index >= profile.first_at_least(head.min_accuracy):
            kept = largest_batch(view, index, self.quantile)
            if kept is not None:
                return kept
        return wanted if wanted.subnet == loaded else Choice(wanted.subnet, head.rows)


def _later(view: View, delay_us: int) -> View:
    """The view as if the worker were busy for `delay_us` longer."""
    worker = view.worker.as_if_free_at(max(view.now_us, view.worker.free_us) + delay_us)
    workers = tuple(worker if other is view.worker else other for other in view.workers)
    start_us, slack_us = view.start_us + delay_us, view.slack_us - delay_us
    return view._replace(start_us=start_us, slack_us=slack_us, worker=worker, workers=workers)


def _in_time(view: View, choice: Choice) -> bool:
    """Whether a batch that changes the subnet should end in time: a policy may choose one for a head that is late."""
    rows = max(view.head.rows, min(choice.rows, view.queue.rows))
    expected_us = view.profile.latency_us(choice.subnet, rows) * view.worker.correction + view.profile.actuation_us
    return expected_us <= view.slack_us + view.start_us - max(view.now_us, view.worker.free_us)


@lru_cache(maxsize=64)
def _inner(spec: str) -> Policy:
    from common.sched.policies import parse_policy

    inner = parse_policy(spec.replace(";", ","))
    if isinstance(inner, Coarse):
        raise PolicyError(f"coarse: policy: cannot be coarse itself, got {spec!r}")
    return inner
