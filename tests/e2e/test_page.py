"""The live page in a real browser, before a real mesh."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from common import embedded
from common.embedded import die_with_parent
from loadgen.replay import ReplayOptions, replay
from services.worker.library import find_model
from tests.e2e.browser import PHONE, Tab, open_tab
from tests.e2e.conftest import Launch, Running, launch

MODEL = "fashion-resnet"
EMULATED = ("--executor", "emulated", "--profile", "rtx2080ti-reconstructed")
RATE = 150.0
PAGE = Path(__file__).parents[2] / "services/gateway/page"

# The least contrast of any text with what lies behind it: WCAG's formula, over the elements that hold text themselves.
CONTRAST = """
const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = (rgb) => {
  const [r, g, b] = rgb.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const colour = parse(getComputedStyle(element).backgroundColor);
    if (colour.length < 4 || colour[3] === 1) return colour;
  }
};
let least = [99, ""];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !element.checkVisibility() || element.closest("noscript, .skip")) continue;
  const pair = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => a - b);
  const ratio = (pair[1] + 0.05) / (pair[0] + 0.05);
  if (ratio < least[0]) least = [ratio, element.outerHTML.slice(0, 200)];
}
return least;
"""

DROP = """
const name = arguments[0];
fetch(`page/${name}`).then((response) => response.blob()).then((blob) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([blob], name, { type: blob.type }));
  document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer }));
});
"""


@pytest.fixture(scope="module")
def emulated() -> Iterator[Running]:
    """A mesh of two workers that keep time and compute nothing."""
    with launch("--workers", "2", *EMULATED) as running:
        yield running


class Load:
    """Queries at a rate, from a thread, until the block ends."""

    def __init__(self, url: str, duration_s: float) -> None:
        options = ReplayOptions(url=url, model=MODEL, trace="constant", rate=RATE, duration_s=duration_s, slo_ms=10_000)
        self._thread = threading.Thread(target=lambda: asyncio.run(replay(options)))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()


def answered(tab: Tab) -> None:
    tab.wait(lambda: tab.text(".answer .said strong"), "answered")


def label_of(index: int) -> str:
    labels = json.loads((find_model(MODEL) / "supernet.json").read_text())["labels"]
    return str(labels[index])


def test_charts_follow_the_load(emulated: Running) -> None:
    """While queries come, each chart draws them, the headline counts them, and two workers stand there as they are."""
    with open_tab(emulated.url) as tab, Load(emulated.url, 8):
        tab.wait(lambda: max(tab.column("arrivals"), default=0) > RATE / 2, "drew the arrivals")
        tab.wait(lambda: max(tab.column("mix"), default=0) > RATE / 2, "drew the subnets")
        tab.wait(lambda: 100 in tab.column("attainment"), "drew the attainment")
        best = tab.run("return [...document.querySelectorAll('#subnets i')].map((e) => parseFloat(e.textContent))")
        assert len(best) == 6
        assert best == sorted(best, reverse=True)
        assert min(best) - 0.1 <= tab.column("accuracy")[-1] <= max(best) + 0.1
        assert max(tab.column("slack")) > 0
        assert len(tab.column("queue")) > 1
        tab.wait(lambda: float(tab.text("#tile-arrivals b") or 0) > RATE / 4, "counted the arrivals")
        assert tab.text("#tile-attainment b") == "100"
        assert tab.find("#verdict").get_attribute("data-tone") == "good"
        states = tab.run("return [...document.querySelectorAll('#workers .badge')].map((e) => e.textContent)")
        assert len(states) == 2
        assert set(states) <= {"idle", "busy"}


def test_it_opens_with_the_last_minutes_drawn(emulated: Running) -> None:
    """A page that is opened after the load shows it at once, and goes on from there second by second."""
    with Load(emulated.url, 4):
        pass
    with open_tab(emulated.url) as tab:
        tab.wait(lambda: len(tab.column("arrivals")) > 0, "drew anything")
        before = tab.column("arrivals")
        assert sum(value > RATE / 2 for value in before) >= 3
        tab.wait(lambda: len(tab.column("arrivals")) > len(before), "went on")
        assert tab.text("#link") == "Live"


def test_killed_worker_is_shown_as_lost(start: Launch) -> None:
    """It stays in the table as lost, the headline says so, and the other one goes on."""
    with start("--workers", "2", *EMULATED) as mesh, open_tab(mesh.url) as tab:
        tab.wait(lambda: tab.text("#tile-workers b") == "2", "showed both workers")
        mesh.services("worker")[0].kill()
        tab.wait(lambda: "lost" in tab.text("#workers"), "showed the loss")
        tab.wait(lambda: "1 worker lost" in tab.text("#verdict"), "told of the loss")
        assert tab.text("#tile-workers b") == "1"
        assert tab.find("#tile-workers").get_attribute("data-tone") == "warn"


def test_picture_is_answered_with_subnet_and_stages(mesh: Running) -> None:
    """A sample picture, by keyboard: its label, the subnet and what it is worth, and where the time went."""
    with open_tab(mesh.url) as tab:
        tab.find("#slo").send_keys("10000")
        tab.find('#samples button[title*="sneaker"]').send_keys(Keys.ENTER)
        answered(tab)
        assert tab.text(".said strong") == label_of(7)
        facts = tab.run(
            "return Object.fromEntries([...document.querySelectorAll('.answer dt')]"
            ".map((e) => [e.textContent, e.nextElementSibling.textContent]))"
        )
        known = tab.run("return [...document.querySelectorAll('#subnets span[title]')].map((e) => e.textContent)")
        assert facts["Subnet"] == known[0], "with so much time the best one answers"
        assert facts["Degraded"] == "no"
        assert facts["Deadline"] == "met"
        assert "%" in facts["Accuracy"]
        assert facts["Served by"].startswith("worker-")
        assert len(facts["Query"]) == 16
        for stage in ("queue", "inference", "reply"):
            assert tab.find(f".bar .stage-{stage}").size["width"] > 0
            assert tab.text(f".stages .key-{stage}").endswith(" ms")


def test_chosen_and_dropped_pictures_are_answered(mesh: Running) -> None:
    """A file that a person chooses, and one that is dropped anywhere, go out as they are; other kinds do not."""
    with open_tab(mesh.url) as tab:
        tab.find("#slo").send_keys("10000")
        tab.wait(lambda: tab.find("#ask-form").is_displayed(), "offered to take a picture")
        tab.find("#file").send_keys(str(PAGE / "sample-bag.png"))
        answered(tab)
        assert tab.text(".said strong") == label_of(8)
        tab.run(DROP, "sample-boot.png")
        tab.wait(lambda: tab.text(".said strong") == label_of(9), "answered the dropped one")
        tab.find("#file").send_keys(str(PAGE / "icon.svg"))
        tab.wait(lambda: "PNG or JPEG, please" in tab.text("#ask-error"), "refused what is no picture")


def test_gateway_s_refusal_is_shown(mesh: Running, tmp_path: Path) -> None:
    """What the gateway says of a damaged picture is what the person reads."""
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes((PAGE / "sample-bag.png").read_bytes()[:100])
    with open_tab(mesh.url) as tab:
        tab.forgiven.append("400 (Bad Request)")
        tab.wait(lambda: tab.find("#ask-form").is_displayed(), "offered to take a picture")
        tab.find("#file").send_keys(str(damaged))
        tab.wait(lambda: "the PNG cannot be decoded" in tab.text("#ask-error"), "told the gateway's reason")
        assert tab.text("#ask-error").startswith("400: ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 768, PHONE])
def test_it_reads_well_in_any_light_and_width(emulated: Running, scheme: str, width: int) -> None:
    """Its ground follows the scheme, every text has WCAG's contrast of 4.5, and nothing is wider than the screen."""
    with open_tab(emulated.url, width=width, scheme=scheme) as tab:
        tab.wait(lambda: tab.text("#tile-workers b") == "2", "showed the workers")
        tab.find("#samples button").send_keys(Keys.ENTER)
        answered(tab)
        ground = tab.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (sum(ground) > 600) if scheme == "light" else (sum(ground) < 100)
        ratio, element = tab.run(CONTRAST)
        assert ratio >= 4.5, element
        assert tab.run("return document.documentElement.scrollWidth") <= width
        edges = "[...document.querySelectorAll('canvas')].map((e) => e.getBoundingClientRect().right)"
        assert tab.run(f"return Math.max(...{edges})") <= width


def test_charts_follow_a_change_of_the_scheme(emulated: Running) -> None:
    """What is drawn takes the new colours without a reload."""
    pixels = "return document.querySelector('#chart-arrivals canvas').toDataURL()"
    with open_tab(emulated.url) as tab:
        tab.wait(lambda: tab.column("arrivals"), "drew anything")
        colour = "return document.querySelector('#chart-queue .plot').plot.axes[0].stroke()"
        light, drawn = tab.run(colour), tab.run(pixels)
        tab.scheme("dark")
        tab.wait(lambda: tab.run(colour) != light, "took the other colours")
        tab.wait(lambda: tab.run(pixels) != drawn, "drew anew")


def test_silent_gateway_is_told_and_its_return_too(start: Launch) -> None:
    """A gateway that stops is named as gone, with the last picture kept; when it is back the page is live by itself."""
    with start(*EMULATED) as mesh, open_tab(mesh.url) as tab:
        tab.wait(lambda: len(tab.column("queue")) > 1, "drew anything")
        (gateway,) = mesh.services("gateway")
        gateway.suspend()
        try:
            tab.wait(lambda: tab.text("#verdict strong") == "The gateway does not answer", "told that it is gone")
            assert tab.text("#link").startswith("Gateway gone for")
            assert len(tab.column("queue")) > 1
        finally:
            gateway.resume()
        tab.wait(lambda: tab.text("#link") == "Live", "came back")
        tab.wait(lambda: tab.text("#verdict strong") == "Ready, no traffic", "told how it is")


def test_mesh_without_anything_says_what_to_launch() -> None:
    """Before a scheduler the page says so; with one and no worker it names the command that launches one; of two models
    a person chooses."""
    with embedded.server() as redis:

        def service(*arguments: str) -> "subprocess.Popen[str]":
            command = [sys.executable, "-m", "services.cli", *arguments, "--redis", redis]
            return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)

        gateway = service("gateway", "--port", "0")
        assert gateway.stdout is not None
        started = [gateway]
        try:
            with open_tab(gateway.stdout.readline().split()[1]) as tab:
                tab.wait(lambda: tab.text("#verdict strong") == "No model yet", "told that there is none")
                assert "superserve scheduler --model" in tab.text("#verdict span")
                started.append(service("scheduler", "--model", MODEL))
                tab.wait(lambda: tab.text("#verdict strong") == "Not serving", "found the model")
                assert f"superserve worker --model {MODEL}" in tab.text("#no-worker")
                assert tab.find("#tile-workers").get_attribute("data-tone") == "bad"
                assert not tab.find("#model").is_enabled(), "there is nothing to choose"
                started.append(service("scheduler", "--model", "rated-text-tiny"))
                tab.wait(lambda: tab.find("#model").is_enabled(), "offered the other model")
                assert tab.run("return [...document.querySelector('#model').options].map((one) => one.value)") == [
                    MODEL,
                    "rated-text-tiny",
                ]
                tab.find("#model").send_keys("rated")
                tab.wait(lambda: "--model rated-text-tiny" in tab.text("#no-worker"), "showed the other model")
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(20)
                if process.stdout is not None:
                    process.stdout.close()
