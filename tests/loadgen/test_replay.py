"""Open-loop replay against a real server: one record per query, intended times, honest lag."""

import asyncio
from collections.abc import Callable

import pytest
from aiohttp import web

from loadgen.errors import InputError, ModelNotFoundError, NotReadyError, UnreachableError
from loadgen.replay import ReplayOptions, replay
from loadgen.sender import Progress
from loadgen.traces import make_arrivals
from tests.loadgen.conftest import MakeOptions
from tests.loadgen.oip_server import Behaviour, OipServer, answer, right


async def test_every_query_is_answered_and_counted_once(server: OipServer, options: MakeOptions) -> None:
    """A healthy server: as many queries as arrivals, all answered, and the replies' parameters in the report."""
    report = await replay(options())
    assert (report.queries, report.answered, report.errors, report.unsent) == (100, 100, 0, 0)
    assert len(server.came_s) == 100
    assert report.serving_accuracy == pytest.approx(80)
    assert (report.policy, report.executor, report.batch_size_mean) == ("slackfit", "torch", 2)
    assert (report.subnets, report.workers) == ({"small": 1.0}, {"w-1": 1.0})
    assert (report.queue_ms_mean, report.inference_ms_mean, report.deadline_met_share) == (1.5, 2.5, 1)


async def test_requests_speak_the_binary_tensor_extension(server: OipServer, options: MakeOptions) -> None:
    """The header tells shape, type and size of the raw bytes behind it, the wanted output and the SLO."""
    await replay(options(rows=3, slo_ms=40))
    assert server.headers[0] == {
        "inputs": [{"name": "image", "shape": [3, 2, 2], "datatype": "UINT8", "parameters": {"binary_data_size": 12}}],
        "outputs": [{"name": "label", "parameters": {"binary_data": True}}],
        "parameters": {"slo_ms": 40},
    }
    assert {len(images) for images in server.images} == {12}


MIX = (
    "constant:rate=500,tenant=fast,slo_ms=1000,rows=2,priority=1+constant:rate=250"
    "+constant:rate=250,from=0.05,tenant=fine,min_accuracy=79.5"
)


async def test_each_query_is_sent_as_its_tenants(server: OipServer, options: MakeOptions) -> None:
    """Rows, SLO, floor and priority are those of the tenant; what it does not tell is the run's, or not sent."""
    await replay(options(trace=MIX, rate=None))
    fast, plain, fine = {"slo_ms": 1000, "priority": 1}, {"slo_ms": 2000}, {"slo_ms": 2000, "min_accuracy": 79.5}
    sent = [(header["inputs"][0]["shape"][0], header["parameters"]) for header in server.headers]
    assert [sent.count(kind) for kind in ((2, fast), (1, plain), (1, fine))] == [50, 25, 13]
    assert len(sent) == 88


async def test_the_report_tells_of_each_tenant(server: OipServer, options: MakeOptions) -> None:
    """A server that refuses every query of two rows: all errors are one tenant's, and labels still match the rows."""

    async def behave(number: int, labels: list[int]) -> web.StreamResponse:
        return await (fails_504 if len(labels) == 2 else right)(number, labels)

    server.behave = behave
    report = await replay(options(trace=MIX, rate=None))
    assert list(report.tenants) == ["fast", "", "fine"]
    fast, plain, fine = report.tenants.values()
    assert (fast.queries, fast.errors_by_status, fast.slo_attainment) == (50, {"504: deadline passed": 50}, 0)
    assert (plain.queries, plain.errors, fine.queries, fine.errors) == (25, 0, 13, 0)
    assert (fine.least_accuracy, fine.floor_violations) == (80, 0)
    assert (report.label_accuracy, report.answered, report.errors) == (100, 38, 50)


async def test_a_tenants_queries_go_through_the_samples_in_turn(server: OipServer, options: MakeOptions) -> None:
    """Two tenants that alternate each send every one of the ten samples ten times, whatever the other does."""
    spec = "constant:rate=1000,tenant=a,slo_ms=500+constant:rate=1000,tenant=b,slo_ms=600"
    await replay(options(trace=spec, rate=None))
    for slo_ms in (500, 600):
        images = [
            image
            for header, image in zip(server.headers, server.images, strict=True)
            if header["parameters"]["slo_ms"] == slo_ms
        ]
        assert sorted(images.count(image) for image in set(images)) == [10] * 10


async def test_equal_seeds_send_equal_queries(server: OipServer, options: MakeOptions) -> None:
    """The same seed sends the same bodies; another seed sends the samples in another order."""
    sent = []
    for seed in (1, 1, 2):
        server.images.clear()
        await replay(options(seed=seed, connections=1))
        sent.append(list(server.images))
    assert sent[0] == sent[1] != sent[2]


async def fails_504(number: int, labels: list[int]) -> web.StreamResponse:
    return web.json_response({"error": "deadline passed"}, status=504)


async def fails_500(number: int, labels: list[int]) -> web.StreamResponse:
    return web.Response(text="<b>oops</b>", status=500)


async def has_no_json(number: int, labels: list[int]) -> web.StreamResponse:
    return web.Response(text="hello")


async def has_a_wrong_type(number: int, labels: list[int]) -> web.StreamResponse:
    return answer(labels, accuracy="high")


async def has_too_few_labels(number: int, labels: list[int]) -> web.StreamResponse:
    return answer([])


async def is_cut_short(number: int, labels: list[int]) -> web.StreamResponse:
    whole = answer(labels)
    assert isinstance(whole.body, bytes)
    length = whole.headers["Inference-Header-Content-Length"]
    return web.Response(body=whole.body[:-4], headers={"Inference-Header-Content-Length": length})


FAILURES = [
    (fails_504, "504: deadline passed"),
    (fails_500, "500: <b>oops</b>"),
    (has_no_json, "reply: cannot be read, JSONDecodeError"),
    (has_a_wrong_type, "reply: cannot be read, TypeError"),
    (has_too_few_labels, "reply: cannot be read, ValueError: 0 labels for 1 rows"),
    (is_cut_short, "reply: cannot be read, ValueError: reply is shorter than its tensors"),
]


@pytest.mark.parametrize(("failure", "reason"), FAILURES)
async def test_every_third_query_fails_and_the_sum_holds(
    server: OipServer, options: MakeOptions, failure: Behaviour, reason: str
) -> None:
    """answered + errors == queries, and the errors are counted by status and reason."""

    async def behave(number: int, labels: list[int]) -> web.StreamResponse:
        return await (failure if number % 3 == 0 else right)(number, labels)

    server.behave = behave
    report = await replay(options())
    assert (report.queries, report.answered, report.errors) == (100, 66, 34)
    (found,) = report.errors_by_status
    assert found.startswith(reason)
    assert report.errors_by_status[found] == 34
    assert report.slo_attainment == pytest.approx(0.66)


async def test_numbers_in_error_texts_do_not_flood_the_report(server: OipServer, options: MakeOptions) -> None:
    """Texts that differ in a number are one kind; of other kinds fifty are kept apart, the rest of a status is one."""

    async def behave(number: int, labels: list[int]) -> web.StreamResponse:
        text = f"late by {number / 7} ms" if number < 40 else f"late at {'x' * number}"
        return web.json_response({"error": text}, status=504)

    server.behave = behave
    report = await replay(options())
    assert len(report.errors_by_status) == 51
    assert report.errors_by_status["504: late by N ms"] == 40
    assert report.errors_by_status["504: (other reasons)"] == 11


async def test_a_reset_is_an_error_and_is_not_sent_again(server: OipServer, options: MakeOptions) -> None:
    """Connections that are reset under a query count as errors; the server sees each query once."""

    async def behave(number: int, labels: list[int]) -> web.StreamResponse:
        if number % 4 == 0:
            server.reset_last()
        return answer(labels)

    server.behave = behave
    report = await replay(options())
    assert (report.answered, report.errors) == (75, 25)
    assert set(report.errors_by_status) <= {"connection: reset", "connection: closed before the reply"}
    assert len(server.came_s) == 100


async def test_a_server_that_goes_away_fails_the_rest(server: OipServer, options: MakeOptions) -> None:
    """When the server stops listening and resets its connections, every query that follows is an error."""

    async def behave(number: int, labels: list[int]) -> web.StreamResponse:
        if number == 20:
            await server.stop_listening()
        return answer(labels)

    server.behave = behave
    report = await replay(options(connections=4))
    assert report.answered + report.errors == report.queries == 100
    assert report.errors_by_status["connection: Connection refused"] >= 70
    assert report.unsent == report.errors_by_status["connection: Connection refused"]


async def test_a_server_that_closes_each_connection_loses_nothing(server: OipServer, options: MakeOptions) -> None:
    """`Connection: close` after each reply is obeyed: a new connection per query, all answered."""

    async def behave(number: int, labels: list[int]) -> web.StreamResponse:
        reply = answer(labels)
        reply.force_close()
        return reply

    server.behave = behave
    report = await replay(options())
    assert report.answered == 100
    assert len(server.peers) == 100


async def test_connections_are_kept_and_bounded(server: OipServer, options: MakeOptions) -> None:
    """100 queries over at most 3 connections open 3 connections."""
    report = await replay(options(connections=3))
    assert report.answered == 100
    assert len(server.peers) == 3


async def test_a_stalled_server_does_not_slow_the_sender(server: OipServer, options: MakeOptions) -> None:
    """No reply leaves before ALL queries have come: only a sender that waits for none of them gets there."""
    all_came = asyncio.Event()

    async def behave(number: int, labels: list[int]) -> web.StreamResponse:
        if number == 99:
            all_came.set()
        await all_came.wait()
        return answer(labels)

    server.behave = behave
    config = options(rate=500.0, duration_s=0.2)
    report = await replay(config)
    assert report.answered == 100
    # None came before its time: the first was due at 0, the k-th so much later.
    due = make_arrivals(config.trace, rate=config.rate, duration_s=config.duration_s)
    waited = [came - server.came_s[0] for came in server.came_s]
    assert waited[-1] >= due[-1] - due[0] - 0.1
    # The first query waited for the last to be sent, and its latency says so.
    assert (report.latency_ms["max"] or 0) >= 190


async def test_latency_counts_from_the_intended_time(server: OipServer, options: MakeOptions) -> None:
    """One connection, 20 queries due within 40 ms, 10 ms each: the last ends 200 ms after the first was due.

    Its own exchange takes 10 ms. A generator that times that alone would report 10; here the wait before it counts,
    as latency and as sender lag.
    """

    async def behave(number: int, labels: list[int]) -> web.StreamResponse:
        await asyncio.sleep(0.01)  # the service time of this server
        return answer(labels)

    server.behave = behave
    report = await replay(options(connections=1, rate=500.0, duration_s=0.04, slo_ms=50))
    assert report.queries == report.answered == 20
    assert (report.latency_ms["max"] or 0) >= 150
    assert (report.sender_lag_ms["max"] or 0) >= 140
    assert (report.latency_ms["max"] or 0) >= (report.sender_lag_ms["max"] or 0)
    assert report.slo_attainment < 0.5


async def test_a_query_without_an_answer_times_out(server: OipServer, options: MakeOptions) -> None:
    """Queries that get no reply end as errors at their timeout, and so do those that never got a connection."""

    async def behave(number: int, labels: list[int]) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    server.behave = behave
    report = await replay(options(connections=2, timeout_s=0.3, rate=500.0, duration_s=0.02))
    assert (report.queries, report.errors) == (10, 10)
    unsent, sent = (report.errors_by_status[f"timeout: no {what} within 0.3 s"] for what in ("connection", "reply"))
    assert unsent + sent == 10
    assert report.unsent == unsent
    assert len(server.came_s) == sent >= 2
    assert report.latency_ms == {"p50": None, "p95": None, "p99": None, "max": None}


async def test_label_accuracy_compares_answers_with_true_labels(server: OipServer, options: MakeOptions) -> None:
    """A server that is wrong about the label 3 is right for 9 of 10 samples, in batches as well."""

    async def behave(number: int, labels: list[int]) -> web.StreamResponse:
        return answer([4 if label == 3 else label for label in labels])

    server.behave = behave
    assert (await replay(options())).label_accuracy == pytest.approx(90)
    batched = await replay(options(rows=4))
    assert batched.label_accuracy == pytest.approx(90)
    assert batched.goodput_rows_per_s == pytest.approx(4 * batched.goodput_qps)


async def test_an_emulated_worker_has_no_label_accuracy(server: OipServer, options: MakeOptions) -> None:
    """Its labels come from no model: comparing them would slander it, or flatter it."""

    async def behave(number: int, labels: list[int]) -> web.StreamResponse:
        return answer(labels, executor="emulated")

    server.behave = behave
    report = await replay(options())
    assert (report.label_accuracy, report.serving_accuracy) == (None, 80)


async def test_without_data_random_tensors_are_sent(options: MakeOptions) -> None:
    """No samples are known for the model: its metadata shape the tensors, and there is no label accuracy."""
    report = await replay(options(data=None))
    assert (report.answered, report.label_accuracy, report.data) == (100, None, "random")


async def test_a_plain_json_reply_is_understood(server: OipServer, options: MakeOptions) -> None:
    """A server without the binary extension or our parameters: answered, labels compared, accuracy unknown."""

    async def behave(number: int, labels: list[int]) -> web.StreamResponse:
        output = {"name": "label", "datatype": "INT64", "shape": [len(labels)], "data": labels}
        return web.json_response({"model_name": "digits", "outputs": [output]})

    server.behave = behave
    report = await replay(options())
    assert (report.answered, report.label_accuracy) == (100, 100)
    assert (report.serving_accuracy, report.subnets, report.policy) == (None, {}, "")


async def test_progress_is_told_until_the_end(options: MakeOptions) -> None:
    """The callback sees counts that only grow, and the final ones."""
    seen: list[Progress] = []
    report = await replay(options(duration_s=0.3), seen.append)
    assert [now.answered for now in seen] == sorted(now.answered for now in seen)
    assert (seen[-1].queries, seen[-1].sent, seen[-1].answered) == (report.queries,) * 3


async def test_a_cancelled_run_leaves_no_connection(server: OipServer, options: MakeOptions) -> None:
    """Cancelling closes every transport: the server's handlers are cancelled, and nothing leaks a warning."""
    came, cancelled = asyncio.Event(), asyncio.Event()

    async def behave(number: int, labels: list[int]) -> web.StreamResponse:
        came.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError("unreachable")

    server.behave = behave
    run = asyncio.create_task(replay(options()))
    await came.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await cancelled.wait()


async def test_nothing_is_sent_to_a_server_that_is_not_there() -> None:
    """A port that nobody listens on is an UnreachableError that names it."""
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1 is not reachable"):
        await replay(ReplayOptions(url="http://127.0.0.1:1", model="digits", rate=1.0))


async def test_nothing_is_sent_to_a_server_that_is_not_ready(server: OipServer, options: MakeOptions) -> None:
    """503 from the readiness check is a NotReadyError."""
    server.ready = False
    with pytest.raises(NotReadyError, match="is not ready: 503"):
        await replay(options())
    assert server.came_s == []


async def test_an_unknown_model_is_refused_with_those_there_are(options: MakeOptions) -> None:
    """The error lists the models that the server has."""
    with pytest.raises(ModelNotFoundError, match="no model 'letters'; it has digits"):
        await replay(options(model="letters"))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"slo_ms": 0.0}, "slo_ms"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"rows": 0}, "rows"),
        ({"connections": 0}, "connections"),
        ({"model": "../digits"}, "model"),
        ({"url": "ftp://host"}, "url"),
        ({"url": "http://host:port"}, "url"),
        ({"trace": "sine"}, "trace"),
    ],
)
async def test_bad_options_are_refused_before_anything_is_sent(
    options: Callable[..., ReplayOptions], changes: dict[str, object], key: str
) -> None:
    """The first option that cannot be used is named."""
    with pytest.raises(InputError) as caught:
        await replay(options(**changes))
    assert caught.value.key == key
