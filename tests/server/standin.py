"""A responder that does what the first label of the question says, and small clients to ask it with.

`now` echoes the question; `later-50` does so 50 ms later; `big-5000` gives 5,000 bytes at once; `never` stays pending;
`silent` says nothing; `boom` raises.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

from kdns.answers import AnswerCache, PlacedAnswers
from kdns.wire import names


class Waiting:
    """A pending reply; it counts who gave up on it."""

    def __init__(self, handle: asyncio.TimerHandle | None, responder: "StandIn") -> None:
        self.handle = handle
        self.responder = responder

    def cancel(self) -> None:
        self.responder.cancelled += 1
        if self.handle is not None:
            self.handle.cancel()


class StandIn:
    """The responder. `seen` holds transport, client and local address of each packet."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[str, int], tuple[str, int]]] = []
        self.packets: list[bytes] = []
        self.cancelled = 0
        self.many_zones = False
        self.kept = AnswerCache()
        self.placed: PlacedAnswers | None = None

    def answers(self, transport: str, six: bool) -> AnswerCache:
        return self.kept

    def placed_answers(self, transport: str, six: bool) -> PlacedAnswers | None:
        return self.placed

    def respond(
        self,
        packet: bytes,
        transport: str,
        client: tuple[str, int],
        local: tuple[str, int],
        send: Callable[[bytes], None],
    ) -> bytes | Waiting | None:
        self.seen.append((transport, client, local))
        self.packets.append(packet)
        if len(packet) < 12 or packet[2] & 0x80:
            return None
        word, _, number = first_label(packet).partition("-")
        if word == "silent":
            return None
        if word == "boom":
            raise RuntimeError("boom")
        if word == "never":
            return Waiting(None, self)
        if word == "later":
            later = asyncio.get_running_loop().call_later(int(number) / 1000, send, answer(packet))
            return Waiting(later, self)
        return answer(packet) + bytes(max(0, int(number) - len(packet)) if word == "big" else 0)


def first_label(packet: bytes) -> str:
    return packet[13 : 13 + packet[12]].decode("latin-1") if len(packet) > 12 else ""


def answer(packet: bytes) -> bytes:
    return packet[:2] + b"\x84\x00" + packet[4:]


def query(name: str, number: int = 1) -> bytes:
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + names.from_text(name) + b"\x00\x01\x00\x01"


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


class TcpClient:
    """A client that speaks frames, or anything else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, address: tuple[str, int], local: str | None = None) -> "TcpClient":
        where = (local, 0) if local else None
        return cls(*await asyncio.open_connection(address[0], address[1], local_addr=where, limit=2**22))

    async def read(self) -> bytes:
        async with asyncio.timeout(10):
            size = int.from_bytes(await self.reader.readexactly(2), "big")
            return await self.reader.readexactly(size)

    async def read_number(self) -> int:
        return int.from_bytes((await self.read())[:2], "big")

    async def until_closed(self) -> float:
        """Seconds until the server closes; what still comes is dropped."""
        started = asyncio.get_running_loop().time()
        async with asyncio.timeout(10):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass
        return asyncio.get_running_loop().time() - started

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def udp_client(bind: tuple[str, int] = ("127.0.0.1", 0)) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in bind[0] else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(bind)
    return sock


async def receive(sock: socket.socket, seconds: float = 5.0) -> tuple[bytes, tuple[str, int]]:
    """The next datagram and its source; TimeoutError when none comes."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while loop.time() < deadline:
        try:
            data, peer = sock.recvfrom(65535)
        except BlockingIOError:
            await asyncio.sleep(0.002)
        else:
            return data, (peer[0], peer[1])
    raise TimeoutError


async def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something holds; fail when it doesn't."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
