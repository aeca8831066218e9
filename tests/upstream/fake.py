"""An upstream that follows a script: for each query that arrives, what comes back over UDP and over TCP."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

from kdns.upstream.sockets import Upstream

# A step makes of a query the datagrams to send, in order; a number among them is a pause in seconds.
Step = Callable[[bytes], Sequence[bytes | float]]


class Fake:
    """What arrived, and where the upstream is."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.udp: list[bytes] = []
        self.tcp: list[bytes] = []
        self.ports: list[int] = []
        self.hosts: list[str] = []
        self.connections = 0


@asynccontextmanager
async def upstream(
    *script: Step, tcp: Step | None = None, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Fake]:
    """An upstream on loopback; the last step of the script serves all further queries, none is silence.

    Over TCP (or TLS, with a context) an empty message among the steps closes the connection.
    """
    loop = asyncio.get_running_loop()
    sock, listening = _sockets(host)
    port = sock.getsockname()[1]
    fake = Fake(Upstream(host, port))
    tasks: set[asyncio.Task[None]] = set()

    class Protocol(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            fake.udp.append(data)
            fake.ports.append(addr[1])
            fake.hosts.append(addr[0])
            if script:
                task = loop.create_task(self.play(script[min(len(fake.udp), len(script)) - 1](data), addr))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        async def play(self, steps: Sequence[bytes | float], addr: tuple[str, int]) -> None:
            for step in steps:
                if isinstance(step, bytes):
                    self.transport.sendto(step, addr)
                else:
                    await asyncio.sleep(step)

    serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fake.connections += 1
        fake.hosts.append(writer.get_extra_info("peername")[0])
        task = cast("asyncio.Task[None]", asyncio.current_task())
        serving[task] = writer
        task.add_done_callback(lambda _: serving.pop(task))
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                query = await reader.readexactly(size)
                fake.tcp.append(query)
                for step in tcp(query) if tcp is not None else ():
                    if not isinstance(step, bytes):
                        await asyncio.sleep(step)
                    elif not step:
                        return
                    else:
                        writer.write(len(step).to_bytes(2, "big") + step)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    transport, _ = await loop.create_datagram_endpoint(Protocol, sock=sock)
    server = None
    if tcp is None:
        listening.close()
    else:
        server = await asyncio.start_server(serve, sock=listening, ssl=tls)
    try:
        yield fake
    finally:
        for task in tasks:
            task.cancel()
        transport.close()
        if server is not None:
            server.close()
        for writer in serving.values():
            writer.transport.abort()
        if serving:
            await asyncio.wait(list(serving))


def _sockets(host: str) -> tuple[socket.socket, socket.socket]:
    """Sockets for UDP and TCP at one port that is free for both."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        udp, tcp = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family, socket.SOCK_STREAM)
        udp.bind((host, 0))
        try:
            tcp.bind((host, udp.getsockname()[1]))
        except OSError:
            udp.close()
            tcp.close()
        else:
            return udp, tcp


def silence(query: bytes) -> Sequence[bytes]:
    return ()


def question_of(query: bytes) -> bytes:
    """The bytes of the question section."""
    end = 12
    while query[end]:
        end += query[end] + 1
    return query[12 : end + 5]


def reply(
    query: bytes,
    *records: bytes,
    flags: int = 0x8180,
    rcode: int = 0,
    question: bytes | None = None,
    id_: int | None = None,
) -> bytes:
    """A reply to a query, with A records of these addresses, wrong where told so."""
    number = int.from_bytes(query[:2], "big") if id_ is None else id_
    answers = b"".join(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x1e\x00\x04" + each for each in records)
    section = question_of(query) if question is None else question
    return struct.pack("!HHHHHH", number, flags | rcode, 1, len(records), 0, 0) + section + answers


def says(*records: bytes, rcode: int = 0, flags: int = 0x8180) -> Step:
    """The step of an upstream that just answers."""
    return lambda query: [reply(query, *records, rcode=rcode, flags=flags)]
