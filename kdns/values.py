"""Kinds of value in a Corefile: how the words behind an option become a number, a duration, zones, an address …

Knows words (`corefile.py`) and no directive. A kind says what it takes, so that a mistake can be told and a reference
be made of it. Which options a directive has, and of which kind, stands in `options.py`'s terms beside each plugin.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kdns.addresses import Address
from kdns.corefile import Token, normalize_zone, split_port
from kdns.errors import nearest
from kdns.selectors import Selector, parse_selector


class RefusalError(ValueError):
    """A word that a kind of value doesn't take; `expected` is what it takes, for the drawing."""

    def __init__(self, token: Token, expected: str, hint: str = "") -> None:
        super().__init__(f"expected {expected}, found `{token.text}`")
        self.token = token
        self.expected = f"{expected}, found `{token.text}`"
        self.hint = hint


class WordError(ValueError):
    """A word that is wrong in a way of its own, told in a whole sentence."""

    def __init__(self, token: Token, sentence: object) -> None:
        super().__init__(str(sentence))
        self.token = token


class SeveralError(ValueError):
    """Several words of one line that are wrong, each in its own way."""

    def __init__(self, errors: Sequence[ValueError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = tuple(errors)


@contextlib.contextmanager
def collected(errors: list[ValueError]) -> Iterator[None]:
    """Note a ValueError and go on, for who reads several words and raises `SeveralError` at the end."""
    try:
        yield
    except ValueError as error:
        errors.append(error)


def _show(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Kind:
    """How the words after an option become its value.

    `syntax` stands in the reference, `takes` ends the sentence "`ttl` takes …". `read` gets as many words as `least`
    and `most` allow; it raises RefusalError, WordError, or ValueError with a whole sentence. `show` spells a default.
    With `fills`, the parts of the default stand in for those that a shorter value leaves out.
    """

    syntax: str
    takes: str
    read: Callable[[Sequence[Token]], Any]
    least: int = 1
    most: int | None = 1
    show: Callable[[Any], str] = _show
    fills: bool = False

    def called(self, syntax: str) -> Kind:
        """The same kind under another name in the reference."""
        return dataclasses.replace(self, syntax=syntax)

    def usage(self) -> str:
        """Its place in a synopsis: `TTL`, `[TTL]`, `ZONES...`, `[ZONES...]`."""
        return bracketed_syntax(self.syntax) if self.least == 0 and self.syntax else self.syntax


def bracketed_syntax(syntax: str) -> str:
    """The syntax of what may be left out, with one pair of brackets around it."""
    return syntax if re.fullmatch(r"\[.*\]", syntax) else f"[{syntax}]"


def number(least: int | None = None, most: int | None = None, *, unit: str = "") -> Kind:
    """A whole number in a range; the unit is named in the error and in the reference."""

    def read(tokens: Sequence[Token]) -> int:
        text = tokens[0].text
        # 18 digits: Go's int holds no more, and int() is slow on thousands.
        value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None
        if value is None or not _within(value, least, most):
            raise RefusalError(tokens[0], _range(least, most) or "a whole number")
        return value

    return Kind(unit.upper() or "NUMBER", f"a number of {unit}" if unit else "a number", read)


def is_number(token: Token) -> bool:
    """For `fits`: the word is a whole number."""
    return re.fullmatch(r"[+-]?[0-9]+", token.text) is not None


def fraction(least: float | None = None, most: float | None = None) -> Kind:
    """A number that may have decimals, as a float."""

    def read(tokens: Sequence[Token]) -> float:
        text = tokens[0].text
        plain = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", text)
        value = float(text) if plain else math.nan
        if not math.isfinite(value) or not _within(value, least, most):
            raise RefusalError(tokens[0], _range(least, most) or "a number")
        return value

    return Kind("NUMBER", "a number", read, show=lambda value: f"{value:g}")


def duration(least: float = 0.0, most: float | None = None) -> Kind:
    """A duration as Go writes it, such as `300ms` or `1h30m`, in seconds; `least` and `most` too."""

    def read(tokens: Sequence[Token]) -> float:
        seconds = parse_duration(tokens[0])
        if not _within(seconds, least, most):
            raise RefusalError(tokens[0], _range(least, most, spell_duration))
        return seconds

    return Kind("DURATION", "a duration", read, show=spell_duration)


def choice(*names: str) -> Kind:
    """One of a few words."""
    return Kind("|".join(names), _one_of(names), lambda tokens: _chosen(tokens[0], names))


def choices(*names: str, at_least: int = 1) -> Kind:
    """Some of a few words, as a tuple."""

    def read(tokens: Sequence[Token]) -> tuple[str, ...]:
        return tuple(_chosen(token, names) for token in tokens)

    return Kind(f"{'|'.join(names)}...", f"{_one_of(names)}, or several of them", read, at_least, None)


def flag() -> Kind:
    """An option that is there or not: a bool."""
    return Kind("", "no value", lambda tokens: True, 0, 0, lambda value: "on" if value else "off")


def word(syntax: str = "WORD", takes: str = "one word") -> Kind:
    """Any one word, as text."""
    return Kind(syntax, takes, lambda tokens: tokens[0].text)


def words(syntax: str = "WORD...", *, at_least: int = 1, at_most: int | None = None) -> Kind:
    """Any words, as a tuple of texts."""
    takes = f"at least {_count(at_least)}" if at_least else "words"
    return Kind(syntax, takes, lambda tokens: tuple(token.text for token in tokens), at_least, at_most)


def zone(syntax: str = "ZONE") -> Kind:
    """One zone, as a tuple of names: a CIDR may need several reverse zones."""
    return dataclasses.replace(zones(at_least=1), syntax=syntax, takes="a zone", most=1)


def zones(*, at_least: int = 0, none: tuple[str, ...] = ()) -> Kind:
    """Zones as a tuple of lower-case names with final dots; `none` is the value where the option stands alone."""

    def read(tokens: Sequence[Token]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for token in tokens for name in _zone_names(token))) or none

    takes = "at least one zone" if at_least else "zones"
    return Kind("ZONES...", takes, read, at_least, None)


def _zone_names(token: Token) -> list[str]:
    try:
        # CoreDNS takes a port here too, and drops it.
        return normalize_zone(split_port(token.text)[0])
    except ValueError as error:
        raise WordError(token, error) from None


def address(default_port: int | None = None) -> Kind:
    """`HOST:PORT`, `[IPv6]:PORT` or `:PORT`; without a port only where a default is given."""

    def read(tokens: Sequence[Token]) -> Address:
        text = tokens[0].text
        found = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([0-9]{1,5})", text)
        if found is None and default_port is not None and text and not re.search(r"[:\[\]]", text):
            return Address(text, default_port)
        if found is None or int(found[3]) > 65535:
            hint = f"write `:{text}` for all addresses" if re.fullmatch("[0-9]{1,5}", text) else ""
            raise RefusalError(tokens[0], "HOST:PORT or :PORT", hint)
        return Address(found[1] or found[2] or "", int(found[3]))

    return Kind("[HOST]:PORT", "an address", read)


def wrong_ranges(texts: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Those of some CIDRs from which no addresses can be given, one a family: each with a sentence and a hint."""
    first: dict[int, str] = {}
    for text in texts:
        try:
            interface = ipaddress.ip_interface(text)
        except ValueError:
            interface = None
        if interface is None or "/" not in text:
            yield text, f"`{text}` is no range of addresses", "one is written as `10.96.0.0/12` or `fd00:96::/112`"
        elif interface.ip != interface.network.network_address:
            yield text, f"`{text}` is an address within a range", f"the range is `{interface.network}`"
        elif interface.version in first:
            before = first[interface.version]
            yield text, f"`{text}` is a second range of IPv{interface.version}", f"there is one a family: `{before}`"
        else:
            first[interface.version] = text


def selector() -> Kind:
    """A label selector of Kubernetes, which may be several words."""

    def read(tokens: Sequence[Token]) -> Selector:
        return parse_selector(" ".join(token.text for token in tokens))

    return Kind("SELECTOR...", "a label selector", read, 1, None)


def several(*kinds: Kind, at_least: int = 1) -> Kind:
    """One word of each kind in turn, as a tuple; parts of the default stand for those left out at its end."""

    def read(tokens: Sequence[Token]) -> tuple[Any, ...]:
        return tuple(kind.read([token]) for kind, token in zip(kinds, tokens, strict=False))

    optional = kinds[at_least:]
    first = " ".join(kind.syntax for kind in kinds[:at_least])
    syntax = first + "".join(f" [{kind.syntax}" for kind in optional) + "]" * len(optional)
    return Kind(syntax, f"`{syntax}`", read, at_least, len(kinds), fills=True)


def custom(
    read: Callable[[Sequence[Token]], Any],
    syntax: str,
    takes: str,
    *,
    least: int = 1,
    most: int | None = 1,
    show: Callable[[Any], str] = _show,
) -> Kind:
    """A kind of a plugin's own; `read` raises RefusalError, or ValueError with a sentence."""
    return Kind(syntax, takes, read, least, most, show)


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _spell_number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _range(least: float | None, most: float | None, spell: Callable[[float], str] = _spell_number) -> str:
    if least is not None and most is not None:
        return f"{spell(least)} to {spell(most)}"
    if least is not None:
        return f"{spell(least)} or more"
    return f"{spell(most)} or less" if most is not None else ""


def _one_of(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _chosen(token: Token, names: Sequence[str]) -> str:
    if token.text in names:
        return token.text
    meant = nearest(token.text, names)
    expected = "one of these" if len(names) > 1 else _one_of(names)
    raise RefusalError(token, expected, f"did you mean `{meant}`?" if meant else "")


def _count(number_of: int) -> str:
    return "one word" if number_of == 1 else f"{number_of} words"


# --- Durations ---

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
# As far as Go's int64 of nanoseconds goes, a little less than 293 years.
_LONGEST = 2**63 / 1e9


def parse_duration(token: Token) -> float:
    """Seconds of a duration in Go's notation: `300ms`, `1h30m`, `0`. Raises RefusalError."""
    text = token.text
    unsigned = text.lstrip("+-") if text[:2] not in ("++", "--", "+-", "-+") else ""
    if unsigned == "0":
        return 0.0
    parts = list(_PART.finditer(unsigned))
    if not parts or "".join(part[0] for part in parts) != unsigned:
        hint = f"write `{text}s`" if re.fullmatch(r"[0-9]+", text) else ""
        raise RefusalError(token, "a number with a unit, such as `5s`, `300ms` or `1h30m`", hint)
    seconds = sum(float(part[1]) * _UNITS[part[2]] for part in parts)
    if seconds >= _LONGEST:
        raise RefusalError(token, "less than 292 years")
    return -seconds if text.startswith("-") else seconds


def spell_duration(seconds: float) -> str:
    """The shortest spelling in Go's notation, to the nanosecond."""
    if seconds < 0:
        return f"-{spell_duration(-seconds)}"
    if seconds < 1:
        units = ((1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
        size, unit = next((unit for unit in units if seconds >= unit[0]), (1.0, "s"))
        return f"{round(seconds / size, 6):g}{unit}"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    tail = f"{round(rest, 9)!r}".removesuffix(".0") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "") + (tail if rest else "")
