"""HTTP/1.1 by hand, so that a reply can be wrong in any byte: requests read, replies written, streams that end badly.

Knows nothing of Kubernetes. A reply's body is bytes, or a stream of things: bytes (one chunk each), a number (a pause
in seconds), or an `End`.
Law: RFC 9112 (messages, chunked transfer coding).
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit


class End(Enum):
    """How a stream may end but by its last chunk."""

    FIN = auto()  # the connection is closed where it is
    RESET = auto()  # TCP RST
    SILENCE = auto()  # nothing comes any more, until the client leaves


Thing = bytes | float | End


@dataclass
class Request:
    """What a client asked, when (the loop's clock), and on which connection. The rest is what the path meant."""

    method: str
    path: str
    parameters: dict[str, str]
    headers: dict[str, str]
    time: float
    connection: int
    verb: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def partial(self) -> bool:
        """Whether only metadata is asked for."""
        return "as=PartialObjectMetadata" in self.headers.get("accept", "")


@dataclass
class Reply:
    """What is sent. `stream` is the body where it is no plain bytes; `heard` is called once it is over.

    A stream may hold what is not bytes yet; `recut` is what happens to it once it is.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: AsyncIterable[Any] | None = None
    recut: list[Callable[[AsyncIterator[Thing]], AsyncIterator[Thing]]] = field(default_factory=list)
    heard: Callable[[], None] | None = None


def json_reply(status: int, content: Any, **headers: str) -> Reply:
    """A reply whose body is JSON."""
    more = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return Reply(status, {"Content-Type": "application/json", **more}, json.dumps(content).encode() + b"\n")


async def read_request(reader: asyncio.StreamReader, connection: int) -> Request | None:
    """The next request of a connection; None at its end."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    await reader.readexactly(int(headers.get("content-length", "0")))
    url = urlsplit(target)
    parameters = dict(parse_qsl(url.query, keep_blank_values=True))
    return Request(method, url.path, parameters, headers, asyncio.get_running_loop().time(), connection)


async def write_reply(writer: asyncio.StreamWriter, reply: Reply, may_write: Callable[[], Awaitable[Any]]) -> bool:
    """Send a reply; before each write `may_write` is awaited. Returns whether the connection can be used again."""
    reason = HTTPStatus(reply.status).phrase
    headers = {**reply.headers}
    if reply.stream is None:
        headers.setdefault("Content-Length", str(len(reply.body)))
    else:
        headers["Transfer-Encoding"] = "chunked"
    lines = [f"HTTP/1.1 {reply.status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
    await may_write()
    writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + reply.body)
    if reply.stream is not None:
        async for thing in reply.stream:
            await may_write()
            if isinstance(thing, End):
                return await end(writer, thing)
            if isinstance(thing, bytes):
                # An empty chunk would be the last.
                if thing:
                    writer.write(b"%x\r\n%s\r\n" % (len(thing), thing))
                    await writer.drain()
            else:
                await asyncio.sleep(thing)
        await may_write()
        writer.write(b"0\r\n\r\n")
    await writer.drain()
    return headers.get("Connection") != "close"


async def end(writer: asyncio.StreamWriter, how: End) -> bool:
    """Let a connection end; of no use afterwards."""
    if how is End.SILENCE:
        # The client's leaving ends it.
        await asyncio.Event().wait()
    if how is End.RESET:
        # What is still in our buffer goes before the reset: it was told.
        await writer.drain()
        reset(writer)
    else:
        writer.close()
    return False


def reset(writer: asyncio.StreamWriter) -> None:
    """TCP RST: closing with a linger time of zero."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
