"""In what two replies to the same question differ, as the one who asked would see it.

Pure: two messages in, differences out. The order of records doesn't count, nor the spelling of names, nor a serial.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

import msgspec

from kdns.compare.questions import Asked, Shape
from kdns.wire import names
from kdns.wire.message import Message
from kdns.wire.query import AA, RA, TC
from kdns.wire.records import Rcode, Record, Type, data_to_text, rcode_to_text, type_to_text


class Way(Enum):
    """How a question is asked: as most libraries of C do, as those of Go, and over TCP."""

    UDP = "udp"
    EDNS = "udp with EDNS"
    TCP = "tcp"


class NoReply(msgspec.Struct, frozen=True):
    """There was none that could be read, and why."""

    reason: str


Reply = Message | NoReply


class Aspect(Enum):
    """What of two replies may differ."""

    VERDICT = "verdict"
    ANSWER = "answer"
    ADDITIONAL = "additional"
    AUTHORITY = "authority"
    SOA = "SOA"
    TTL = "TTL"
    FLAG = "flag"
    EDNS = "EDNS"


class Difference(msgspec.Struct, frozen=True):
    """One thing that differs: `cause` is what others have in common with it, `there` and `here` are lines for people.

    Of a difference in TTLs `ttls` are one of them there and here, in seconds.
    """

    aspect: Aspect
    cause: str
    there: tuple[str, ...]
    here: tuple[str, ...]
    ttls: tuple[int, int] = (0, 0)


class Pair(msgspec.Struct, frozen=True):
    """What was asked in which way, and both replies: that of the other server, `there`, and that of kdns, `here`."""

    asked: Asked
    shape: Shape
    way: Way
    there: Reply
    here: Reply

    @property
    def verdicts(self) -> tuple[str, str]:
        return verdict(self.there), verdict(self.here)


def verdict(reply: Reply) -> str:
    """What a reply amounts to: a response code, where it is NOERROR without an answer `NODATA`."""
    if isinstance(reply, NoReply):
        return "no reply"
    if reply.rcode == Rcode.NOERROR and not reply.answer and not reply.flags & TC:
        return "NODATA"
    return rcode_to_text(reply.rcode)


def differences(pair: Pair) -> list[Difference]:
    """All in which the replies differ; where that is the verdict, the rest follows from it and isn't told."""
    before, after = pair.verdicts
    if before != after:
        cause = f"{before} there, {after} here"
        return [Difference(Aspect.VERDICT, cause, _lines(pair.there), _lines(pair.here))]
    if isinstance(pair.there, NoReply) or isinstance(pair.here, NoReply):
        return []
    found = list(_flags(pair.there, pair.here))
    if pair.there.flags & TC or pair.here.flags & TC:
        # What fits is anybody's choice.
        return found
    if pair.there.edns != pair.here.edns:
        cause = f"an OPT record only {'there' if pair.there.edns else 'here'}"
        found.append(Difference(Aspect.EDNS, cause, (str(pair.there.edns),), (str(pair.here.edns),)))
    found += _sections(Aspect.ANSWER, pair.there.answer, pair.here.answer)
    found += _authority(pair.there.authority, pair.here.authority)
    found += _sections(Aspect.ADDITIONAL, pair.there.additional, pair.here.additional)
    return found


def _flags(there: Message, here: Message) -> Iterable[Difference]:
    for name, bit in (("AA", AA), ("RA", RA), ("TC", TC)):
        before, after = there.flags & bit, here.flags & bit
        if before != after:
            cause = f"{name} set only {'there' if before else 'here'}"
            yield Difference(Aspect.FLAG, cause, (f"{name}={bool(before):d}",), (f"{name}={bool(after):d}",))


def _authority(there: Sequence[Record], here: Sequence[Record]) -> Iterable[Difference]:
    # The SOA of a negative answer says how long it may be kept (RFC 2308 §5), so it has words of its own.
    before, after = [[each for each in records if each.rtype == Type.SOA] for records in (there, here)]
    if len(before) == len(after) == 1:
        yield from _soa(before[0], after[0])
        there, here = [[each for each in records if each.rtype != Type.SOA] for records in (there, here)]
    yield from _sections(Aspect.AUTHORITY, there, here)


def _soa(there: Record, here: Record) -> Iterable[Difference]:
    (before, minimum_before), (after, minimum_after) = _soa_parts(there), _soa_parts(here)
    lines = (_line(there),), (_line(here),)
    if before != after:
        yield Difference(Aspect.SOA, "another SOA", *lines)
    kept_before, kept_after = min(there.ttl, minimum_before), min(here.ttl, minimum_after)
    if kept_before != kept_after:
        cause = f"a negative answer may be kept for {kept_before} s there, {kept_after} s here"
        yield Difference(Aspect.TTL, cause, *lines, ttls=(kept_before, kept_after))


def _soa_parts(record: Record) -> tuple[tuple[bytes, bytes], int]:
    """Owner and names with refresh, retry and expiry, without the serial; then the minimum in seconds."""
    return (record.owner.lower(), record.data[:-20].lower() + record.data[-16:-4]), int.from_bytes(record.data[-4:])


def _sections(aspect: Aspect, there: Sequence[Record], here: Sequence[Record]) -> Iterable[Difference]:
    """Records of one section that differ; where these are the same, their TTLs."""
    before, after = _by_value(there), _by_value(here)
    if before.keys() != after.keys():
        types = sorted({key[1] for key in before.keys() ^ after.keys()})
        kinds = " and ".join(map(type_to_text, types))
        section = "" if aspect is Aspect.ANSWER else f" in the {aspect.value} section"
        cause = f"{kinds} records{section} {_whose(before.keys() - after.keys(), after.keys() - before.keys())}"
        yield Difference(aspect, cause, _texts(there), _texts(here))
        return
    ttls = sorted({(before[key], after[key]) for key in before if before[key] != after[key]})
    if ttls:
        one, other = ttls[0]
        yield Difference(Aspect.TTL, f"TTL {one} there, {other} here", _texts(there), _texts(here), ttls[0])


def _whose(only_there: object, only_here: object) -> str:
    if not only_here:
        return "that are only there"
    return "that are only here" if not only_there else "that are others"


def _by_value(records: Sequence[Record]) -> dict[tuple[bytes, int, bytes], int]:
    """TTLs by owner, type and data, names in lower case and without an SOA's serial."""
    found: dict[tuple[bytes, int, bytes], int] = {}
    for each in records:
        data = each.data
        if each.rtype == Type.SOA:
            data = data[:-20].lower() + data[-16:]
        elif each.rtype in (Type.CNAME, Type.NS, Type.PTR, Type.DNAME):
            data = data.lower()
        elif each.rtype in (Type.SRV, Type.MX):
            split = 6 if each.rtype == Type.SRV else 2
            data = data[:split] + data[split:].lower()
        found[each.owner.lower(), each.rtype, data] = each.ttl
    return found


def _lines(reply: Reply) -> tuple[str, ...]:
    if isinstance(reply, NoReply):
        return (f"no reply: {reply.reason}",)
    return (verdict(reply), *_texts(reply.answer))


def _texts(records: Sequence[Record]) -> tuple[str, ...]:
    return tuple(sorted(map(_line, records)))


def _line(record: Record) -> str:
    data = data_to_text(record.rtype, record.data)
    return f"{names.to_text(record.owner)} {record.ttl} {type_to_text(record.rtype)} {data}"
