"""An upstream in a thread of its own, for servers that are processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

ADDRESS = "192.0.2.7"


class Upstream:
    """Where it is, after how many seconds it replies (None: never), and how many queries came to it."""

    def __init__(self, port: int, delay_seconds: float | None) -> None:
        self.port = port
        self.delay_seconds = delay_seconds
        self.asked = 0


@contextlib.contextmanager
def upstream(delay_seconds: float | None) -> Iterator[Upstream]:
    """One that answers each question for an A record with ADDRESS after so long a time; without one, never."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        found = Upstream(sock.getsockname()[1], delay_seconds)
        ended = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(_serve(sock, found, ended)))
        thread.start()
        try:
            yield found
        finally:
            ended.set()
            thread.join()


async def _serve(sock: socket.socket, found: Upstream, ended: threading.Event) -> None:
    loop = asyncio.get_running_loop()

    class Protocol(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            found.asked += 1
            if found.delay_seconds is not None:
                loop.call_later(found.delay_seconds, self.reply, data, addr)

        def reply(self, data: bytes, addr: tuple[str, int]) -> None:
            if not self.transport.is_closing():
                self.transport.sendto(reply(data), addr)  # type: ignore[attr-defined]

    sock.setblocking(False)
    transport, _ = await loop.create_datagram_endpoint(Protocol, sock=sock)
    await asyncio.to_thread(ended.wait)
    transport.close()


def reply(query: bytes) -> bytes:
    """ADDRESS, for a second."""
    end = 12
    while query[end]:
        end += query[end] + 1
    header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0)
    record = struct.pack("!HHHIH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton(ADDRESS)
    return header + query[12 : end + 5] + record
