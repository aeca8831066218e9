"""Domain names as bytes in the uncompressed form of the wire (RFC 1035 §3.1), and their text form.

A name here is always whole: length-prefixed labels and the root's zero byte. `bytes.lower()` folds it, since a length
byte is at most 63 and the letters begin at 65; that is exactly the ASCII folding of RFC 4343.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator

LONGEST_NAME = 255
LONGEST_LABEL = 63
ROOT = b"\x00"

# RFC 4343 §2.1: what would end or confuse the text form is escaped.
_SPECIAL = frozenset(b'."\\();@$')


def labels_of(name: bytes) -> list[bytes]:
    """The labels of a name, leftmost first, without the root."""
    labels = []
    position = 0
    while length := name[position]:
        labels.append(name[position + 1 : position + 1 + length])
        position += length + 1
    return labels


class Zones:
    """Some zones, and whether a name lies in one of them, label by label."""

    __slots__ = ("_all", "_ends", "_labels")

    def __init__(self, zones: Iterable[bytes]) -> None:
        self._ends = tuple(zone.lower() for zone in zones)
        self._all = ROOT in self._ends
        self._labels = [labels_of(zone) for zone in self._ends]

    def __bool__(self) -> bool:
        return bool(self._ends)

    def hold(self, name: bytes, labels: list[bytes]) -> bool:
        """Whether a name in lower case, of these labels, is one of them or below."""
        # Most that are in none don't even end like one; the bytes of a zone may stand inside of a label, too.
        if self._all or not name.endswith(self._ends):
            return self._all
        return any(labels[-len(zone) :] == zone for zone in self._labels)


def from_labels(labels: list[bytes]) -> bytes:
    """The name made of these labels; ValueError when a label or the whole is too long or a label is empty."""
    name = b"".join([bytes((len(label),)) + label for label in labels if _check(label)]) + ROOT
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a name has at most {LONGEST_NAME} bytes, this one {len(name)}")
    return name


def from_text(text: str) -> bytes:
    """The name that a text such as `web.shop.svc.cluster.local` spells; the final dot may be missing.

    Understands `\\.` and `\\DDD` (RFC 1035 §5.1). Raises ValueError for an empty or too long label or name.
    """
    if text in (".", ""):
        return ROOT
    if "\\" not in text:
        return from_labels([label.encode() for label in text.removesuffix(".").split(".")])
    labels, label, rest = [], bytearray(), iter(text)
    for character in rest:
        if character == ".":
            labels.append(bytes(label))
            label = bytearray()
        elif character == "\\":
            label += _unescape(next(rest, ""), rest)
        else:
            label += character.encode()
    if label:
        labels.append(bytes(label))
    return from_labels(labels)


def to_text(name: bytes) -> str:
    """The text of a name with its final dot; bytes that are no printable ASCII appear as `\\DDD`."""
    if name == ROOT:
        return "."
    return "".join(f"{label_to_text(label)}." for label in labels_of(name))


def label_to_text(label: bytes) -> str:
    """One label as text, escaped where needed."""
    if label.isalnum():
        return label.decode("ascii")
    return "".join(
        f"\\{chr(byte)}" if byte in _SPECIAL else chr(byte) if 0x20 < byte < 0x7F else f"\\{byte:03d}" for byte in label
    )


def read_name(message: bytes, position: int) -> tuple[bytes, int]:
    """The name at `position` of a message, decompressed, and the position after it.

    Raises ValueError where the name is broken. Each pointer must point before the part that holds it, so that the work
    is bounded (RFC 1035 §4.1.4); the sum of the parts counts against 255 bytes.
    """
    parts = []
    size = 1
    after = -1
    barrier = position
    end = len(message)
    while True:
        if position >= end:
            raise ValueError("a name runs past the end of the message")
        length = message[position]
        if length == 0:
            parts.append(ROOT)
            return b"".join(parts), (position + 1 if after < 0 else after)
        if length < 0x40:
            following = position + 1 + length
            size += 1 + length
            if following > end or size > LONGEST_NAME:
                raise ValueError("a label or a name is too long")
            parts.append(message[position:following])
            position = following
        elif length >= 0xC0 and position + 1 < end:
            target = (length & 0x3F) << 8 | message[position + 1]
            if after < 0:
                after = position + 2
            if target >= barrier or target < 12:
                raise ValueError("a compression pointer does not point back to a name")
            position = barrier = target
        else:
            raise ValueError("a label has a reserved type")


def _check(label: bytes) -> bool:
    if not 0 < len(label) <= LONGEST_LABEL:
        raise ValueError("a label has 1 to 63 bytes")
    return True


def _unescape(character: str, rest: Iterator[str]) -> bytes:
    if not character:
        raise ValueError("a name ends in a backslash")
    if character not in string.digits:
        return character.encode()
    digits = character + next(rest, "") + next(rest, "")
    if len(digits) != 3 or not (digits.isascii() and digits.isdigit()) or int(digits) > 255:
        raise ValueError(f"`\\{digits}` is no byte")
    return bytes((int(digits),))
