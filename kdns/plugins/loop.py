"""`loop`: a question with a random name goes where forwarded names go; if it comes back here, there is a loop.

CoreDNS then ends the process. Here the names of the cluster, which come before this directive in the chain, go on being
answered; what would be forwarded is SERVFAIL, until a question doesn't come back.
Law: docs/plugins/loop.md.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from typing import Any, ClassVar

from kdns.addresses import host_and_port
from kdns.chain import Answer, Block, Next, Plugin, Request, Waiter, failure, fold, start
from kdns.logs import plugin_logger
from kdns.metrics import LOOP_DETECTED
from kdns.options import Options
from kdns.wire import names
from kdns.wire.query import RD, Query
from kdns.wire.records import CLASS_IN, Rcode, Type

log = plugin_logger("loop")

# RFC 8914 §4.1, "Other". The text says what, not between whom: it goes to strangers.
LOOPING = (0, "the server's upstream leads back to the server")
TROUBLESHOOTING = "https://coredns.io/plugins/loop#troubleshooting"

# One that comes back may be a mere detour (`forward` to two upstreams, one of which leads here): CoreDNS ends itself
# after two as well.
IN_A_ROW = 2
# How long to wait after a question that told nothing, because nobody answered: doubled each time.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 60.0
# How often it is looked whether a loop is gone.
LOOK_AGAIN_SECONDS = 30.0


class LoopOptions(Options, directive="loop", once=True):
    """It has none."""


class Loop(Plugin):
    name = "loop"
    options: ClassVar[type[Options]] = LoopOptions

    def __init__(self, options: LoopOptions, block: Block) -> None:
        self._block = block
        self._metrics = block.process.metrics
        self._zone = block.zones[0]
        self._behind: Next | None = None
        # The name that was asked last, the same while it is under way, how often it came, and from whom.
        self._asked = b""
        self._expected = b""
        self._returns = 0
        self._brought_by = ("", 0)
        self.looping = False

    def handle(self, request: Request, next: Next) -> Coroutine[Any, Any, Answer]:
        """Pass on, unless there is a loop or the question is our own; no coroutine more for all that is passed on."""
        if self.looping or (self._expected and request.query.qname == self._expected):
            return self._guard(request)
        return next(request)

    async def _guard(self, request: Request) -> Answer:
        if request.query.qname == self._expected:
            self._returns += 1
            self._brought_by = request.client
        request.keep = False
        return failure(f"loop detected for zone {names.to_text(self._zone)}", self.name, LOOPING)

    async def feed(self) -> None:
        """Ask until it is clear that there is no loop; while there is one, look again and again."""
        pause = FIRST_PAUSE_SECONDS
        seen = 0
        while True:
            returned = await self._comes_back()
            seen = seen + 1 if returned else 0
            if returned is False:
                self._tell(looping=False)
                return
            if returned is None:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            elif seen >= IN_A_ROW:
                self._tell(looping=True)
                await asyncio.sleep(LOOK_AGAIN_SECONDS)

    def close(self) -> None:
        if self.looping:
            self._metrics.set(LOOP_DETECTED, 0, self._block.server, names.to_text(self._zone))

    async def _comes_back(self) -> bool | None:
        """Whether a question to what stands behind this directive arrives here; None where nobody answers it."""
        # Numbers, as CoreDNS has them: nothing that an upstream could spell in another case.
        labels = [str(secrets.randbits(62)).encode() for _ in range(2)]
        try:
            name = names.from_labels([*labels, *names.labels_of(self._zone)])
        except ValueError:
            # The zone is too long for two more labels.
            return False
        self._asked = self._expected = name
        self._returns = 0
        try:
            answer = await self._ask(name)
        except Exception:
            # Ours to repair; until then it tells nothing of a loop.
            log.exception("the question that looks for a loop failed")
            return None
        finally:
            # Who repeats the name later (those who collect names do) is no loop.
            self._expected = b""
        if self._returns:
            return True
        # A server on the way that couldn't reach us yet, because we don't listen yet, says SERVFAIL as well.
        return None if answer.rcode == Rcode.SERVFAIL or answer.cause else False

    async def _ask(self, name: bytes) -> Answer:
        query = Query(secrets.randbits(16), RD, name, names.labels_of(name), Type.HINFO, CLASS_IN)
        request = Request(query, self, now=self._block.process.clock())
        done: asyncio.Future[Answer | BaseException] = asyncio.get_running_loop().create_future()
        waiter = start(self.resolve(request), done.set_result)
        if not isinstance(waiter, Waiter):
            return waiter
        try:
            outcome = await done
        except asyncio.CancelledError:
            waiter.cancel()
            raise
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def resolve(self, request: Request) -> Coroutine[Any, Any, Answer]:
        """What stands behind this directive answers; the server of our own question, which has no other block."""
        if self._behind is None:
            plugins = self._block.plugins
            behind = plugins[plugins.index(self) + 1 :]
            self._behind = fold([plugin.handle for plugin in behind if plugin.handle is not None])
        return self._behind(request)

    def _tell(self, looping: bool) -> None:
        zone = names.to_text(self._zone)
        if looping:
            log.error(
                'Loop (%s -> :%d) detected for zone "%s", see %s. Query: "HINFO %s". '
                "Names that would be forwarded are SERVFAIL until it is gone",
                host_and_port(*self._brought_by),
                self._block.port,
                zone,
                TROUBLESHOOTING,
                names.to_text(self._asked),
            )
        elif self.looping:
            log.info('the loop for zone "%s" is gone', zone)
        if looping or self.looping:
            self._metrics.set(LOOP_DETECTED, looping, self._block.server, zone)
        self.looping = looping
