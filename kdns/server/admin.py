"""The admin socket: questions to a running process, from its own user and from root on the same machine only.

Bytes in, bytes out; knows no DNS. It is an abstract Unix socket (unix(7)): there is no file, so it needs no folder to
write to and leaves nothing behind, and it exists only within the network namespace of the process, which is that of
its pod. Who asks is told by the kernel (SO_PEERCRED). Linux alone has both.

A question is a line. A reply is a line, `ok` or what is wrong, then the answer up to the end. One question has its
answer at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from kdns.errors import ConfigError, Problem

log = logging.getLogger("kdns.admin")

# Before the place at which the process listens and its number: `\0kdns/127.0.0.1:1053/4711`.
_PREFIX = "kdns/"
_OK = b"ok"
_CREDENTIALS = struct.Struct("3i")
# Whom the kernel can't name, because of a user namespace between us, it calls by this one; so may be anybody.
_NOBODY = 65534
_LISTENING = 0x10000

QUESTION_BYTES = 16 * 1024
ANSWER_BYTES = 16 * 1024 * 1024
QUESTION_SECONDS = 5.0
# All that one question may take; a client waits that long for those before it as well.
ANSWER_SECONDS = 60.0
# Beyond that who asks is sent away, and then isn't even listened to. Of those who may not ask a few are told so.
MOST_WAITING, MOST_CONNECTIONS, MOST_STRANGERS = 8, 16, 4


class AdminServer:
    """Serves `answer`, which turns a question into its answer."""

    def __init__(self, answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        self._answer = answer
        self._turn = asyncio.Lock()
        self._own: set[asyncio.Task[None]] = set()
        self._strangers: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, place: str) -> None:
        """Listen under the name of this place. Where that can't be, there is a line in the log and no admin socket."""
        if sys.platform != "linux":
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(f"\0{_PREFIX}{place}/{os.getpid()}")
            self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=QUESTION_BYTES)
        except OSError as error:
            sock.close()
            log.warning("no admin socket, so `kdns explain` can't ask this process: %s", os.strerror(error.errno or 0))

    async def stop(self) -> None:
        """Close; who waits for an answer gets none."""
        if self._server is not None:
            self._server.close()
        tasks = self._own | self._strangers
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        user, own = _peer(writer.get_extra_info("socket")), os.geteuid()
        of_kind, most = (self._own, MOST_CONNECTIONS) if user in (0, own) else (self._strangers, MOST_STRANGERS)
        if len(of_kind) >= most:
            writer.transport.abort()
            return
        of_kind.add(task)
        try:
            question = await _read(reader)
            if user not in (0, own):
                status, answer = f"{_who(user)} may not ask: only root and user {own} may".encode(), b""
            else:
                status, answer = await self._reply(question)
            async with asyncio.timeout(QUESTION_SECONDS):
                writer.write(status + b"\n" + answer)
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            # Who has gone, says nothing or doesn't read has no need of an answer.
            pass
        finally:
            of_kind.discard(task)
            # To close would wait until all of it is read, which it may never be.
            writer.transport.abort()

    async def _reply(self, question: bytes) -> tuple[bytes, bytes]:
        if not question:
            return b"the question is too long", b""
        if len(self._own) > MOST_WAITING:
            return b"too many ask at once", b""
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._turn:
                return _OK, await self._answer(question)
        except TimeoutError:
            return b"it took too long", b""
        except Exception:
            # Ours to repair; the process has others to serve.
            log.exception("no answer to the question %r", question)
            return b"an internal error, which the log of the process has", b""


async def _read(reader: asyncio.StreamReader) -> bytes:
    """The question; empty where it is too long.

    It is read before anything is said, for the kernel drops what was said to who still has something to be read.
    """
    try:
        async with asyncio.timeout(QUESTION_SECONDS):
            return await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        return b""


def _peer(sock: socket.socket) -> int:
    """The user at the other end; -1 for one whom nobody vouches for."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(credentials)
    # On a node's network other pods are near whose user has the same number, and who are somebody else. Their processes
    # aren't among ours, and then the kernel gives no number for them.
    return int(user) if user == 0 or (process and user != _NOBODY) else -1


def _who(user: int) -> str:
    return f"user {user}" if user >= 0 else "a process of another container"


# Who asks


def places() -> dict[str, str]:
    """Where processes listen that can be asked from here, each with the name of its socket; of several the newest."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/unix").read_text("utf-8", "replace").splitlines()[1:]:
            # Num, RefCount, Protocol, Flags, Type, St, Inode, Path
            fields = line.split(maxsplit=7)
            name = fields[7] if len(fields) == 8 else ""
            if name.startswith(f"@{_PREFIX}") and int(fields[3], 16) & _LISTENING:
                place = name.removeprefix(f"@{_PREFIX}").rpartition("/")[0]
                found[place] = name.removeprefix("@")
    return found


def ask(place: str, question: bytes) -> bytes:
    """The answer of the process that listens at this place, or of the only one there is. Raises ConfigError."""
    place, name = choose(place, places())
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(ANSWER_SECONDS + QUESTION_SECONDS)
            sock.connect(f"\0{name}")
            sock.sendall(question + b"\n")
            while (part := sock.recv(1 << 16)) and len(answer) < ANSWER_BYTES:
                answer += part
    except OSError as error:
        # A process may end between two looks.
        why = "it doesn't answer" if isinstance(error, TimeoutError) else os.strerror(error.errno or errno.EIO).lower()
        raise _problem(f"the kdns at {place} can't be asked: {why}") from error
    status, _, body = bytes(answer).partition(b"\n")
    if status != _OK:
        why = status.decode(errors="replace") or "it ended before it had answered"
        raise _problem(f"the kdns at {place} gives no answer: {why}")
    return body


def choose(place: str, known: dict[str, str]) -> tuple[str, str]:
    """The place to ask, of those known, and the name of its socket. Raises ConfigError where that isn't clear."""
    shown = ", ".join(sorted(known))
    if not known:
        hint = "`--inventory PATH`, `--kubeconfig FILE` and `--corefile FILE` do without a server"
        raise _problem("no kdns runs here", hint)
    if not place and len(known) > 1:
        raise _problem("several kdns run here", f"`--server ADDR:PORT` says which: {shown}")
    place = place or next(iter(known))
    if place not in known:
        raise _problem(f"no kdns listens at {place}", f"there is one at {shown}")
    return place, known[place]


def _problem(message: str, hint: str = "") -> ConfigError:
    return ConfigError([Problem(message, hint=hint)])
