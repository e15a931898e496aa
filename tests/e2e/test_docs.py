"""The code blocks of every page do what the page says; what it names exists. docs/clients.md has a test of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import pages
from tests.e2e.pages import HTTP, ROOT, Block

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {*pages.RUN, "text", "json", "yaml", "lua", "js"}
COMMAND = re.compile(r"^(\$ |\./|\.venv/|superserve |loadgen |curl |docker |kubectl |pip |export |scripts/)", re.M)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def of(page: Path) -> str:
    return page.stem


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_block_is_run_or_says_why_not(page: Path) -> None:
    """Each block names its language, a command stands only where it would be run, and one that is not run says why."""
    for block in pages.blocks(page):
        assert block.language in LANGUAGES, f"{block.where}: {block.language!r} is none of {LANGUAGES}"
        if block.language == "text":
            assert not COMMAND.search(block.code), f"{block.where}: commands in a block of text"
        assert block.why_not is None or len(block.why_not) > 4, block.where
    fences = re.findall(r"^ *```", page.read_text(), re.M)
    assert len(fences) == 2 * len(pages.blocks(page)), f"{page.name}: a block that is indented, or has a title"
    comments = page.read_text().count("<!-- not run")
    assert comments == sum(block.why_not is not None for block in pages.blocks(page)), f"{page.name}: a comment too far"


def meant(block: Block) -> bool:
    """Whether `test_page_does_what_it_says` runs it: test_readme has the README's Python."""
    return not (block.where.startswith(README.name) and block.language == "python")


def talks(block: Block) -> bool:
    """Whether a block speaks to a mesh, and is not the one that starts it."""
    return bool(re.search(r":8000|loadgen replay", block.code)) and "superserve up" not in block.code


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.stem != "clients" and any(b.runs for b in pages.blocks(page))], ids=of
)
def test_page_does_what_it_says(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The blocks of a page, run one after the other in one folder, all end well and print what they are said to."""
    with pages.place(tmp_path) as place:
        for block in filter(meant, pages.blocks(page)):
            if place.http == HTTP and block.runs and talks(block):  # of a mesh that the page does not start
                place.http = request.getfixturevalue("mesh").url.removeprefix("http://")
            place.do(block)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_links_lead_somewhere(page: Path) -> None:
    """Each link within the repository leads to a file that is there, and to a heading that it has."""
    for target, anchor in LINK.findall(page.read_text()):
        path = page if not target else (page.parent / target).resolve()
        assert path.exists(), f"{page.name}: no {target}"
        assert not anchor or path.suffix != ".md" or anchor in anchors(path), (
            f"{page.name}: no #{anchor} in {path.name}"
        )


def test_every_page_is_linked_from_the_readme() -> None:
    """A reader finds every page from the README."""
    linked = {target for target, _ in LINK.findall(README.read_text())}
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= linked


def test_configuration_is_what_the_settings_say() -> None:
    """docs/configuration.md is what scripts/make-config-reference makes; if not, run that."""
    script = ROOT / "scripts" / "make_config_reference.py"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SUPERSERVE_")}
    made = subprocess.run(
        [sys.executable, str(script), "--out", "-"], env=environment, capture_output=True, text=True, check=True
    )
    assert made.stdout == (ROOT / "docs" / "configuration.md").read_text(), "run scripts/make-config-reference"


SOURCES = {path: path.read_text() for part in ("common", "services") for path in (ROOT / part).rglob("*.py")}
EVENTS = {
    name
    for text in SOURCES.values()
    for name in re.findall(r"_?log(?:\.get\(__name__\))?\.(?:debug|info|warning|error|exception)\(\s*\"(\w+)\"", text)
}


def failures() -> list[list[str]]:
    """The rows of the table of failures in docs/operations.md: what happens, status, log event, metric, what to do."""
    section = (ROOT / "docs" / "operations.md").read_text().partition("## What fails, and what one sees")[2]
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[1:]]


def test_what_fails_is_seen_as_told() -> None:
    """Each status is one that errors have, with words that stand in the sources, each log event is logged, and each
    metric is in docs/metrics.md, whose own test holds it against a mesh."""
    rows = failures()
    assert len(rows) > 10
    statuses = set(re.findall(r"^    status = (\d+)$", SOURCES[ROOT / "common" / "errors.py"], re.M))
    metrics = set(re.findall(r"`(superserve_\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    for what, status, event, metric, _ in rows:
        assert set(re.findall(r"\b[2-5]\d\d\b", status)) <= statuses | {"200"}, what
        for words in re.findall(r"`([^`]+)`", status):
            assert any(words in text for text in SOURCES.values()), f"{what}: {words}"
        assert set(re.findall(r"`(\w+)`", event)) <= EVENTS, f"{what}: {event}"
        named = set(re.findall(r"`(superserve_\w+)", metric))
        assert named <= metrics, what
        assert event != "-" or named or status != "-", f"{what}: nobody sees it"
