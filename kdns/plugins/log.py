"""`log`: a line for each query, or for those of some names and kinds of answer.

Law: docs/plugins/log.md, which is CoreDNS's but for `format json`. A reply that is logged isn't kept, since each use of
it is to be seen; replies of other classes are.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from logging import Logger, getLogger
from typing import Annotated

import msgspec

from kdns.addresses import bracketed
from kdns.chain import Answer, Block, Next, Plugin, Request
from kdns.corefile import Directive, Token
from kdns.errors import Problem, nearest
from kdns.logs import BARE, escape
from kdns.options import Fault, Options, RefusalError, argument, choice, choices, custom, parse_each, repeatable
from kdns.wire import names
from kdns.wire.query import Query
from kdns.wire.records import Rcode, Type, class_to_text, rcode_to_text, type_to_text

# Not a plugin's logger: the lines begin with the client.
_text_log = getLogger("kdns.queries")
_json_log = getLogger(BARE)

COMMON = (
    '{remote}:{port} - {>id} "{type} {class} {name} {proto} {size} {>do} {>bufsize}" '
    "{rcode} {>rflags} {rsize} {duration}"
)
COMBINED = COMMON + ' "{>opcode}"'
MISSING = "-"
# In `format json`: with a name of 255 bytes, each escaped, a line is still no longer than a pipe takes at once.
LONGEST_CAUSE = 512

# In a group, so that what stands between them can be split off.
_PLACEHOLDER = re.compile(r"(\{[^{}]*\})")
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
    format: Annotated[
        str, choice("json"), "each line is a JSON object with fields of fixed names, and nothing but that"
    ] = ""

    def faults(self) -> Iterable[Fault]:
        if self.format and self.scope.format != COMMON:
            yield Fault("format", "`format json` takes the place of a FORMAT with placeholders: leave one out")


class Rule(msgspec.Struct, frozen=True):
    """One use of `log`, ready to be applied."""

    names: names.Zones
    classes: frozenset[str]
    log: Logger
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
        self.rules = [_rule(each) for each in options]

    @classmethod
    def read(cls, directives: Sequence[Directive], problems: list[Problem]) -> list[LogOptions] | None:
        """The options of each use: names, format and classes are its own."""
        read = parse_each(LogOptions, directives, problems)
        for directive in directives:
            problems += _doubts(directive)
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
        rule.log.info("%s", rule.line(Logged(request, reply, answer, max(0.0, seconds))))


def _doubts(directive: Directive) -> Iterator[Problem]:
    """What CoreDNS takes in silence and nobody can have meant."""
    if not directive.args:
        return
    last = directive.args[-1]
    found = [piece for piece in _PLACEHOLDER.findall(last.text) if not piece.startswith("{/")]
    if found and len(directive.args) == 1:
        message, hint = f"`{last.text}` is taken for a name", f'a format stands behind one: `log . "{last.text}"`'
        yield Problem(message, last.place(), hint=hint, warning=True)
        return
    known = [*PLACEHOLDERS, "{common}", "{combined}"]
    for piece in dict.fromkeys(piece for piece in found if piece not in known):
        meant = nearest(piece, known)
        hint = f"did you mean `{meant}`?" if meant else "it stays as it is in each line"
        yield Problem(f"`{piece}` is no placeholder", last.place(), hint=hint, warning=True)


def _rule(options: LogOptions) -> Rule:
    is_json = options.format == "json"
    return Rule(
        names.Zones(options.scope.names),
        frozenset(options.class_),
        _json_log if is_json else _text_log,
        json_line if is_json else compile_format(options.scope.format),
    )


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
    for piece in _PLACEHOLDER.split(form):
        if piece.startswith("{/"):
            # Metadata: no plugin has any.
            parts.append(MISSING)
        else:
            parts.append(PLACEHOLDERS.get(piece, piece))
    return lambda logged: "".join([part if isinstance(part, str) else part(logged) for part in parts])


class JsonLine(msgspec.Struct, rename={"class_": "class"}):
    """The fields of a line of `format json`, in their order. They are named as the placeholders are."""

    time: datetime
    remote: str
    port: int
    local: str
    proto: str
    id: int
    opcode: int
    type: str
    class_: str
    name: str
    size: int
    do: bool
    bufsize: int
    rcode: str
    rflags: list[str]
    rsize: int
    duration: float
    zone: str
    plugin: str
    error: str


def json_line(logged: Logged) -> str:
    """The line as a JSON object. Whatever a stranger sent is text in it, of printable characters alone."""
    request, query, answer = logged.request, logged.request.query, logged.answer
    line = JsonLine(
        time=datetime.fromtimestamp(request.now, UTC),
        remote=request.client[0],
        port=request.client[1],
        local=request.local[0],
        proto=request.transport,
        id=query.id,
        opcode=query.flags >> 11 & 0xF,
        type=type_to_text(query.rtype),
        class_=class_to_text(query.rclass),
        name=names.to_text(query.qname),
        size=_request_bytes(query),
        do=query.do,
        bufsize=query.size,
        rcode=rcode_to_text(answer.rcode),
        rflags=_flags(logged),
        rsize=len(logged.reply),
        duration=round(logged.seconds, 6),
        zone=names.to_text(request.zone),
        plugin=answer.plugin,
        error=escape(answer.cause)[:LONGEST_CAUSE],
    )
    return _encode(line).decode()


_encode = msgspec.json.Encoder().encode


def _flags(logged: Logged) -> list[str]:
    flags = int.from_bytes(logged.reply[2:4], "big")
    return [name for bit, name in _FLAGS if flags >> bit & 1]


def _request_bytes(query: Query) -> int:
    return 12 + len(query.qname) + 4 + (11 + len(query.options) if query.edns else 0) + query.trailing


def _duration(seconds: float) -> str:
    # A clock of seconds since 1970 has no finer digits.
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


PLACEHOLDERS: dict[str, Callable[[Logged], str]] = {
    "{type}": lambda logged: type_to_text(logged.request.query.rtype),
    "{class}": lambda logged: class_to_text(logged.request.query.rclass),
    "{name}": lambda logged: names.to_text(logged.request.query.qname),
    "{proto}": lambda logged: logged.request.transport,
    "{remote}": lambda logged: bracketed(logged.request.client[0]),
    "{port}": lambda logged: str(logged.request.client[1]),
    "{local}": lambda logged: bracketed(logged.request.local[0]),
    "{size}": lambda logged: str(_request_bytes(logged.request.query)),
    "{rsize}": lambda logged: str(len(logged.reply)),
    "{>id}": lambda logged: str(logged.request.query.id),
    "{>opcode}": lambda logged: str(logged.request.query.flags >> 11 & 0xF),
    "{>do}": lambda logged: "true" if logged.request.query.do else "false",
    "{>bufsize}": lambda logged: str(logged.request.query.size),
    "{rcode}": lambda logged: rcode_to_text(logged.answer.rcode),
    "{>rflags}": lambda logged: ",".join(_flags(logged)) or MISSING,
    "{duration}": lambda logged: _duration(logged.seconds),
}
