"""Questions run through the very plugins that serve, observed: who was met, who answered, what became of it.

The chains are folded anew around observers, so those that serve clients carry nothing of it. What counts and logs
queries of clients is left out; a directive that counts its own work, such as `forward`, counts these as well.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from kdns.chain import Answer, Next, Plugin, Process, Request, Waiter, fold
from kdns.listening import Listener
from kdns.metrics import Metrics
from kdns.plugins.cache import Cache
from kdns.plugins.errors import Errors
from kdns.plugins.forward import Forward
from kdns.responder import Responder, Site
from kdns.upstream.question import Question
from kdns.wire import names
from kdns.wire.query import RD, TC
from kdns.wire.records import Record, type_to_text

# What forwarding takes at most, and some more.
REPLY_SECONDS = 10.0


class Met(msgspec.Struct):
    """A directive that a question met; `passed` tells that it asked the next one, `changed` that it answered otherwise.

    `question` is its name and type as the directive found them.
    """

    directive: str
    question: tuple[bytes, int]
    depth: int
    passed: bool = False
    changed: bool = False


class Run(msgspec.Struct):
    """One question and all that came of it. `reply` is empty where there was none.

    `answer` is what the chain said, None where no block has the name. `elsewhere` are the upstreams that would have
    been asked. `keeps` is whether the reply may be kept; if not, `kept_out_by` is the directive that has said so.
    `ages` is whether what it says ends by the clock.
    """

    packet: bytes
    reply: bytes = b""
    answer: Answer | None = None
    zone: bytes | None = None
    met: list[Met] = []
    keeps: bool = False
    ages: bool = False
    kept_out_by: str = ""
    elsewhere: list[str] = []

    # What there is of a reply of 64 KiB would take long to be read; the chain's answer has the same.

    @property
    def rcode(self) -> int:
        """The response code of the reply."""
        return self.reply[3] & 0xF

    @property
    def from_cache(self) -> bool:
        """Whether it is what `cache` has of others."""
        return self.answer is not None and self.answer.plugin == Cache.name

    @property
    def truncated(self) -> bool:
        """Whether the client has to ask again over TCP."""
        return bool(self.reply and self.reply[2] << 8 & TC)

    @property
    def records(self) -> Sequence[Record]:
        """The answer section, whether all of it is in the reply or not."""
        return self.answer.answer if self.answer is not None and self.reply else ()


class Tracer:
    """Asks one listener's blocks, one question at a time. Without `network` what would be forwarded is only noted."""

    def __init__(self, listener: Listener, process: Process, network: bool) -> None:
        self._network = network
        self._local = (listener.address or "127.0.0.1", listener.port)
        # All that plugins know of the process, but the numbers and replies of its clients.
        apart = copy.copy(process)
        apart.metrics, apart.answers = Metrics(), []
        sites = [msgspec.structs.replace(site, chain=self._observed(site)) for site in listener.sites]
        self._responder = Responder(sites, apart, apart.metrics)
        self._run = Run(b"")

    async def ask(self, name: bytes, rtype: int, client: str, transport: str = "udp", edns: bool = False) -> Run:
        """What a client at this address gets. With `edns` it takes 1232 bytes over UDP, without it 512."""
        run = self._run = Run(Question(name, rtype, RD, edns=edns).packet(0))
        arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        reply = self._responder.respond(run.packet, transport, (client, 0), self._local, arrived.set_result)
        if isinstance(reply, Waiter):
            reply = await self._wait(reply, arrived)
        run.reply = reply or b""
        return run

    async def _wait(self, waiter: Waiter, arrived: asyncio.Future[bytes]) -> bytes | None:
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                return await arrived
        except TimeoutError:
            return None
        finally:
            waiter.cancel()

    def _observed(self, site: Site) -> Next:
        chain = fold([self._observer(plugin) for plugin in site.plugins if not isinstance(plugin, Errors)])

        async def observe(request: Request) -> Answer:
            run = self._run
            if request.depth == 0:
                run.zone = site.zone
            answer = await chain(request)
            if request.depth == 0:
                run.answer, run.keeps = answer, request.keep
                run.ages = answer.lifetime is not None or request.until != math.inf
                # The same question is to be observed again; and no client asked of whom `log` would have to tell.
                request.keep = False
                request.tell_nobody()
            return answer

        return observe

    def _observer(self, plugin: Plugin) -> Callable[[Request, Next], Coroutine[Any, Any, Answer]]:
        handle = plugin.handle
        assert handle is not None
        if not self._network and isinstance(plugin, Forward):
            handle = self._noting(plugin)

        async def observe(request: Request, next: Next) -> Answer:
            run = self._run
            met = Met(plugin.name, (request.query.qname, request.query.rtype), request.depth)
            run.met.append(met)
            kept_before = request.keep
            behind: list[tuple[Answer, tuple[object, ...]]] = []

            async def observe_next(inner: Request) -> Answer:
                if kept_before and not request.keep:
                    run.kept_out_by = run.kept_out_by or plugin.name
                met.passed = True
                answer = await next(inner)
                behind.append((answer, _shape(answer)))
                return answer

            answer = await handle(request, observe_next)
            if kept_before and not request.keep:
                run.kept_out_by = run.kept_out_by or plugin.name
            met.changed = bool(behind) and (answer is not behind[-1][0] or _shape(answer) != behind[-1][1])
            return answer

        return observe

    def _noting(self, forward: Forward) -> Callable[[Request, Next], Coroutine[Any, Any, Answer]]:
        """In place of `forward`: note whom it would ask. Its answer is empty, so that nobody takes it for a denial."""

        async def note(request: Request, next: Next) -> Answer:
            upstreams = forward.upstreams(request.query)
            if not upstreams:
                return await next(request)
            self._run.elsewhere += [each for each in upstreams if each not in self._run.elsewhere]
            request.keep = False
            return Answer(plugin=forward.name)

        return note


def _shape(answer: Answer) -> tuple[object, ...]:
    """What shows that a directive changed an answer, at a cost that doesn't grow with it; order isn't part of it."""
    sections = (answer.answer, answer.authority, answer.additional)
    first = [(part[0].owner, part[0].ttl) for part in sections if part]
    return answer.rcode, *(len(part) for part in sections), *first


def question_text(question: tuple[bytes, int]) -> str:
    """A question as people write it: `web.shop.svc.cluster.local. A`."""
    name, rtype = question
    return f"{names.to_text(name)} {type_to_text(rtype)}"


def does(met: Met) -> str:
    """What a directive did, in a word or two."""
    if not met.passed:
        return "answers"
    return "changes" if met.changed else "passes on"
