"""Replies that were made before, by the bytes of their question, and exactly forgotten when what they say changes.

A key is a query after its two ID bytes, folded to lower case: for queries that end with their question, or with an OPT
with no option or with a client's cookie, whose value is left out; no other is kept. A value is the reply after its ID.
Each reply stands under the tags that it depends on, and `forget` drops those of a tag and no other, so a kept reply is
never older than the model. A name that isn't there may speak for its siblings (`Denial`), whose number has no bound.
What others said has a lifetime besides: it ends by the clock, and till then its TTLs go down.
What depends on where its client stands has that place in front of its key (`PlacedAnswers`).
Knows bytes and tags; no chain, no sockets.
Most queries end here, so looks are given for speed; docs/benchmarks.md has what an answer costs (`make bench`).
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import islice, repeat
from random import Random
from typing import Any

import msgspec

Tag = tuple[Any, ...]

# RFC 1035 §4.1: the header; in a key and in a kept reply the ID is missing.
_HEADER, _ID = 12, 2
# In a key, where the leftmost label of the name begins, behind its length.
_LABEL = _HEADER - _ID + 1
_TYPE_AND_CLASS, _OPT, _TYPE_OPT = 4, 11, 41
# Root name and type 41, the beginning of an OPT record.
_OPT_BEGINS = b"\x00\x00\x29"
_NO_OPTIONS = b"\x00\x00"
# The length of an OPT's data, and a client's cookie (RFC 7873 §4), up to its value. No reply depends on that: there are
# no cookies of ours, so clients never send them back.
_COOKIE_BEGINS = b"\x00\x0c\x00\x0a\x00\x08"
_COOKIE, _OPT_WITH_COOKIE = 8, 23
# In the first byte of the flags.
_TC = 0x02
# An A and an AAAA record behind their owner, which is a pointer, by their sizes with it; and an alias.
_ADDRESS_BEGINS = {16: b"\x00\x01\x00\x01", 28: b"\x00\x1c\x00\x01"}
_TYPE_CNAME = 5
# A record after its owner: type, class, TTL, length of its data; and where in it the TTL is.
_FIELDS, _TTL, _POINTER = struct.Struct("!HHIH"), 4, 0xC0
_COUNTS = struct.Struct("!HHH")

# What an entry costs beside its bytes: the Kept, its tags and two dicts' slots. Measured with tracemalloc.
ENTRY_BYTES = 300
TAG_BYTES = 150
# Waiting answers older than this many changes are not kept: nobody remembers any more what changed meanwhile.
REMEMBERED = 1000
# Clients whose places are remembered, some 150 bytes each. Addresses of UDP can be made up, so there is an end.
MOST_PLACES = 50_000
# What the tag of a client's address begins with (`kubernetes/clients.py`).
_CLIENT = "client"
# Of so many questions lately denied, and of others where more are asked than have room, one byte each is remembered:
# strangers' names are asked once, and keeping a reply costs two thirds of what it cost to make it.
_ASKED = 1 << 16


class Bounds(msgspec.Struct, frozen=True):
    """How much is kept: bytes for each of two generations, of replies with records and of those without.

    Denials that speak for siblings have a table of their own, with the bound of those without records.
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


class Kept(msgspec.Struct, gc=False, eq=False):
    """The replies to one question: `body` each time, or, without one, what `next(kept.replies, None)` gives.

    None tells that another has to be made.
    `uses` counts those that were sent and are not in the metrics yet: in `row`, by `tell`; how long they took goes into
    `times` at once. Each of `used` is told as well.
    """

    # Not for the garbage collector: nothing here leads back to it, and of tens of thousands it would visit each one.
    key: bytes
    query_size: int
    reply_size: int
    row: list[float]
    times: list[float]
    tags: tuple[Tag, ...]
    size: int = 0
    uses: int = 0
    body: bytes = b""
    replies: Iterator[bytes] = iter(())
    made: list[bytes] | None = None
    lifetime: Lifetime | None = None
    clock: Callable[[], float] = time.time
    used: tuple[Callable[[int], None], ...] = ()

    def __post_init__(self) -> None:
        self.size += ENTRY_BYTES + len(self.key) + TAG_BYTES * len(self.tags)

    def tell(self) -> None:
        """Bring the metrics up to date: queries, bytes of queries, bytes of replies."""
        uses, self.uses = self.uses, 0
        row = self.row
        row[0] += uses
        row[1] += uses * self.query_size
        row[2] += uses * self.reply_size
        if not uses:
            return
        for used in self.used:
            used(uses)
        if self.lifetime is not None and self.lifetime.used is not None:
            self.lifetime.used(uses)

    def goes_with(self, lifetime: Lifetime | None) -> bool:
        """Whether a reply with this lifetime says the same as the replies that are here."""
        mine = self.lifetime
        if mine is None or lifetime is None:
            return mine is lifetime
        return (mine.since, mine.until) == (lifetime.since, lifetime.until)

    def next(self) -> bytes | None:
        """The body of a reply to send, or None when another has to be made."""
        return self.body or next(self.replies, None)

    def always(self, reply: bytes) -> None:
        """Send this one, as long as it is kept."""
        if self.lifetime is None:
            self.body = reply
        else:
            self.send(repeat(reply))

    def also(self, reply: bytes, variants: int, random: Random) -> None:
        """One more order of the same records, in place of the oldest. Until there are enough each query brings one."""
        made = self.made = self.made or []
        if len(made) == variants:
            del made[0]
        made.append(reply)
        if len(made) == variants:
            self.send(iter(_shuffled(made, random)))

    def send(self, replies: Iterator[bytes]) -> None:
        """Send these in turn."""
        self.replies = replies if self.lifetime is None else _ageing(replies, self.lifetime, self.clock)


def _orders(body: bytes, first: int, records: list[bytes], variants: int, random: Random) -> Iterator[bytes]:
    """A reply with the records that begin at `first` in ever other orders, without end, as `Kept.also` has them."""
    before, after = body[:first], body[first + len(records) * len(records[0]) :]
    made = [body]
    yield body
    while True:
        # Each the first time when it is wanted: most names aren't asked for so often.
        if len(made) == variants:
            # Each is a fair shuffle by itself; from another one on each time, so that clients who take turns don't each
            # meet the same half of them.
            start = int(random.random() * variants)
            yield from made[start:] + made[:start]
            del made[0]
        made.append(before + b"".join(_shuffled(records, random)) + after)
        if len(made) < variants:
            yield made[-1]


def _shuffled(values: list[bytes], random: Random) -> list[bytes]:
    # A third of the time of `random.shuffle`, and as fair: two of these numbers are equal once in 2**53.
    return [value for _, value in sorted([(random.random(), value) for value in values])]


def _addresses(body: bytes, first: int) -> tuple[int, list[bytes]]:
    """The records of a whole reply that has nothing but the addresses of one name, perhaps behind aliases of it.

    `first` is where its records begin; returned with them is where the addresses do.
    """
    flags, count, others, additional = body[0], int.from_bytes(body[4:6], "big"), body[6:8], body[8:10]
    after = len(body)
    if additional == b"\x00\x01" and body[-_OPT:-8] == _OPT_BEGINS:
        after -= _OPT
    elif additional != b"\x00\x00":
        return first, []
    if flags & _TC or others != b"\x00\x00":
        return first, []
    while count:
        fields = _after_name(body, first)
        rtype, _, _, length = _FIELDS.unpack_from(body, fields)
        if rtype != _TYPE_CNAME:
            break
        first, count = fields + _FIELDS.size + length, count - 1
    size = (after - first) // count if count else 0
    if size not in _ADDRESS_BEGINS or body[first] < _POINTER or count * size != after - first:
        return first, []
    head = body[first : first + 2] + _ADDRESS_BEGINS[size]
    records = [body[at : at + size] for at in range(first, after, size)]
    return first, records if all(record.startswith(head) for record in records) else []


class Denial(Kept, gc=False, eq=False):
    """What is said of every name with the same parent, whose leftmost label has the same length and isn't there.

    A reply is the query with `head` in place of its header behind the ID, and `tail` from `tail_at` on. `siblings` are
    the labels that exist at present: the set itself that changes with the model, not a copy.
    """

    head: bytes = b""
    tail: bytes = b""
    tail_at: int = 0
    siblings: Container[bytes] = ()


class _Generation:
    """Entries that came or were used since the same moment, and where each tag stands.

    `size` is all that ever came, since what is forgotten leaves its key with its other tags.
    """

    __slots__ = ("entries", "index", "size")

    def __init__(self) -> None:
        self.entries: dict[bytes, Kept] = {}
        # A set only where several have the tag: the most have one of their own.
        self.index: dict[Tag, bytes | set[bytes]] = {}
        self.size = 0

    def put(self, kept: Kept) -> None:
        self.entries[kept.key] = kept
        self.size += kept.size
        for tag in kept.tags:
            held = self.index.setdefault(tag, kept.key)
            if isinstance(held, set):
                held.add(kept.key)
            elif held != kept.key:
                self.index[tag] = {held, kept.key}

    def forget(self, tag: Tag) -> list[Kept]:
        held = self.index.pop(tag, None)
        if held is None:
            return []
        keys = held if isinstance(held, set) else (held,)
        found = (self.entries.pop(key, None) for key in keys)
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

    @property
    def is_crowded(self) -> bool:
        """Whether more came than one generation holds."""
        return bool(self._old.entries)

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
    """What the clients of one listener were answered over one transport and address family."""

    def __init__(
        self, bounds: Bounds | None = None, random: Random | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._bounds = bounds or Bounds()
        self._random = random or Random()
        self._clock = clock
        self._changes = 0
        self._recent: deque[set[Tag]] = deque(maxlen=REMEMBERED)
        self._asked = bytearray(_ASKED)
        self._clear()

    def _clear(self) -> None:
        self.positive = Table(self._bounds.positive)
        self.negative = Table(self._bounds.negative)
        self.denials = Table(self._bounds.negative)

    @property
    def changes(self) -> int:
        """How often something was forgotten; an answer that waits remembers it."""
        return self._changes

    def find(self, packet: bytes, place: bytes = b"") -> tuple[bytes, Kept] | None:
        """The reply to a packet, if one is kept for this place, and where it was kept."""
        key = _key(packet)
        placed = place + key
        kept = self.positive.find(placed) or self.negative.find(placed)
        if kept is not None:
            body = kept.next()
            if body is None:
                # Who makes another one may want to know how often this one was sent.
                kept.tell()
                return None
            kept.uses += 1
            return packet[:_ID] + body, kept
        denial = self.denial(key)
        if denial is not None:
            return _denied(packet, denial)
        end = question_end(packet)
        name = packet[_HEADER : end - _TYPE_AND_CLASS] if end else b""
        folded = name.lower()
        if folded == name:
            return None
        key = key[: _HEADER - _ID] + folded + key[end - _TYPE_AND_CLASS - _ID :]
        placed = place + key
        kept = self.positive.find(placed) or self.negative.find(placed)
        if kept is None:
            denial = self.denial(key)
            return None if denial is None else _denied(packet, denial)
        body = kept.next()
        if body is None:
            kept.tell()
            return None
        kept.uses += 1
        # What the reply says of the question's name are pointers to it, so the client finds its own spelling.
        return packet[:_ID] + body[: _HEADER - _ID] + name + body[end - _TYPE_AND_CLASS - _ID :], kept

    def find_otherwise(self, key: bytes) -> tuple[Kept, int] | None:
        """What is kept for a packet but for capitals in its name or the value of its cookie, by all behind its ID.

        Returned with it is where its question ends. For batches, which look into the young generation alone: what is
        not found there comes to `find`.
        """
        size = len(key)
        after = _TYPE_AND_CLASS
        if size > _OPT_WITH_COOKIE and key[-_COOKIE - 6 : -_COOKIE] == _COOKIE_BEGINS:
            size -= _COOKIE
            after += _OPT_WITH_COOKIE - _COOKIE
        elif key.islower():
            return None
        elif key[_HEADER - _ID - 1 : _HEADER - _ID] == b"\1":
            after += _OPT
        # If this is a kept key, then all of it is where it was taken to be.
        folded = key[: _HEADER - _ID] + key[_HEADER - _ID : size - after].lower() + key[size - after : size]
        kept = self.positive.young_get(folded) or self.negative.young_get(folded)
        return None if kept is None else (kept, size - after + _TYPE_AND_CLASS)

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
        any_order: bool = False,
        place: bytes = b"",
        used: tuple[Callable[[int], None], ...] = (),
    ) -> None:
        """Keep the reply to a packet, which must be one that has a key, for as long as none of its tags is forgotten.

        `varies` tells that another reply would have another order or choice of the same records, `any_order` that any
        order of its addresses would do. With a `lifetime` it is not kept for longer than that. `place` is where clients
        have to stand to be given it; `used` are told how often it was sent, some time after.
        """
        end = question_end(packet)
        if not end:
            return
        key = _key(packet)
        key = (
            key[: _HEADER - _ID] + packet[_HEADER : end - _TYPE_AND_CLASS].lower() + key[end - _TYPE_AND_CLASS - _ID :]
        )
        # The question in the kept reply is the folded one, whoever asked first.
        body = reply[_ID:_HEADER] + key[_HEADER - _ID : end - _TYPE_AND_CLASS - _ID] + reply[end - _TYPE_AND_CLASS :]
        table = self.negative if negative else self.positive
        key = place + key
        kept = table.find(key)
        if kept is None and (negative or table.is_crowded) and self._is_new(key):
            return
        if kept is not None and varies and kept.goes_with(lifetime):
            kept.also(body, self._bounds.variants, self._random)
            return
        if kept is not None:
            table.remove(kept)
        kept = Kept(
            key, len(packet), len(reply), row, times, tuple(tags), lifetime=lifetime, clock=self._clock, used=used
        )
        if varies:
            kept.size += len(body) * self._bounds.variants
            first, records = _addresses(body, end - _ID) if any_order else (0, [])
            if records:
                kept.send(_orders(body, first, records, self._bounds.variants, self._random))
            else:
                kept.also(body, self._bounds.variants, self._random)
        else:
            kept.always(body)
            kept.size += len(body)
        table.put(kept)

    def denial(self, key: bytes) -> Denial | None:
        """What is said of the siblings of a name that wasn't there, if the name of this key is one and isn't either.

        The key is that of any packet, however broken: only one that is a kept one but for a label is found.
        """
        if len(key) <= _LABEL:
            return None
        after = _LABEL + key[_LABEL - 1]
        denial = self.denials.find(key[:_LABEL] + key[after:])
        if denial is None or key[_LABEL:after].lower() in denial.siblings:  # type: ignore[attr-defined]
            return None
        return denial  # type: ignore[return-value]

    def deny(
        self,
        packet: bytes,
        reply: bytes,
        of_sibling: Callable[[], bytes],
        row: list[float],
        times: list[float],
        tags: Iterable[Tag],
        siblings: Container[bytes],
        used: tuple[Callable[[int], None], ...] = (),
    ) -> None:
        """Keep the reply for all siblings of the question's name but these.

        `of_sibling` gives the reply to such a one: it shows whether the label is in it but for the question, and then
        nothing is kept.
        """
        end = question_end(packet)
        if not end:
            return
        key, after = _key(packet), _LABEL + packet[_HEADER]
        name_end = end - _TYPE_AND_CLASS - _ID
        key = key[:_LABEL] + key[after:name_end].lower() + key[name_end:]
        tail = reply[end:]
        if self._is_new(key) or of_sibling()[end:] != tail:
            return
        denial = Denial(key, len(packet), len(reply), row, times, tuple(tags), len(tail), used=used)
        denial.head, denial.tail, denial.tail_at, denial.siblings = reply[_ID:_HEADER], tail, end, siblings
        self.denials.put(denial)

    def _is_new(self, key: bytes) -> bool:
        """Whether this one was not asked for lately; it has been now."""
        mark = hash(key)
        place, sign = mark % _ASKED, mark // _ASKED & 0xFF
        new = self._asked[place] != sign
        self._asked[place] = sign
        return new

    def forget(self, tags: set[Tag]) -> None:
        """Drop every reply that depends on any of these."""
        self._changes += 1
        self._recent.append(tags)
        for table in self._tables():
            table.forget(tags)

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
        for table in self._tables():
            for kept in table:
                if kept.uses:
                    kept.tell()

    def _tables(self) -> tuple[Table, ...]:
        return self.positive, self.negative, self.denials


class PlacedAnswers(AnswerCache):
    """What clients were answered by where they stand: in front of each key is the place.

    One table for all places, so that its bounds hold for them together. `places` has the place of each client that
    asked lately, by its packed address; `locate` finds those of others.
    """

    def __init__(
        self,
        locate: Callable[[bytes], bytes],
        bounds: Bounds | None = None,
        random: Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._locate = locate
        self.places: dict[bytes, bytes] = {}
        super().__init__(bounds, random, clock)

    def place(self, address: bytes) -> bytes:
        """The place of a client."""
        place = self.places.get(address)
        if place is None:
            if len(self.places) >= MOST_PLACES:
                self.places.clear()
            place = self.places[address] = self._locate(address)
        return place

    def forget(self, tags: set[Tag]) -> None:
        """Drop every reply that depends on any of these, and the places of clients that are others now."""
        for tag in tags:
            if tag[0] == _CLIENT:
                self.places.pop(tag[1], None)
        super().forget(tags)

    def clear(self) -> None:
        """Drop all."""
        self.places.clear()
        super().clear()


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


def _denied(packet: bytes, denial: Denial) -> tuple[bytes, Denial]:
    """What is said of the siblings of this packet's name."""
    denial.uses += 1
    return packet[:_ID] + denial.head + packet[_HEADER : denial.tail_at] + denial.tail, denial


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
    """Where the question of a packet ends that nothing follows but an OPT with no option or a client's cookie.

    0 for any other packet.
    """
    if packet[4:10] != b"\x00\x01\x00\x00\x00\x00":
        return 0
    if packet[10:12] == b"\x00\x00":
        return len(packet)
    if packet[10:12] != b"\x00\x01":
        return 0
    if packet[-_OPT:-8] == _OPT_BEGINS and packet[-2:] == _NO_OPTIONS:
        return len(packet) - _OPT
    if _has_cookie(packet) and packet[-_OPT_WITH_COOKIE : 3 - _OPT_WITH_COOKIE] == _OPT_BEGINS:
        return len(packet) - _OPT_WITH_COOKIE
    return 0


def _has_cookie(packet: bytes) -> bool:
    return packet[-_COOKIE - 6 : -_COOKIE] == _COOKIE_BEGINS and packet[10:12] == b"\x00\x01"


def _key(packet: bytes) -> bytes:
    """What stands for all packets that get the same reply."""
    return packet[_ID:-_COOKIE] if _has_cookie(packet) else packet[_ID:]
