"""From packet to reply, without sockets: what is kept, the gates, the choice of server block, its chain, the keeping.

Sans-IO: a server gives bytes and where they came from, and gets bytes, silence, or a promise of bytes.
Law: docs/coredns.md (routing), RFC 6891 §6.1.3 (EDNS versions), RFC 1034 §4.3.1.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from time import perf_counter
from typing import Any

import msgspec

from kdns.addresses import pack_client
from kdns.answers import AnswerCache, Bounds, Lifetime, PlacedAnswers
from kdns.chain import SILENCE, Answer, Locate, Next, Plugin, Process, Request, Waiter, failure, start
from kdns.metrics import PACKETS_DROPPED, PANICS, SECONDS, TRAILING_BYTES, Metrics, time_bucket
from kdns.wire import names
from kdns.wire.query import Query, Rejected, option_codes, parse
from kdns.wire.records import CLASS_IN, Rcode, Type, class_to_text, type_to_text
from kdns.wire.reply import encode, encode_rejected, limit_bytes

log = logging.getLogger("kdns.responder")

# Types that are no question for data: what each gets instead of an answer. A transfer is refused until there is one.
_NO_DATA_TYPES = {
    Type.OPT: Rcode.FORMERR,
    Type.TSIG: Rcode.FORMERR,
    Type.TKEY: Rcode.FORMERR,
    Type.MAILA: Rcode.NOTIMP,
    Type.MAILB: Rcode.NOTIMP,
    Type.AXFR: Rcode.REFUSED,
    Type.IXFR: Rcode.REFUSED,
}
# Most queries leave the gates with one comparison: the types above are all from 249 up, but OPT.
_FIRST_META_TYPE = Type.TKEY

# Most clients ask by datagrams, but NodeLocal DNSCache by TCP, for all pods of its node: some ten thousand names.
_TCP_BOUNDS = Bounds(positive=6 * 1024 * 1024, negative=2 * 1024 * 1024)

_KEEPALIVE = 11
# Code, length, tenths of a second.
_KEEPALIVE_OPTION = struct.Struct("!HHH")


class Site(msgspec.Struct, frozen=True):
    """A zone of a server block as a listener serves it: its chain, the labels that metrics give it, its classes.

    `directives` are the names of those in its chain.
    `deniers` are the plugins before which no other heeds names: what they deny of one may be said of its siblings.
    `plugins` are those that the chain was folded from, in its order.
    """

    zone: bytes
    chain: Next
    server: str
    classes: frozenset[int] = frozenset((CLASS_IN,))
    directives: tuple[str, ...] = ()
    deniers: frozenset[str] = frozenset()
    plugins: tuple[Plugin, ...] = ()

    @property
    def zone_text(self) -> str:
        return names.to_text(self.zone)


class Responder:
    """Answers the packets of one listener. `sites` are the zones it serves; the longest that fits a name is asked."""

    def __init__(self, sites: Iterable[Site], process: Process, metrics: Metrics) -> None:
        self._process = process
        self._metrics = metrics
        self._answers: dict[tuple[str, bool], AnswerCache] = {}
        self._placed: dict[tuple[str, bool], PlacedAnswers] = {}
        # How long a connection may stay without a query, where there are connections.
        self.idle_seconds: Callable[[], float] | None = None
        self.serve(sites)

    def serve(self, sites: Iterable[Site]) -> None:
        """Serve these zones from the next query on. What waits for the chains of others is answered, and not kept."""
        self._sites = {site.zone: site for site in sites}
        self._labels = {site.zone: (site.server, site.zone_text) for site in self._sites.values()}
        self._depths = sorted({len(names.labels_of(zone)) for zone in self._sites}, reverse=True)
        self._server = next(iter(self._sites.values())).server if self._sites else ""
        plugins = [plugin for site in self._sites.values() for plugin in site.plugins]
        self._locate = tuple(dict.fromkeys(plugin.locate for plugin in plugins if plugin.locate is not None))
        for answers in self._all_answers():
            answers.clear()

    def close(self) -> None:
        """Let go of what was kept; called after the last query."""
        for answers in self._all_answers():
            answers.clear()
            self._metrics.before_reading_no_more(answers.tell)
            self._process.answers.remove(answers)
        self._answers.clear()
        self._placed.clear()

    def _all_answers(self) -> list[AnswerCache]:
        return [*self._answers.values(), *self._placed.values()]

    @property
    def many_zones(self) -> bool:
        """Whether replies count in the metrics of more than one zone."""
        return len(self._sites) > 1

    def answers(self, transport: str, six: bool) -> AnswerCache:
        """What is kept of the replies to clients of one transport and address family (`six`: IPv6).

        Between families only the metrics differ, between transports how much fits into a reply.
        """
        kept = self._answers.get((transport, six))
        if kept is None:
            kept = AnswerCache(None if transport == "udp" else _TCP_BOUNDS, clock=self._process.clock)
            self._answers[transport, six] = kept
            self._register(kept)
        return kept

    def placed_answers(self, transport: str, six: bool) -> PlacedAnswers | None:
        """The same of replies that depend on where the client stands; None where none does."""
        if not self._locate:
            return None
        kept = self._placed.get((transport, six))
        if kept is None:
            bounds = None if transport == "udp" else _TCP_BOUNDS
            kept = PlacedAnswers(self._place, bounds, clock=self._process.clock)
            self._placed[transport, six] = kept
            self._register(kept)
        return kept

    def _register(self, answers: AnswerCache) -> None:
        """Have it forget what changes, and count before the metrics are read."""
        self._process.answers.append(answers)
        self._metrics.before_reading(answers.tell)

    def _place(self, address: bytes, stood: Mapping[Locate, bytes] | None = None) -> bytes:
        """Where a client stands: the places that all who have a say in that tell, or told for this answer (`stood`)."""
        places = [(stood or {}).get(locate) for locate in self._locate]
        found = [
            locate(address) if place is None else place for locate, place in zip(self._locate, places, strict=True)
        ]
        return b"".join([b"%c%b" % (len(place), place) for place in found])

    def respond(
        self,
        packet: bytes,
        transport: str,
        client: tuple[str, int],
        local: tuple[str, int],
        send: Callable[[bytes], None],
    ) -> bytes | Waiter | None:
        """The reply to a packet: bytes to send now, None for silence, or a `Waiter`: `send` gets the bytes later."""
        started = perf_counter()
        six = ":" in client[0]
        answers = self.answers(transport, six)
        found = answers.find(packet)
        if found is None and self._locate:
            placed = self.placed_answers(transport, six)
            found = placed.find(packet, placed.place(pack_client(client[0]))) if placed is not None else None
        if found is not None:
            reply, kept = found
            seconds = perf_counter() - started
            kept.times[SECONDS] += seconds
            kept.times[time_bucket(seconds)] += 1
            return reply
        query = parse(packet)
        if query is None:
            self._metrics.increase(PACKETS_DROPPED, "no_query")
            return None
        if type(query) is Rejected:
            reply = encode_rejected(query, transport)
            self._count(transport, client, 0, False, len(packet), query.rcode, len(reply), started, b"", "")
            return reply
        assert type(query) is Query
        if query.trailing:
            self._metrics.increase(TRAILING_BYTES)
        request = Request(query, self, transport, client, local, self._process.clock())
        refused = self._gate(query)
        if refused is not None:
            request.keep = False
            return self._finish(request, refused, packet, started)
        # All caches are told of the same changes, so this one speaks for that of its place as well.
        changes = answers.changes

        def done(outcome: Answer | BaseException) -> None:
            # What changed while it waited may be in it or not.
            request.keep = request.keep and answers.unchanged(changes, request.tags)
            if type(outcome) is Answer and outcome.rcode == SILENCE:
                # Who let the client wait owes it an end.
                outcome = failure("", rcode=Rcode.REFUSED)
            send(self._finish(request, outcome, packet, started))

        try:
            outcome = start(self.resolve(request), done)
        except Exception as error:
            return self._finish(request, error, packet, started)
        if type(outcome) is Waiter:
            return outcome
        # A handler that is wrong may return anything.
        if type(outcome) is Answer and outcome.rcode == SILENCE:
            self._metrics.increase(PACKETS_DROPPED, outcome.plugin)
            return None
        return self._finish(request, outcome, packet, started)

    def _gate(self, query: Query) -> Answer | None:
        """The answer to a query that no chain should see."""
        if query.version:
            return failure("", rcode=Rcode.BADVERS)
        if query.rtype >= _FIRST_META_TYPE or query.rtype == Type.OPT:
            rcode = _NO_DATA_TYPES.get(query.rtype)
            if rcode is not None:
                return failure("", rcode=rcode)
        if query.rclass != CLASS_IN:
            site = self._site(query)
            if site is None or query.rclass not in site.classes:
                return failure("", rcode=Rcode.REFUSED)
        return None

    def resolve(self, request: Request) -> Coroutine[Any, Any, Answer]:
        """Run a request through the chain of the block whose zone fits its name best; REFUSED where none does."""
        site = self._site(request.query)
        if site is None:
            request.zone = b""
            # As cheap as it gets, and strangers have many names for it.
            request.keep = False
            return _refuse()
        request.zone = site.zone
        return site.chain(request)

    def _site(self, query: Query) -> Site | None:
        labels = query.labels
        count = len(labels)
        # RFC 4035 §3.1.4.1: a DS record is the parent's.
        longest = count - 1 if query.rtype == Type.DS else count
        fallback = None
        for depth in self._depths:
            if depth > count:
                continue
            zone = names.ROOT if depth == 0 else query.qname if depth == count else _suffix(query.qname, count - depth)
            site = self._sites.get(zone)
            if site is not None:
                if depth <= longest:
                    return site
                fallback = site
        return fallback

    def _finish(self, request: Request, outcome: object, packet: bytes, started: float) -> bytes:
        query = request.query
        if type(outcome) is not Answer:
            outcome = self._crashed(query, outcome)
            request.keep = False
        limit = limit_bytes(query, request.transport)
        options = self._options(request) if query.options else b""
        try:
            reply = encode(
                query,
                outcome.rcode,
                outcome.flags,
                outcome.answer,
                outcome.authority,
                outcome.additional,
                limit,
                outcome.error,
                options,
            )
        except Exception as error:
            outcome = self._crashed(query, error)
            request.keep = False
            reply = encode(query, outcome.rcode, 0, (), (), (), limit)
        client, keep = request._client, request.keep
        row, times = self._count(
            request.transport,
            client,
            query.rtype,
            query.do,
            len(packet),
            outcome.rcode,
            len(reply),
            started,
            request.zone,
            outcome.plugin,
        )
        for used in request.used:
            used(1)
        if keep:
            if not query.trailing:
                self._keep(request, outcome, packet, reply, limit, row, times)
            return reply
        try:
            request.replied(reply, outcome)
        except Exception:
            log.exception("a callback failed after the reply to %s", question_text(query))
        return reply

    def _keep(
        self,
        request: Request,
        outcome: Answer,
        packet: bytes,
        reply: bytes,
        limit: int,
        row: list[float],
        times: list[float],
    ) -> None:
        """Keep a reply for all who ask the same, or for those of them who stand where this client stood."""
        six = ":" in request._client[0]
        place = b""
        if request.stood:
            placed = self.placed_answers(request.transport, six)
            if placed is None:
                return
            answers: AnswerCache = placed
            place = self._place(request.address, request.stood)
        else:
            answers = self.answers(request.transport, six)
            siblings = request.siblings
            if siblings is not None and self._may_deny(request, outcome):
                of_sibling = partial(_of_sibling, request.query, outcome, limit)
                answers.deny(packet, reply, of_sibling, row, times, request.tags, siblings, request.used)
                return
        lifetime = outcome.lifetime
        if lifetime is None and request.until != math.inf:
            # Made of an answer that ages; what becomes of its TTLs only the chain knows.
            lifetime = Lifetime(request.now, request.until)
        answers.keep(
            packet,
            reply,
            row,
            times,
            request.tags,
            not outcome.answer,
            request.varies,
            lifetime,
            any_order=request.any_order,
            place=place,
            used=request.used,
        )

    def _may_deny(self, request: Request, outcome: Answer) -> bool:
        """Whether what was said of a name that doesn't exist may be said of its siblings."""
        site = self._sites.get(request.zone)
        if site is None or outcome.plugin not in site.deniers or outcome.error is not None or request.until != math.inf:
            return False
        parent = _suffix(request.query.qname, 1)
        return not any(zone.endswith(parent) and zone != parent for zone in self._sites)

    def _options(self, request: Request) -> bytes:
        keepalive = self._keepalive(request.query) if request.transport == "tcp" else b""
        return request.reply_options + keepalive

    def _keepalive(self, query: Query) -> bytes:
        """The option that tells who asked for it over TCP how long the connection may idle (RFC 7828 §3.2, §3.3.2)."""
        if self.idle_seconds is None or not any(code == _KEEPALIVE for code in option_codes(query.options)):
            return b""
        return _KEEPALIVE_OPTION.pack(_KEEPALIVE, 2, min(0xFFFF, int(self.idle_seconds() * 10)))

    def _crashed(self, query: Query, error: object) -> Answer:
        # Ours, not the client's: one query is lost to it, said once with the question that did it.
        self._metrics.increase(PANICS)
        exc_info = (type(error), error, error.__traceback__) if isinstance(error, BaseException) else None
        log.error("no answer to %s: %r", question_text(query), error, exc_info=exc_info)
        return failure(f"internal error: {type(error).__name__}")

    def _count(
        self,
        transport: str,
        client: tuple[str, int],
        rtype: int,
        do: bool,
        request_size: int,
        rcode: int,
        reply_size: int,
        started: float,
        zone: bytes,
        plugin: str,
    ) -> tuple[list[float], list[float]]:
        server, zone_text = self._labels.get(zone) or (self._server, "dropped")
        family = "2" if ":" in client[0] else "1"
        seconds = perf_counter() - started
        return self._metrics.count(
            server, zone_text, transport, family, rtype, do, request_size, rcode, reply_size, plugin, seconds
        )


def question_text(query: Query) -> str:
    """The question as a log shows it: name, class and type."""
    return f"{names.to_text(query.qname)} {class_to_text(query.rclass)} {type_to_text(query.rtype)}"


def _suffix(name: bytes, skip: int) -> bytes:
    """The name without its first `skip` labels."""
    position = 0
    for _ in range(skip):
        position += name[position] + 1
    return name[position:]


def _of_sibling(query: Query, outcome: Answer, limit: int) -> bytes:
    """The same denial of another name, whose leftmost label can't be taken for a part of any other name."""
    size = query.spelled[0]
    # No length of a label is the code of a letter.
    other = Query(query.id, query.flags, b"%c%b%b" % (size, b"z" * size, query.spelled[1 + size :]), [], query.rtype, 1)
    other.edns, other.size, other.do = query.edns, query.size, query.do
    return encode(other, outcome.rcode, outcome.flags, (), outcome.authority, (), limit)


async def _refuse() -> Answer:
    return failure("", rcode=Rcode.REFUSED)
