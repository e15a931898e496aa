"""Compressed bodies: inflated within the limit, and deflated where the client asks for it."""

from __future__ import annotations

import zlib

from common.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from services.gateway.http import Response

MIN_COMPRESSED_BYTES = 1_024  # below it, compressing costs more than it saves
_ANY_HEADER, _RAW, _GZIP, _ZLIB = 47, -15, 31, 15  # zlib's wbits
_FAST = 1
IDENTITY = ("", "identity")


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo ``Content-Encoding``; never makes more than ``limit`` bytes. Slow: call it in a thread."""
    name = encoding.strip().lower()
    if name not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedMediaType(f"Content-Encoding {name[:40]!r}: expected gzip or deflate")
    try:
        return _inflate(body, _ANY_HEADER, limit)
    except zlib.error as error:
        if name == "deflate":  # some clients send it without zlib's header
            try:
                return _inflate(body, _RAW, limit)
            except zlib.error:
                pass
        raise BadRequest(f"the body is not valid {name}: {error}") from None


def _inflate(body: bytes, wbits: int, limit: int) -> bytes:
    inflated = bytearray()
    rest = body
    while rest:  # gzip may come in several members
        stream = zlib.decompressobj(wbits)
        inflated += stream.decompress(rest, limit + 1 - len(inflated))
        if len(inflated) > limit:
            raise PayloadTooLarge(f"uncompressed body exceeds the limit of {limit} bytes (--max-body-bytes)")
        if not stream.eof:
            raise zlib.error("incomplete or truncated stream")
        rest = stream.unused_data
    return bytes(inflated)


def deflate(response: Response, accepted: str) -> Response:
    """Compress a response's body if the client's ``Accept-Encoding`` asks for it and it is worth it."""
    if len(response.body) < MIN_COMPRESSED_BYTES:
        return response
    offers = {}
    for offer in accepted.lower().split(","):
        name, _, weight = offer.partition(";")
        offers[name.strip()] = weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    for name, wbits in (("gzip", _GZIP), ("deflate", _ZLIB)):
        if offers.get(name):
            stream = zlib.compressobj(_FAST, zlib.DEFLATED, wbits)
            body = stream.compress(response.body) + stream.flush()
            headers = {**response.headers, "Content-Encoding": name, "Vary": "Accept-Encoding"}
            return Response(response.status, body, headers)
    return response
