"""The command line, as a user runs it: in a process of its own, against a real server."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from common.sched import Dispatch
from common.sched.eventlog import replay
from tests.loadgen.oip_server import OipServer


async def loadgen(*arguments: object) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-m",
        "loadgen",
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG that has something on it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50
        return image.size


async def test_replay_writes_report_and_plot_and_compare_reads_them(
    server: OipServer, samples: Path, tmp_path: Path
) -> None:
    """A run against a server, then its report beside a copy, in a table and a picture."""
    first, second, picture = tmp_path / "first.json", tmp_path / "second.json", tmp_path / "plot.png"
    shape = ("--trace", "poisson", "--rate", 200, "--duration", 0.5, "--slo-ms", 2000, "--data", samples)
    code, out, err = await loadgen(
        "replay", "--url", server.url, "--model", "digits", *shape, "--out", first, "--plot", picture
    )
    assert code == 0, err
    assert "SLO attainment" in out
    report = json.loads(first.read_bytes())
    assert report["queries"] == report["answered"] > 50
    assert report["label_accuracy"] == 100
    assert size(picture)[0] > 1000

    second.write_bytes(first.read_bytes())
    picture.unlink()
    code, out, err = await loadgen("compare", first, second, "--plot", picture)
    assert code == 0, err
    assert "first" in out
    assert "second" in out
    assert size(picture)[0] > 1000


async def test_a_report_on_standard_output_is_nothing_but_json(server: OipServer) -> None:
    """`--out -` can be piped: the table goes to standard error."""
    code, out, err = await loadgen(
        "replay", "--url", server.url, "--model", "digits", "--rate", 100, "--duration", 0.1, "--out", "-"
    )
    assert code == 0, err
    assert json.loads(out)["executor"] == "torch"
    assert "SLO attainment" in err


async def test_simulate_plays_policies_side_by_side(tmp_path: Path) -> None:
    """Two policies in one table and one picture; a single one as a report that `compare` reads, and an event log."""
    shape = ("--trace", "bursty:base=1000,variant=3000,cv2=4", "--duration", 1, "--jitter", 0.1)
    code, out, err = await loadgen(
        "simulate", "--policy", "slackfit", "--policy", "fixed:smallest", *shape, "--plot", tmp_path / "both.png"
    )
    assert code == 0, err
    assert "slackfit" in out
    assert "fixed:smallest" in out
    assert size(tmp_path / "both.png")[0] > 1000

    log, saved = tmp_path / "events.jsonl", tmp_path / "one.json"
    world = ("--kill", "worker-1@0.3", "--join", "worker-2@0.5", "--slow", "worker-3@0.2x3", "--actuation-ms", 1)
    code, out, err = await loadgen("simulate", *shape, *world, "--event-log", log, "--out", saved)
    assert code == 0, err
    report = json.loads(saved.read_bytes())
    assert report["executor"] == "simulated"
    assert report["queries"] == report["answered"] + report["errors"]
    dispatched = [c for _, _, commands in replay(log.read_text().splitlines()) for c in commands]
    assert sum(isinstance(command, Dispatch) for command in dispatched) > 20
    code, out, err = await loadgen("compare", saved)
    assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "slickfit"), "unknown 'slickfit'"),
        (("--profile", "no-such"), "profile=no-such: no such shipped profile"),
        (("--workers", 0), "workers=0: must be >= 1"),
        (("--kill", "worker-9@1"), "kill=worker-9@1: workers are worker-0 to worker-7"),
        (("--join", "worker-1"), "join=worker-1: write NAME@SECONDS"),
        (("--slow", "worker-1@2"), "slow=worker-1@2: write NAME@SECONDSxFACTOR"),
        (("--slow", "worker-1@2xinf"), "slow=worker-1@2xinf: needs a time >= 0 and a factor in (0, 1e+06]"),
        (("--slo-ms", "1e300"), "slo_ms=1e+300: must be > 0 and <= 1e+09"),
        (("--policy", "tests.sched.test_policies:Lost"), "policy=tests.sched.test_policies:Lost: subnet: no 'nowhere'"),
        (
            ("--policy", "tests.sched.test_policies:Broken"),
            "policy=tests.sched.test_policies:Broken: cheapest: KeyError",
        ),
        (("--policy", "tests.sched.test_failing:Untaught:kind=none"), "kind=none: learner: expected a Learner"),
        (("--jitter", -1), "jitter=-1.0: must be >= 0"),
        (("--tail", 2), "tail=2.0: must be a share"),
        (("--policy", "slackfit", "--policy", "maxbatch", "--out", "x.json"), "takes one --policy"),
    ],
)
async def test_simulate_names_what_is_wrong(arguments: tuple[object, ...], message: str) -> None:
    """A wrong option of `simulate` is one line that names key and value, and exit code 2."""
    code, out, err = await loadgen("simulate", "--rate", 100, "--duration", 0.1, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


async def test_simulate_stops_where_a_policy_fails() -> None:
    """What a policy raises while it plays is one line behind the progress: what, where and when; exit code 2."""
    code, out, err = await loadgen("simulate", "--rate", 100, "--policy", "tests.sched.test_failing:Failing")
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("loadgen: ")]
    assert line.startswith("loadgen: policy=tests.sched.test_failing:Failing:way=raises: ZeroDivisionError: integer")
    assert "(test_failing.py, line " in line
    assert "Traceback" not in err


async def test_trace_tells_its_numbers_and_draws_them(tmp_path: Path) -> None:
    """`loadgen trace` sends nothing: rate, peak over mean, CV, and a PNG."""
    code, out, err = await loadgen(
        "trace", "bursty:base=100,variant=400,cv2=8", "--duration", 20, "--plot", tmp_path / "t.png"
    )
    assert code == 0, err
    assert "mean rate" in out
    assert "x mean" in out
    assert "CV of the gaps" in out
    assert size(tmp_path / "t.png")[0] > 1000


async def test_a_mix_is_replayed_and_compared_by_tenant(server: OipServer, samples: Path, tmp_path: Path) -> None:
    """The report has the tenants, and so have the tables of the run and of a comparison, and its picture."""
    mix = "constant:rate=100,tenant=video,slo_ms=1000+poisson:rate=100,tenant=mail,min_accuracy=70,slo_ms=3000"
    report, picture = tmp_path / "mix.json", tmp_path / "plot.png"
    code, out, err = await loadgen(
        "replay", "--url", server.url, "--model", "digits", "--trace", mix, "--duration", 0.3, "--data", samples,
        "--out", report,
    )  # fmt: skip
    assert code == 0, err
    assert "tenant video" in out
    tenants = json.loads(report.read_bytes())["tenants"]
    assert (list(tenants), tenants["mail"]["min_accuracy"], tenants["video"]["queries"]) == (["video", "mail"], 70, 30)
    code, out, err = await loadgen("compare", report, report, "--plot", picture)
    assert code == 0, err
    assert "tenant mail" in out
    assert "SLO 1000 / 3000 ms" in out
    assert size(picture)[0] > 1000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("trace", "sine"), 2, "trace=sine: unknown kind"),
        (
            ("trace", "poisson:rate=1,tenant=a,rows=1+poisson:rate=1,tenant=a,rows=2"),
            2,
            "rows=2: tenant a has 1 elsewhere",
        ),
        (("trace", "ramp:start=1,end=2,accel=x,cv2=1"), 2, "ramp: accel=x: needs a number"),
        (("replay", "--model", "m", "--rate", "fast"), 2, "invalid float value: 'fast'"),
        (("replay", "--model", ""), 2, "model=(empty): is no model name"),
        (("replay", "--model", "m", "--out", "/no/such/folder/r.json"), 2, "out=/no/such/folder/r.json"),
        (("replay", "--model", "m", "--rate", "1", "--url", "http://127.0.0.1:1"), 3, "127.0.0.1:1 is not reachable"),
        (("compare", "/no/such.json"), 2, "report=/no/such.json: cannot be read"),
    ],
)
async def test_errors_are_one_line_and_an_exit_code(arguments: tuple[str, ...], code: int, message: str) -> None:
    """2 for what the user wrote, 3 for the server; the last line says what, and no traceback."""
    found, _, err = await loadgen(*arguments)
    assert found == code
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


async def test_an_unknown_model_is_exit_code_3(server: OipServer) -> None:
    """The message lists what the server has."""
    code, _, err = await loadgen("replay", "--url", server.url, "--model", "letters", "--rate", 1)
    assert (code, err.splitlines()[-1].endswith("has no model 'letters'; it has digits")) == (3, True)


async def test_help_has_examples_and_exit_codes() -> None:
    """The help of `replay` shows how to use it and every kind of SPEC."""
    code, out, _ = await loadgen("replay", "--help")
    assert code == 0
    for part in ("examples:", "exit codes:", "bursty:base=B", "timestamps:FILE", "tenant=NAME", "synthetic-day"):
        assert part in out
