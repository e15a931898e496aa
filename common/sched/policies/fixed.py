"""One fixed subnet with adaptive batching: the paper's Clipper+(accuracy), section 6."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.sched.policies.base import Fitting, PolicyError, View
from common.sched.profile import Profile
from common.sched.types import Choice


@dataclass(frozen=True, slots=True)
class Fixed(Fitting):
    """One subnet for all; the largest batch that fits the head's slack.

    Stands for Clipper, Clockwork and TF-Serving. A query that demands more accuracy than the subnet has gets the
    cheapest subnet that reaches it.
    """

    subnet: str = field(
        kw_only=True, metadata={"doc": "id of the subnet, or `smallest` or `largest`", "positional": True}
    )

    def cheapest(self, profile: Profile) -> str:
        """Return the fixed subnet itself. Raises PolicyError if the profile lacks it."""
        subnet = {"smallest": profile.smallest, "largest": profile.largest}.get(self.subnet, self.subnet)
        known = [entry.id for entry in profile.subnets]
        if subnet not in known:
            raise PolicyError(f"fixed: no subnet {subnet!r} on {profile.device!r}; it has {', '.join(known)}")
        return subnet

    def best(self, profile: Profile) -> str:
        """Return the fixed subnet itself."""
        return self.cheapest(profile)

    def choose(self, view: View) -> Choice | None:
        """Return the subnet with the largest batch that fits."""
        return self.serve(view, view.worker.cheapest)
