"""`loadgen simulate`: one trace through the simulator under each policy asked for, reported as `replay` reports."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.sched.core import Scheduler
from common.sched.eventlog import EventLog
from common.sched.options import Late
from common.sched.policies import Policy, PolicyError, parse_policy
from common.sched.policies.base import bounds_of, learner_of
from common.sched.profile import Profile, ProfileError
from loadgen.conditions import Conditions, core_options
from loadgen.errors import InputError
from loadgen.profiles import load_profile
from loadgen.report import Report, RunInfo, make_report
from loadgen.simulate import simulate
from loadgen.spec import MOST_SLO_MS
from loadgen.workload import make_workload

MOST_SLOWER = 1e6  # times: a batch of hours


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """What to simulate. Equal options give equal reports but for when they were made."""

    profile: str = "rtx2080ti-reconstructed"
    workers: int = 8
    trace: str = "poisson"  # a SPEC, see `loadgen.spec`
    rate: float | None = None  # mean queries per second; None: the SPEC's own
    duration_s: float = 10.0
    slo_ms: float = 36.0
    seed: int = 0
    rows: int = 1  # per query
    jitter: float = 0.0
    tail: float = 0.0
    overhead_ms: float = 0.0
    hop_ms: float = 0.0
    actuation_ms: float = 0.0
    kills: Sequence[str] = ()  # NAME@SECONDS
    joins: Sequence[str] = ()  # NAME@SECONDS
    slow: Sequence[str] = ()  # NAME@SECONDSxFACTOR
    late: Late = "drop"
    event_log: Path | None = None
    conditions: Conditions = field(init=False)

    def __post_init__(self) -> None:
        """Read the conditions. InputError names the first option that cannot be used."""
        for key in ("jitter", "tail", "overhead_ms", "hop_ms", "actuation_ms"):
            value, most = getattr(self, key), 1.0 if key == "tail" else MOST_SLO_MS
            if not 0 <= value <= most:
                raise InputError(
                    key, value, "must be a share in [0, 1]" if key == "tail" else f"must be >= 0 and <= {most:g}"
                )
        for key, least in (("workers", 1), ("rows", 1)):
            if getattr(self, key) < least:
                raise InputError(key, getattr(self, key), f"must be >= {least}")
        if not 0 < self.slo_ms <= MOST_SLO_MS:
            raise InputError("slo_ms", self.slo_ms, f"must be > 0 and <= {MOST_SLO_MS:g}")
        slow = [self._at("slow", text, "x") for text in self.slow]
        conditions = Conditions(
            jitter=self.jitter,
            tail=self.tail,
            overhead_us=round(self.overhead_ms * 1e3),
            hop_us=round(self.hop_ms * 1e3),
            actuation_us=round(self.actuation_ms * 1e3),
            deaths=tuple((us, name) for us, name, _ in (self._at("kill", text) for text in self.kills)),
            joins=tuple((us, name) for us, name, _ in (self._at("join", text) for text in self.joins)),
            slow=tuple(slow),
            seed=self.seed,
        )
        object.__setattr__(self, "conditions", conditions)

    def _at(self, key: str, text: str, behind: str = "") -> tuple[int, str, float]:
        """Read NAME@SECONDS, with `behind` also the number behind it; NAME must be one of the workers."""
        name, _, rest = text.partition("@")
        seconds, _, factor = rest.partition(behind) if behind else (rest, "", "1")
        try:
            at_us, value = round(float(seconds) * 1e6), float(factor)
        except (ValueError, OverflowError):
            wanted = f"NAME@SECONDS{behind}FACTOR" if behind else "NAME@SECONDS"
            raise InputError(key, text, f"write {wanted}, as in worker-0@2.5{behind and f'{behind}3'}") from None
        if name not in (f"worker-{i}" for i in range(self.workers)):
            raise InputError(key, text, f"workers are worker-0 to worker-{self.workers - 1}")
        if at_us < 0 or not 0 < value <= MOST_SLOWER:
            raise InputError(
                key, text, "needs a time >= 0" + (f" and a factor in (0, {MOST_SLOWER:g}]" if behind else "")
            )
        return at_us, name, value


def check_policy(spec: str, profile: Profile) -> Policy:
    """Read a policy that is to work with a profile. InputError if it cannot be used."""
    try:
        policy = parse_policy(spec)
        bounds_of(policy, profile)
        learner_of(policy)
    except (PolicyError, ProfileError) as error:
        raise InputError("policy", spec, str(error)) from None
    return policy


def simulate_policy(
    policy: str, options: SimulateOptions, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Simulate one policy. InputError for a policy, profile or trace that cannot be used, and when the policy fails.

    `progress` is told how many queries have arrived, and of how many. With `event_log`, the core's events are written
    there, to be replayed by `common.sched.eventlog`.
    """
    profile = load_profile(options.profile)
    workload = make_workload(
        options.trace,
        rate=options.rate,
        duration_s=options.duration_s,
        seed=options.seed,
        slo_ms=options.slo_ms,
        rows=options.rows,
    )
    scheduler = Scheduler(check_policy(policy, profile), core_options(options.conditions, options.late))
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    queries = len(workload.intended_s)
    count = None if progress is None else lambda arrived: progress(arrived, queries)
    cpu_s = time.thread_time()
    with contextlib.ExitStack() as stack:
        log = None
        if options.event_log is not None:
            log = EventLog(stack.enter_context(options.event_log.open("w")).write, scheduler)
        records = simulate(scheduler, workload, profile, options.workers, options.conditions, progress=count, log=log)
    cpu_s = time.thread_time() - cpu_s
    info = RunInfo(
        url="simulation",
        model=profile.model or options.profile,
        trace=options.trace,
        rate=options.rate,
        duration_s=options.duration_s,
        slo_ms=options.slo_ms,
        seed=options.seed,
        data="none",
        started_at=started_at,
        sender_cpu_us=cpu_s * 1e6 / queries,
    )
    return make_report(records, info)
