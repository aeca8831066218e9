"""`errors`: a line for each query that failed, or one for many that failed alike.

Law: docs/plugins/errors.md. What failed is the `cause` of the answer; a refusal without a cause is no error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated

import msgspec

from kdns.chain import Answer, Block, Next, Plugin, Request
from kdns.corefile import Directive, Token
from kdns.logs import plugin_logger
from kdns.options import (
    Options,
    RefusalError,
    SeveralError,
    argument,
    choice,
    collected,
    flag,
    lines,
    parse_duration,
    spell_duration,
    without_effect,
)
from kdns.patterns import compile_pattern
from kdns.wire import names
from kdns.wire.records import type_to_text

_log = plugin_logger("errors")

LEVELS = {"warning": logging.WARNING, "error": logging.ERROR, "info": logging.INFO, "debug": logging.DEBUG}
FLUSH_SECONDS = 0.5


class Consolidation(msgspec.Struct, frozen=True):
    """Errors that match `pattern` are counted for `seconds` and told in one line."""

    seconds: float
    pattern: Token
    level: int = logging.ERROR
    show_first: bool = False


def _read_consolidation(line: Directive) -> Consolidation:
    args = line.args
    if not 2 <= len(args) <= 4 or line.body is not None:
        raise RefusalError(args[4] if len(args) > 4 else line.name, f"`{_SYNTAX}`")
    seconds, level, show_first = 0.0, logging.ERROR, False
    wrong: list[ValueError] = []
    with collected(wrong):
        seconds = parse_duration(args[0])
        if seconds <= 0:
            raise RefusalError(args[0], "more than 0s")
    with collected(wrong):
        compile_pattern(args[1])
    for place, token in enumerate(args[2:]):
        if token.text in LEVELS and place == 0:
            level = LEVELS[token.text]
        elif token.text == "show_first" and not show_first:
            show_first = True
        else:
            wrong.append(RefusalError(token, "`warning`, `error`, `info` or `debug`, then perhaps `show_first`"))
    if wrong:
        raise SeveralError(wrong)
    return Consolidation(seconds, args[1], level, show_first)


_SYNTAX = "consolidate DURATION REGEXP [LEVEL] [show_first]"


class ErrorsOptions(Options, directive="errors", once=True):
    stdout: Annotated[str, argument(choice("stdout")), "where the lines go; there is no other place"] = "stdout"
    stacktrace: Annotated[
        bool,
        flag(),
        "the stack of an error of the server is logged",
        without_effect("an error of the server is always logged with its stack"),
    ] = False
    consolidate: Annotated[
        tuple[Consolidation, ...],
        lines(_read_consolidation, "consolidate", syntax=_SYNTAX),
        "errors that match are counted for that time and told in one line; the first pattern that matches counts",
    ] = ()


class Errors(Plugin):
    name = "errors"
    options = ErrorsOptions
    heeds_names = False

    def __init__(self, options: ErrorsOptions, block: Block) -> None:
        self._clock: Callable[[], float] = block.process.clock
        self._counted = [_Counted(each) for each in options.consolidate]

    async def handle(self, request: Request, next: Next) -> Answer:
        answer = await next(request)
        # An error within an error (an alias that leads to one) is told by the outer query.
        if answer.cause and request.depth == 0:
            # Each failure is told, so none may be answered from what was kept.
            request.keep = False
            self._tell(request, answer)
        return answer

    async def feed(self) -> None:
        while self._counted:
            await asyncio.sleep(FLUSH_SECONDS)
            self.flush()

    def flush(self) -> None:
        """Tell what was counted in periods that are over."""
        now = self._clock()
        for counted in self._counted:
            if counted.count and now >= counted.until:
                counted.tell()

    def close(self) -> None:
        for counted in self._counted:
            if counted.count:
                counted.tell()

    def _tell(self, request: Request, answer: Answer) -> None:
        level = logging.ERROR
        for counted in self._counted:
            if counted.pattern.search(answer.cause):
                if not counted.add(self._clock()):
                    return
                level = counted.settings.level
                break
        query = request.query
        question = f"{names.to_text(query.qname)} {type_to_text(query.rtype)}"
        _log.log(level, "%d %s: %s", answer.rcode, question, answer.cause)


class _Counted:
    """One pattern and the errors of its present period."""

    def __init__(self, settings: Consolidation) -> None:
        self.settings = settings
        self.pattern = compile_pattern(settings.pattern)
        self.count = 0
        self.until = 0.0

    def add(self, now: float) -> bool:
        """Count one more; whether it is to be told by itself too."""
        if self.count and now >= self.until:
            self.tell()
        if self.count == 0:
            self.until = now + self.settings.seconds
        self.count += 1
        return self.settings.show_first and self.count == 1

    def tell(self) -> None:
        count, self.count = self.count, 0
        # The one error was told when it came.
        if count == 1 and self.settings.show_first:
            return
        _log.log(
            self.settings.level,
            "%d errors like '%s' occurred in last %s",
            count,
            self.settings.pattern.text,
            spell_duration(self.settings.seconds),
        )
