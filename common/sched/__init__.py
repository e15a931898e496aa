"""The scheduling core: every decision SuperServe takes, and nothing else.

Pure: standard library only, no await, clock, random number, environment or I/O. `docs/scheduling.md` tells the theory.
"""

from common.sched.core import Scheduler
from common.sched.options import SchedulerOptions
from common.sched.policies import parse_policy
from common.sched.profile import Profile, ProfileError
from common.sched.types import (
    Arrived,
    Batch,
    BatchDone,
    Choice,
    Command,
    Dispatch,
    Event,
    Query,
    Reason,
    Reject,
    Tick,
    WakeAt,
    WorkerDraining,
    WorkerHello,
    WorkerLost,
)

__all__ = [
    "Arrived",
    "Batch",
    "BatchDone",
    "Choice",
    "Command",
    "Dispatch",
    "Event",
    "Profile",
    "ProfileError",
    "Query",
    "Reason",
    "Reject",
    "Scheduler",
    "SchedulerOptions",
    "Tick",
    "WakeAt",
    "WorkerDraining",
    "WorkerHello",
    "WorkerLost",
    "parse_policy",
]
