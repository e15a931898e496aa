"""How commands reach Redis: each by the lane of its key, and whatever goes wrong as ``StreamsError``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import hiredis

from common.errors import Unavailable
from common.lanes import Lanes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from common.resp import Command

_T = TypeVar("_T")

REPLY_TIMEOUT_S = 5.0  # how long, beyond BLOCK, an answer may take before the connection counts as broken


class StreamsError(Unavailable):
    """Redis cannot be reached, or refused a command."""


class NoGroupError(StreamsError):
    """The stream or its consumer group does not exist (any more)."""


def check(replies: Sequence[Any]) -> None:
    """Raise the first error among replies as StreamsError."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise _error(reply)


def _error(error: Exception) -> StreamsError:
    if isinstance(error, hiredis.ReplyError):
        return (NoGroupError if str(error).startswith("NOGROUP") else StreamsError)(f"Redis refused: {error}")
    return StreamsError(f"Redis: {error or type(error).__name__}")


class Commands:
    """One process's connections. ``url``: see ``common.address``; ConfigError if it is none."""

    def __init__(self, url: str) -> None:
        self._lanes = Lanes(url)

    async def close(self) -> None:
        """Close all connections."""
        self._lanes.close()

    async def call(self, commands: list[Command]) -> list[Any]:
        """Return the replies to commands whose first argument is a key; StreamsError if any is an error."""
        replies = await self.ask(commands)
        check(replies)
        return replies

    async def ask(self, commands: list[Command]) -> list[Any]:
        """Return the replies to commands whose first argument is a key, errors among them."""
        if not commands:
            return []
        try:
            return await self._lanes.ask(commands, REPLY_TIMEOUT_S)
        except (hiredis.ReplyError, OSError) as error:
            raise _error(error) from error

    async def ask_each(self, commands: list[Command]) -> list[Any]:
        """As ``ask`` for commands on many models: StreamsError if no shard carries out any of them."""
        replies = await self.ask(commands)
        if all(isinstance(reply, Exception) for reply in replies):
            check(replies)
        return replies

    async def call_about(self, key: str, command: Command) -> Any:
        """Return the reply to a command whose first argument is not its key."""
        (reply,) = await self.ask_about(key, command)
        check([reply])
        return reply

    async def ask_about(self, key: str, command: Command) -> list[Any]:
        """Return the only reply to a command whose first argument is not its key, which may be an error."""
        return await _translated(self._lanes.of(key).writer.call([command], REPLY_TIMEOUT_S))

    async def carry(self, commands: list[Command]) -> list[Any]:
        """As ``call`` for large values of one model, which nothing small is to wait behind."""
        replies = await _translated(self._lanes.of(str(commands[0][1])).bulk.call(commands, REPLY_TIMEOUT_S))
        check(replies)
        return replies

    async def wait(self, key: str, command: Command, block_ms: int) -> Any:
        """Return the reply to a command that blocks; after a StreamsError it may have been carried out unseen."""
        reply = await _translated(self._lanes.of(key).read(command, REPLY_TIMEOUT_S + block_ms / 1e3))
        check([reply])
        return reply


async def _translated(answer: Awaitable[_T]) -> _T:
    try:
        return await answer
    except (hiredis.ReplyError, OSError) as error:
        raise _error(error) from error
