"""What the core predicts of a worker where a change of subnet has its price."""

from dataclasses import replace

import pytest

from common.sched.types import Batch, BatchDone, WorkerHello
from common.sched.worker import Worker
from tests.sched.conftest import Start
from tests.sched.harness import PROFILE, dispatched, query

LOADING = replace(PROFILE, actuation_us=100_000)


def batch(number: int, subnet: str) -> Batch:
    return Batch(number, "w", subnet, (query(number),))


def test_a_change_of_subnet_costs_its_actuation() -> None:
    """The first batch of all and each one of another subnet than before take the actuation and their 10 or 20 ms."""
    worker = Worker("w", LOADING, 0)
    assert worker.subnet == ""
    frees = []
    for number, subnet in enumerate(["small", "small", "big", "big", "small"]):
        worker.assign(batch(number, subnet), 1, 0, 0)
        assert worker.subnet == subnet
        frees.append(worker.free_us)
    assert frees == [110_000, 120_000, 240_000, 260_000, 370_000]
    assert [item.expected_us for item in worker.batches.values()] == [110_000, 10_000, 120_000, 20_000, 110_000]


def test_in_place_a_change_costs_nothing() -> None:
    """With an actuation of 0 a batch takes its median whatever ran before."""
    worker = Worker("w", PROFILE, 0)
    for number, subnet in enumerate(["small", "big"]):
        worker.assign(batch(number, subnet), 1, 0, 0)
    assert worker.free_us == 30_000


@pytest.mark.parametrize("subnets", [("small", "small"), ("small", "big")])
def test_correction_is_that_of_the_inference(subnets: tuple[str, str]) -> None:
    """Inference that takes twice its median is learned as 2, whether or not each batch has to load its subnet."""
    worker = Worker("w", LOADING, 0)
    for number in range(2_000):
        subnet = subnets[number % 2]
        worker.assign(batch(number, subnet), 1, 0, 0)
        loading_us = 0 if subnets[0] == subnets[1] and number else 100_000
        took_us = loading_us + 2 * LOADING.latency_us(subnet, 1)
        worker.finish(BatchDone("w", number, 0, took_us))
    assert worker.correction == pytest.approx(2.0, abs=0.05)


def test_a_load_that_takes_longer_once_moves_predictions_little() -> None:
    """Loading 10 % longer than announced, as much as the inference itself takes, does not double the inference."""
    worker = Worker("w", LOADING, 0)
    worker.assign(batch(1, "small"), 1, 0, 0)
    worker.finish(BatchDone("w", 1, 0, 120_000))
    assert 1.0 < worker.correction < 1.1


def test_residuals_include_the_actuation(start: Start) -> None:
    """A batch that takes its actuation and its median has a residual of 1."""
    core = start("fixed:small,quantile=median,late=drain", late="serve")
    core.hello(profile=LOADING)
    (sent,) = dispatched(core.arrive(query(1)))
    core.finish(sent, 0, 110_000)
    assert core.scheduler.residuals.quantile(0.5, prior=0.0) == 1.0


def test_an_adopted_batch_may_have_to_load(start: Start) -> None:
    """After a restart it is not known what a worker holds: the batch found running is expected to load its subnet."""
    core = start("fixed:small")
    core.send(WorkerHello("w", LOADING, (batch(1, "small"), batch(2, "small"))))
    worker = core.scheduler.workers["w"]
    assert (worker.subnet, worker.free_us) == ("small", 120_000)
