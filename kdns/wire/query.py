"""A packet from a client: a query that can be answered, or the verdict on one that can't.

Sans-IO and total: any bytes give a `Query`, a `Rejected` or None (no reply). Nothing is allocated in proportion to a
count of the header. Law: RFC 1035 §4.1, RFC 6891 (EDNS), RFC 9619 (one question), RFC 8945 (TSIG).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kdns.wire.names import LONGEST_LABEL, LONGEST_NAME, ROOT, read_name
from kdns.wire.records import Rcode, Type

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
OPCODE_NOTIFY = 4

_HEADER = struct.Struct("!HHHHHH")
_TAIL = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")

# More options than any client sends; a packet that has them is made to cost time.
MOST_OPTIONS = 100
# One OPT and one TSIG; anything more can't be a query.
MOST_ADDITIONAL = 2


class Query:
    """One question and what the client said of itself.

    `qname` is the name in lower case, `labels` are its labels, `spelled` is the name as the client wrote it: the reply
    repeats that, and its records point at it. `size` is the UDP payload size that the client can take in bytes;
    `options` are the bytes of its EDNS options. `edns` tells that there was an OPT, whose version and DO bit are
    `version` and `do`. `trailing` is how many bytes stand behind the message; they mean nothing.
    """

    __slots__ = (
        "do",
        "edns",
        "flags",
        "id",
        "labels",
        "options",
        "qname",
        "rclass",
        "rtype",
        "size",
        "spelled",
        "trailing",
        "version",
    )

    def __init__(self, id: int, flags: int, spelled: bytes, labels: list[bytes], rtype: int, rclass: int) -> None:
        self.id = id
        self.flags = flags
        self.spelled = spelled
        self.qname = spelled.lower()
        self.labels = labels
        self.rtype = rtype
        self.rclass = rclass
        self.edns = False
        self.size = 512
        self.version = 0
        self.do = False
        self.options = b""
        self.trailing = 0

    @property
    def question_bytes(self) -> bytes:
        """The question section as the client sent it."""
        return self.spelled + _TAIL.pack(self.rtype, self.rclass)


class Rejected:
    """A packet that gets an error reply at once. `question` holds its bytes where they could be read."""

    __slots__ = ("edns", "flags", "id", "question", "rcode", "tsig")

    def __init__(self, id: int, flags: int, rcode: int, question: bytes = b"", edns: bool = False) -> None:
        self.id = id
        self.flags = flags
        self.rcode = rcode
        self.question = question
        self.edns = edns
        self.tsig = b""


def parse(packet: bytes) -> Query | Rejected | None:
    """Read a client's packet. None where silence is the answer: less than a header, or a response (QR=1)."""
    size = len(packet)
    if size < 12:
        return None
    id, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(packet)
    if flags & QR:
        return None
    # The common query goes on in this function; whatever is odd leaves it early.
    if flags & 0x7800:
        return _reject_opcode(packet, id, flags, questions, additionals if not answers + authorities else 0)
    if questions != 1:
        return Rejected(id, flags, Rcode.FORMERR, edns=questions == 0 and _has_opt(packet, 12, additionals))
    labels: list[bytes] = []
    # A name that is too long runs past this piece, so 64 KiB of labels cost what 255 bytes of them do.
    folded = packet[: 12 + LONGEST_NAME].lower()
    position = 12
    try:
        while length := folded[position]:
            # A pointer in a question could only point into the header, so every label type but 00 is an error.
            if length > LONGEST_LABEL:
                return Rejected(id, flags, Rcode.FORMERR)
            following = position + 1 + length
            labels.append(folded[position + 1 : following])
            position = following
        position += 1
        rtype, rclass = _TAIL.unpack_from(packet, position)
    except (IndexError, struct.error):
        return Rejected(id, flags, Rcode.FORMERR)
    query = Query(id, flags, packet[12:position], labels, rtype, rclass)
    position += 4
    if answers or (authorities and rtype != Type.IXFR):
        return _reject(query, Rcode.FORMERR)
    if authorities:
        # RFC 1995 §3: an IXFR carries the client's SOA; nothing here reads it, so nothing behind it is read either.
        return query
    if additionals:
        return _read_additional(packet, position, additionals, query)
    query.trailing = size - position
    return query


def _read_additional(packet: bytes, position: int, count: int, query: Query) -> Query | Rejected:
    """EDNS and TSIG; anything else in a query's additional section is an error."""
    if count > MOST_ADDITIONAL:
        query.edns = _has_opt(packet, position, count)
        return _reject(query, Rcode.FORMERR)
    size = len(packet)
    for number in range(1, count + 1):
        start = position
        try:
            owner, position = (ROOT, position + 1) if packet[position] == 0 else read_name(packet, position)
            rtype, rclass, ttl, length = _RECORD.unpack_from(packet, position)
        except (ValueError, IndexError, struct.error):
            return _reject(query, Rcode.FORMERR)
        position += 10
        after = position + length
        if after > size:
            return _reject(query, Rcode.FORMERR)
        if rtype == Type.TSIG:
            return _reject_tsig(packet, start, position, after, query, last=number == count)
        if rtype != Type.OPT or query.edns or owner != ROOT:
            return _reject(query, Rcode.FORMERR)
        query.edns = True
        query.size = max(512, rclass)
        query.version = ttl >> 16 & 0xFF
        query.do = bool(ttl & 0x8000)
        if length:
            query.options = packet[position:after]
            # A later version may have another form, so its options are nobody's business (RFC 6891 §6.1.3).
            if query.version == 0 and not _options_are_whole(query.options):
                return _reject(query, Rcode.FORMERR)
        position = after
    query.trailing = size - position
    return query


def option_codes(options: bytes) -> Iterator[int]:
    """The codes of a query's EDNS options, which `parse` has found to be whole."""
    position = 0
    while position < len(options):
        yield int.from_bytes(options[position : position + 2], "big")
        position += 4 + int.from_bytes(options[position + 2 : position + 4], "big")


def option(code: int, data: bytes) -> bytes:
    """An EDNS option as it stands in OPT (RFC 6891 §6.1.2)."""
    return _TAIL.pack(code, len(data)) + data


def without_option(options: bytes, code: int) -> bytes:
    """Whole EDNS options, less those of one code."""
    kept: list[bytes] = []
    position = 0
    while position < len(options):
        found, length = _TAIL.unpack_from(options, position)
        if found != code:
            kept.append(options[position : position + 4 + length])
        position += 4 + length
    return b"".join(kept)


def _options_are_whole(options: bytes) -> bool:
    position, count, size = 0, 0, len(options)
    while position < size:
        count += 1
        if position + 4 > size or count > MOST_OPTIONS:
            return False
        position += 4 + _TAIL.unpack_from(options, position)[1]
    return position == size


def _reject(query: Query, rcode: int) -> Rejected:
    return Rejected(query.id, query.flags, rcode, query.question_bytes, query.edns)


def _reject_opcode(packet: bytes, id: int, flags: int, questions: int, additionals: int) -> Rejected:
    # NOTIFY is NOTAUTH, as a server that is no secondary of the zone says; kdns has no other opcode than QUERY.
    rcode = Rcode.NOTAUTH if flags >> 11 & 0xF == OPCODE_NOTIFY else Rcode.NOTIMP
    rejected = Rejected(id, flags, rcode)
    if questions > 1:
        return rejected
    position = 12
    if questions:
        try:
            position = read_name(packet, position)[1] + 4
        except ValueError:
            return rejected
        if position > len(packet):
            return rejected
        rejected.question = packet[12:position]
    rejected.edns = _has_opt(packet, position, additionals)
    return rejected


def _reject_tsig(packet: bytes, start: int, data: int, after: int, query: Query, last: bool) -> Rejected:
    """No key is known here: NOTAUTH with TSIG error 17, BADKEY, unsigned (RFC 8945 §5.2.1); FORMERR if not the last."""
    rejected = _reject(query, Rcode.NOTAUTH if last else Rcode.FORMERR)
    if not last:
        return rejected
    try:
        key, after_key = read_name(packet, start)
        algorithm, position = read_name(packet, data)
        original = position + 10 + _TAIL.unpack_from(packet, position + 8)[0]
        other_size = _TAIL.unpack_from(packet, original + 2)[1]
    except (ValueError, struct.error):
        return _reject(query, Rcode.FORMERR)
    # A compressed algorithm would come back longer than it came (RFC 3597 §4 forbids it anyway).
    if original + 6 + other_size != after or position - data != len(algorithm):
        return _reject(query, Rcode.FORMERR)
    if after_key - start < len(key):
        # Spelled out the reply would outgrow the query; a pointer to the question holds in the reply as well.
        if _TAIL.unpack_from(packet, after_key - 4)[1] & 0x3FFF >= 12 + len(query.question_bytes):
            return _reject(query, Rcode.FORMERR)
        key = packet[start:after_key]
    signed_and_fudge = packet[position : position + 8]
    rdata = algorithm + signed_and_fudge + b"\x00\x00" + packet[original : original + 2] + b"\x00\x11\x00\x00"
    rejected.tsig = key + _RECORD.pack(Type.TSIG, 255, 0, len(rdata)) + rdata
    return rejected


def _has_opt(packet: bytes, position: int, additionals: int) -> bool:
    return additionals > 0 and packet[position : position + 3] == b"\x00\x00\x29"
