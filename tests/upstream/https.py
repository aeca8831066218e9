"""An upstream over HTTPS that follows a script: for each request that arrives, what comes back on its connection."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from kdns.upstream.sockets import Upstream
from tests.upstream.fake import reply

MEDIA_TYPE = "application/dns-message"


class Asked(NamedTuple):
    """A request as it came: its line, its headers in lower case, and the query that it carries."""

    method: str
    path: str
    headers: dict[str, str]
    query: bytes


# What a request is answered with, byte by byte; empty ends the connection, None is silence.
Script = Callable[[Asked], bytes | None]


class Fake:
    """What arrived, and where the upstream is."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.asked: list[Asked] = []
        self.connections = 0
        self.hosts: list[str] = []
        self.protocols: list[str | None] = []
        self.arrived = asyncio.Event()

    def upstream(self, name: str = "", path: str = "/dns-query") -> Upstream:
        return Upstream(self.host, self.port, True, name, path)


@asynccontextmanager
async def upstream(*script: Script, tls: ssl.SSLContext, host: str = "127.0.0.1") -> AsyncIterator[Fake]:
    """An upstream on loopback; the last of the script answers all further requests."""
    writers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fake.connections += 1
        fake.protocols.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        fake.hosts.append(writer.get_extra_info("peername")[0])
        task = asyncio.current_task()
        assert task is not None
        writers[task] = writer
        try:
            while True:
                asked = await _read(reader)
                fake.asked.append(asked)
                fake.arrived.set()
                said = script[min(len(fake.asked), len(script)) - 1](asked)
                if said is None:
                    await asyncio.sleep(60)
                elif not said:
                    return
                else:
                    writer.write(said)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writers.pop(task, None)
            writer.transport.abort()

    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    fake = Fake(host, server.sockets[0].getsockname()[1])
    try:
        yield fake
    finally:
        server.close()
        left = dict(writers)
        for task, writer in left.items():
            writer.transport.abort()
            task.cancel()
        if left:
            await asyncio.wait(left)


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    line, *lines = head.strip().split("\r\n")
    method, target, _ = line.split(" ")
    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
    parts = urlsplit(target)
    if method == "GET":
        text = parse_qs(parts.query)["dns"][0]
        query = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    else:
        query = await reader.readexactly(int(headers["content-length"]))
    return Asked(method, parts.path, headers, query)


def response(body: bytes, status: int = 200, media_type: str = MEDIA_TYPE, **more: str) -> bytes:
    """A whole response of HTTP/1.1."""
    headers = {"Content-Type": media_type, "Content-Length": str(len(body)), **more}
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def says(*records: bytes, rcode: int = 0) -> Script:
    """The script of an upstream that answers."""
    return lambda asked: response(reply(asked.query, *records, rcode=rcode))
