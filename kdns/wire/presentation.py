"""A record as a line of a zone file, read: `web.example.org. 60 IN A 10.0.0.1`.

Types without a notation of their own here may be written as RFC 3597 has it: `TYPE65280 \\# 2 abcd`.
Law: RFC 1035 §5.1 and the RFC of each type. Names without a final dot are whole all the same, for there is no origin.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable

from kdns.wire import names
from kdns.wire.records import Record, Type, type_from_text

DEFAULT_TTL = 3600
LARGEST_TTL = 2**31 - 1
_CLASSES = ("IN", "CH", "HS", "ANY")
_WORD = re.compile(
    r'\s+|;[^\n]*|(?P<mark>[()])|"(?P<quoted>(?:\\.|[^"\\])*)"|(?P<bare>(?:\\.|[^\s;()"\\])+)', re.DOTALL
)
_ESCAPED = re.compile(rb"\\([0-9]{3}|.)", re.DOTALL)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LONGEST_STRING = 255


def parse_record(text: str) -> Record | None:
    """The record that a line spells; None for a line without one. Raises ValueError with a sentence."""
    words = _words(text)
    if not words:
        return None
    owner = names.from_text(words.pop(0))
    ttl = DEFAULT_TTL
    # TTL and class may come in either order.
    for _ in range(2):
        if words and words[0].upper() in _CLASSES:
            words.pop(0)
        elif words and (seconds := _seconds(words[0])) is not None:
            ttl = seconds
            words.pop(0)
    if not words:
        raise ValueError("a record has a type")
    rtype = type_from_text(words.pop(0))
    try:
        data = _data(rtype, words)
    except (IndexError, struct.error, OSError):
        raise ValueError(f"`{' '.join(words)}` doesn't fit the type") from None
    if len(data) > 65535:
        raise ValueError("the data of a record is too long")
    return Record(owner, rtype, ttl, data)


def _words(text: str) -> list[str]:
    """The words of the first line that has any; parentheses hold lines together."""
    words: list[str] = []
    depth, position = 0, 0
    while position < len(text):
        found = _WORD.match(text, position)
        if found is None:
            raise ValueError(f"`{text[position:][:20]}` can't be read: a quote isn't closed")
        position = found.end()
        if found["mark"]:
            depth += 1 if found["mark"] == "(" else -1
            if depth < 0:
                raise ValueError("a parenthesis isn't opened")
        elif found["quoted"] is not None:
            words.append('"' + found["quoted"])
        elif found["bare"]:
            words.append(found["bare"])
        elif "\n" in found[0] and words and not depth:
            break
    if depth:
        raise ValueError("a parenthesis isn't closed")
    return words


def _seconds(word: str) -> int | None:
    """A TTL, as a number or as `1h30m`; None for a word that is none."""
    if re.fullmatch(r"[0-9]{1,10}", word):
        value = int(word)
    elif re.fullmatch(r"(?:[0-9]{1,9}[smhdwSMHDW])+", word):
        parts = re.findall(r"([0-9]+)([a-z])", word.lower())
        value = sum(int(number) * _UNITS[unit] for number, unit in parts)
    else:
        return None
    if value > LARGEST_TTL:
        raise ValueError(f"a TTL has at most {LARGEST_TTL} seconds")
    return value


# --- Data ---


def _data(rtype: int, words: list[str]) -> bytes:
    if words and words[0] == "\\#":
        data = bytes.fromhex("".join(words[2:]))
        if len(data) != int(words[1]):
            raise ValueError("the length of the data isn't what the record says")
        return data
    read = _READERS.get(rtype)
    if read is None:
        raise ValueError("this type can only be written as in RFC 3597: `\\# LENGTH HEX`")
    count, make = read
    if count is not None and len(words) != count:
        raise ValueError(f"a record of this type has {count} values, not {len(words)}")
    return make(words)


def _number(word: str, most: int = 0xFFFF) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", word) or int(word) > most:
        raise ValueError(f"`{word}` is no number from 0 to {most}")
    return int(word)


def _short(word: str) -> bytes:
    return struct.pack("!H", _number(word))


def _string(word: str) -> bytes:
    """The bytes of a string, quoted or not."""
    raw = word.removeprefix('"').encode()

    def plain(found: re.Match[bytes]) -> bytes:
        escape = found[1]
        if not escape.isdigit() or len(escape) != 3:
            return escape
        if int(escape) > 255:
            raise ValueError(f"`\\{escape.decode()}` is no byte")
        return bytes((int(escape),))

    return _ESCAPED.sub(plain, raw)


def _strings(words: list[str]) -> bytes:
    if not words:
        raise ValueError("a text has a string at least")
    parts = []
    for word in words:
        text = _string(word)
        # RFC 1035 §3.3: a string has a byte for its length, so a longer one becomes several.
        cuts = range(0, len(text), _LONGEST_STRING) or (0,)
        parts += [text[start : start + _LONGEST_STRING] for start in cuts]
    return b"".join(bytes((len(part),)) + part for part in parts)


def _one_string(word: str) -> bytes:
    text = _string(word)
    if len(text) > _LONGEST_STRING:
        raise ValueError("a string has at most 255 bytes")
    return bytes((len(text),)) + text


def _soa(words: list[str]) -> bytes:
    numbers = [_number(words[2], 0xFFFFFFFF)]
    for word in words[3:]:
        seconds = _seconds(word)
        if seconds is None:
            raise ValueError(f"`{word}` is no time")
        numbers.append(seconds)
    return names.from_text(words[0]) + names.from_text(words[1]) + struct.pack("!5I", *numbers)


def _caa(words: list[str]) -> bytes:
    return bytes((_number(words[0], 255),)) + _one_string(words[1]) + _string(words[2])


def _naptr(words: list[str]) -> bytes:
    strings = b"".join(map(_one_string, words[2:5]))
    return _short(words[0]) + _short(words[1]) + strings + names.from_text(words[5])


def _service_binding(words: list[str]) -> bytes:
    """RFC 9460 §2.1: priority, target, then parameters in any order, which go out in the order of their numbers."""
    parameters: dict[int, bytes] = {}
    for word in words[2:]:
        # `alpn="h2,h3"` comes as two words, since a quote begins one.
        if word.startswith('"') and parameters:
            key = next(reversed(parameters))
            parameters[key] = _parameter(key, word)
            continue
        name, _, value = word.partition("=")
        key = _PARAMETERS.get(name.lower(), -1)
        if key < 0:
            key = _number(name.lower().removeprefix("key"), 65534) if name.lower().startswith("key") else -1
        if key < 0 or key in parameters:
            raise ValueError(f"`{name}` is no parameter, or there twice")
        parameters[key] = _parameter(key, value) if value else b""
    target = names.from_text(words[1])
    data = b"".join(struct.pack("!HH", key, len(parameters[key])) + parameters[key] for key in sorted(parameters))
    return _short(words[0]) + target + data


_PARAMETERS = {"mandatory": 0, "alpn": 1, "no-default-alpn": 2, "port": 3, "ipv4hint": 4, "ipv6hint": 6}


def _parameter(key: int, value: str) -> bytes:
    text = value.removeprefix('"')
    items = text.split(",")
    match key:
        case 0:
            keys = sorted(_PARAMETERS[item] for item in items if item in _PARAMETERS)
            if len(keys) != len(items):
                raise ValueError(f"`{text}` has what is no parameter")
            return b"".join(struct.pack("!H", each) for each in keys)
        case 1:
            return b"".join(map(_one_string, items))
        case 2:
            raise ValueError("`no-default-alpn` has no value")
        case 3:
            return _short(text)
        case 4:
            return b"".join(socket.inet_pton(socket.AF_INET, item) for item in items)
        case 6:
            return b"".join(socket.inet_pton(socket.AF_INET6, item) for item in items)
    return _string(value)


def _name(words: list[str]) -> bytes:
    return names.from_text(words[0])


# How many values a type has, None for any number, and what they become.
_READERS: dict[int, tuple[int | None, Callable[[list[str]], bytes]]] = {
    Type.A: (1, lambda words: socket.inet_pton(socket.AF_INET, words[0])),
    Type.AAAA: (1, lambda words: socket.inet_pton(socket.AF_INET6, words[0])),
    Type.NS: (1, _name),
    Type.CNAME: (1, _name),
    Type.PTR: (1, _name),
    Type.DNAME: (1, _name),
    Type.MX: (2, lambda words: _short(words[0]) + names.from_text(words[1])),
    Type.SRV: (4, lambda words: b"".join(map(_short, words[:3])) + names.from_text(words[3])),
    Type.TXT: (None, _strings),
    Type.HINFO: (2, lambda words: _one_string(words[0]) + _one_string(words[1])),
    Type.SOA: (7, _soa),
    Type.CAA: (3, _caa),
    Type.NAPTR: (6, _naptr),
    Type.SVCB: (None, _service_binding),
    Type.HTTPS: (None, _service_binding),
}
