"""INFaaS: always the cheapest subnet that meets the accuracy floor. The paper's section 6, which sets no floor."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.sched.policies.base import Fitting, PolicyError, View
from common.sched.profile import Profile
from common.sched.types import Choice


@dataclass(frozen=True, slots=True)
class Infaas(Fitting):
    """The cheapest subnet that meets the accuracy floor, on the largest batch that fits the head's slack.

    The floor is `accuracy`, or the query's own if that is higher. Cheapest means least accurate.
    """

    accuracy: float = field(default=0.0, metadata={"doc": "floor for all queries, in percent", "positional": True})

    def __post_init__(self) -> None:
        if not 0.0 <= self.accuracy <= 100.0:
            raise PolicyError(f"infaas: accuracy: expected percent between 0 and 100, got {self.accuracy}")

    def cheapest(self, profile: Profile) -> str:
        """Return the least accurate subnet that meets the floor. Raises PolicyError if none does."""
        index = profile.first_at_least(self.accuracy)
        if index == len(profile.subnets):
            best = profile.accuracy(profile.largest)
            raise PolicyError(
                f"infaas: accuracy: no subnet of {profile.device!r} reaches {self.accuracy}, the best has {best}"
            )
        return profile.subnets[index].id

    def best(self, profile: Profile) -> str:
        """Return the cheapest one: no slack buys a better."""
        return self.cheapest(profile)

    def choose(self, view: View) -> Choice | None:
        """Return the largest batch that fits of the cheapest subnet that may serve the head."""
        return self.serve(view, view.worker.cheapest)
