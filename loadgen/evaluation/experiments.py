"""What is run: the experiments of the paper's section 6 and the further ones, each a set of cases.

Where the paper leaves a thing open, the choice stands here. All is simulated; `agreement` holds simulation and mesh
against each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from common.sched.options import Late
from loadgen.conditions import Conditions
from loadgen.evaluation.cases import TRANSFORMER, Case, World
from loadgen.profiles import load_profile

OURS, SLACKFIT, PAPERS_SLACKFIT = "foresight", "slackfit", "slackfit:quantile=median"
MAXBATCH, MAXACC, INFAAS, PROTEUS, BROWNOUT = "maxbatch", "maxacc", "infaas", "proteus", "brownout"
COARSE, SWITCHING = "coarse:slackfit", "proteus:period_s=2"
LATE: tuple[Late, ...] = ("drop", "serve")

VARIANTS, CV2 = (2950, 4900, 5550), (2, 4, 8)
ENDS, ACCELS = (4800, 6800, 7800), (250, 500, 5000)
DELAYS_MS = (0, 10, 25, 50, 75, 100)
JITTERS = {"0": (0.0, 0.0), "10 %": (0.1, 0.0), "20 %": (0.2, 0.0), "hv": (0.1, 0.01)}  # jitter, tail
OVERHEADS_US = (0, 1_000)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Seconds of each kind of trace, and how many seeds."""

    maf: float
    steady: float  # bursty, policies
    ramp: float
    jitter: float
    faults: float
    way_back: float
    mixed: float
    overloaded: float
    small: int  # instances


FULL = Lengths(maf=120, steady=10, ramp=22, jitter=20, faults=60, way_back=12, mixed=30, overloaded=6, small=24)
QUICK = Lengths(maf=6, steady=2, ramp=2, jitter=2, faults=6, way_back=8, mixed=4, overloaded=2, small=4)


@dataclass(frozen=True, slots=True)
class Cell:
    """One world of an experiment under several policies and late rules."""

    name: str
    world: World
    policies: Sequence[str]
    late: Sequence[Late] = ("drop",)

    def cases(self) -> Iterator[Case]:
        """Every policy under every rule."""
        for policy, late in itertools.product(self.policies, self.late):
            yield Case(world=self.world, policy=policy, late=late)


@dataclass(frozen=True, slots=True)
class Experiment:
    """Cells that are reported together. `key` names it in summary.json."""

    key: str
    title: str
    about: str
    cells: Sequence[Cell]
    paper: dict[str, float] = field(default_factory=dict)


def clippers(profile: str) -> list[str]:
    """Clipper+ of each subnet but the smallest, by accuracy: that one does what INFaaS does without thresholds."""
    return [f"fixed:{subnet.id}" for subnet in load_profile(profile).subnets[1:]]


def is_baseline(policy: str) -> bool:
    """Whether a policy is one that the paper compares with: a fixed subnet, or the cheapest."""
    return policy == INFAAS or policy.startswith("fixed:")


def experiments(maf: str, lengths: Lengths) -> list[Experiment]:
    """All of them. maf: the SPEC of the day that stands for the Azure Functions trace."""
    return [
        _maf_cnn(maf, lengths),
        _maf_transformer(maf, lengths),
        _bursty(lengths),
        _time_varying(lengths),
        _policies(lengths),
        _faults(lengths),
        _actuation(maf, lengths),
        _way_back(lengths),
        _jitter(maf, lengths),
        _mixed(lengths),
        _overloaded(lengths),
        _small(lengths),
    ]


def _maf_cnn(maf: str, lengths: Lengths) -> Experiment:
    world = World(trace=maf, duration_s=lengths.maf, rate=6_400.0)
    policies = [OURS, SLACKFIT, PAPERS_SLACKFIT, MAXBATCH, MAXACC, PROTEUS, BROWNOUT, INFAAS, *clippers(world.profile)]
    return Experiment(
        "maf_cnn",
        "MAF, convolutional supernet",
        "A day of the Azure Functions trace shrunk, 8 workers, mean 6,400 q/s, SLO 36 ms (paper, figure 8).",
        [Cell("maf", world, policies, LATE)],
        {"accuracy_gain_points": 4.67, "attainment_ratio": 2.85, "slo_attainment": 0.99999},
    )


def _maf_transformer(maf: str, lengths: Lengths) -> Experiment:
    world = World(trace=maf, duration_s=lengths.maf, rate=1_150.0, slo_ms=200.0, profile=TRANSFORMER)
    policies = [OURS, SLACKFIT, PAPERS_SLACKFIT, MAXBATCH, PROTEUS, INFAAS, *clippers(TRANSFORMER)]
    return Experiment(
        "maf_transformer",
        "MAF, transformer supernet",
        "The same day at a mean of 1,150 q/s. The profile is derived, not measured, and the SLO of 200 ms is ours: "
        "1.14 times the largest subnet's largest batch, as 36 ms is for the convolutional one.",
        [Cell("maf", world, policies, LATE)],
        {"accuracy_gain_points": 1.72, "attainment_ratio": 1.2},
    )


def _bursty(lengths: Lengths) -> Experiment:
    cells = []
    for variant, cv2 in itertools.product(VARIANTS, CV2):
        world = World(trace=f"bursty:base=1500,variant={variant},cv2={cv2}", duration_s=lengths.steady)
        policies = [OURS, SLACKFIT, PAPERS_SLACKFIT, INFAAS, *clippers(world.profile)]
        cells.append(Cell(f"variant={variant},cv2={cv2}", world, policies))
    return Experiment(
        "bursty",
        "Bursty traces",
        "1,500 q/s evenly spaced and gamma arrivals of 2,950 to 5,550 q/s, CV² 2, 4, 8 (paper, figure 9).",
        cells,
        {"accuracy_gain_points": 4.33, "attainment_ratio": 2.06, "slo_attainment": 0.999},
    )


def _time_varying(lengths: Lengths) -> Experiment:
    cells = []
    for end, accel in itertools.product(ENDS, ACCELS):
        world = World(trace=f"ramp:start=2500,end={end},accel={accel},cv2=8", duration_s=lengths.ramp)
        policies = [OURS, SLACKFIT, PAPERS_SLACKFIT, INFAAS, *clippers(world.profile)]
        cells.append(Cell(f"end={end},accel={accel}", world, policies))
    return Experiment(
        "time_varying",
        "Time-varying traces",
        "From 2,500 q/s to 4,800 to 7,800 at 250 to 5,000 q/s², CV² 8 (paper, figure 10).",
        cells,
        {"slo_attainment": 0.991},
    )


def _policies(lengths: Lengths) -> Experiment:
    cells = [
        Cell(
            f"cv2={cv2}",
            World(trace=f"bursty:base=1500,variant=5550,cv2={cv2}", duration_s=lengths.steady),
            [OURS, SLACKFIT, PAPERS_SLACKFIT, MAXBATCH, MAXACC, PROTEUS, BROWNOUT],
            LATE,
        )
        for cv2 in CV2
    ]
    return Experiment(
        "policies",
        "Policies",
        "1,500 + 5,550 q/s, CV² 2, 4, 8 (paper, figure 11c: SlackFit 0.999, MaxBatch loses 5 % at CV² 8, MaxAcc cannot "
        "keep up).",
        cells,
        {"slo_attainment": 0.999},
    )


def _faults(lengths: Lengths) -> Experiment:
    apart_s = lengths.faults / 5
    deaths = tuple((round(apart_s * (i + 1) * 1e6), f"worker-{7 - i}") for i in range(4))
    world = World(
        trace="bursty:base=0,variant=3500,cv2=2", duration_s=lengths.faults, conditions=Conditions(deaths=deaths)
    )
    return Experiment(
        "faults",
        "Faults",
        "3,500 q/s, CV² 2; one of 8 workers is killed every fifth of the run, 12 s in the paper, until half are left "
        "(paper, figure 11a: about 0.999 down to half of the workers, while accuracy steps down).",
        [Cell("kills", world, [OURS, SLACKFIT, MAXBATCH, INFAAS, *clippers(world.profile)[-2:]])],
        {"slo_attainment": 0.999},
    )


def _actuation(maf: str, lengths: Lengths) -> Experiment:
    cells = [
        Cell(
            f"{delay_ms}",
            World(
                trace=maf,
                duration_s=lengths.jitter,
                rate=6_400.0,
                conditions=Conditions(jitter=0.1, actuation_us=delay_ms * 1_000),
            ),
            [OURS, SLACKFIT, PAPERS_SLACKFIT, COARSE, SWITCHING],
        )
        for delay_ms in DELAYS_MS
    ]
    return Experiment(
        "actuation_delay",
        "Actuation delay",
        "MAF at 6,400 q/s where a change of subnet costs a worker 0 to 100 ms, jitter 10 % (paper, figure 1b). "
        f"`{COARSE}` knows the delay and changes only when there is time; `{SWITCHING}` changes when a period ends. "
        "The paper tells of up to 75 times as many misses at 100 ms as at 0.",
        cells,
        {"miss_ratio": 75.0},
    )


def _way_back(lengths: Lengths) -> Experiment:
    burst = f"poisson:rate=2000+poisson:rate=9000,from={lengths.way_back / 3:g},to={lengths.way_back / 2:g}"
    policies = [OURS, SLACKFIT, MAXBATCH, BROWNOUT, PROTEUS]
    cells = [Cell("0", World(trace=burst, duration_s=lengths.way_back), policies)]
    slow = Conditions(actuation_us=100_000)
    cells.append(Cell("100", World(trace=burst, duration_s=lengths.way_back, conditions=slow), [SLACKFIT, COARSE]))
    return Experiment(
        "way_back",
        "The way back",
        "2,000 q/s, and 9,000 more for a sixth of the run, unannounced: how soon after the burst each policy serves at "
        "the accuracy of before it again. In the second cell a change of subnet costs 100 ms.",
        cells,
    )


def _jitter(maf: str, lengths: Lengths) -> Experiment:
    cells = []
    policies = [OURS, SLACKFIT, PAPERS_SLACKFIT, "slackfit:quantile=p95", "maxbatch:quantile=median", MAXBATCH, INFAAS]
    for overhead_us, (name, (jitter, tail)) in itertools.product(OVERHEADS_US, JITTERS.items()):
        conditions = Conditions(jitter=jitter, tail=tail, overhead_us=overhead_us)
        world = World(trace=maf, duration_s=lengths.jitter, rate=6_400.0, conditions=conditions)
        cells.append(Cell(f"{name}{' + 1 ms' if overhead_us else ''}", world, policies))
    return Experiment(
        "jitter",
        "Latency that varies",
        "MAF at 6,400 q/s; a batch takes its median times 1 + |N(0, jitter)|, `hv` is 10 % and one batch in a "
        "hundred at twice the time; overhead 0 or 1 ms a batch.",
        cells,
    )


MIXED = (
    "bursty:base=800,variant=1200,cv2=4,tenant=interactive,slo_ms=36,priority=0"
    "+poisson:rate=600,tenant=accurate,slo_ms=100,min_accuracy=79,priority=0"
    "+poisson:rate=1200,tenant=background,slo_ms=250,priority=9"
    "+poisson:rate=6000,from={start:g},to={end:g},tenant=interactive,slo_ms=36,priority=0"
)


def _mixed(lengths: Lengths) -> Experiment:
    trace = MIXED.format(start=lengths.mixed / 3, end=lengths.mixed / 2)
    world = World(trace=trace, duration_s=lengths.mixed, conditions=Conditions(jitter=0.1))
    return Experiment(
        "mixed",
        "Tenants and floors",
        "Three tenants in one queue: interactive (SLO 36 ms, bursty, 6,000 q/s more for a sixth of the "
        "run), accurate (SLO 100 ms, at least 79 %), background (SLO 250 ms, priority 9, behind the others at equal "
        "deadlines).",
        [Cell("mixed", world, [OURS, SLACKFIT, MAXBATCH])],
    )


OVERLOADED = (
    "poisson:rate=6000,tenant=interactive,slo_ms=36,priority=0"
    "+poisson:rate=6000,tenant=behind,slo_ms=36,priority=9"
    "+poisson:rate=1000,tenant=accurate,slo_ms=100,min_accuracy=79,priority=0"
    "+poisson:rate=4500,tenant=background,slo_ms=250,priority=9"
)


def _overloaded(lengths: Lengths) -> Experiment:
    world = World(trace=OVERLOADED, duration_s=lengths.overloaded, conditions=Conditions(jitter=0.1))
    return Experiment(
        "overloaded",
        "Tenants and floors, overloaded",
        "About 120 % of what full batches of the smallest subnets allowed can carry: interactive (6,000 q/s, SLO 36 "
        "ms), behind (the same at priority 9), accurate (1,000 q/s, SLO 100 ms, at least 79 %), background (4,500 q/s, "
        "SLO 250 ms, priority 9).",
        [Cell("overloaded", world, [OURS, SLACKFIT, MAXBATCH, "fixed:smallest"])],
    )


def _small(lengths: Lengths) -> Experiment:
    cells = []
    for seed in range(lengths.small):
        rate = (700.0, 1_000.0, 1_300.0)[seed % 3]
        world = World(
            trace="bursty:base=1,variant=3,cv2=4", rate=rate, duration_s=30 / rate, seed=seed, workers=1, exact=True
        )
        policies = [OURS, SLACKFIT, PAPERS_SLACKFIT, MAXBATCH, MAXACC, INFAAS]
        cells.append(Cell(f"{rate:g} q/s, seed {seed}", world, policies))
    return Experiment(
        "small",
        "Small instances, solved exactly",
        f"{lengths.small} bursts of about 30 queries on one worker, 700 to 1,300 q/s, without jitter: what each policy "
        "reaches of the optimum of the paper's ZILP (section 4), and of the fluid bound that long traces are held to. "
        "The optimum knows every arrival beforehand. What `foresight` and `slackfit` learn needs more batches "
        "than there are here: they allow half as much again for each.",
        cells,
    )
