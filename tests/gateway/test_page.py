"""The live page's files as they are served; ``tests/e2e/test_page.py`` has a browser look at it."""

import re
from typing import Any

import pytest

from services.gateway import static
from tests.gateway.conftest import Client

FILES = sorted(path.name for path in static.FOLDER.iterdir() if path.name != static.INDEX)
OURS = [name for name in (static.INDEX, *FILES) if name.endswith((".html", ".js", ".css")) and "uPlot" not in name]
IDENTITY = {"Accept-Encoding": "identity"}


@pytest.mark.parametrize("name", [static.INDEX, *FILES])
async def test_each_file_is_served_as_what_it_is(client: Client, name: str) -> None:
    """Byte by byte, with its type, a policy that lets in nothing of other hosts, and a tag that is worth a 304."""
    path = "/" if name == static.INDEX else f"/page/{name}"
    reply = await client.request("GET", path, headers=IDENTITY)
    assert (reply.status, reply.body) == (200, (static.FOLDER / name).read_bytes())
    assert reply.headers["Content-Type"] == static.TYPES[f".{name.rpartition('.')[2]}"]
    policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    tag = reply.headers["ETag"]
    for known in (tag, f'W/"other", {tag}'):
        again = await client.request("GET", path, headers={"If-None-Match": known})
        assert (again.status, again.body, again.headers["ETag"]) == (304, b"", tag)
    assert (await client.request("GET", path, headers={"If-None-Match": 'W/"other"'})).status == 200
    head = await client.request("HEAD", path, headers=IDENTITY)
    assert (head.status, head.body, head.headers["ETag"]) == (200, b"", tag)
    assert int(head.headers["Content-Length"]) == len(reply.body)


async def test_large_files_are_compressed(client: Client) -> None:
    """Who accepts gzip gets the chart library at less than half its size, under the same tag."""
    path = "/page/uPlot.iife.min.js"
    plain = await client.request("GET", path, headers=IDENTITY)
    async with client.session.get(client.url + path, headers={"Accept-Encoding": "gzip"}) as reply:
        assert reply.headers["Content-Encoding"] == "gzip"
        assert int(reply.headers["Content-Length"]) < len(plain.body) / 2
        assert (await reply.read(), reply.headers["ETag"]) == (plain.body, plain.headers["ETag"])


@pytest.mark.parametrize("name", OURS)
def test_files_name_no_other_host_and_only_what_there_is(name: str) -> None:
    """Every file that ours name is beside them, no address is absolute, and no script or style is inline."""
    text = (static.FOLDER / name).read_text()
    assert set(re.findall(r"page/([\w.-]+\.\w+)", text)) <= set(FILES)
    assert not re.search(r"https?://", text)
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", text)


@pytest.mark.parametrize(("name", "words"), [("uPlot", "Leon Sorokin"), ("samples", "Zalando")])
def test_licences_lie_beside_what_they_are_of(name: str, words: str) -> None:
    """Chart library and sample pictures are under the MIT licence, which goes wherever they go."""
    text = (static.FOLDER / f"LICENSE-{name}.txt").read_text()
    assert words in text
    assert "The above copyright notice and this permission notice shall be included" in " ".join(text.split())


async def test_sample_pictures_are_images_of_the_model(client: Client) -> None:
    """Each is answered when posted as it is."""
    samples = [name for name in FILES if name.startswith("sample-")]
    assert len(samples) == 6
    for name in samples:
        body: Any = (static.FOLDER / name).read_bytes()
        reply = await client.infer(body, query="?slo_ms=10000", headers={"Content-Type": "image/png"})
        assert reply.status == 200, reply.body
