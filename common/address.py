"""URLs of Redis or Valkey: one server, the primary that Sentinel knows, or a Cluster.

::

    redis://[user:password@]host[:6379][/db]
    unix://[user:password@]/path/of/socket[?db=0]
    redis+sentinel://[user:password@]host[:26379][,host...]/service[/db]
    redis+cluster://[user:password@]host[:6379][,host...]

``rediss`` in place of ``redis`` speaks TLS, to Sentinels as to servers. User and password are the servers'; Sentinels
have theirs in ``sentinel_username`` and ``sentinel_password``. Every option is known, or refused.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl, unquote

from common.errors import ConfigError
from common.resp import Command

Kind = Literal["server", "sentinel", "cluster"]
Host = tuple[str, int]

PORTS: dict[Kind, int] = {"server": 6379, "sentinel": 26379, "cluster": 6379}
SCHEMES: dict[str, Kind] = {
    "redis": "server",
    "unix": "server",
    **{f"redis+{kind}": kind for kind in get_args(Kind)[1:]},
}
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_REST = re.compile(
    r"(?:(?P<user>[^/?#@:]*)(?::(?P<password>[^/?#]*))?@)?(?P<hosts>[^/?#@]*)(?P<path>[^?#@]*)(?:\?(?P<query>[^#@]*))?"
)
_PASSWORD = re.compile(r"^([\w+]+://[^/@:]*:).*@")
_SECRET_OPTION = re.compile(r"([?&]\w*password=)[^&#]*")


@dataclass(frozen=True, slots=True)
class Address:
    """Where Redis is, and what it takes to get in.

    ``hosts``: the server, its Sentinels, or some nodes of the Cluster. ``path``: of a unix socket, in place of them.
    ``greeting`` and ``sentinel_greeting``: what a connection must say before anything else.
    """

    kind: Kind
    hosts: tuple[Host, ...]
    path: str = ""
    service: str = ""
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    greeting: tuple[Command, ...] = field(default=(), repr=False)
    sentinel_greeting: tuple[Command, ...] = field(default=(), repr=False)


def shown(url: str) -> str:
    """Return a URL as it may be logged: without its passwords."""
    return _SECRET_OPTION.sub(r"\1***", _PASSWORD.sub(r"\1***@", url))


def parse(url: str) -> Address:
    """Return what a URL means; ConfigError names what is wrong with it, and no password."""
    try:
        return _parse(url)
    except ValueError as error:
        raise ConfigError(f"redis URL {shown(url)!r}: {error}") from None


def _parse(url: str) -> Address:
    scheme, separator, rest = url.partition("://")
    secure = scheme.startswith("rediss")
    kind = SCHEMES.get(scheme.replace("rediss", "redis", 1)) if separator else None
    if kind is None:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"it begins with none of {known}; rediss for redis speaks TLS")
    match = _REST.fullmatch(rest)
    if match is None:  # nothing of it is told: it may be half of a password
        raise ValueError("in user and password write %2F for /, %3F for ? and %23 for #, after the hosts %40 for @")
    socket, path = scheme == "unix", unquote(match["path"])
    hosts = () if socket else tuple(_host(host, PORTS[kind]) for host in match["hosts"].split(","))
    if kind == "server" and len(hosts) > 1:
        raise ValueError("a server is one host; several are redis+sentinel:// or redis+cluster://")
    options = _options(match["query"] or "", kind, secure=secure, socket=socket)
    service = database = ""
    if socket:
        if match["hosts"] or not path.strip("/"):
            raise ValueError("unix:// wants the path of a socket, as in unix:///run/redis.sock")
        database = options.get("db", "")
    elif kind == "sentinel":
        service, _, database = path.strip("/").partition("/")
        if not service:
            raise ValueError("the name of the service is missing, as in redis+sentinel://host:26379/service")
    else:
        database = path.strip("/")
    if not re.fullmatch(r"\d*", database, re.ASCII):
        raise ValueError(f"database {database!r} is no number")
    number = int(database or 0)
    if number and kind == "cluster":
        raise ValueError(f"a Cluster has database 0 alone, not {number}")
    greeting = _login(unquote(match["user"] or ""), unquote(match["password"] or ""))
    return Address(
        kind,
        hosts,
        path if socket else "",
        service,
        _tls(options) if secure else None,
        (*greeting, *([("SELECT", number)] if number else [])),
        _login(options.get("sentinel_username", ""), options.get("sentinel_password", "")),
    )


def _login(user: str, password: str) -> tuple[Command, ...]:
    if not user and not password:
        return ()
    return (("AUTH", user, password) if user else ("AUTH", password),)


def _host(text: str, default_port: int) -> Host:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(?::(\d{1,5}))?", text, re.ASCII)
    if match is None or int(match[2] or 0) > 65_535:
        raise ValueError(f"host {text!r} is none, and no host:port")
    return unquote(match[1].strip("[]")) or "localhost", int(match[2] or default_port)


def _options(query: str, kind: Kind, *, secure: bool, socket: bool) -> dict[str, str]:
    known = [
        *(("db",) if socket else ()),
        *(("sentinel_username", "sentinel_password") if kind == "sentinel" else ()),
        *(_TLS_OPTIONS if secure else ()),
    ]
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in _TLS_OPTIONS and not secure:
            raise ValueError(f"option {name!r} wants TLS: rediss in place of redis")
        if name not in known:
            raise ValueError(f"option {name!r} is not known here: {', '.join(known) or 'this kind of URL takes none'}")
        options[name] = value
    return options


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    """Return the context of these options: certificates of the system unless one is named, host names checked."""

    def one_of(name: str, values: dict[str, Any]) -> Any:
        text = options.get(name, next(iter(values)))
        if text not in values:
            raise ValueError(f"option {name}={text!r} is none of {', '.join(values)}")
        return values[text]

    context = ssl.create_default_context()
    verify = one_of("ssl_cert_reqs", {"required": True, "none": False})
    context.check_hostname = one_of("ssl_check_hostname", {"true": True, "false": False}) and verify
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    authority, certificate, key = (options.get(name) for name in _TLS_OPTIONS[:3])
    if key and not certificate:
        raise ValueError("option ssl_keyfile wants ssl_certfile beside it")
    try:
        if authority:
            context.load_verify_locations(authority)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"option ssl_ca_certs={authority!r}: {error}") from error
    try:
        if certificate:
            context.load_cert_chain(certificate, key, password=_no_password)
    except OSError as error:
        raise ValueError(f"options ssl_certfile={certificate!r} and ssl_keyfile={key!r}: {error}") from error
    return context


def _no_password() -> str:
    raise ValueError("option ssl_keyfile names a key with a password; give it one without")
