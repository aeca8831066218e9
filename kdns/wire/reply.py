"""A reply as bytes: header, question, records with compressed names, OPT; and what goes when it doesn't fit.

Law: RFC 1035 §4.1, RFC 2181 §9 (truncation), RFC 6891 (EDNS), RFC 8914 (extended errors), RFC 3597 §4 (which names may
be compressed).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kdns.wire.query import QR, RD, TC, Query, Rejected
from kdns.wire.records import Record, Type

# What kdns takes over UDP itself, and the most that it sends there: no fragment on any usual path (RFC 9715 §3).
UDP_PAYLOAD = 1232
TCP_PAYLOAD = 65535

_HEADER = struct.Struct("!HHHHHH")
_FIELDS = struct.Struct("!HHIH")
_OPT = struct.Struct("!BHHBBHH")
_EDE = struct.Struct("!HHH")
_OPTION_EDE = 15
LONGEST_ERROR_TEXT = 200
_DO = 0x8000
_TO_QUESTION = b"\xc0\x0c"
_POINTER = struct.Struct("!H")

# RFC 3597 §4: only the types of RFC 1035 may have compressed names in their data. So many bytes stand before the name.
_COMPRESSED = {Type.CNAME: 0, Type.NS: 0, Type.PTR: 0, Type.MX: 2, Type.SOA: 0}


def limit_bytes(query: Query, transport: str) -> int:
    """The most bytes that a reply to this query may have, over `udp` or another transport."""
    if transport != "udp":
        return TCP_PAYLOAD
    return min(query.size, UDP_PAYLOAD) if query.edns else 512


def encode(
    query: Query,
    rcode: int,
    flags: int,
    answer: Sequence[Record],
    authority: Sequence[Record],
    additional: Sequence[Record],
    limit: int,
    error: tuple[int, str] | None = None,
    options: bytes = b"",
) -> bytes:
    """The reply to `query` in at most `limit` bytes.

    `flags` are those of AA, RA, AD and TC that hold. As many whole records as fit are sent: where an answer or
    authority record is lost TC is set; additional records go first, by whole RRsets, and their loss alone sets nothing.
    Records have the question's class. `error` is an extended error's code and text, sent where there is room;
    `options` are EDNS options as bytes.
    """
    question = query.question_bytes
    position = 12 + len(question)
    opt = _encode_opt(query, rcode, options) if query.edns else b""
    limit -= len(opt)
    parts: list[bytes] = [b"", question]
    table: dict[bytes, int] = {}
    asked = query.qname
    rclass = query.rclass
    counts = [0, 0, 0]
    flags |= QR | (query.flags & RD)
    for section, records in enumerate((answer, authority, additional)):
        if not records:
            continue
        count = 0
        for record in records:
            owner = record.owner
            name = _TO_QUESTION if owner == asked else _compress(owner, position, table, asked)
            rtype = record.rtype
            data = record.data
            start = position + len(name) + 10
            if rtype in _COMPRESSED:
                data = _compress_data(rtype, data, start, table, asked)
            elif rtype == Type.SRV and start + 6 < 0x4000:
                # RFC 2782: the target itself isn't compressed, but the glue's owner may point at it.
                table.setdefault(data[6:], start + 6)
            after = start + len(data)
            if after > limit:
                break
            parts.append(name + _FIELDS.pack(rtype, rclass, record.ttl, len(data)) + data)
            position = after
            count += 1
        else:
            counts[section] = count
            continue
        if section == 2:
            counts[2] = _drop_partial_set(parts, additional, count)
        else:
            counts[section] = count
            flags |= TC
        break
    if opt:
        counts[2] += 1
        if error is not None:
            opt = _with_error(opt, len(options), error, limit - sum(map(len, parts)) - 12)
        parts.append(opt)
    parts[0] = _HEADER.pack(query.id, flags | (rcode & 0xF), 1, counts[0], counts[1], counts[2])
    return b"".join(parts)


def encode_rejected(rejected: Rejected, transport: str) -> bytes:
    """The error reply to a packet that is no proper query: never longer than the packet, but for OPT and TSIG.

    A TSIG for which there is no room is left out, and TC says so (RFC 8945 §5.3.2).
    """
    limit = TCP_PAYLOAD if transport != "udp" else UDP_PAYLOAD if rejected.edns else 512
    flags = QR | (rejected.flags & (0x7800 | RD)) | (rejected.rcode & 0xF)
    opt = _OPT.pack(0, Type.OPT, UDP_PAYLOAD, rejected.rcode >> 4, 0, 0, 0) if rejected.edns else b""
    tsig = rejected.tsig
    if tsig and 12 + len(rejected.question) + len(opt) + len(tsig) > limit:
        tsig = b""
        flags |= TC
    header = _HEADER.pack(rejected.id, flags, 1 if rejected.question else 0, 0, 0, bool(opt) + bool(tsig))
    return header + rejected.question + opt + tsig


def _encode_opt(query: Query, rcode: int, options: bytes) -> bytes:
    return _OPT.pack(0, Type.OPT, UDP_PAYLOAD, rcode >> 4, 0, _DO if query.do else 0, len(options)) + options


def _with_error(opt: bytes, length: int, error: tuple[int, str], room: int) -> bytes:
    code, text = error
    # Half a character would be no UTF-8, which RFC 8914 §2 demands.
    for detail in (text.encode()[:LONGEST_ERROR_TEXT].decode(errors="ignore").encode(), b""):
        option = _EDE.pack(_OPTION_EDE, 2 + len(detail), code) + detail
        if len(option) <= room:
            fixed = _OPT.size - 2
            return opt[:fixed] + struct.pack("!H", length + len(option)) + opt[fixed + 2 :] + option
    return opt


def _compress(name: bytes, position: int, table: dict[bytes, int], asked: bytes) -> bytes:
    """The name for this position of the message; each suffix that is new here is remembered."""
    start = 0
    while length := name[start]:
        suffix = name[start:]
        # Most names end as the question does, whose suffixes therefore need no table.
        target = 12 + len(asked) - len(suffix) if asked.endswith(suffix) else table.get(suffix)
        if target is not None:
            return name[:start] + _POINTER.pack(0xC000 | target)
        if position + start < 0x4000:
            table[suffix] = position + start
        start += length + 1
    return name


def _compress_data(rtype: int, data: bytes, position: int, table: dict[bytes, int], asked: bytes) -> bytes:
    if rtype == Type.SOA:
        middle = _end_of_name(data, 0)
        end = _end_of_name(data, middle)
        mname = _compress(data[:middle], position, table, asked)
        rname = _compress(data[middle:end], position + len(mname), table, asked)
        return mname + rname + data[end:]
    before = _COMPRESSED[rtype]
    return data[:before] + _compress(data[before:], position + before, table, asked)


def _end_of_name(data: bytes, position: int) -> int:
    while length := data[position]:
        position += length + 1
    return position + 1


def _drop_partial_set(parts: list[bytes], records: Sequence[Record], count: int) -> int:
    # RFC 2181 §9: part of an RRset in the additional section would be taken for all of it.
    lost = records[count]
    while count and records[count - 1].owner == lost.owner and records[count - 1].rtype == lost.rtype:
        parts.pop()
        count -= 1
    return count
