"""Profiles: interpolation, order, repair, and errors that name what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.sched.profile import Profile, ProfileError, Subnet
from tests.sched.harness import BIG, PROFILE, SMALL, make_profile

SHIPPED = Path(__file__).parents[2] / "services/worker/profiles/rtx2080ti-reconstructed.json"


def test_subnets_are_sorted_by_accuracy() -> None:
    """Whatever the order given, the smallest subnet is the least accurate one and the largest the most accurate."""
    profile = make_profile(BIG, SMALL)
    assert (profile.smallest, profile.largest, profile.max_batch) == ("small", "big", 4)
    assert [profile.accuracy(subnet.id) for subnet in profile.subnets] == [70.0, 80.0]


@pytest.mark.parametrize(("rows", "us"), [(1, 20_000), (2, 30_000), (3, 40_000), (4, 50_000), (9, 100_000)])
def test_latency_is_interpolated_and_extrapolated(rows: int, us: int) -> None:
    """Between batch sizes latency is linear, beyond the largest it continues along the last segment."""
    assert PROFILE.latency_us("big", rows) == us


def test_quantiles_are_kept_apart() -> None:
    """p95 is read from its own column."""
    assert PROFILE.latency_us("small", 2, "p95") == 13_000


def test_batches_below_the_smallest_profiled_cost_as_much() -> None:
    """With 4 as the smallest profiled batch, one row costs what four do; one size alone extrapolates in proportion."""
    profile = make_profile(Subnet("s", 1.0, (400,), (400,)), batch_sizes=(4,))
    assert [profile.latency_us("s", rows) for rows in (1, 4, 5)] == [400, 400, 500]


def test_floor_is_the_fastest_eligible_subnet() -> None:
    """The floor from a subnet on is the least median latency of it and all more accurate ones, even if P2 is broken."""
    odd = Subnet("odd", 75.0, (60_000, 70_000, 80_000), (60_000, 70_000, 80_000))
    profile = make_profile(SMALL, odd, BIG)
    assert [profile.floor_us(i, 2) for i in range(3)] == [12_000, 30_000, 30_000]
    assert profile.floor_us(0, 6) == 20_000
    assert [profile.first_at_least(accuracy) for accuracy in (0, 70, 70.1, 80, 81)] == [0, 0, 1, 2, 3]


def test_noise_is_repaired_and_told() -> None:
    """A latency that falls with batch is raised to the running maximum, a p95 to its median, and each is noted."""
    profile = make_profile(Subnet("s", 50.0, (100, 90, 120), (110, 120, 110)))
    assert profile.subnets[0].median_us == (100, 100, 120)
    assert profile.subnets[0].p95_us == (110, 120, 120)
    assert profile.repairs == (
        "s median_us at batch 2: raised from 90 to 100",
        "s p95_us at batch 4: raised from 110 to 120",
    )


@settings(deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=3), st.lists(st.integers(1, 10**6), min_size=3, max_size=3))
def test_latency_never_falls_with_batch(median: list[int], p95: list[int]) -> None:
    """P1 holds for any measurement, up to and beyond the largest batch, and p95 is never below the median."""
    profile = make_profile(Subnet("s", 50.0, tuple(median), tuple(p95)))
    for quantile in ("median", "p95"):
        latencies = [profile.latency_us("s", rows, quantile) for rows in range(1, 9)]
        assert latencies == sorted(latencies)
    assert all(profile.latency_us("s", n, "p95") >= profile.latency_us("s", n) for n in range(1, 5))


def test_shipped_profile_is_the_formula() -> None:
    """The reconstructed profile has the paper's six accuracies, l(16) as derived, and says that it is not measured."""
    data = json.loads(SHIPPED.read_text())
    profile = Profile.from_dict(data)
    assert [subnet.accuracy for subnet in profile.subnets] == [73.82, 76.69, 77.64, 78.25, 79.44, 80.16]
    assert [round(subnet.median_us[-1] / 1000, 2) for subnet in profile.subnets] == [
        7.35,
        12.36,
        17.61,
        19.05,
        23.03,
        30.69,
    ]
    assert profile.repairs == ()
    assert "reconstruction" in data["note"]
    assert "not measured" in data["note"].lower()


def test_json_form_is_read_back_to_an_equal_profile() -> None:
    """`from_dict` and `to_dict` are inverse, through JSON; equal profiles have equal hashes."""
    versions = (("torch", "2.6"),)
    profile = Profile("cpu", "torch", (1, 2, 4), (SMALL, BIG), 2, 50, versions, actuation_us=9)
    again = Profile.from_dict(json.loads(json.dumps(profile.to_dict())))
    assert again == profile
    assert hash(again) == hash(profile)


def test_actuation_is_part_of_a_profile() -> None:
    """A profile that does not tell what a change of subnet costs has 0, and is not equal to one that has a cost."""
    data = PROFILE.to_dict()
    del data["actuation_us"]
    assert Profile.from_dict(data).actuation_us == 0
    slow = Profile.from_dict(data | {"actuation_us": 100_000})
    assert slow.actuation_us == 100_000
    assert slow != PROFILE
    assert hash(slow) != hash(PROFILE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format: expected 1, got 2"),
        ({"device": None}, "device: expected str, got None"),
        ({"executor": "gpu"}, "executor: expected torch or emulated, got 'gpu'"),
        ({"threads": "two"}, "threads: expected int, got 'two'"),
        ({"actuation_us": -1}, "actuation_us: expected at least 0, got -1"),
        ({"actuation_us": 0.5}, "actuation_us: expected int, got 0.5"),
        ({"batch_sizes": [1, 1, 2]}, r"batch_sizes: .* got \[1, 1, 2\]"),
        ({"batch_sizes": [1, 2.5, 4]}, r"batch_sizes: .* got \[1, 2.5, 4\]"),
        ({"batch_sizes": []}, r"batch_sizes: .* got \[\]"),
        ({"subnets": []}, r"subnets: .* got \[\]"),
        ({"subnets": ["small"]}, r"subnets\[0\]: expected an object, got 'small'"),
        ({"subnets": [PROFILE.to_dict()["subnets"][0]] * 2}, "subnets: expected distinct ids"),
    ],
)
def test_errors_name_key_and_value(change: dict[str, Any], message: str) -> None:
    """A profile that cannot be used is refused with the key and the value that are wrong."""
    with pytest.raises(ProfileError, match=message):
        Profile.from_dict(PROFILE.to_dict() | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 7}, r"subnets\[1\]\.id: expected str, got 7"),
        ({"accuracy": "high"}, r"subnets\[1\]\.accuracy: expected a number, got 'high'"),
        ({"accuracy": 180.0}, r"subnets\[.\]\.accuracy: expected percent between 0 and 100, got 180.0"),
        ({"accuracy": float("nan")}, r"subnets\[.\]\.accuracy: .* got nan"),
        ({"median_us": [1, 2]}, r"subnets\[1\]\.median_us: expected 3 positive integers.* got \[1, 2\]"),
        ({"p95_us": [0, 1, 2]}, r"subnets\[1\]\.p95_us: expected 3 positive integers.* got \[0, 1, 2\]"),
        ({"median_us": [1, True, 3]}, r"subnets\[1\]\.median_us: expected a list of integers"),
    ],
)
def test_errors_name_the_subnet(change: dict[str, Any], message: str) -> None:
    """A subnet that cannot be used is named by its place in the list."""
    data = PROFILE.to_dict()
    data["subnets"][1] |= change
    with pytest.raises(ProfileError, match=message):
        Profile.from_dict(data)


def test_unknown_subnet_is_named() -> None:
    """Asking for a subnet that the profile lacks raises an error with those that it has."""
    with pytest.raises(ProfileError, match="no 'huge' on 'test', which has small, big"):
        PROFILE.latency_us("huge", 1)
