"""A message from another server as values: the reply of an upstream, which nobody here made and nobody trusts.

Total in the sense that any bytes give a `Message` or a ValueError, in time linear to their number.
Law: RFC 1035 §4.1, RFC 6891 (EDNS), RFC 8914 (extended errors), RFC 3597 (unknown types keep their bytes).
"""

from __future__ import annotations

import struct

import msgspec

from kdns.wire.names import LONGEST_NAME, ROOT
from kdns.wire.records import CLASS_IN, Record, Type

_HEADER = struct.Struct("!HHHHHH")
_TAIL = struct.Struct("!HH")
_FIELDS = struct.Struct("!HHIH")

# The root as owner, type, class, TTL and length: no record is shorter, so the counts can be held against the bytes.
SHORTEST_RECORD = 11
# A message of 64 KiB of sensible names has about 10,000 labels; pointers are followed once each.
MOST_LABELS = 16384
MOST_OPTIONS = 100
# RFC 8767 §4: a TTL with the first bit set is a large one, not zero; a week is the largest that it suggests to believe.
LARGEST_TTL_SECONDS = 604800

# RFC 3597 §4: the types whose data may hold compressed names, as bytes before them and number of names.
# SRV stands there too: RFC 2052 wanted compression, so some still send it.
_NAMES_IN_DATA: dict[int, tuple[int, int]] = {
    Type.NS: (0, 1),
    Type.MD: (0, 1),
    Type.MF: (0, 1),
    Type.CNAME: (0, 1),
    Type.SOA: (0, 2),
    Type.MB: (0, 1),
    Type.MG: (0, 1),
    Type.MR: (0, 1),
    Type.PTR: (0, 1),
    Type.MINFO: (0, 2),
    Type.MX: (2, 1),
    Type.SRV: (6, 1),
}
# How many bytes follow the names, or are the whole of the data.
_SIZES: dict[int, int] = {Type.A: 4, Type.AAAA: 16, Type.SOA: 20}

_OPTION_EDE = 15


class Message(msgspec.Struct):
    """A decoded message. `rcode` is the extended one; OPT is split off into `edns`, `do`, `size` and `errors`.

    The sections hold the records of class IN, their data without compression. `errors` are extended errors, each a code
    and a text.
    """

    id: int
    flags: int
    rcode: int
    qname: bytes
    rtype: int
    rclass: int
    answer: list[Record]
    authority: list[Record]
    additional: list[Record]
    edns: bool = False
    do: bool = False
    size: int = 512
    errors: tuple[tuple[int, str], ...] = ()


def decode(packet: bytes) -> Message:
    """Read a message of one question. Raises ValueError, and nothing else, for one that is broken in any way."""
    try:
        return _decode(packet)
    except (struct.error, IndexError) as error:
        raise ValueError("the message is cut") from error


def _decode(packet: bytes) -> Message:
    identifier, flags, questions, *counts = _HEADER.unpack_from(packet)
    if questions != 1:
        raise ValueError(f"a reply has one question, this one {questions}")
    reader = _NameReader(packet)
    qname, position = reader.read(12)
    rtype, rclass = _TAIL.unpack_from(packet, position)
    position += 4
    if sum(counts) * SHORTEST_RECORD > len(packet) - position:
        raise ValueError("the header counts more records than the message can hold")
    message = Message(identifier, flags, flags & 0xF, qname, rtype, rclass, [], [], [])
    sections = (message.answer, message.authority, message.additional)
    for records, count in zip(sections, counts, strict=True):
        for _ in range(count):
            position = _read_record(packet, position, reader, records, message)
    return message


def _read_record(packet: bytes, position: int, reader: _NameReader, records: list[Record], message: Message) -> int:
    owner, position = reader.read(position)
    length: int
    rtype, rclass, ttl, length = _FIELDS.unpack_from(packet, position)
    position += 10
    after = position + length
    if after > len(packet):
        raise ValueError("a record runs past the end of the message")
    if rtype == Type.OPT:
        if message.edns or owner != ROOT or records is not message.additional:
            raise ValueError("OPT stands once, at the root, in the additional section")
        _read_opt(message, rclass, ttl, packet[position:after])
        return after
    # Read before the class is looked at: a record of another class with broken names is broken all the same.
    data = _read_data(packet, position, after, rtype, reader)
    if rclass == CLASS_IN:
        records.append(Record(owner, rtype, ttl if ttl < 0x80000000 else LARGEST_TTL_SECONDS, data))
    return after


def _read_data(packet: bytes, position: int, after: int, rtype: int, reader: _NameReader) -> bytes:
    before, count = _NAMES_IN_DATA.get(rtype, (0, 0))
    size = _SIZES.get(rtype)
    if not count:
        if size is not None and size != after - position:
            raise ValueError("an address has the wrong number of bytes")
        return packet[position:after]
    start, position = position, position + before
    parts = [packet[start:position]] if before else []
    for _ in range(count):
        name, position = reader.read(position)
        parts.append(name)
    if position + (size or 0) != after:
        raise ValueError("the data of a record has the wrong length")
    if len(parts) == 1:
        return parts[0]
    parts.append(packet[position:after])
    return b"".join(parts)


def _read_opt(message: Message, size: int, ttl: int, options: bytes) -> None:
    message.edns = True
    message.size = max(512, size)
    message.rcode |= ttl >> 24 << 4
    message.do = bool(ttl & 0x8000)
    position, count = 0, 0
    while position < len(options):
        code, length = _TAIL.unpack_from(options, position)
        position += 4
        count += 1
        if position + length > len(options) or count > MOST_OPTIONS:
            raise ValueError("the EDNS options are broken or too many")
        if code == _OPTION_EDE and length >= 2:
            detail = options[position + 2 : position + length]
            number = int.from_bytes(options[position : position + 2], "big")
            message.errors += ((number, detail.decode("utf-8", "replace")),)
        position += length


class _NameReader:
    """Reads the names of one message, each target of a pointer once, within a budget of labels.

    `names.read_name` reads one name within bounds; thousands of pointers to a name of 127 labels need a memory.
    """

    __slots__ = ("_budget", "_packet", "_targets")

    def __init__(self, packet: bytes) -> None:
        self._packet = packet
        self._budget = MOST_LABELS
        self._targets: dict[int, bytes] = {}

    def read(self, position: int) -> tuple[bytes, int]:
        """The name at `position`, and the position after it."""
        packet = self._packet
        targets = self._targets
        if packet[position] >= 0xC0:
            # The common owner: a pointer to a name that is known by now.
            target = (packet[position] & 0x3F) << 8 | packet[position + 1]
            known = targets.get(target)
            if known is not None and target < position:
                return known, position + 2
        parts: list[bytes] = []
        # Each pointer met on the way, with how many parts stood before its target.
        pointers: list[tuple[int, int]] = []
        after = -1
        barrier = position
        while True:
            length = packet[position]
            if length == 0:
                parts.append(ROOT)
                position += 1
                break
            if length < 0x40:
                following = position + 1 + length
                self._budget -= 1
                if self._budget < 0:
                    raise ValueError("the names take too much work")
                parts.append(packet[position:following])
                position = following
                continue
            if length < 0xC0:
                raise ValueError("a label has a reserved type")
            target = (length & 0x3F) << 8 | packet[position + 1]
            position += 2
            if after < 0:
                after = position
            # RFC 1035 §4.1.4: a pointer names a prior occurrence, so each must go back; that ends every loop.
            if target >= barrier or target < 12:
                raise ValueError("a compression pointer does not point back to a name")
            known = targets.get(target)
            if known is not None:
                parts.append(known)
                break
            self._budget -= 1
            pointers.append((target, len(parts)))
            position = barrier = target
        name = parts[0] if len(parts) == 1 else b"".join(parts)
        # The sum counts, not each piece: pieces of legal length add up to names that are none.
        if len(name) > LONGEST_NAME:
            raise ValueError("a name is too long")
        for target, before in pointers:
            targets[target] = b"".join(parts[before:])
        return name, (position if after < 0 else after)
