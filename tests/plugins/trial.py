"""One directive at a time: read from a Corefile's line and asked by hand; a handler stands in for the rest."""

from __future__ import annotations

import io
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kdns import corefile
from kdns.chain import Answer, Block, Plugin, Process, Request, start
from kdns.errors import Problem, draw
from kdns.logs import LineHandler
from kdns.metrics import Metrics
from kdns.wire import names
from kdns.wire.query import Query
from kdns.wire.records import type_from_text
from kdns.wire.reply import encode

NOON = 1_700_000_000.0
P = TypeVar("P", bound=Plugin)


class Clock:
    """Seconds since 1970, moved by hand."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


class Refusing:
    """A server that nobody should ask."""

    def resolve(self, request: Request) -> Coroutine[Any, Any, Answer]:
        raise AssertionError("the plugin asked the server")


def block(clock: Clock | None = None) -> Block:
    return Block(Process(Metrics(), clock or Clock()), [names.from_text("cluster.local")], 53)


def plugin(kind: type[P], text: str, within: Block | None = None) -> P:
    """The plugin that these lines of a server block make."""
    within = within or block()
    problems: list[Problem] = []
    options = kind.read(_directives(kind, text), problems)
    assert options is not None, "\n".join(map(draw, problems))
    made = kind(options, within)
    within.plugins.append(made)
    within.process.plugins.append(made)
    made.configure(within)
    return made


def problems(kind: type[Plugin], text: str) -> str:
    """Mistakes and warnings in these lines, as they are drawn."""
    found: list[Problem] = []
    kind.read(_directives(kind, text), found)
    return "\n".join(map(draw, found))


def _directives(kind: type[Plugin], text: str) -> list[corefile.Directive]:
    parsed = corefile.parse(f".:53 {{\n{text}\n}}", "Corefile")
    return parsed.blocks[0].named(kind.name)


def request(
    question: str = "web.shop.svc.cluster.local. A",
    transport: str = "udp",
    client: tuple[str, int] = ("10.244.0.7", 41234),
    local: tuple[str, int] = ("10.96.0.10", 53),
) -> Request:
    name, rtype = question.split()
    wire = names.from_text(name)
    query = Query(4711, 0x0100, wire, names.labels_of(wire.lower()), type_from_text(rtype), 1)
    return Request(query, Refusing(), transport, client, local, NOON)


def answer(asked: Plugin, to: Request, behind: Answer | None = None) -> Answer:
    """What a plugin answers when the rest of the chain would say `behind`; the reply is made and told."""

    async def rest(request: Request) -> Answer:
        assert behind is not None, "the plugin asked the next one"
        return behind

    assert asked.handle is not None
    said = start(asked.handle(to, rest), lambda outcome: None)
    assert type(said) is Answer, "the plugin waits"
    query = to.query
    to.replied(encode(query, said.rcode, said.flags, said.answer, said.authority, said.additional, 65535), said)
    return said


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """The lines that are logged meanwhile, as they stand on stdout."""
    lines: list[str] = []

    class Lines(io.StringIO):
        def write(self, text: str) -> int:
            lines.append(text.removesuffix("\n"))
            return len(text)

    handler = LineHandler(Lines())
    logger = logging.getLogger("kdns")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
