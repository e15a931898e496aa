"""The simulator says what the mesh does: the same queries through both, with real Redis and real processes."""

from pathlib import Path

import orjson
import pytest

from loadgen.evaluation.agreement import MOST, run_both, scaled
from loadgen.evaluation.cases import CNN, Case, World
from loadgen.profiles import load_profile

SCALE = 12.0  # an SLO of 432 ms: the milliseconds by which a busy machine disturbs processes are little beside it
# Even arrivals and a burst between the loads that two subnets carry. Where a load lies so that queues only just build
# up, chance decides: two simulations are as far apart as live and simulated may be.
TRACE = "constant:rate=60+constant:rate=300,from=2,to=5"


ATTEMPTS = 3
BUSY = 1 / 12  # of the SLO: where one in a hundred ways took longer, the machine had no time for the mesh
WAYS = ("ingress", "reports", "overheads", "wakes", "replies")


@pytest.mark.parametrize("policy", ["foresight", "slackfit"])
def test_live_and_simulated_agree(policy: str, tmp_path: Path) -> None:
    """A burst through both: attainment within 0.01, accuracy within 0.3 points, each subnet's share within 5 points.

    A run in which the machine had no time for the mesh, by what messages took, says nothing and is repeated.
    The live scheduler's event log, replayed through a fresh core, commands the batches that workers reported and that
    answers tell of, and the rejections that clients got.
    """
    profile = tmp_path / "profile.json"
    profile.write_bytes(orjson.dumps(scaled(load_profile(CNN), SCALE).to_dict()))
    world = World(trace=TRACE, duration_s=8, slo_ms=36 * SCALE, profile=str(profile), workers=3, seed=1)
    for _ in range(ATTEMPTS):
        found = run_both(Case(world=world, policy=policy))
        assert found["replayed"]["differences"] == 0
        assert found["replayed"]["batches"] >= found["queries"] / 16
        worst_ms = max(found["costs_ms"][way]["p99"] for way in WAYS)
        if worst_ms <= BUSY * world.slo_ms:
            break
    else:
        pytest.skip(f"the machine is too busy: messages of the mesh took {worst_ms:.0f} ms in {ATTEMPTS} runs")
    assert MOST == {"attainment_difference": 0.01, "accuracy_difference": 0.3, "share_difference": 0.05}
    assert {key: found[key] for key in MOST if found[key] > MOST[key]} == {}, found
    assert len(found["live"]["subnets"]) >= 3, "the load bent nothing"
