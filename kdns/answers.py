"""Replies that were made before, by the bytes of their question, and exactly forgotten when what they say changes.

A key is a query after its two ID bytes, folded to lower case: for queries that end with their question, or with an OPT
without options; no other is kept. A value is the reply after its ID. Each reply stands under the tags that it depends
on, and `forget` drops those of a tag and no other, so a kept reply is never older than the model.
What others said has a lifetime besides: it ends by the clock, and till then its TTLs go down.
Knows bytes and tags; no chain, no sockets.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from random import Random
from typing import Any

import msgspec

Tag = tuple[Any, ...]

# RFC 1035 §4.1: the header; in a key and in a kept reply the ID is missing.
_HEADER, _ID = 12, 2
_TYPE_AND_CLASS, _OPT, _TYPE_OPT = 4, 11, 41
# Root name and type 41, the beginning of an OPT record.
_OPT_BEGINS = b"\x00\x00\x29"
_NO_OPTIONS = b"\x00\x00"
# A record after its owner: type, class, TTL, length of its data; and where in it the TTL is.
_FIELDS, _TTL, _POINTER = struct.Struct("!HHIH"), 4, 0xC0
_COUNTS = struct.Struct("!HHH")

# What an entry costs beside its bytes: the Kept and its iterator, two dicts' slots. Measured with tracemalloc.
ENTRY_BYTES = 500
TAG_BYTES = 150
# Waiting answers older than this many changes are not kept: nobody remembers any more what changed meanwhile.
REMEMBERED = 1000


class Bounds(msgspec.Struct, frozen=True):
    """How much is kept: bytes for each of two generations, of replies with records and of those without.

    `variants` is how many orders a reply with several addresses is kept in, each used once in a round; one of them is
    made anew after each round.
    """

    positive: int = 12 * 1024 * 1024
    negative: int = 4 * 1024 * 1024
    variants: int = 16


class Lifetime(msgspec.Struct, frozen=True):
    """How long a reply is true as it stands: from `since` until `until`, in seconds since 1970.

    With `ttl_seconds` its TTLs are that much at first and go down at each whole second. `used` is told how often the
    reply was sent, some time after.
    """

    since: float
    until: float
    ttl_seconds: int | None = None
    used: Callable[[int], None] | None = None


class Kept:
    """The replies to one question. `next(kept.replies, None)` is one to send, or None when another has to be made.

    `uses` counts those that were sent and are not in the metrics yet: in `row`, by `tell`; how long they took goes into
    `times` at once.
    """

    __slots__ = (
        "_clock",
        "_made",
        "_reply_size",
        "_row",
        "key",
        "lifetime",
        "replies",
        "size",
        "tags",
        "times",
        "uses",
    )

    def __init__(
        self,
        key: bytes,
        reply_size: int,
        row: list[float],
        times: list[float],
        tags: tuple[Tag, ...],
        lifetime: Lifetime | None,
        clock: Callable[[], float],
    ) -> None:
        self.key = key
        self.lifetime = lifetime
        self._clock = clock
        self.times = times
        self._row = row
        self._reply_size = reply_size
        self.tags = tags
        self.uses = 0
        self.size = ENTRY_BYTES + len(key) + TAG_BYTES * len(tags)
        self.replies: Iterator[bytes] = iter(())
        self._made: list[bytes] = []

    def tell(self) -> None:
        """Bring the metrics up to date: queries, bytes of queries, bytes of replies."""
        uses, self.uses = self.uses, 0
        row = self._row
        row[0] += uses
        row[1] += uses * (len(self.key) + _ID)
        row[2] += uses * self._reply_size
        if uses and self.lifetime is not None and self.lifetime.used is not None:
            self.lifetime.used(uses)

    def goes_with(self, lifetime: Lifetime | None) -> bool:
        """Whether a reply with this lifetime says the same as the replies that are here."""
        mine = self.lifetime
        if mine is None or lifetime is None:
            return mine is lifetime
        return (mine.since, mine.until) == (lifetime.since, lifetime.until)

    def always(self, reply: bytes) -> None:
        """Send this one, as long as it is kept."""
        self._send(repeat(reply))

    def also(self, reply: bytes, variants: int, random: Random) -> None:
        """One more order of the same records, in place of the oldest. Until there are enough each query brings one."""
        made = self._made
        if len(made) == variants:
            del made[0]
        made.append(reply)
        if len(made) == variants:
            self._send(iter(random.sample(made, variants)))

    def _send(self, replies: Iterator[bytes]) -> None:
        self.replies = replies if self.lifetime is None else _ageing(replies, self.lifetime, self._clock)


class _Generation:
    """Entries that came or were used since the same moment, and where each tag stands.

    `size` is all that ever came, since what is forgotten leaves its key with its other tags.
    """

    __slots__ = ("entries", "index", "size")

    def __init__(self) -> None:
        self.entries: dict[bytes, Kept] = {}
        self.index: dict[Tag, set[bytes]] = {}
        self.size = 0

    def put(self, kept: Kept) -> None:
        self.entries[kept.key] = kept
        self.size += kept.size
        for tag in kept.tags:
            keys = self.index.get(tag)
            if keys is None:
                self.index[tag] = {kept.key}
            else:
                keys.add(kept.key)

    def forget(self, tag: Tag) -> list[Kept]:
        found = (self.entries.pop(key, None) for key in self.index.pop(tag, ()))
        return [kept for kept in found if kept is not None]


class Table:
    """Entries in two generations, each of at most `bound` bytes: what is used lives on, and a use costs nothing.

    When the young one is full it becomes the old one, and the old one goes. What is found in the old one moves to the
    young one, so only what was not asked for during a whole generation is lost.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._young = _Generation()
        self._old = _Generation()
        # The way of most queries, without a call of ours.
        self.young_get = self._young.entries.get

    def __iter__(self) -> Iterator[Kept]:
        yield from self._young.entries.values()
        yield from self._old.entries.values()

    def __len__(self) -> int:
        return len(self._young.entries) + len(self._old.entries)

    def put(self, kept: Kept) -> None:
        """Keep it, as the one for its key."""
        if self._young.size + kept.size > self._bound:
            for lost in self._old.entries.values():
                lost.tell()
            self._old, self._young = self._young, _Generation()
            self.young_get = self._young.entries.get
        self._young.put(kept)

    def find(self, key: bytes) -> Kept | None:
        """The entry of a key, in either generation."""
        kept = self._young.entries.get(key)
        if kept is None:
            kept = self._old.entries.pop(key, None)
            if kept is not None:
                self.put(kept)
        return kept

    def forget(self, tags: Iterable[Tag]) -> None:
        """Drop what depends on any of these."""
        for tag in tags:
            for generation in (self._young, self._old):
                for kept in generation.forget(tag):
                    kept.tell()

    def remove(self, kept: Kept) -> None:
        """Drop one entry."""
        for generation in (self._young, self._old):
            if generation.entries.get(kept.key) is kept:
                del generation.entries[kept.key]
                kept.tell()


class AnswerCache:
    """What one socket's clients were answered."""

    def __init__(
        self, bounds: Bounds | None = None, random: Random | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._bounds = bounds or Bounds()
        self._random = random or Random()
        self._clock = clock
        self._changes = 0
        self._recent: deque[set[Tag]] = deque(maxlen=REMEMBERED)
        self._clear()

    def _clear(self) -> None:
        self.positive = Table(self._bounds.positive)
        self.negative = Table(self._bounds.negative)

    @property
    def changes(self) -> int:
        """How often something was forgotten; an answer that waits remembers it."""
        return self._changes

    def find(self, packet: bytes) -> tuple[bytes, Kept] | None:
        """The reply to a packet, if one is kept, and where it was kept."""
        key = packet[_ID:]
        kept = self.positive.find(key) or self.negative.find(key)
        if kept is not None:
            body = next(kept.replies, None)
            if body is None:
                # Who makes another one may want to know how often this one was sent.
                kept.tell()
                return None
            kept.uses += 1
            return packet[:_ID] + body, kept
        end = question_end(packet)
        name = packet[_HEADER : end - _TYPE_AND_CLASS] if end else b""
        folded = name.lower()
        if folded == name:
            return None
        key = packet[_ID:_HEADER] + folded + packet[end - _TYPE_AND_CLASS :]
        kept = self.positive.find(key) or self.negative.find(key)
        body = None if kept is None else next(kept.replies, None)
        if kept is None or body is None:
            if kept is not None:
                kept.tell()
            return None
        kept.uses += 1
        # What the reply says of the question's name are pointers to it, so the client finds its own spelling.
        return packet[:_ID] + body[: _HEADER - _ID] + name + body[end - _TYPE_AND_CLASS - _ID :], kept

    def keep(
        self,
        packet: bytes,
        reply: bytes,
        row: list[float],
        times: list[float],
        tags: Iterable[Tag],
        negative: bool,
        varies: bool,
        lifetime: Lifetime | None = None,
    ) -> None:
        """Keep the reply to a packet, which must be one that has a key, for as long as none of its tags is forgotten.

        `varies` tells that another reply would have another order or choice of the same records. With a `lifetime` it
        is not kept for longer than that.
        """
        end = question_end(packet)
        if not end:
            return
        key = packet[_ID:_HEADER] + packet[_HEADER : end - _TYPE_AND_CLASS].lower() + packet[end - _TYPE_AND_CLASS :]
        # The question in the kept reply is the folded one, whoever asked first.
        body = reply[_ID:_HEADER] + key[_HEADER - _ID : end - _TYPE_AND_CLASS - _ID] + reply[end - _TYPE_AND_CLASS :]
        table = self.negative if negative else self.positive
        kept = table.find(key)
        if kept is not None and varies and kept.goes_with(lifetime):
            kept.also(body, self._bounds.variants, self._random)
            return
        if kept is not None:
            table.remove(kept)
        kept = Kept(key, len(reply), row, times, tuple(tags), lifetime, self._clock)
        if varies:
            kept.also(body, self._bounds.variants, self._random)
            kept.size += len(body) * self._bounds.variants
        else:
            kept.always(body)
            kept.size += len(body)
        table.put(kept)

    def forget(self, tags: set[Tag]) -> None:
        """Drop every reply that depends on any of these."""
        self._changes += 1
        self._recent.append(tags)
        self.positive.forget(tags)
        self.negative.forget(tags)

    def clear(self) -> None:
        """Drop all; answers that wait are not kept either."""
        self.tell()
        self._clear()
        self._changes += REMEMBERED + 1
        self._recent.clear()

    def unchanged(self, since: int, tags: set[Tag]) -> bool:
        """Whether none of these tags was forgotten since `changes` was that."""
        missed = self._changes - since
        if missed > len(self._recent):
            return not missed
        return all(tags.isdisjoint(each) for each in islice(self._recent, len(self._recent) - missed, None))

    def tell(self) -> None:
        """Bring the metrics up to date with every use."""
        for table in (self.positive, self.negative):
            for kept in table:
                if kept.uses:
                    kept.tell()


def _ageing(replies: Iterator[bytes], lifetime: Lifetime, clock: Callable[[], float]) -> Iterator[bytes]:
    """The replies, their TTLs brought down to what is left at each moment, until the lifetime is over."""
    since, until, ttl_seconds = lifetime.since, lifetime.until, lifetime.ttl_seconds
    # Most uses find the reply of the present second made.
    age, made, aged = -1, b"", b""
    for reply in replies:
        now = clock()
        # Before it began: the clock was set back, and nobody knows how old it is.
        if not since <= now < until:
            return
        if ttl_seconds is None:
            yield reply
            continue
        if int(now - since) != age or reply is not made:
            age, made = int(now - since), reply
            aged = with_ttl(reply, max(0, ttl_seconds - age))
        yield aged


def with_ttl(reply: bytes, seconds: int) -> bytes:
    """The reply, which lacks its ID, with this TTL in all its records but OPT."""
    counts = sum(_COUNTS.unpack_from(reply, 6 - _ID))
    position = _after_name(reply, _HEADER - _ID) + _TYPE_AND_CLASS
    ttl = seconds.to_bytes(4, "big")
    parts: list[bytes] = []
    copied = 0
    for _ in range(counts):
        position = _after_name(reply, position)
        rtype, _, _, length = _FIELDS.unpack_from(reply, position)
        if rtype != _TYPE_OPT:
            parts += (reply[copied : position + _TTL], ttl)
            copied = position + 2 * _TTL
        position += _FIELDS.size + length
    parts.append(reply[copied:])
    return b"".join(parts)


def _after_name(reply: bytes, position: int) -> int:
    while length := reply[position]:
        if length >= _POINTER:
            return position + 2
        position += length + 1
    return position + 1


def question_end(packet: bytes) -> int:
    """Where the question of a packet ends that nothing follows but an OPT without options; 0 for any other packet."""
    if packet[4:10] != b"\x00\x01\x00\x00\x00\x00":
        return 0
    if packet[10:12] == b"\x00\x00":
        return len(packet)
    if packet[10:12] == b"\x00\x01" and packet[-_OPT:-8] == _OPT_BEGINS and packet[-2:] == _NO_OPTIONS:
        return len(packet) - _OPT
    return 0
