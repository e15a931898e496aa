"""The simulator drives the core and decides nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.sched import Arrived, BatchDone, Profile, Scheduler, SchedulerOptions, parse_policy
from common.sched.eventlog import EventLog
from common.sched.eventlog import replay as replay_log
from loadgen import simulate as simulator
from loadgen.bounds import latency_factor
from loadgen.conditions import Conditions, Costs, Delays
from loadgen.records import Records
from loadgen.report import RunInfo, attained, make_report, met_slo
from loadgen.simulate import Simulation, simulate
from loadgen.workload import Tenant, Workload, make_workload
from tests.sched.harness import PROFILE, SMALL, make_profile


def at_us(arrivals_us: list[int], slo_ms: float, **rest: float) -> Workload:
    return Workload.of_one(np.array(arrivals_us) / 1e6, Tenant(slo_ms=slo_ms, **rest))  # type: ignore[arg-type]


def steady(count: int, gap_us: int, slo_ms: float) -> Workload:
    return at_us([i * gap_us for i in range(count)], slo_ms)


def play(
    workload: Workload,
    conditions: Conditions,
    announced: Profile | None = None,
    *,
    policy: str = "slackfit:quantile=median",
    names: tuple[str, ...] = ("w0", "w1"),
    **options: int,
) -> Records:
    scheduler = Scheduler(parse_policy(policy), SchedulerOptions(**options))  # type: ignore[arg-type]
    claims = dict.fromkeys(names, announced) if announced else None
    records = Simulation(scheduler, dict.fromkeys(names, PROFILE), conditions, claims).run(workload)
    scheduler.check()
    answered = int((~np.isnan(records.done_s)).sum())
    assert answered + len(records.errors) == len(workload.intended_s)
    assert scheduler.accepted == scheduler.done + scheduler.rejected
    return records


def subnets(records: Records) -> list[str]:
    return [records.subnets[code] for code in records.subnet]


def test_light_load_is_served_by_the_best_subnet() -> None:
    """One query every 100 ms with 30 ms to spare: all met, all by the large subnet, in its 20 ms plus two hops."""
    records = play(steady(50, 100_000, 30.0), Conditions(hop_us=500), reply_margin_us=500)
    assert attained(records) == (1.0, 80.0)
    assert set(subnets(records)) == {"big"}
    assert (records.done_s - records.workload.intended_s) * 1e3 == pytest.approx(21.0)


def test_schedule_computed_by_hand() -> None:
    """Four queries on one worker, 1 ms per message, MaxBatch: times, subnets and outcomes as computed by hand.

    The first runs at once: 20 ms of `big`, from 1 to 21 ms. At 20 ms the worker is expected to be free: the other three
    have 40 ms less the reply's 1 ms from then, as nothing is known yet of the hop there, and `big` takes 40 ms for
    three. It runs from 21 to 61 ms: the reply comes at 62 ms, too late for the query of 1 ms, on time for that of 2 ms.
    """
    workload = at_us([0, 1_000, 2_000, 3_000], 60.0)
    policy = "maxbatch:quantile=median"
    records = play(workload, Conditions(hop_us=1_000), policy=policy, names=("w",), reply_margin_us=1_000)
    assert records.done_s.tolist() == pytest.approx([0.022, 0.062, 0.062, 0.062])
    assert records.batch_size.tolist() == [1, 3, 3, 3]
    assert subnets(records) == ["big"] * 4
    assert records.queue_ms.tolist() == pytest.approx([1, 20, 19, 18])
    assert records.inference_ms.tolist() == pytest.approx([20, 40, 40, 40])
    assert met_slo(records).tolist() == [True, False, True, True]
    assert records.deadline_met.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(("load", "workers"), [(0.5, 1), (0.8, 1)])
def test_waiting_times_of_a_queue_with_known_answer(load: float, workers: int) -> None:
    """Poisson arrivals, a constant service time, no deadline that matters: the mean wait is that of M/D/1."""
    profile = Profile("test", "emulated", (1,), (replace(SMALL, median_us=(1_000,), p95_us=(1_000,)),))
    workload = make_workload("poisson", rate=load * 1_000, duration_s=60, seed=3, slo_ms=10_000)
    records = simulate(Scheduler(parse_policy("fixed:smallest")), workload, profile, workers)
    expected_ms = load / (2 * (1 - load))
    assert float(records.queue_ms.mean()) == pytest.approx(expected_ms, rel=0.08)
    assert attained(records)[0] == 1.0


def test_overload_rejects_what_cannot_be_served() -> None:
    """At twice the capacity, 4 rows per 16 ms and worker, half is served in time and the rest is rejected as late."""
    records = play(steady(4_000, 1_000, 60.0), Conditions())
    assert 0.45 < attained(records)[0] < 0.55
    assert set(records.errors.values()) == {"late"}


def test_same_seed_same_outcomes() -> None:
    """Jitter and tail are drawn from the seed: a run repeats exactly, and another seed differs."""
    workload = steady(500, 5_000, 60.0)
    done_s = [play(workload, Conditions(jitter=0.2, tail=0.05, seed=seed)).done_s for seed in (1, 1, 2)]
    runs = [np.nan_to_num(times, nan=-1.0).tolist() for times in done_s]
    assert runs[0] == runs[1] != runs[2]


def test_dead_workers_lose_no_query() -> None:
    """Every query has its outcome when workers die in mid-batch, and when none is left."""
    deaths = ((100_500, "w0"), (200_500, "w1"))
    records = play(steady(400, 1_000, 60.0), Conditions(deaths=deaths))
    assert {reason for query, reason in records.errors.items() if query > 210} == {"no_worker"}
    assert records.done_s[~np.isnan(records.done_s)].max() <= 0.2005


def test_a_worker_that_joins_late_serves_from_then_on() -> None:
    """A worker in `joins` takes no batch before its time, and takes some after."""
    records = play(steady(400, 2_000, 60.0), Conditions(joins=((400_000, "w1"),)))
    late = np.array([records.workers[code] == "w1" for code in records.worker])
    assert late.any()
    assert records.done_s[late].min() > 0.4


def test_a_worker_that_turns_slow_takes_longer_from_then_on() -> None:
    """The factor holds for batches that start after its time, on that worker alone."""
    conditions = Conditions(slow=((1_000_000, "w", 3.0),))
    records = play(steady(40, 50_000, 49.0), conditions, names=("w",), policy="fixed:small")
    took_ms = records.inference_ms
    assert took_ms[:20].tolist() == pytest.approx([10.0] * 20)
    assert took_ms[21:] == pytest.approx(30.0)


def test_a_change_of_subnet_costs_its_actuation() -> None:
    """The first batch, and each that runs another subnet than the one before, takes `actuation_us` longer."""
    records = play(
        Workload(
            np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
            np.array([0, 0, 1, 1, 0, 0], np.int32),
            (Tenant("loose", 70.0), Tenant("strict", 70.0, min_accuracy=75.0)),
        ),
        Conditions(actuation_us=5_000),
        names=("w",),
        policy="fixed:small",
    )
    assert subnets(records) == ["small", "small", "big", "big", "small", "small"]
    assert records.inference_ms.tolist() == pytest.approx([15, 10, 25, 20, 15, 10])


def test_measured_profile_shows_jitter_and_overhead() -> None:
    """A profile measured under jitter has it in median and p95, and the overhead once per batch."""
    measured = Conditions(jitter=0.1, overhead_us=1_000).measured(PROFILE)
    assert measured.latency_us("small", 1) == pytest.approx(11_000 + 674, abs=1)
    assert measured.latency_us("small", 1, "p95") == pytest.approx(11_000 + 1_960, abs=1)


def test_mean_factor_is_what_batches_take() -> None:
    """Over many batches the mean time over the median is the factor that the bounds use."""
    conditions = Conditions(jitter=0.2, tail=0.1)
    records = play(steady(4_000, 50_000, 200.0), conditions, names=("w",), policy="fixed:small")
    assert float(records.inference_ms.mean()) / 10.0 == pytest.approx(latency_factor(0.2, 0.1), rel=0.02)


def test_announced_profile_need_not_be_true() -> None:
    """Workers that claim to be far faster than they are miss deadlines that honest ones meet."""
    claims = [replace(s, median_us=(1_000, 2_000, 3_000), p95_us=(1_000, 2_000, 3_000)) for s in PROFILE.subnets]
    workload = steady(50, 20_000, 19.0)
    honest, lying = play(workload, Conditions()), play(workload, Conditions(), make_profile(*claims))
    assert attained(honest)[0] == 1.0
    assert set(subnets(honest)) == {"small"}
    assert attained(lying)[0] < 0.9


@settings(max_examples=40, deadline=None)
@given(
    gaps_us=st.lists(st.integers(0, 12_000), min_size=1, max_size=120),
    codes=st.lists(st.integers(0, 2), min_size=120, max_size=120),
    jitter=st.sampled_from([0.0, 0.3]),
)
def test_packs_of_arrivals_change_no_decision(gaps_us: list[int], codes: list[int], jitter: float) -> None:
    """Handing idle arrivals over as packs gives, with a policy that reads no rate, what one event per query gives."""
    times_us = np.cumsum(gaps_us)
    tenants = (Tenant("a", 60.0), Tenant("b", 25.0, rows=2), Tenant("c", 100.0, min_accuracy=75.0))
    workload = Workload(times_us / 1e6, np.array(codes[: len(gaps_us)], np.int32), tenants)
    packed = play(workload, Conditions(jitter=jitter, hop_us=300), reply_margin_us=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulator, "bisect_right", lambda times, value, lo: lo)
        singly = play(workload, Conditions(jitter=jitter, hop_us=300), reply_margin_us=300)
    assert np.array_equal(packed.done_s, singly.done_s, equal_nan=True)
    assert subnets(packed) == subnets(singly)
    assert packed.errors == singly.errors


def test_most_arrivals_under_load_are_packed() -> None:
    """What makes it fast: under load there are far fewer events of arrival than queries, and each query is in one."""
    lines: list[str] = []
    scheduler = Scheduler(parse_policy("slackfit"))
    workload = make_workload("poisson", rate=2_000, duration_s=1.0, seed=1, slo_ms=60)
    simulate(scheduler, workload, PROFILE, 10, log=EventLog(lines.append, scheduler))
    arrived = [line for line in lines if '"arrived"' in line]
    assert len(arrived) < len(workload.intended_s) / 3
    assert scheduler.accepted == len(workload.intended_s)


def test_logged_events_replay_to_the_same_end() -> None:
    """The log of a simulation, replayed through a fresh core, dispatches and rejects as many queries."""
    lines: list[str] = []
    scheduler = Scheduler(parse_policy("foresight"))
    workload = make_workload("bursty:base=200,variant=400,cv2=8", duration_s=2.0, seed=1, slo_ms=60)
    conditions = Conditions(jitter=0.1, deaths=((700_000, "worker-1"),))
    records = simulate(scheduler, workload, PROFILE, 4, conditions, log=EventLog(lines.append, scheduler))
    names = [type(command).__name__ for _, _, commands in replay_log(lines) for command in commands]
    assert names.count("Reject") == len(records.errors)
    assert names.count("Dispatch") >= len({(w, t) for w, t in zip(records.worker, records.done_s, strict=True) if w})


def test_report_of_a_simulation_is_that_of_a_replay() -> None:
    """`make_report` takes a simulation's records: the executor says so, and the figures are those of the records."""
    records = play(steady(200, 5_000, 40.0), Conditions(jitter=0.1))
    info = RunInfo(
        url="simulation", model="test", trace="constant", rate=200, duration_s=1.0, slo_ms=40.0, seed=0, data="none",
        started_at="",
    )  # fmt: skip
    report = make_report(records, info)
    assert report.executor == "simulated"
    assert report.policy.startswith("slackfit:")
    assert report.queries == report.answered + report.errors == 200
    assert (report.slo_attainment, report.serving_accuracy) == attained(records)
    assert math.isclose(sum(report.subnets.values()), 1.0)
    assert report.label_accuracy is None
    assert set(report.workers) == {"w0", "w1"}


def test_progress_is_told_to_the_end() -> None:
    """The progress callback hears of ever more queries, the last time of all."""
    told: list[int] = []
    workload = make_workload("constant", rate=1_000, duration_s=20.0, slo_ms=60)
    simulate(Scheduler(parse_policy("slackfit")), workload, PROFILE, 2, progress=told.append)
    assert told == sorted(told)
    assert len(told) > 1
    assert told[-1] == 20_000


def test_measured_costs_are_drawn_for_each_batch_and_message() -> None:
    """One query at a time on an idle worker: queue, inference, report and reply take what the costs say."""
    costs = Costs(*(Delays((0,), (us,)) for us in (500, 1_000, 300, 2_000, 7_000, 0)))
    lines: list[str] = []
    scheduler = Scheduler(parse_policy("maxacc"), SchedulerOptions())
    log = EventLog(lines.append, scheduler)
    workload = steady(5, 100_000, 60.0)
    records = Simulation(scheduler, {"w": PROFILE}, Conditions(costs=costs), log=log).run(workload)
    assert records.queue_ms.tolist() == pytest.approx([1.5] * 5)
    assert records.inference_ms.tolist() == pytest.approx([20.3] * 5)
    assert (records.done_s - records.workload.intended_s).tolist() == pytest.approx([0.0288] * 5)
    times = [(now_us, type(event)) for now_us, event, _ in replay_log(lines)]
    assert [now_us for now_us, kind in times if kind is Arrived] == [i * 100_000 + 500 for i in range(5)]
    assert [now_us for now_us, kind in times if kind is BatchDone] == [i * 100_000 + 23_800 for i in range(5)]


def test_costs_are_those_of_the_moment() -> None:
    """Batches take longer when batches did, queries are heard of late when they were; equal seeds draw equally."""
    none, later = Delays((0,), (0,)), Delays(tuple(range(-9, 6_000_000 - 9, 60_000)), (0,) * 50 + (4_000, 6_000) * 25)
    costs = Costs(later, none, later, none, none, none)
    workload = steady(100, 60_000, 60.0)
    runs = [play(workload, Conditions(costs=costs, seed=seed)) for seed in (1, 1, 2)]
    assert runs[0].done_s.tolist() == runs[1].done_s.tolist() != runs[2].done_s.tolist()
    assert set(runs[0].inference_ms[:45].round(3).tolist()) == {20.0}
    assert set(runs[0].inference_ms[55:].round(3).tolist()) == {24.0, 26.0}
    assert runs[0].queue_ms.tolist() == pytest.approx([0.0] * 50 + [4.0, 6.0] * 25)


def test_queries_heard_of_late_keep_their_order() -> None:
    """While one is on its way those behind it wait: the core hears of them as they were sent."""
    none = Delays((0,), (0,))
    costs = Costs(Delays((0, 10_000, 20_000), (0, 15_000, 0)), none, none, none, none, none)
    records = play(at_us([0, 10_000, 20_000, 30_000], 90.0), Conditions(costs=costs), names=("a", "b", "c", "d"))
    assert records.queue_ms.tolist() == pytest.approx([0, 15, 5, 0])
