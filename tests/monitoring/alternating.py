"""A policy that changes the subnet with every batch."""

from dataclasses import dataclass

from common.sched.policies import View
from common.sched.profile import Profile
from common.sched.types import Choice


@dataclass(frozen=True)
class Alternating:
    """Largest, smallest, largest, ..."""

    def cheapest(self, profile: Profile) -> str:
        return profile.smallest

    def choose(self, view: View) -> Choice:
        profile = view.profile
        subnet = profile.smallest if view.worker.subnet == profile.largest else profile.largest
        return Choice(subnet, max(view.head.rows, profile.max_batch))
