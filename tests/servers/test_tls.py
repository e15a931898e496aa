"""Servers with TLS, client certificates asked for: one server, a Sentinel before it, a Cluster of one node."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from common.streams import Streams, StreamsError
from tests.mesh.peer import until
from tests.servers.conftest import MeshOf
from tests.servers.servers import HOST, Server, free_port, started, tls_server, url

PROGRAM = tls_server()
pytestmark = pytest.mark.skipif(
    PROGRAM is None,
    reason="no server with TLS: no valkey-server or redis-server on PATH with it, no redis-tools",
)


@dataclass(frozen=True)
class Certificates:
    """Files of one authority, a server's certificate, and a client's."""

    folder: Path

    def make(self) -> "Certificates":
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.folder / "ca.pem"))
        for name, identity in (("server", HOST), ("elsewhere", "other.example"), ("client", "client@example.org")):
            made = authority.issue_cert(identity)
            made.private_key_pem.write_to_path(str(self.folder / f"{name}.key"))
            for pem in made.cert_chain_pems:
                pem.write_to_path(str(self.folder / f"{name}.pem"), append=True)
        trustme.CA().cert_pem.write_to_path(str(self.folder / "stranger.pem"))
        return self

    def options(self, port: int, identity: str = "server") -> dict[str, str]:
        """What a server takes to speak TLS alone."""
        return {
            "port": "0",
            "tls-port": str(port),
            "tls-cert-file": f"{self.folder}/{identity}.pem",
            "tls-key-file": f"{self.folder}/{identity}.key",
            "tls-ca-cert-file": f"{self.folder}/ca.pem",
            "tls-auth-clients": "yes",
        }

    @property
    def query(self) -> str:
        """What a client's URL takes to be let in."""
        files = (("ssl_ca_certs", "ca.pem"), ("ssl_certfile", "client.pem"), ("ssl_keyfile", "client.key"))
        return "&".join(f"{option}={self.folder}/{file}" for option, file in files)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path).make()


@contextlib.asynccontextmanager
async def secure(certificates: Certificates, identity: str = "server", **options: str) -> AsyncIterator[Server]:
    """A server that speaks TLS alone, ready."""
    port = free_port()
    assert PROGRAM is not None
    chosen = {**certificates.options(port, identity), **options}
    server = Server(certificates.folder / f"server-{port}", chosen, program=PROGRAM, port=port)
    with started([server]):
        await server.ready()
        yield server


async def error(address: str) -> str:
    """What a connection to that URL fails of."""
    streams = Streams(address)
    with pytest.raises(StreamsError) as caught:
        await streams.ping()
    await streams.close()
    return str(caught.value)


async def test_mesh_over_tls(certificates: Certificates, mesh_of: MeshOf, model_folder: Path) -> None:
    """Services with certificates and users of their own answer queries; the server is killed and comes back, and they
    go on."""
    async with secure(certificates) as server:
        urls = lambda kind: url("rediss", kind, [server], f"/0?{certificates.query}")  # noqa: E731
        async with mesh_of(urls, model_folder) as mesh:
            server.kill()
            status, body = await mesh.post(model_folder.name)
            assert status in (503, 504), body
            server.start()
            await mesh.until_answers(model_folder.name)


async def test_who_is_not_let_in(certificates: Certificates) -> None:
    """A server of an authority that is not named, one by another name, and one that misses our certificate are errors
    that say so; checks can be turned off one by one."""
    folder = certificates.folder
    async with secure(certificates) as server:
        address = url("rediss", "admin", [server])
        assert "CERTIFICATE_VERIFY_FAILED" in await error(address)
        stranger = certificates.query.replace("ca.pem", "stranger.pem")
        assert "CERTIFICATE_VERIFY_FAILED" in await error(f"{address}?{stranger}")
        assert await error(f"{address}?ssl_ca_certs={folder}/ca.pem")  # the server ends it without saying why
        assert await error(url("redis", "admin", [server]))
        streams = Streams(f"{address}?{stranger}&ssl_cert_reqs=none")
        await streams.ping()
        await streams.close()
    async with secure(certificates, "elsewhere") as server:
        address = f"{url('rediss', 'admin', [server])}?{certificates.query}"
        assert "CERTIFICATE_VERIFY_FAILED" in await error(address)
        streams = Streams(f"{address}&ssl_check_hostname=false")
        await streams.ping()
        await streams.close()


async def test_cluster_over_tls(certificates: Certificates) -> None:
    """A node of a Cluster that speaks TLS alone names itself by the port with TLS, and is reached there."""
    options = {"cluster-enabled": "yes", "tls-cluster": "yes", "cluster-port": str(free_port()), "aclfile": ""}
    async with secure(certificates, **options) as server:
        address = f"rediss+cluster://{HOST}:{server.port}?{certificates.query}"
        lone = Streams(f"rediss://{HOST}:{server.port}?{certificates.query}")
        await lone.call_about("", ("CLUSTER", "ADDSLOTSRANGE", 0, 16383))
        streams = Streams(address)
        await until(lambda: _works(streams))
        for each in (lone, streams):
            await each.close()


async def test_sentinel_over_tls(certificates: Certificates) -> None:
    """`rediss+sentinel` speaks TLS to the Sentinel, and to the primary that it names."""
    async with secure(certificates) as primary:
        port = free_port()
        tls = "\n".join(f"{name} {value}" for name, value in certificates.options(port).items())
        lines = f"{tls}\ntls-replication yes\nsentinel monitor mesh {HOST} {primary.port} 1\n"
        assert PROGRAM is not None
        sentinel = Server(certificates.folder / "sentinel", sentinel=lines, program=PROGRAM, port=port)
        with started([sentinel]):
            await sentinel.ready()
            streams = Streams(url("rediss+sentinel", "admin", [sentinel], f"/mesh?{certificates.query}"))
            await until(lambda: _works(streams))
            await streams.close()


async def _works(streams: Streams) -> bool:
    """Whether what is written is read; a Cluster is down for a moment after it got its slots."""
    with contextlib.suppress(StreamsError):
        await streams.append("stream", b"x")
        return bool(await streams.outstanding("stream"))
    return False
