"""What `rewrite` does to a question and to its answer: which names a rule fits, and what takes their place.

A rule is applied to a query and says what becomes of it, and how the answer is turned back. Names are matched as text,
in lower case and with their final dot, for that is what rules are written for. Law: docs/plugins/rewrite.md.
"""

from __future__ import annotations

import functools
import ipaddress
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from kdns.chain import Answer, Request, failure
from kdns.errors import KdnsError
from kdns.patterns import Substitution
from kdns.wire import names
from kdns.wire.query import Query, option, option_codes, without_option
from kdns.wire.records import Rcode, Record, Type, rcode_to_text

# Where in its data a record has the name that `answer value` means.
_VALUES = {Type.CNAME: 0, Type.DNAME: 0, Type.NS: 0, Type.PTR: 0, Type.SOA: 0, Type.MX: 2, Type.SRV: 6}
# RFC 3403 §4.1: order and preference, then flags, services and a regular expression, each a string with its length.
_NAPTR_FIXED, _NAPTR_STRINGS = 4, 3


class InvalidNameError(KdnsError):
    """What a rule made of a name is none."""

    def __init__(self, text: str) -> None:
        super().__init__(f"invalid name after rewrite: {text}")


# --- Names ---


class Match(Protocol):
    """Which names a rule fits; the names are in lower case."""

    def fits(self, name: bytes) -> bool:
        """Whether it fits this one."""

    def rename(self, name: bytes) -> bytes | None:
        """What takes its place; None where it doesn't fit. Raises InvalidNameError."""


class Exact:
    """One name and another."""

    __slots__ = ("_name", "_to")

    def __init__(self, name: bytes, to: bytes = names.ROOT) -> None:
        self._name = name.lower()
        self._to = to.lower()

    def fits(self, name: bytes) -> bool:
        return name == self._name

    def rename(self, name: bytes) -> bytes | None:
        return self._to if name == self._name else None


class Prefix:
    """The beginning of the text."""

    __slots__ = ("_begins", "_part", "_to")

    def __init__(self, text: str, to: str = "") -> None:
        self._begins = text.lower()
        self._to = to
        self._part = _parts(self._begins)[0]

    def fits(self, name: bytes) -> bool:
        return name.startswith(self._part, 1) and _text(name).startswith(self._begins)

    def rename(self, name: bytes) -> bytes | None:
        return _name(self._to + _text(name)[len(self._begins) :]) if self.fits(name) else None


class Suffix:
    """The end of the text, which need not begin at a label: `.a.` says that it does."""

    __slots__ = ("_ends", "_part", "_to")

    def __init__(self, text: str, to: str = ".") -> None:
        self._ends = _dotted(text.lower())
        self._to = _dotted(to)
        first, *rest = _parts(self._ends)
        # The same end on the wire: most names are told apart by it, without making text of them.
        self._part = first + b"".join(bytes((len(part) & 0xFF,)) + part for part in rest)

    def fits(self, name: bytes) -> bool:
        return name.endswith(self._part) and _text(name).endswith(self._ends)

    def rename(self, name: bytes) -> bytes | None:
        return _name(_text(name)[: -len(self._ends)] + self._to) if self.fits(name) else None

    def swapped(self) -> Suffix:
        """The way back."""
        return Suffix(self._to, self._ends)


class Substring:
    """Any part of the text, wherever and as often as it stands."""

    __slots__ = ("_part", "_text", "_to")

    def __init__(self, text: str, to: str = "") -> None:
        self._text = text.lower()
        self._to = to
        self._part = max(_parts(self._text), key=len)

    def fits(self, name: bytes) -> bool:
        return self._part in name and self._text in _text(name)

    def rename(self, name: bytes) -> bytes | None:
        return _name(_text(name).replace(self._text, self._to)) if self.fits(name) else None


class Regex:
    """A pattern anywhere in the text; what takes its place is a whole name."""

    __slots__ = ("_substitution",)

    def __init__(self, substitution: Substitution) -> None:
        self._substitution = substitution

    def fits(self, name: bytes) -> bool:
        return self._substitution.fits(_text(name))

    def rename(self, name: bytes) -> bytes | None:
        text = self._substitution(_text(name))
        return None if text is None else _name(text)


# Several rules look at the same name, one after another.
@functools.lru_cache(maxsize=16)
def _text(name: bytes) -> str:
    return names.to_text(name)


def _name(text: str) -> bytes:
    try:
        return names.from_text(text).lower()
    except ValueError:
        raise InvalidNameError(text) from None


def _parts(text: str) -> list[bytes]:
    """What stands between dots, as bytes of the wire; nothing where an escape would make them others."""
    return [b""] if "\\" in text else [part.encode() for part in text.split(".")]


def _dotted(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


# --- The way back ---


class Revert(Protocol):
    """What is done to the answer."""

    async def __call__(self, answer: Answer, request: Request) -> Answer: ...


class Owners(msgspec.Struct, frozen=True):
    """The names of records."""

    match: Match

    async def __call__(self, answer: Answer, request: Request) -> Answer:
        return _each_record(answer, self._renamed)

    def _renamed(self, record: Record) -> Record:
        owner = self.match.rename(record.owner.lower())
        return record if owner is None else Record(owner, record.rtype, record.ttl, record.data)


class Values(msgspec.Struct, frozen=True):
    """The names in the data of records."""

    match: Match

    async def __call__(self, answer: Answer, request: Request) -> Answer:
        return _each_record(answer, self._renamed)

    def _renamed(self, record: Record) -> Record:
        start = _value_begins(record)
        if start is None:
            return record
        name, _ = _cut_name(record.data, start)
        value = self.match.rename(name.lower())
        if value is None:
            return record
        data = record.data[:start] + value + record.data[start + len(name) :]
        return Record(record.owner, record.rtype, record.ttl, data)


class Ttls(msgspec.Struct, frozen=True):
    """TTLs between two bounds, in seconds."""

    least: int
    most: int

    async def __call__(self, answer: Answer, request: Request) -> Answer:
        return _each_record(answer, self._bounded)

    def _bounded(self, record: Record) -> Record:
        ttl = min(max(record.ttl, self.least), self.most)
        return record if ttl == record.ttl else Record(record.owner, record.rtype, ttl, record.data)


class Code(msgspec.Struct, frozen=True):
    """One response code in place of another."""

    before: int
    after: int

    async def __call__(self, answer: Answer, request: Request) -> Answer:
        if answer.rcode == self.before:
            return _changed(answer, rcode=self.after)
        return answer


class Target(msgspec.Struct, frozen=True):
    """Where an alias leads: another name, whose records are asked of the whole server."""

    match: Match
    rtype: int

    async def __call__(self, answer: Answer, request: Request) -> Answer:
        for place, record in enumerate(answer.answer):
            target = self.match.rename(record.data.lower()) if record.rtype == Type.CNAME else None
            if target is not None:
                alias = Record(record.owner, Type.CNAME, record.ttl, target)
                return await self._follow(answer, [*answer.answer[:place], alias], target, request)
        return answer

    async def _follow(self, answer: Answer, chain: list[Record], target: bytes, request: Request) -> Answer:
        if self.rtype in (Type.CNAME, Type.ANY):
            return _changed(answer, answer=chain)
        found = await request.ask(target, self.rtype)
        if found.unclaimed:
            # Nobody here knows the target; the alias alone is right.
            return _changed(answer, rcode=Rcode.NOERROR, answer=chain, authority=(), additional=())
        if found.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
            cause = f"{names.to_text(target)}, where the alias leads: {rcode_to_text(found.rcode)} of `{found.plugin}`"
            return failure(found.cause or cause, "rewrite", found.error)
        # An alias is there whatever becomes of its target, as with an ExternalName.
        whole = [*chain, *found.answer]
        return _changed(answer, rcode=Rcode.NOERROR, answer=whole, authority=(), additional=())


def _each_record(answer: Answer, change: Callable[[Record], Record]) -> Answer:
    return _changed(
        answer,
        answer=[change(record) for record in answer.answer],
        authority=[change(record) for record in answer.authority],
        additional=[change(record) for record in answer.additional],
    )


def _changed(first: Answer, /, **parts: Any) -> Answer:
    """An answer of its own: who made the first one may have it for others. How its TTLs go down is no longer known."""
    fields = {name: getattr(first, name) for name in Answer.__slots__ if name != "lifetime"}
    return Answer(**(fields | parts))


def _value_begins(record: Record) -> int | None:
    if record.rtype != Type.NAPTR:
        return _VALUES.get(record.rtype)
    position = _NAPTR_FIXED
    for _ in range(_NAPTR_STRINGS):
        position += 1 + record.data[position]
    return position


def _cut_name(data: bytes, start: int) -> tuple[bytes, int]:
    position = start
    while length := data[position]:
        position += 1 + length
    return data[start : position + 1], position + 1


# --- Rules ---


class Applied(NamedTuple):
    """What a rule makes of a query, and how the answer is turned back, the last of them first."""

    query: Query
    reverts: tuple[Revert, ...] = ()


class Rule(Protocol):
    """One rule: what it makes of a query, None where it doesn't concern it. Raises InvalidNameError.

    The request is the one that the query is of; a rule may give it EDNS options for upstreams.
    """

    def apply(self, query: Query, request: Request) -> Applied | None: ...


class NameRule(msgspec.Struct, frozen=True):
    """Another name in the question. With `auto` the answer has the first name again."""

    match: Match
    auto: bool = False
    reverts: tuple[Revert, ...] = ()

    def apply(self, query: Query, request: Request) -> Applied | None:
        name = self.match.rename(query.qname)
        if name is None:
            return None
        if not self.auto:
            back: tuple[Revert, ...] = ()
        else:
            match = self.match.swapped() if isinstance(self.match, Suffix) else Exact(name, query.qname)
            back = (Owners(match), Values(match))
        return Applied(_copy(query, name=name), back + self.reverts)


class TypeRule(msgspec.Struct, frozen=True):
    """Another type."""

    before: int
    after: int

    def apply(self, query: Query, request: Request) -> Applied | None:
        return Applied(_copy(query, rtype=self.after)) if query.rtype == self.before else None


class ClassRule(msgspec.Struct, frozen=True):
    """Another class."""

    before: int
    after: int

    def apply(self, query: Query, request: Request) -> Applied | None:
        return Applied(_copy(query, rclass=self.after)) if query.rclass == self.before else None


class AnswerRule(msgspec.Struct, frozen=True):
    """The question stays, the answer to one of these names is changed."""

    match: Match
    revert: Revert

    def apply(self, query: Query, request: Request) -> Applied | None:
        return Applied(query, (self.revert,)) if self.match.fits(query.qname) else None


class AliasRule(msgspec.Struct, frozen=True):
    """The question stays, an alias in the answer leads elsewhere; it concerns every question."""

    match: Match

    def apply(self, query: Query, request: Request) -> Applied | None:
        return Applied(query, (Target(self.match, query.rtype),))


class EdnsRule(msgspec.Struct, frozen=True):
    """An EDNS option that upstreams are sent. Of the client's own, it only counts whether there is one of this code.

    `set` sends it in any case, `replace` where there is one, `append` where there is none, `unset` sends none.
    """

    action: str
    code: int
    data: Callable[[Query, Request], bytes]

    def apply(self, query: Query, request: Request) -> Applied | None:
        code, options = self.code, request.upstream_options
        if self.action == "unset":
            request.upstream_options = without_option(options, code)
            return Applied(_copy(query, options=without_option(query.options, code)))
        if self.action != "set":
            is_there = code in option_codes(options) or code in option_codes(query.options)
            if is_there != (self.action == "replace"):
                return None
        request.upstream_options = without_option(options, code) + option(code, self.data(query, request))
        return Applied(query)


def subnet(query: Query, request: Request, bits: Mapping[int, int]) -> bytes:
    """The data of a client subnet (RFC 7871 §6): of the client's address so many bits, by the family's version."""
    # An IPv6 address may name its link.
    client = ipaddress.ip_address(request.client[0].partition("%")[0])
    length = bits[client.version]
    network = ipaddress.ip_network((client, length), strict=False)
    # Families are numbered 1 and 2; no more bytes than the bits need.
    head = struct.pack("!HBB", 1 if client.version == 4 else 2, length, 0)
    return head + network.network_address.packed[: (length + 7) // 8]


def _address(pair: tuple[str, int]) -> bytes:
    return ipaddress.ip_address(pair[0].partition("%")[0]).packed


# What stands for a variable in the data of an option; reading `client` or `local` keeps the reply from being kept.
VARIABLES: Mapping[str, Callable[[Query, Request], bytes]] = {
    "{qname}": lambda query, request: names.to_text(query.spelled).encode(),
    "{qtype}": lambda query, request: query.rtype.to_bytes(2, "big"),
    "{client_ip}": lambda query, request: _address(request.client),
    "{client_port}": lambda query, request: request.client[1].to_bytes(2, "big"),
    "{protocol}": lambda query, request: request.transport.encode(),
    "{server_ip}": lambda query, request: _address(request.local),
    "{server_port}": lambda query, request: request.local[1].to_bytes(2, "big"),
}


def _copy(
    query: Query,
    name: bytes | None = None,
    rtype: int | None = None,
    rclass: int | None = None,
    options: bytes | None = None,
) -> Query:
    copy = Query(
        query.id,
        query.flags,
        query.spelled if name is None else name,
        query.labels if name is None else names.labels_of(name),
        query.rtype if rtype is None else rtype,
        query.rclass if rclass is None else rclass,
    )
    copy.edns, copy.size, copy.version, copy.do = query.edns, query.size, query.version, query.do
    copy.options, copy.trailing = query.options if options is None else options, query.trailing
    return copy


async def turn_back(answer: Answer, reverts: Sequence[Revert], request: Request) -> Answer:
    """The answer as the client may see it: what was done last to the question is undone first."""
    for revert in reversed(reverts):
        answer = await revert(answer, request)
    return answer
