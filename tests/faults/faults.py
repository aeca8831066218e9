"""What can go wrong with an API server, one small function each, named as one would say it.

Three kinds, by what they change:
- a `Fault` gets a request and the right reply, and returns what is sent instead: `fake.on("list", "services", html())`;
- `on_events` and `on_bytes` make such a Fault of a generator that changes the stream of a reply: its events while they
  are events, or its bytes as they go into chunks, with pauses (a number) and ends (`End`) wherever it likes;
- a `Tamper` gets each change as running watches would tell it: `fake.tamper("services", lose(nth=3))`.

A new one, for instance a server that says everything after a second:

    @on_events
    async def late(parts: Parts) -> Parts:
        async for part in parts:
            yield 1.0
            yield part
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace

from tests.faults import statuses
from tests.faults.api import Event, Part, expired
from tests.faults.fake import Fault, Tamper
from tests.faults.statuses import Status, refusal
from tests.faults.wire import End, Reply, Request, Thing

Parts = AsyncIterator[Part]
Things = AsyncIterator[Thing]


def on_events(change: Callable[[Parts], Parts]) -> Fault:
    """The Fault that lets the events of a watch go through a generator; other replies are as they were."""

    def fault(request: Request, reply: Reply) -> Reply:
        if request.verb == "watch" and reply.stream is not None:
            reply.stream = change(reply.stream)  # type: ignore[arg-type]
        return reply

    return fault


def on_bytes(change: Callable[[Things], Things]) -> Fault:
    """The Fault that lets the bytes of a body go through a generator: a watch's line by line, a list's in pieces."""

    def fault(request: Request, reply: Reply) -> Reply:
        if reply.stream is None:
            reply.stream, reply.body = _alone(reply.body), b""
            # No length before chunks.
            reply.headers = {name: value for name, value in reply.headers.items() if name != "Content-Length"}
        reply.recut.append(change)
        return reply

    return fault


async def _alone(body: bytes) -> Things:
    yield body


# Instead of a reply


def says(status: Status) -> Fault:
    """A refusal by a Status (statuses.py)."""
    return lambda request, reply: refusal(status)


def status(code: int, retry_after: float | None = None, reason: str = "", message: str = "out of order") -> Fault:
    """A refusal with this code, and the header Retry-After as it is given."""

    def fault(request: Request, reply: Reply) -> Reply:
        refused = refusal(statuses.status(code, reason, message))
        if retry_after is not None:
            refused.headers["Retry-After"] = f"{retry_after:g}"
        return refused

    return fault


def no_watch_list() -> Fault:
    """A server that doesn't know sendInitialEvents; to be used for every watch."""

    def fault(request: Request, reply: Reply) -> Reply:
        return refusal(statuses.no_watch_list()) if "sendInitialEvents" in request.parameters else reply

    return fault


def ignores_watch_list() -> Fault:
    """An older one yet: it passes over what it doesn't know, and never says that all was told."""
    return without_end_bookmark


def expired_pages() -> Fault:
    """Every page of a list but the first is 410; to be used for lists."""

    def fault(request: Request, reply: Reply) -> Reply:
        token = request.parameters.get("continue")
        return refusal(statuses.expired_page(token)) if token else reply

    return fault


def html(code: int = 502) -> Fault:
    """The error page of a proxy in between."""
    page = b"<html><head><title>Bad Gateway</title></head><body><h1>upstream connect error</h1></body></html>\n"
    return lambda request, reply: Reply(code, {"Content-Type": "text/html; charset=utf-8"}, page)


def protobuf() -> Fault:
    """A reply in the API's other encoding, which nobody asked for."""
    body = b"k8s\x00\n\x13\n\x02v1\x12\x0bServiceList\x12\x0c\n\n\n\x00\x12\x041001\x1a\x00"
    return lambda request, reply: Reply(200, {"Content-Type": "application/vnd.kubernetes.protobuf"}, body)


def redirect(to: str, code: int = 307) -> Fault:
    """Another place to ask, perhaps on another host."""
    return lambda request, reply: Reply(code, {"Location": to + request.path})


def empty() -> Fault:
    """200 and not a byte of body."""
    return lambda request, reply: Reply(200, {"Content-Type": "application/json"})


# The stream of a watch


def gone_after(count: int) -> Fault:
    """410 in the stream after so many events."""

    @on_events
    async def fault(parts: Parts) -> Parts:
        told = 0
        async for part in parts:
            if told == count:
                break
            yield part
            told += 1
        yield expired()

    return fault


def ends_after(count: int, how: End | None = None) -> Fault:
    """The watch ends after so many events: in good order, or as `how` says."""

    @on_events
    async def fault(parts: Parts) -> Parts:
        if count:
            told = 0
            async for part in parts:
                yield part
                told += 1
                if told == count:
                    break
        if how is not None:
            yield how

    return fault


def torn_after(count: int, how: End) -> Fault:
    """The watch ends in the middle of the event that comes after so many."""

    @on_bytes
    async def fault(things: Things) -> Things:
        told = 0
        async for thing in things:
            if told == count and isinstance(thing, bytes):
                yield thing[: len(thing) // 2]
                yield how
            yield thing
            told += 1

    return fault


@on_events
async def only_headers(parts: Parts) -> Parts:
    """Headers, and then nothing."""
    yield End.SILENCE


@on_events
async def without_bookmarks(parts: Parts) -> Parts:
    """No bookmark at all, not even the one behind the initial events."""
    async for part in parts:
        if not _is_bookmark(part):
            yield part


@on_events
async def without_end_bookmark(parts: Parts) -> Parts:
    """Nobody says that the initial events are over."""
    async for part in parts:
        if not (isinstance(part, Event) and part.initial_end):
            yield part


@on_events
async def unmarked_end_bookmark(parts: Parts) -> Parts:
    """The bookmark behind the initial events has no annotation."""
    async for part in parts:
        yield replace(part, initial_end=False) if isinstance(part, Event) else part


@on_events
async def end_bookmark_twice(parts: Parts) -> Parts:
    """The initial events are over, and once more."""
    async for part in parts:
        yield part
        if isinstance(part, Event) and part.initial_end:
            yield part


def _is_bookmark(part: Part) -> bool:
    return isinstance(part, Event) and part.type == "BOOKMARK"


# Bytes in chunks


def recut(size: int) -> Fault:
    """Chunks of so many bytes, whatever they hold: 1 splits every UTF-8 sequence and every line."""

    @on_bytes
    async def fault(things: Things) -> Things:
        async for thing in things:
            if isinstance(thing, bytes):
                for start in range(0, len(thing), size):
                    yield thing[start : start + size]
            else:
                yield thing

    return fault


def joined(count: int) -> Fault:
    """So many events in one chunk, and half of the next one behind them."""

    @on_bytes
    async def fault(things: Things) -> Things:
        held, lines = b"", 0
        async for thing in things:
            if not isinstance(thing, bytes):
                yield held
                yield thing
                held, lines = b"", 0
                continue
            lines += 1
            half = len(thing) // 2
            if lines % count == 0:
                yield held + thing[:half]
                held = thing[half:]
            else:
                held += thing
        yield held

    return fault


def slow(bytes_per_second: float, step: int = 4096) -> Fault:
    """The body comes at this rate."""

    @on_bytes
    async def fault(things: Things) -> Things:
        async for thing in things:
            if isinstance(thing, bytes):
                for start in range(0, len(thing), step):
                    piece = thing[start : start + step]
                    yield piece
                    yield len(piece) / bytes_per_second
            else:
                yield thing

    return fault


def cut_at(fraction: float, how: End = End.RESET) -> Fault:
    """The body ends early, at this share of its bytes; for bodies that have an end."""

    @on_bytes
    async def fault(things: Things) -> Things:
        body = b"".join([thing async for thing in things if isinstance(thing, bytes)])
        yield body[: int(len(body) * fraction)]
        yield how

    return fault


def gzipped(declared: bool = True) -> Fault:
    """The body compressed, with or without saying so."""

    @on_bytes
    async def compress(things: Things) -> Things:
        packer = zlib.compressobj(wbits=31)
        async for thing in things:
            if isinstance(thing, bytes):
                yield packer.compress(thing) + packer.flush(zlib.Z_SYNC_FLUSH)
            else:
                yield thing
        yield packer.flush()

    async def fault(request: Request, reply: Reply) -> Reply:
        changed = compress(request, reply)
        assert isinstance(changed, Reply)
        if declared:
            changed.headers["Content-Encoding"] = "gzip"
        return changed

    return fault


# Changes, one by one


def lose(nth: int = 1, count: int = 1, type: str = "") -> Tamper:
    """The nth change and `count` in all are never told; `type` counts only ADDED, MODIFIED or DELETED."""
    seen = 0

    def tamper(event: Event) -> Iterable[Part]:
        nonlocal seen
        if event.version is None or type not in ("", event.type):
            return [event]
        seen += 1
        return [] if nth <= seen < nth + count else [event]

    return tamper


def lose_named(name: str, type: str = "") -> Tamper:
    """What happens to the objects of this name is never told, or what of it has this type."""

    def tamper(event: Event) -> Iterable[Part]:
        met = event.version is not None and event.version.key[1] == name and type in ("", event.type)
        return [] if met else [event]

    return tamper


def twice() -> Tamper:
    """Every change is told twice."""
    return lambda event: [event, event]


def replayed(count: int = 3) -> Tamper:
    """Behind every change come the ones before it, again: versions that go back."""
    before: dict[str, list[Event]] = defaultdict(list)

    def tamper(event: Event) -> Iterable[Part]:
        if event.version is None:
            return [event]
        of_its_kind = before[event.version.resource.plural]
        old = of_its_kind[-count:]
        of_its_kind.append(event)
        return [event, *old]

    return tamper


def delayed(seconds: float) -> Tamper:
    """Every change comes later, so that other kinds are ahead."""
    return lambda event: [seconds, event]


def bookmarks_at(number: Callable[[int], int]) -> Tamper:
    """Bookmarks name another version than the true one."""

    def tamper(event: Event) -> Iterable[Part]:
        return [replace(event, number=number(event.number)) if event.type == "BOOKMARK" else event]

    return tamper
