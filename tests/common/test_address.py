"""URLs of Redis: what they mean, and what a wrong one is told."""

import re
from pathlib import Path

import pytest
import trustme

from common import address
from common.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "greeting"),
    [
        ("redis://", "server", [("localhost", 6379)], []),
        ("redis://cache", "server", [("cache", 6379)], []),
        ("redis://cache:7000/0", "server", [("cache", 7000)], []),
        ("redis://[::1]:7000/2", "server", [("::1", 7000)], [("SELECT", 2)]),
        ("redis://:p%40ss@cache", "server", [("cache", 6379)], [("AUTH", "p@ss")]),
        ("redis://me:p%2Fw:d@cache/1", "server", [("cache", 6379)], [("AUTH", "me", "p/w:d"), ("SELECT", 1)]),
        ("redis://me:a@b:c@cache", "server", [("cache", 6379)], [("AUTH", "me", "a@b:c")]),
        ("redis://me@cache", "server", [("cache", 6379)], [("AUTH", "me", "")]),
        ("redis+cluster://:pw@a:1,b,[fd::2]:3", "cluster", [("a", 1), ("b", 6379), ("fd::2", 3)], [("AUTH", "pw")]),
        ("redis+cluster://a/0", "cluster", [("a", 6379)], []),
        ("redis+sentinel://a,b:5/mesh/3", "sentinel", [("a", 26379), ("b", 5)], [("SELECT", 3)]),
    ],
)  # fmt: skip
def test_what_a_url_means(
    url: str, kind: str, hosts: list[tuple[str, int]], greeting: list[tuple[str | int, ...]]
) -> None:
    """Kind, hosts with their default ports, and what is said on connecting: user, password, database."""
    found = address.parse(url)
    assert (found.kind, list(found.hosts), list(found.greeting), found.tls) == (kind, hosts, greeting, None)


def test_socket_and_sentinel() -> None:
    """A unix socket has a path and no host, and its database as an option; Sentinels have a login of their own."""
    found = address.parse("unix://me:pw@/run/re%20dis.sock?db=4")
    assert (found.path, found.hosts) == ("/run/re dis.sock", ())
    assert found.greeting == (("AUTH", "me", "pw"), ("SELECT", 4))
    found = address.parse("redis+sentinel://me:pw@a/mesh?sentinel_username=watcher&sentinel_password=s%26cret")
    assert (found.service, found.greeting) == ("mesh", (("AUTH", "me", "pw"),))
    assert found.sentinel_greeting == (("AUTH", "watcher", "s&cret"),)
    assert address.parse("redis+sentinel://me:pw@a/mesh").sentinel_greeting == ()


@pytest.mark.parametrize("scheme", ["rediss://a", "rediss+cluster://a", "rediss+sentinel://a/mesh"])
def test_second_s_speaks_tls(scheme: str) -> None:
    """`rediss` checks certificate and name unless told otherwise."""
    context = address.parse(scheme).tls
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"
    lax = address.parse(f"{scheme}?ssl_check_hostname=false").tls
    assert lax is not None
    assert not lax.check_hostname
    assert lax.verify_mode.name == "CERT_REQUIRED"
    blind = address.parse(f"{scheme}?ssl_cert_reqs=none").tls
    assert blind is not None
    assert blind.verify_mode.name == "CERT_NONE"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "begins with none of redis://, unix://, redis+sentinel://, redis+cluster://"),
        ("http://a", "begins with none of"),
        ("redis-sentinel://a/mesh", "begins with none of"),
        ("redisss://a", "begins with none of"),
        ("redis+sentinel://a", "name of the service is missing"),
        ("redis://a/x", "database 'x' is no number"),
        ("redis+sentinel://a/mesh/x", "database 'x' is no number"),
        ("redis+cluster://a/1", "database 0 alone, not 1"),
        ("redis://a:b", "host 'a:b'"),
        ("redis://a:66000", "host 'a:66000'"),
        ("redis://a,b", "one host"),
        ("unix://host/socket", "path of a socket"),
        ("unix://", "path of a socket"),
        ("redis://a?max_connections=3", "option 'max_connections' is not known here"),
        ("redis://a?ssl_ca_certs=ca.pem", "option 'ssl_ca_certs' wants TLS"),
        ("redis+cluster://a?sentinel_password=x", "option 'sentinel_password' is not known here"),
        ("rediss://a?ssl_cert_reqs=maybe", "option ssl_cert_reqs='maybe' is none of required, none"),
        ("rediss://a?ssl_check_hostname=no", "option ssl_check_hostname='no' is none of true, false"),
        ("rediss://a?ssl_ca_certs=/nowhere", "option ssl_ca_certs='/nowhere': "),
        ("rediss://a?ssl_certfile=/nowhere", "ssl_certfile='/nowhere'"),
        ("rediss://a?ssl_keyfile=/nowhere", "ssl_keyfile wants ssl_certfile"),
    ],
)
def test_wrong_url_is_told(url: str, words: str) -> None:
    """What is wrong is named, together with the URL."""
    with pytest.raises(ConfigError) as caught:
        address.parse(url)
    assert words in caught.value.message
    assert url.partition("?")[0] in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:hush@a/x",
        "redis://me:hu/hush@a",
        "redis://me:1/hush@a",
        "redis://me:h?hush@a",
        "redis://me:h#hush@a",
        "redis://me:h@hush@a/x",
        "http://me:hush@a",
        "redis+sentinel://me:hush@a",
        "redis+sentinel://a/mesh?sentinel_password=hush&other=1",
        "rediss://:hush@a?ssl_ca_certs=/nowhere",
    ],
)
def test_password_is_never_told(url: str) -> None:
    """However wrong a URL is, what is said of it has no part of a password."""
    with pytest.raises(ConfigError) as caught:
        address.parse(url)
    assert "hush" not in caught.value.message
    assert "hush" not in repr(address.shown(url))


def test_parsed_address_shows_no_password() -> None:
    """An address that lands in a log by mistake gives nothing away."""
    assert "hush" not in repr(address.parse("redis+sentinel://me:hush@a/mesh?sentinel_password=hush"))


def test_urls_of_the_document(tmp_path: Path) -> None:
    """Every URL that docs/redis.md has a service started with is one, given the files that it names."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    made = authority.issue_cert("worker.example")
    made.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "worker.pem"))
    made.private_key_pem.write_to_path(str(tmp_path / "worker.key"))
    urls = re.findall(r"--redis '(\S+)'", (Path(__file__).parents[2] / "docs" / "redis.md").read_text())
    found = [address.parse(url.replace("/etc/redis", str(tmp_path))) for url in urls]
    assert [one.kind for one in found] == ["server", "server", "sentinel", "cluster"]
    assert all(one.greeting for one in found)


def test_file_that_is_no_certificate(tmp_path: Path) -> None:
    """A file that is there and holds no certificate is named too."""
    path = tmp_path / "ca.pem"
    path.write_text("nothing\n")
    with pytest.raises(ConfigError, match=str(path)):
        address.parse(f"rediss://a?ssl_ca_certs={path}")
    with pytest.raises(ConfigError, match=str(path)):
        address.parse(f"rediss://a?ssl_certfile={path}")
