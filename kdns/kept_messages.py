"""Whole messages of upstreams, kept for as long as they allow: which may be kept, for how long, and where they are.

Sans-IO, and time is passed in, in seconds since 1970. Knows no chain, no Corefile and no bytes of packets.
Law: RFC 2308 §5 (denials), RFC 9520 §3.2 (failures), RFC 8767 (stale answers); the rest is CoreDNS 1.14.7's `cache`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from enum import Enum

import msgspec

from kdns.wire.message import LARGEST_TTL_SECONDS
from kdns.wire.query import CD, RD, Query
from kdns.wire.records import Rcode, Record, Type

# The name in lower case, type, class, DO, the RD and CD bits, and the EDNS options that the upstream was sent.
# RD too, unlike CoreDNS: a resolver that may not recurse says what it happens to know, which is no answer to others.
Key = tuple[bytes, int, int, bool, int, bytes]

# What a message costs beside its records, and a record beside its data and an owner of its own. Measured with
# tracemalloc: 547 bytes for a message with one address, 905 with four.
ENTRY_BYTES = 430
RECORD_BYTES = 115
OWNER_BYTES = 33
# What CAPACITY stands for in bytes. Most messages are smaller; one of 64 KiB counts for many.
BYTES_PER_MESSAGE = 1024
# So much of a store, counted in sixteenths, is for messages that were asked for again.
PROVEN_SIXTEENTHS = 12


class Kind(Enum):
    """What a message says: that there is something, that there is nothing, or that it isn't known."""

    SUCCESS = "success"
    DENIAL = "denial"
    FAILURE = "failure"


class Limits(msgspec.Struct, frozen=True):
    """How many messages are kept, and the longest and the shortest time for which one is."""

    capacity: int
    longest_seconds: int
    shortest_seconds: int


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How long what is kept. `stale_seconds` is how long a message may still be used when its time is over.

    With `prefer_positive` a success is kept and given, whatever the upstream says later, until it is too old.
    """

    success: Limits
    denial: Limits
    failure_seconds: float
    stale_seconds: float = 0.0
    prefer_positive: bool = False


class Message(msgspec.Struct, gc=False):
    """A message as it was when it came. `until` is when its time is over; all its records then have `ttl_seconds`.

    One that may not be kept has no time: `until` is `stored`. `hits` is how often it was asked for without a long
    pause, `last_hit` when; before `retry_at` nobody is asked for a newer one. `size` is about what it costs in bytes.
    """

    kind: Kind
    rcode: int
    flags: int
    answer: Sequence[Record]
    authority: Sequence[Record]
    additional: Sequence[Record]
    error: tuple[int, str] | None
    ttl_seconds: int
    stored: float
    until: float
    hits: int = 0
    last_hit: float = 0.0
    retry_at: float = 0.0
    size: int = 0

    def left_seconds(self, now: float) -> int:
        """What its TTLs are at this moment: they go down at each whole second after it came."""
        return max(0, self.ttl_seconds - int(now - self.stored))


def key_of(query: Query, options: bytes = b"") -> Key:
    """What a message is kept under. `options` are the EDNS options that the upstream is sent."""
    return query.qname, query.rtype, query.rclass, query.do, query.flags & (RD | CD), options


def kind_of(rcode: int, rtype: int, answer: Iterable[Record]) -> Kind | None:
    """What a message with these parts says of the type that was asked for; None for codes that say nothing of it."""
    if rcode in (Rcode.SERVFAIL, Rcode.NOTIMP):
        return Kind.FAILURE
    if rcode == Rcode.NXDOMAIN:
        return Kind.DENIAL
    if rcode != Rcode.NOERROR:
        return None
    # An alias alone, or with its signature, says that there is nothing at its end (RFC 2308 §2.2).
    if any(record.rtype == rtype or rtype == Type.ANY for record in answer):
        return Kind.SUCCESS
    return Kind.DENIAL


def ttl_seconds(kind: Kind, rules: Rules, records: Sequence[Record], authority: Iterable[Record]) -> int:
    """For how long a success or a denial may be kept: the lowest TTL of all its records, within the rules. 0: not."""
    lowest = min((record.ttl for record in records), default=0)
    if kind is Kind.DENIAL:
        minimum = _soa_minimum(authority)
        if minimum is None:
            # RFC 2308 §5: without an SOA nobody says for how long there is nothing.
            return 0
        lowest = min(lowest, minimum)
    limits = rules.success if kind is Kind.SUCCESS else rules.denial
    # The floor is CoreDNS's: it raises TTLs, 0 too, for a MINTTL that the operator may lower.
    return min(max(lowest, limits.shortest_seconds), limits.longest_seconds, LARGEST_TTL_SECONDS)


def _soa_minimum(authority: Iterable[Record]) -> int | None:
    """RFC 2308 §4: the last field of the SOA bounds the time of a denial."""
    for record in authority:
        if record.rtype == Type.SOA:
            return int.from_bytes(record.data[-4:], "big")
    return None


class Messages:
    """The messages of one directive, in a store for successes and another for denials and failures."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.success = Store(rules.success.capacity)
        self.denial = Store(rules.denial.capacity)

    def store_of(self, kind: Kind) -> Store:
        """Where messages of a kind are."""
        return self.success if kind is Kind.SUCCESS else self.denial

    def message(
        self,
        query: Query,
        rcode: int,
        flags: int,
        answer: Sequence[Record],
        authority: Sequence[Record],
        additional: Sequence[Record],
        error: tuple[int, str] | None,
        now: float,
    ) -> Message | None:
        """These parts as a message that came now; None where its code says nothing of the name."""
        kind = kind_of(rcode, query.rtype, answer)
        if kind is None:
            return None
        if kind is Kind.FAILURE:
            seconds = self._rules.failure_seconds
        else:
            seconds = float(ttl_seconds(kind, self._rules, [*answer, *authority, *additional], authority))
        ttl = math.ceil(seconds)
        return Message(kind, rcode, flags, answer, authority, additional, error, ttl, now, now + seconds)

    def find(self, key: Key, now: float, stale: bool) -> Message | None:
        """The message to answer with. With `stale` it may be one whose time is over, as far as the rules allow."""
        # Where there are both, the other one is a failure, or `prefer_positive` wants it so.
        return self._usable(self.success, key, now, stale) or self._usable(self.denial, key, now, stale)

    def is_settled(self, key: Key, now: float) -> bool:
        """Whether it was asked so recently, without success, that it isn't asked again (for failures RFC 9520 §3.2)."""
        message = self.denial.find(key)
        return message is not None and message.stored <= now < message.until

    def keep(self, key: Key, message: Message) -> int:
        """Keep it as the newest for its key; how many others had to go for it."""
        if message.kind is Kind.SUCCESS:
            self.denial.remove(key)
        elif message.kind is Kind.DENIAL:
            self.outdate(key)
        return self.store_of(message.kind).put(key, message)

    def outdate(self, key: Key) -> None:
        """Something newer is known, so a success from before is not given any more."""
        if not self._rules.prefer_positive:
            self.success.remove(key)

    def _usable(self, store: Store, key: Key, now: float, stale: bool) -> Message | None:
        message = store.find(key)
        # Before it was stored: the clock was set back, and nobody knows how old it is.
        if message is None or now < message.stored:
            return None
        more = self._rules.stale_seconds if stale and message.kind is not Kind.FAILURE else 0.0
        return message if now < message.until + more else None


class Store:
    """Messages by key, at most `capacity` and at most 1 KiB for each of these.

    The least recently used goes first, and of those that were asked for once only: a stranger has many names, and asks
    for each of them once.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._bound_bytes = capacity * BYTES_PER_MESSAGE
        self._once = _Segment()
        self._proven = _Segment()

    def __len__(self) -> int:
        return len(self._once) + len(self._proven)

    @property
    def size_bytes(self) -> int:
        """What all of them cost, about."""
        return self._once.size_bytes + self._proven.size_bytes

    def find(self, key: Key) -> Message | None:
        """The message of a key, which thereby was asked for again."""
        message = self._proven.get(key)
        if message is not None:
            self._proven.move_to_end(key)
            return message
        message = self._once.drop(key)
        if message is not None:
            self._proven.add(key, message)
        return message

    def put(self, key: Key, message: Message) -> int:
        """Keep it as the one for its key; how many others had to go for it."""
        segment = self._proven if key in self._proven else self._once
        segment.drop(key)
        message.size = _size_bytes(message, key[0])
        segment.add(key, message)
        evicted = 0
        while len(self) > self._capacity or self.size_bytes > self._bound_bytes:
            self._evict()
            evicted += 1
        return evicted

    def remove(self, key: Key) -> None:
        """Drop the message of a key, if there is one."""
        self._once.drop(key)
        self._proven.drop(key)

    def _evict(self) -> None:
        proven = self._proven
        crowded = (
            len(proven) * 16 > self._capacity * PROVEN_SIXTEENTHS
            or proven.size_bytes * 16 > self._bound_bytes * PROVEN_SIXTEENTHS
        )
        segment = proven if crowded or not self._once else self._once
        segment.drop(next(iter(segment)))


def _size_bytes(message: Message, qname: bytes) -> int:
    size = ENTRY_BYTES + len(qname)
    for section in (message.answer, message.authority, message.additional):
        for record in section:
            size += RECORD_BYTES + len(record.data)
            if record.owner != qname:
                size += OWNER_BYTES + len(record.owner)
    return size


class _Segment(OrderedDict[Key, Message]):
    """Messages in the order of their last use, and what they cost."""

    def __init__(self) -> None:
        super().__init__()
        self.size_bytes = 0

    def add(self, key: Key, message: Message) -> None:
        self[key] = message
        self.size_bytes += message.size

    def drop(self, key: Key) -> Message | None:
        message = self.pop(key, None)
        if message is not None:
            self.size_bytes -= message.size
        return message
