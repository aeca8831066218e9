"""`log`: a line for each query, or for those of some names and kinds of answer.

Law: docs/plugins/log.md, which is CoreDNS's. A reply that is logged isn't kept, since each use of it is to be seen;
replies of other classes are.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from logging import getLogger
from typing import Annotated

import msgspec

from kdns.chain import Answer, Block, Next, Plugin, Request
from kdns.corefile import Directive, Token
from kdns.errors import Problem
from kdns.options import Options, RefusalError, argument, choices, custom, parse_each, repeatable
from kdns.wire import names
from kdns.wire.query import Query
from kdns.wire.records import Rcode, Type, class_to_text, rcode_to_text, type_to_text

# Not a plugin's logger: the lines begin with the client.
_log = getLogger("kdns.queries")

COMMON = (
    '{remote}:{port} - {>id} "{type} {class} {name} {proto} {size} {>do} {>bufsize}" '
    "{rcode} {>rflags} {rsize} {duration}"
)
COMBINED = COMMON + ' "{>opcode}"'
MISSING = "-"

_FLAGS = ((15, "qr"), (10, "aa"), (9, "tc"), (8, "rd"), (7, "ra"), (6, "z"), (5, "ad"), (4, "cd"))


class Scope(msgspec.Struct, frozen=True):
    """The names of a use of `log`, in wire form and lower case, and its format."""

    names: tuple[bytes, ...] = (names.ROOT,)
    format: str = COMMON


def _read_scope(tokens: Sequence[Token]) -> Scope:
    form = COMMON
    # A single word is a name, whatever it looks like; so it is in CoreDNS.
    if len(tokens) > 1 and "{" in tokens[-1].text:
        *tokens, last = tokens
        form = last.text.replace("{common}", COMMON).replace("{combined}", COMBINED)
    return Scope(tuple(map(_read_name, tokens)), form)


def _spell_scope(scope: Scope) -> str:
    form = "{common}" if scope.format == COMMON else scope.format
    return " ".join([*map(names.to_text, scope.names), f'"{form}"'])


def _read_name(token: Token) -> bytes:
    try:
        return names.from_text(token.text).lower()
    except ValueError as error:
        raise RefusalError(token, f"a name ({error})") from None


class LogOptions(Options, directive="log"):
    scope: Annotated[
        Scope,
        argument(
            custom(
                _read_scope, "NAMES... [FORMAT]", "names, then perhaps a format", least=0, most=None, show=_spell_scope
            )
        ),
        "queries below these names are logged, in this format; all of them in the common format unless given",
    ] = Scope()
    class_: Annotated[
        tuple[str, ...],
        choices("all", "success", "denial", "error"),
        repeatable,
        "which answers: `success` has data, `denial` is NXDOMAIN or NODATA, `error` is all else",
    ] = ("all",)


class Rule(msgspec.Struct, frozen=True):
    """One use of `log`, ready to be applied."""

    names: names.Zones
    classes: frozenset[str]
    line: Callable[[Logged], str]


class Logged(msgspec.Struct, frozen=True):
    """What a line may tell of."""

    request: Request
    reply: bytes
    answer: Answer
    seconds: float


class Log(Plugin):
    """All uses in a block together: the first of them whose names fit decides."""

    name = "log"
    options = LogOptions

    def __init__(self, options: Sequence[LogOptions], block: Block) -> None:
        self._clock = block.process.clock
        self.rules = [
            Rule(names.Zones(each.scope.names), frozenset(each.class_), compile_format(each.scope.format))
            for each in options
        ]

    @classmethod
    def read(cls, directives: Sequence[Directive], problems: list[Problem]) -> list[LogOptions] | None:
        """The options of each use: names, format and classes are its own."""
        read = parse_each(LogOptions, directives, problems)
        return read if len(read) == len(directives) else None

    async def handle(self, request: Request, next: Next) -> Answer:
        answer = await next(request)
        # A question that the server asked itself has no line of its own.
        if request.depth:
            return answer
        query = request.query
        for rule in self.rules:
            if rule.names.hold(query.qname, query.labels):
                if "all" in rule.classes or class_of(answer) in rule.classes:
                    request.after_reply(functools.partial(self._write, request, rule))
                break
        return answer

    def _write(self, request: Request, rule: Rule, reply: bytes, answer: Answer) -> None:
        seconds = self._clock() - request.now
        _log.info("%s", rule.line(Logged(request, reply, answer, max(0.0, seconds))))


def class_of(answer: Answer) -> str:
    """`success`, `denial` or `error`. NOERROR without data and without an SOA is a success, as in CoreDNS."""
    if answer.rcode == Rcode.NXDOMAIN:
        return "denial"
    if answer.rcode != Rcode.NOERROR:
        return "error"
    if answer.answer or all(record.rtype != Type.SOA for record in answer.authority):
        return "success"
    return "denial"


def compile_format(form: str) -> Callable[[Logged], str]:
    """A function that fills in a format's placeholders; what is no placeholder stays as it is."""
    parts: list[str | Callable[[Logged], str]] = []
    for piece in re.split(r"(\{[^{}]*\})", form):
        if piece.startswith("{/"):
            # Metadata: no plugin has any.
            parts.append(MISSING)
        else:
            parts.append(PLACEHOLDERS.get(piece, piece))
    return lambda logged: "".join([part if isinstance(part, str) else part(logged) for part in parts])


def _flags(logged: Logged) -> str:
    flags = int.from_bytes(logged.reply[2:4], "big")
    return ",".join([name for bit, name in _FLAGS if flags >> bit & 1]) or MISSING


def _request_bytes(query: Query) -> int:
    return 12 + len(query.qname) + 4 + (11 + len(query.options) if query.edns else 0) + query.trailing


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _duration(seconds: float) -> str:
    # A clock of seconds since 1970 has no finer digits.
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


PLACEHOLDERS: dict[str, Callable[[Logged], str]] = {
    "{type}": lambda logged: type_to_text(logged.request.query.rtype),
    "{class}": lambda logged: class_to_text(logged.request.query.rclass),
    "{name}": lambda logged: names.to_text(logged.request.query.qname),
    "{proto}": lambda logged: logged.request.transport,
    "{remote}": lambda logged: _host(logged.request.client[0]),
    "{port}": lambda logged: str(logged.request.client[1]),
    "{local}": lambda logged: _host(logged.request.local[0]),
    "{size}": lambda logged: str(_request_bytes(logged.request.query)),
    "{rsize}": lambda logged: str(len(logged.reply)),
    "{>id}": lambda logged: str(logged.request.query.id),
    "{>opcode}": lambda logged: str(logged.request.query.flags >> 11 & 0xF),
    "{>do}": lambda logged: "true" if logged.request.query.do else "false",
    "{>bufsize}": lambda logged: str(logged.request.query.size),
    "{rcode}": lambda logged: rcode_to_text(logged.answer.rcode),
    "{>rflags}": _flags,
    "{duration}": lambda logged: _duration(logged.seconds),
}
