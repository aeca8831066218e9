"""A directive as a typed object: one class, one annotated field per option, every mistake told at once.

Knows the tree of `corefile.py` and no plugin. A plugin declares what it takes:

    class CacheOptions(Options, directive="cache", once=True):
        ttl: Annotated[int, argument(number(1, unit="seconds")), "no answer is kept for longer"] = 3600
        servfail: Annotated[float, duration(0, 300), "how long a SERVFAIL is kept"] = 5.0
        disable: Annotated[tuple[str, ...], choices("success", "denial"), repeatable, "what isn't kept"] = ()

and gets it with `parse_options(CacheOptions, directives, problems)`. An option is named as its field, less a final
underscore. Kinds of value stand in `values.py`; below is what a field may add, then the table, then the parser.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar, cast, dataclass_transform

import msgspec

from kdns.addresses import Address
from kdns.corefile import Directive, Token
from kdns.directives import (
    COREDNS_DIRECTIVES,
    INSTEAD,
    OPTIONS_TO_COME,
    REMOVED_DIRECTIVES,
    REMOVED_EVERYWHERE,
    unknown_directive,
)
from kdns.errors import Problem, nearest, note
from kdns.selectors import Requirement, Selector, parse_selector
from kdns.values import (
    Kind,
    RefusalError,
    SeveralError,
    WordError,
    address,
    bracketed_syntax,
    choice,
    choices,
    collected,
    custom,
    duration,
    flag,
    fraction,
    is_number,
    number,
    parse_duration,
    selector,
    several,
    spell_duration,
    word,
    words,
    wrong_ranges,
    zone,
    zones,
)

# Whoever declares a directive imports all that it takes from here.
__all__ = [
    "COREDNS_DIRECTIVES",
    "INSTEAD",
    "OPTIONS_TO_COME",
    "REMOVED_DIRECTIVES",
    "REMOVED_EVERYWHERE",
    "Address",
    "Argument",
    "Described",
    "Differs",
    "Fault",
    "Kind",
    "Lines",
    "Mark",
    "Options",
    "RefusalError",
    "Requirement",
    "Row",
    "Selector",
    "SeveralError",
    "WithoutEffect",
    "WordError",
    "address",
    "argument",
    "choice",
    "choices",
    "collected",
    "custom",
    "describe",
    "differs",
    "duration",
    "flag",
    "fraction",
    "is_number",
    "lines",
    "number",
    "once",
    "parse_duration",
    "parse_each",
    "parse_options",
    "parse_selector",
    "repeatable",
    "selector",
    "several",
    "spell_duration",
    "synopsis",
    "table",
    "unknown_directive",
    "without_effect",
    "word",
    "words",
    "wrong_ranges",
    "zone",
    "zone_arguments",
    "zones",
]


# --- What a field may add to its kind ---


@dataclass(frozen=True)
class Mark:
    """What happens when an option is written twice; without a mark the last one counts and a warning says so."""

    name: str


once = Mark("once")
"""A second use is a mistake."""
repeatable = Mark("repeatable")
"""Values of all uses are put together; the field is a tuple."""


@dataclass(frozen=True)
class WithoutEffect:
    """The option is read and does nothing; a note with the reason says so at start.

    Where CoreDNS makes nothing of it either (`in_coredns`) it is a warning.
    """

    reason: str
    in_coredns: bool = False


@dataclass(frozen=True)
class Differs:
    """The option means something else than in CoreDNS; a note says so at start.

    With `when`, only of values for which that holds.
    """

    sentence: str
    when: Callable[[Any], bool] | None = None


@dataclass(frozen=True)
class Argument:
    """The value stands on the directive's own line, in the order of the fields.

    With `fits`, an argument that may be left out takes the next word only if that holds for it.
    """

    kind: Kind
    fits: Callable[[Token], bool] | None = None


@dataclass(frozen=True)
class Lines:
    """The lines of the block with one of these names (without any: all that are no option), in order, as a tuple.

    `read` gets the whole line as a Directive; it raises RefusalError, or ValueError with a sentence.
    """

    read: Callable[[Directive], Any]
    names: tuple[str, ...] = ()
    syntax: str = ""


def without_effect(reason: str, *, in_coredns: bool = False) -> WithoutEffect:
    """An option that kdns takes from CoreDNS and doesn't honour; the reason is a sentence without a full stop.

    `in_coredns` is whether it has no effect there either.
    """
    return WithoutEffect(reason, in_coredns)


def differs(sentence: str, when: Callable[[Any], bool] | None = None) -> Differs:
    """An option that means something else than in CoreDNS; the sentence, without a full stop, says what it does here.

    With `when`, only values for which that holds do.
    """
    return Differs(sentence, when)


def argument(kind: Kind, fits: Callable[[Token], bool] | None = None) -> Argument:
    """The value stands on the directive's own line; see Argument."""
    return Argument(kind, fits)


def zone_arguments() -> Argument:
    """`[ZONES...]` on the directive's own line."""
    return Argument(zones())


def lines(read: Callable[[Directive], Any], *names: str, syntax: str = "") -> Lines:
    """Lines of the block that a plugin reads by itself; see Lines."""
    return Lines(read, names, syntax)


class Fault(NamedTuple):
    """A mistake that is seen only when the directive has been read: which option, or "", and a sentence.

    It is drawn at `value`, a word of that option. It is none where one of `besides`, the other options that it depends
    on, could not be read.
    """

    option: str
    sentence: str
    value: str = ""
    hint: str = ""
    besides: tuple[str, ...] = ()


# --- Options, and the table that they are read from ---


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Options:
    """The parent of every directive's options; a child becomes a frozen dataclass with fields by name only.

    `once`: a second use in a block is a mistake, else the uses are put together. `exclusive`: options of which one
    at most may be given. `removed`: options of older CoreDNS, and what to do instead.
    """

    directive: ClassVar[str] = ""
    once: ClassVar[bool] = False
    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = ()
    removed: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(
        cls,
        *,
        directive: str,
        once: bool = False,
        exclusive: Iterable[tuple[str, ...]] = (),
        removed: Mapping[str, str] | None = None,
    ) -> None:
        super().__init_subclass__()
        cls.directive = directive
        cls.once = once
        cls.exclusive = tuple(exclusive)
        cls.removed = {**REMOVED_EVERYWHERE, **(removed or {})}
        dataclass(frozen=True, kw_only=True)(cls)

    def faults(self) -> Iterable[Fault]:
        """Mistakes that no single word makes. An option that could not be read has its default here."""
        return ()


@dataclass(frozen=True)
class Row:
    """One field of an Options class, as the parser needs it."""

    field_name: str
    name: str
    kind: Kind
    sentence: str
    is_argument: bool = False
    fits: Callable[[Token], bool] | None = None
    lines: Lines | None = None
    mark: Mark | None = None
    without_effect: WithoutEffect | None = None
    differs: Differs | None = None
    required: bool = False
    default: Any = None

    def usage(self) -> str:
        """How it is written."""
        return self.kind.usage() if self.is_argument else f"{self.name} {self.kind.usage()}".rstrip()

    def shown_default(self) -> str:
        """The default as it would be written, or an empty string if there is none."""
        if self.required or self.default is None or self.default in ((), ""):
            return ""
        return self.kind.show(self.default)


def table(options_type: type[Options]) -> tuple[Row, ...]:
    """The rows of an Options class in the order of its fields."""
    # The module's names alone: a field called `zones` must not hide the kind of that name from the fields after it.
    names = globals() | vars(sys.modules[options_type.__module__])
    hints = typing.get_type_hints(options_type, names, {}, include_extras=True)
    return tuple(_row(declared, hints[declared.name]) for declared in dataclasses.fields(cast(Any, options_type)))


def _row(declared: dataclasses.Field[Any], hint: Any) -> Row:
    marks = getattr(hint, "__metadata__", ())

    def mark(kind: type[T]) -> T | None:
        return next((found for found in marks if isinstance(found, kind)), None)

    as_argument, as_lines = mark(Argument), mark(Lines)
    name = declared.name.removesuffix("_")
    kind = as_argument.kind if as_argument else mark(Kind)
    if as_lines:
        kind = Kind(as_lines.syntax, "a line", lambda tokens: None)
    if kind is None:
        raise TypeError(f"the field {declared.name} has no kind of value in its annotation")
    default = declared.default
    if declared.default_factory is not dataclasses.MISSING:
        default = declared.default_factory()
    required = default is dataclasses.MISSING
    return Row(
        field_name=declared.name,
        name=name,
        kind=kind,
        sentence=mark(str) or "",
        is_argument=as_argument is not None,
        fits=as_argument.fits if as_argument else None,
        lines=as_lines,
        mark=mark(Mark),
        without_effect=mark(WithoutEffect),
        differs=mark(Differs),
        required=required,
        default=None if required else default,
    )


class Described(msgspec.Struct, frozen=True):
    """A line of the reference."""

    syntax: str
    default: str
    sentence: str


def describe(options_type: type[Options]) -> list[Described]:
    """The reference of a directive: its arguments, then its options."""
    rows = sorted(table(options_type), key=lambda row: not row.is_argument)
    return [
        Described(
            row.kind.syntax if row.lines else (_optional(row) if row.is_argument else row.usage()),
            row.shown_default(),
            row.sentence + (f" (no effect: {row.without_effect.reason})" if row.without_effect else ""),
        )
        for row in rows
    ]


def synopsis(options_type: type[Options]) -> str:
    """The directive's own line: `cache [TTL] [ZONES...]`."""
    return " ".join([options_type.directive, *(_optional(row) for row in table(options_type) if row.is_argument)])


def _optional(row: Row) -> str:
    usage = row.kind.usage()
    return usage if row.required else bracketed_syntax(usage)


# --- Reading ---

T = TypeVar("T")
AnyOptions = TypeVar("AnyOptions", bound=Options)


def parse_options(
    options_type: type[AnyOptions], directives: Sequence[Directive], problems: list[Problem]
) -> AnyOptions | None:
    """The options of all uses of one directive in one block; None if there was a mistake.

    Every mistake and warning is added to `problems`.
    """
    reading = _Reading(options_type, directives)
    reading.read()
    problems += reading.problems
    if any(not problem.warning for problem in reading.problems):
        return None
    return cast(Callable[..., AnyOptions], options_type)(**reading.values)


def parse_each(
    options_type: type[AnyOptions], directives: Sequence[Directive], problems: list[Problem]
) -> list[AnyOptions]:
    """The options of each use by itself, for a directive whose uses are separate rules, such as `forward`."""
    found = [parse_options(options_type, [directive], problems) for directive in directives]
    return [options for options in found if options is not None]


class _Reading:
    """One run over the uses of a directive."""

    def __init__(self, options_type: type[Options], directives: Sequence[Directive]) -> None:
        self.options_type = options_type
        self.directives = directives
        self.rows = table(options_type)
        self.options = {row.name: row for row in self.rows if not row.is_argument and row.lines is None}
        self.lines: dict[str, Row] = {}
        self.other_lines: Row | None = None
        for row in self.rows:
            if row.lines is not None and row.lines.names:
                self.lines |= dict.fromkeys(row.lines.names, row)
            elif row.lines is not None:
                self.other_lines = row
        self.values: dict[str, Any] = {}
        # Where each option was given last.
        self.given: dict[str, Token] = {}
        self.words: dict[str, list[Token]] = {}
        self.unread: set[str] = set()
        self.problems: list[Problem] = []

    def read(self) -> None:
        if self.options_type.once:
            for again in self.directives[1:]:
                first = self.directives[0].name
                message = f"`{again.name.text}` can only be used once in a server block"
                self._fault(again.name, message, hint=f"the first is in line {first.line} of {first.file}")
        for directive in self.directives:
            if self.options_type.once:
                self.given = {}
            self._arguments(directive)
            for line in directive.body or ():
                self._line(directive, line)
        self._together()

    # The directive's own line.

    def _arguments(self, directive: Directive) -> None:
        arguments = [row for row in self.rows if row.is_argument]
        left = list(directive.args)
        before = len(self.problems)
        for place, row in enumerate(arguments):
            owed = sum(later.kind.least for later in arguments[place + 1 :] if later.required)
            count = max(row.kind.least if row.required else 0, len(left) - owed)
            if row.kind.most is not None:
                count = min(count, row.kind.most)
            if row.fits is not None and left and not row.fits(left[0]):
                count = 0
            taken, left = left[:count], left[count:]
            if taken:
                self._argument(directive, row, taken)
            elif row.required and row.field_name not in self.values:
                message = f"`{directive.name.text}` needs {row.kind.syntax.removesuffix('...')}"
                self._fault(directive.name, message, expected=f"`{synopsis(self.options_type)}`")
        if left and len(self.problems) == before:
            self._surplus(directive, left, arguments)

    def _argument(self, directive: Directive, row: Row, taken: Sequence[Token]) -> None:
        subject = f"`{directive.name.text}`"
        if sum(row.is_argument for row in self.rows) > 1:
            subject = f"{row.kind.syntax.removesuffix('...')} of {subject}"
        if len(taken) < row.kind.least:
            expected = f"`{synopsis(self.options_type)}`"
            self.unread.add(row.name)
            self._fault(directive.name, f"{subject} takes {row.kind.takes}", expected=expected)
            return
        if not self._first_use(row, taken[0]):
            return
        default = row.shown_default()
        self._value(row, subject, taken, f"the default is `{default}`" if default else "")

    def _surplus(self, directive: Directive, left: Sequence[Token], arguments: Sequence[Row]) -> None:
        name = directive.name.text
        if arguments:
            message = f"`{name}` takes no more than that"
            self._fault(left[0], message, expected=f"`{synopsis(self.options_type)}`, found `{left[0].text}`")
            return
        known = left[0].text in self.options
        hint = f"options stand in a block: `{name} {{ {left[0].text} … }}`" if known else ""
        self._fault(left[0], f"`{name}` takes no arguments", expected=f"nothing, found `{left[0].text}`", hint=hint)

    # A line of its block.

    def _line(self, directive: Directive, line: Directive) -> None:
        name = line.name.text
        row = self.options.get(name)
        if row is not None:
            self._option(row, line)
        elif (of_plugin := self.lines.get(name, self.other_lines)) is not None:
            self._own_line(of_plugin, line)
        else:
            self._unknown(directive, line.name)

    def _option(self, row: Row, line: Directive) -> None:
        if line.body is not None:
            self._fault(line.name, f"`{row.name}` takes no block", expected=f"`{row.usage()}`")
            return
        if not self._counted(row, line):
            self.unread.add(row.name)
            return
        if not self._first_use(row, line.name):
            return
        default = row.shown_default() if row.kind.most != 0 else ""
        hint = f"the default is `{row.name} {default}`" if default else ""
        self._value(row, f"`{row.name}`", line.args or [line.name], hint, nothing=not line.args)

    def _first_use(self, row: Row, token: Token) -> bool:
        """Whether the value counts; says so where there are two."""
        before = self.given.get(row.name)
        self.given[row.name] = token
        if before is None or row.mark is repeatable:
            return True
        hint = f"the first is in line {before.line} of {before.file}"
        if row.mark is once:
            self._fault(token, f"`{token.text}` can only be given once", hint=hint)
            return False
        self._warn(token, f"`{token.text}` is given again, and this is what counts", hint=hint)
        return True

    def _counted(self, row: Row, line: Directive) -> bool:
        kind, count = row.kind, len(line.args)
        if count >= kind.least and (kind.most is None or count <= kind.most):
            return True
        surplus = line.args[kind.most] if kind.most is not None and count > kind.most else None
        hint = "options stand on lines of their own" if surplus and surplus.text in self.options else ""
        values = "nothing" if count == 0 else "1 value" if count == 1 else f"{count} values"
        expected = f"`{row.usage()}`, found {values}"
        self._fault(surplus or line.name, f"`{row.name}` takes {kind.takes}", expected=expected, hint=hint)
        return False

    def _own_line(self, row: Row, line: Directive) -> None:
        assert row.lines is not None
        try:
            value = row.lines.read(line)
        except ValueError as error:
            self.unread.add(row.name)
            self._refused(error, f"`{line.name.text}` can't be read", line.name)
        else:
            self.values[row.field_name] = (*self.values.get(row.field_name, ()), value)
        self.given[row.name] = line.name

    def _unknown(self, directive: Directive, token: Token) -> None:
        if token.text in self.options_type.removed:
            self._fault(token, f"`{token.text}` was removed from CoreDNS", hint=self.options_type.removed[token.text])
            return
        if token.text in OPTIONS_TO_COME.get(self.options_type.directive, ()):
            self._fault(token, f"`{token.text}` isn't in kdns yet")
            return
        known = [*self.options, *self.lines]
        message = f"`{directive.name.text}` has no option `{token.text}`"
        meant = nearest(token.text, known)
        if meant:
            hint = f"did you mean `{meant}`?"
        else:
            hint = f"it takes {', '.join(f'`{name}`' for name in known)}" if known else "it has no options"
        self._fault(token, message, hint=hint)

    # Values.

    def _value(self, row: Row, subject: str, tokens: Sequence[Token], hint: str, nothing: bool = False) -> None:
        self.words.setdefault(row.name, []).extend(tokens)
        try:
            value = row.kind.read([] if nothing else tokens)
        except ValueError as error:
            self.unread.add(row.name)
            self._refused(error, f"{subject} takes {row.kind.takes}", tokens[0], f"{subject}: ", hint)
        else:
            self._note(row, subject, value)
            if row.kind.fills and isinstance(row.default, tuple):
                value += row.default[len(value) :]
            if row.mark is repeatable:
                value = (*self.values.get(row.field_name, ()), *value)
            self.values[row.field_name] = value

    def _note(self, row: Row, subject: str, value: object) -> None:
        """Tell what the option says in CoreDNS and doesn't say here."""
        place = self.given[row.name].place()
        if row.without_effect is not None:
            message, reason = f"{subject} has no effect", row.without_effect.reason
            doubtful = Problem(message, place, hint=reason, warning=True)
            self.problems.append(doubtful if row.without_effect.in_coredns else note(message, place, reason))
        if row.differs is not None and (row.differs.when is None or row.differs.when(value)):
            self.problems.append(note(f"{subject}: {row.differs.sentence}", place))

    def _refused(self, error: ValueError, message: str, token: Token, before: str = "", hint: str = "") -> None:
        """Tell what the reader of a value said: `message` where it only names what it expected."""
        for each in error.errors if isinstance(error, SeveralError) else (error,):
            if isinstance(each, RefusalError):
                self._fault(each.token, message, expected=each.expected, hint=each.hint or hint)
            else:
                self._fault(each.token if isinstance(each, WordError) else token, f"{before}{each}", hint=hint)

    def _together(self) -> None:
        """What can be seen only when all has been read."""
        start = self.directives[0].name if self.directives else Token(self.options_type.directive)
        for names in self.options_type.exclusive:
            both = [name for name in names if name in self.given]
            if len(both) > 1:
                message = " and ".join(f"`{name}`" for name in both) + " cannot both be set"
                hint = f"`{both[0]}` stands in line {self.given[both[0]].line}"
                self._fault(self.given[both[-1]], message, hint=hint)
        for row in self.rows:
            if row.required and not row.is_argument and row.name not in self.given:
                message = f"`{self.options_type.directive}` needs the option `{row.name}`"
                self._fault(start, message, expected=f"`{row.usage()}`")
        if any(row.required and row.field_name not in self.values for row in self.rows):
            return
        for fault in cast(Callable[..., Options], self.options_type)(**self.values).faults():
            if self.unread.isdisjoint((fault.option, *fault.besides)):
                words = self.words.get(fault.option, ())
                value = next((word for word in reversed(words) if word.text == fault.value), None)
                self._fault(value or self.given.get(fault.option, start), fault.sentence, hint=fault.hint)

    def _fault(self, token: Token, message: str, *, expected: str = "", hint: str = "") -> None:
        self.problems.append(Problem(message, token.place(), expected=expected, hint=hint))

    def _warn(self, token: Token, message: str, *, hint: str = "") -> None:
        self.problems.append(Problem(message, token.place(), hint=hint, warning=True))
