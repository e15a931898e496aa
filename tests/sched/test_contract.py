"""What every policy owes the core; one's own is held to it as well: ``pytest tests/sched/test_contract.py --policy
module:Class``, in the folder of the module or with it on the path."""

import ast
import inspect
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from common.sched.policies import available, parse_policy, spec_of
from common.sched.policies.base import learner_of
from common.sched.profile import Profile, Subnet
from tests.sched.harness import make_profile, make_view, query
from tests.sched.specs import ALL, SPECS
from tests.sched.test_machine import LATE, Machine
from tests.sched.test_purity import IMPURE, imports

UNKNOWN = 2.5  # what foresight's margin assumes a batch to take over its median while none was seen
AMPLE = 10.0  # times the median: a slack within which nobody's margin lets a query go


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Hold the policies of ``--policy`` to it too; ``own`` are those alone."""
    given_specs: list[str] = metafunc.config.getoption("--policy")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    if "spec" in metafunc.fixturenames:
        metafunc.parametrize("spec", [*ALL, *given_specs])
    if "own" in metafunc.fixturenames:
        metafunc.parametrize("own", [*SPECS.values(), *given_specs])


def registered(spec: str) -> bool:
    return spec.partition(":")[0] in available()


def allowed_us(spec: str, profile: Profile, subnet: str, rows: int) -> float:
    """What a policy allows a batch: the profile's p95, or its median with the margin that is learned; of one's own
    nothing is known but that the median must fit."""
    if not registered(spec):
        return profile.latency_us(subnet, rows)
    if spec.startswith("foresight"):
        return profile.latency_us(subnet, rows) * UNKNOWN
    return profile.latency_us(subnet, rows, "p95")


def ample_us(spec: str, profile: Profile, subnet: str, rows: int) -> float:
    """A slack within which a policy does not let a query go that this subnet would serve in such a batch."""
    return allowed_us(spec, profile, subnet, rows) * (1.0 if registered(spec) else AMPLE)


def last_resort(spec: str, profile: Profile) -> str:
    """The subnet below which a policy that has seen nothing lets the head go: a brownout's level is the top then."""
    return profile.largest if spec.startswith(("brownout", "coarse:brownout")) else parse_policy(spec).cheapest(profile)


latencies = st.lists(st.integers(1, 50_000), min_size=3, max_size=3).map(lambda us: tuple(sorted(us)))


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    subnets = []
    for i in range(draw(st.integers(1, 4))):
        median, p95 = draw(latencies), draw(latencies)
        subnets.append(Subnet(f"s{i}", 70.0 + i, median, p95))
    return make_profile(*subnets)


def test_every_registered_policy_is_under_contract() -> None:
    """The contract below runs against each policy of the registry."""
    assert set(SPECS) == set(available())


@settings(max_examples=60, deadline=None)
@given(
    profile=profiles(),
    slack_us=st.integers(-10_000, 200_000),
    rows=st.lists(st.integers(1, 6), min_size=1, max_size=10),
    demand=st.integers(0, 3),
)
def test_choice_is_legal(spec: str, profile: Profile, slack_us: int, rows: list[int], demand: int) -> None:
    """A choice satisfies the head, holds it and is no larger than a batch; only a head without a safe way is let go."""
    min_accuracy = profile.subnets[min(demand, len(profile.subnets) - 1)].accuracy
    queries = [query(i, i, rows=n, min_accuracy=min_accuracy) for i, n in enumerate(rows)]
    policy = parse_policy(spec)
    view = make_view(profile, queries, slack_us, profile.index(policy.cheapest(profile)), learner_of(policy))
    choice = policy.choose(view)
    assert policy.choose(view) == choice
    assert len(view.queue) == len(rows)
    if choice is None:
        resort = max(profile.index(last_resort(spec, profile)), view.worker.eligible(min_accuracy))
        cheapest = profile.subnets[resort].id
        assert ample_us(spec, profile, cheapest, max(rows[0], min(sum(rows), profile.max_batch))) > slack_us
        return
    assert profile.accuracy(choice.subnet) >= min_accuracy
    assert rows[0] <= choice.rows <= max(rows[0], profile.max_batch)


@settings(max_examples=60, deadline=None)
@given(profile=profiles(), slack_us=st.integers(1, 200_000), rows=st.integers(1, 6))
def test_lone_query_is_served_in_time_if_the_cheapest_can(
    spec: str, profile: Profile, slack_us: int, rows: int
) -> None:
    """With one query queued, the choice fits its slack, as the policy counts, whenever the cheapest subnet does."""
    policy = parse_policy(spec)
    cheapest = profile.index(policy.cheapest(profile))
    choice = policy.choose(make_view(profile, [query(1, rows=rows)], slack_us, cheapest, learner_of(policy)))
    if ample_us(spec, profile, last_resort(spec, profile), rows) <= slack_us:
        assert choice is not None
        assert allowed_us(spec, profile, choice.subnet, rows) <= slack_us


def test_full_spec_is_read_back(spec: str) -> None:
    """The full spec of a policy, every option spelled out, parses to an equal policy, which can be hashed."""
    policy = parse_policy(spec)
    again = parse_policy(spec_of(policy))
    assert (again, hash(again)) == (policy, hash(policy))


def test_learner_is_fresh(spec: str) -> None:
    """A policy that learns makes a learner of its own for each scheduler."""
    policy = parse_policy(spec)
    learner = learner_of(policy)
    assert learner is None or learner is not learner_of(policy)


def test_any_order_of_events_keeps_the_rules_and_replays(own: str) -> None:
    """Under random events each query ends exactly once, and the log of them replays to the same commands: a policy
    and its learner change by what they are told and shown, and by nothing else."""

    class Of(Machine):
        @initialize(late=st.sampled_from(LATE), cap=st.integers(1, 3))
        def start(self, late: Literal["drop", "serve"], cap: int) -> None:
            self.begin(own, late, cap)

    run_state_machine_as_test(Of, settings=settings(max_examples=10, stateful_step_count=40, deadline=None))


def test_neither_clock_nor_chance(own: str) -> None:
    """The module of a policy imports no clock, no chance and nothing of the outside world."""
    tree = ast.parse(Path(inspect.getfile(type(parse_policy(own)))).read_text())
    assert not {name.partition(".")[0] for name in imports(tree)} & IMPURE
