"""A question as it goes upstream, and whether some bytes are the reply to it.

Pure: bytes in and out, the ID is given.
Law: RFC 5452 §9 (what a reply must match), RFC 6891 (our own EDNS), RFC 9715 §3 (its size).
"""

from __future__ import annotations

import struct

from kdns.wire.query import AD, CD, QR, RD
from kdns.wire.records import CLASS_IN, Type
from kdns.wire.reply import UDP_PAYLOAD

_HEADER = struct.Struct("!HHHHHH")
_TAIL = struct.Struct("!HH")
_OPT = struct.Struct("!BHHBBHH")
_OPCODE = 0x7800


class Question:
    """What is asked. Its bytes are made anew for each attempt, since each has its own ID.

    Of `flags`, RD, AD and CD are sent; `options` are EDNS options as bytes, and none of them is a client's. Without
    `edns` there is no OPT, for servers that don't know it.
    """

    __slots__ = ("do", "edns", "flags", "options", "section")

    def __init__(
        self,
        qname: bytes,
        rtype: int,
        flags: int = RD,
        do: bool = False,
        rclass: int = CLASS_IN,
        edns: bool = True,
        options: bytes = b"",
    ) -> None:
        self.section = qname + _TAIL.pack(rtype, rclass)
        self.flags = flags & (RD | AD | CD)
        self.do = do
        self.edns = edns
        self.options = options

    def without_edns(self) -> Question:
        """The same question in the form of 1987."""
        plain = Question(b"", 0, self.flags, self.do, edns=False)
        plain.section = self.section
        return plain

    def packet(self, id: int) -> bytes:
        """The query with this ID."""
        header = _HEADER.pack(id, self.flags, 1, 0, 0, 1 if self.edns else 0)
        if not self.edns:
            return header + self.section
        do = 0x8000 if self.do else 0
        opt = _OPT.pack(0, Type.OPT, UDP_PAYLOAD, 0, 0, do, len(self.options))
        return header + self.section + opt + self.options

    def is_answered_by(self, reply: bytes, query: bytes) -> bool:
        """Whether the reply has the query's ID and question, letter by letter, and is a reply to a query at all."""
        return _is_reply(reply, query) and reply.startswith(self.section, 12)

    def is_answered_in_other_case(self, reply: bytes, query: bytes) -> bool:
        """The same but for upper and lower case."""
        end = 12 + len(self.section)
        return _is_reply(reply, query) and reply[12:end].lower() == self.section.lower()


def _is_reply(reply: bytes, query: bytes) -> bool:
    if len(reply) < 12 or reply[:2] != query[:2] or reply[4:6] != b"\x00\x01":
        return False
    flags = reply[2] << 8 | reply[3]
    return flags & QR != 0 and flags & _OPCODE == 0
