"""The `kubernetes` directive: names of the cluster, answered from the model that a source keeps up to date.

The records are `kubernetes/schema.py`'s, the model `kubernetes/cluster.py`'s. Here: which zones, what a client is told
when there is no such name, where an alias leads, and the source's life.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import msgspec

from kdns import metrics
from kdns.chain import Answer, Block, Next, Plugin, Request, failure
from kdns.errors import KdnsError, draw
from kdns.kubernetes import inventory
from kdns.kubernetes.cluster import Cluster
from kdns.kubernetes.controller import InventoryOptions
from kdns.kubernetes.objects import Event
from kdns.kubernetes.schema import Alias, Found, NoData, NxDomain, Question, View, authority, lookup
from kdns.kubernetes.visible import Visible
from kdns.options import (
    Options,
    Selector,
    choice,
    duration,
    flag,
    number,
    once,
    repeatable,
    selector,
    without_effect,
    word,
    words,
    zone_arguments,
    zones,
)
from kdns.wire import names
from kdns.wire.records import Rcode, Record, Type

log = logging.getLogger("kdns.plugin.kubernetes")

# RFC 8914 §4.15
NOT_READY = (14, "not synced with the cluster yet")
# A chain of aliases ends here: enough for any that somebody meant, and a bound on what one question costs.
LONGEST_CHAIN = 8


_NO_API = "kdns doesn't watch the API yet"


class KubernetesOptions(
    Options,
    directive="kubernetes",
    once=True,
    exclusive=[("namespaces", "namespace_labels")],
    removed={"resyncperiod": "kdns never polls: delete the line", "transfer": "there are no zone transfers yet"},
):
    """What a `kubernetes` directive may say."""

    zones: Annotated[tuple[str, ...], zone_arguments(), "zones to answer for; without any, those of the block"] = ()
    ttl: Annotated[int, number(0, 3600, unit="seconds"), once, "TTL of every record but `dns-version`'s"] = 5
    pods: Annotated[
        str,
        choice("disabled", "insecure", "verified"),
        "names such as `10-1-0-7.shop.pod`: none, any address, or only those of pods of the namespace",
    ] = "disabled"
    endpoint_pod_names: Annotated[bool, flag(), "an endpoint without a hostname is named as its pod"] = False
    namespaces: Annotated[tuple[str, ...], words("NAMESPACE..."), "only these namespaces exist"] = ()
    namespace_labels: Annotated[Selector | None, selector(), "only namespaces with these labels exist"] = None
    labels: Annotated[Selector | None, selector(), "only services, slices and pods with these labels exist"] = None
    noendpoints: Annotated[bool, flag(), "headless services and endpoints have no names"] = False
    ignore: Annotated[str, choice("empty_service"), "a service without a ready endpoint has no name"] = ""
    fallthrough: Annotated[
        tuple[str, ...] | None,
        zones(none=(".",)),
        "what doesn't exist goes to the next directive, in these zones or all",
    ] = None
    inventory: Annotated[
        tuple[str, ...], words("PATH..."), repeatable, "files, folders or globs of manifests to answer from"
    ] = ()
    service_cidr: Annotated[
        tuple[str, ...], words("CIDR..."), "with `inventory`: where services without an address get theirs"
    ] = ("10.96.0.0/12",)
    cluster_ips: Annotated[
        str, choice("allocate", "endpoints"), "with `inventory`: give addresses, or answer with the endpoints'"
    ] = "allocate"
    startup_timeout: Annotated[float, duration(), without_effect(_NO_API), "how long to wait for the API at start"] = (
        5.0
    )
    endpoint: Annotated[tuple[str, ...], words("URL"), without_effect(_NO_API), "the API server"] = ()
    tls: Annotated[tuple[str, ...], words("FILE...", at_most=3), without_effect(_NO_API), "certificate, key, CA"] = ()
    kubeconfig: Annotated[tuple[str, ...], words("FILE", at_most=2), without_effect(_NO_API), "file, context"] = ()
    apiserver_qps: Annotated[str, word("NUMBER"), without_effect(_NO_API), "queries a second to the API"] = ""
    apiserver_burst: Annotated[str, word("NUMBER"), without_effect(_NO_API), "queries at once to the API"] = ""
    apiserver_max_inflight: Annotated[str, word("NUMBER"), without_effect(_NO_API), "queries in flight to the API"] = ""

    def faults(self) -> Iterable[tuple[str, str]]:
        """Zones and address ranges that can't be."""
        if self.zones and all(_zone(text).reverse for text in self.zones):
            yield "", "a zone that is no reverse zone is needed: names point into it"
        for text in self.service_cidr:
            try:
                ipaddress.ip_network(text)
            except ValueError:
                yield "service_cidr", f"`{text}` is no range of addresses such as 10.96.0.0/12"


class _Zone(msgspec.Struct, frozen=True):
    name: bytes
    labels: list[bytes]
    reverse: bool


class Kubernetes(Plugin):
    """Answers for the zones of a cluster."""

    name: ClassVar[str] = "kubernetes"
    options: ClassVar[type[KubernetesOptions]] = KubernetesOptions

    def __init__(self, options: KubernetesOptions, block: Block) -> None:
        self._options = options
        self._process = block.process
        texts = options.zones or [names.to_text(zone) for zone in block.zones]
        zones = [_zone(text) for text in dict.fromkeys(texts)]
        self._zones = sorted(zones, key=lambda zone: -len(zone.labels))
        self._fallthrough = [_zone(text).labels for text in options.fallthrough or ()]
        self.cluster = Cluster(self._process.clock, options.endpoint_pod_names)
        self._visible = Visible(
            frozenset(options.namespaces),
            options.labels.matches if options.labels else None,
            options.namespace_labels.matches if options.namespace_labels else None,
            not options.noendpoints,
        )
        self.view = View(
            cluster=self.cluster,
            primary=next(zone.name for zone in zones if not zone.reverse),
            ttl=options.ttl,
            pods=options.pods,
            ignore_empty=options.ignore == "empty_service",
            own=lambda: self._process.addresses,
        )
        self._started = asyncio.Event()
        self._failed: KdnsError | None = None
        self.loaded: inventory.Report | None = None

    @property
    def zones(self) -> list[bytes]:
        """The zones it answers for, in wire form."""
        return [zone.name for zone in self._zones]

    @property
    def inventory_paths(self) -> tuple[str, ...]:
        """The files, folders and globs that it answers from."""
        return self._options.inventory

    @property
    def inventory_options(self) -> InventoryOptions:
        """How the inventory is completed."""
        chosen: Literal["allocate", "endpoints"] = (
            "endpoints" if self._options.cluster_ips == "endpoints" else "allocate"
        )
        return InventoryOptions(self._options.service_cidr, chosen)

    # The query

    async def handle(self, request: Request, next: Next) -> Answer:
        query = request.query
        zone = self._zone_of(query.labels)
        if zone is None:
            return await next(request)
        spelled = query.qname[-len(zone.name) :]
        if not self.cluster.synced:
            # Never NXDOMAIN and never forwarded: neither would be true in a moment.
            request.keep = False
            answer = failure("", self.name, NOT_READY)
            answer.authority = [authority(self.view, spelled)]
            return answer
        labels = query.labels[: len(query.labels) - len(zone.labels)]
        question = Question(query.qname, labels, spelled, query.rtype, request.tags)
        outcome = lookup(self.view, question, zone.reverse)
        if type(outcome) is Found:
            return Answer(answer=outcome.answer, additional=outcome.additional, plugin=self.name)
        if type(outcome) is Alias:
            return await self._follow(request, outcome.target, spelled)
        if type(outcome) is NxDomain and self._falls_through(query.labels):
            answer = await next(request)
            # Nobody behind us: the name is of our zone, so this is a failure and no refusal.
            return failure("no next plugin found", self.name) if answer.unclaimed else answer
        return self._negative(Rcode.NXDOMAIN if type(outcome) is NxDomain else Rcode.NOERROR, spelled)

    def _zone_of(self, labels: list[bytes]) -> _Zone | None:
        for zone in self._zones:
            count = len(zone.labels)
            if not count or labels[-count:] == zone.labels:
                return zone
        return None

    def _falls_through(self, labels: list[bytes]) -> bool:
        return any(not zone or labels[-len(zone) :] == zone for zone in self._fallthrough)

    def _negative(self, rcode: int, zone: bytes, answer: list[Record] | None = None) -> Answer:
        return Answer(rcode, answer or (), [authority(self.view, zone)], plugin=self.name)

    async def _follow(self, request: Request, target: bytes, zone: bytes) -> Answer:
        """The answer for an ExternalName service: its CNAME and what the target has, here or outside."""
        query = request.query
        rtype = query.rtype
        chain = [Record(query.qname, Type.CNAME, self.view.ttl, target)]
        if rtype in (Type.CNAME, Type.ANY):
            return Answer(answer=chain, plugin=self.name)
        own = query.labels
        while len(chain) <= LONGEST_CHAIN:
            folded = target.lower()
            labels = names.labels_of(folded)
            # An alias of itself, of a name below itself, or of one that was met before leads nowhere.
            if labels[-len(own) :] == own or any(record.owner.lower() == folded for record in chain):
                return self._negative(Rcode.NOERROR, zone)
            inside = self._zone_of(labels)
            if inside is None:
                return await self._ask_outside(request, chain, target)
            count = len(labels) - len(inside.labels)
            question = Question(target, labels[:count], target[-len(inside.name) :], rtype, request.tags)
            outcome = lookup(self.view, question, inside.reverse)
            match outcome:
                case Found(answer=answer):
                    return Answer(answer=chain + answer, plugin=self.name)
                case Alias(target=following):
                    chain.append(Record(target, Type.CNAME, self.view.ttl, following))
                    target = following
                case NoData() | NxDomain():
                    return self._negative(Rcode.NOERROR, zone)
        return failure(f"more than {LONGEST_CHAIN} aliases follow one another", self.name)

    async def _ask_outside(self, request: Request, chain: list[Record], target: bytes) -> Answer:
        answer = await request.ask(target, request.query.rtype)
        if answer.unclaimed:
            # Nobody here resolves the target: the alias alone is all that we know, and it is right.
            return Answer(answer=chain, plugin=self.name)
        if answer.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
            return failure(answer.cause, self.name, answer.error)
        return Answer(answer=[*chain, *answer.answer], flags=0x0400 | answer.flags & 0x0200, plugin=self.name)

    # The source

    async def feed(self) -> None:
        """Apply what the source tells, as long as the configuration holds."""
        if not self._options.inventory:
            self._started.set()
            return
        try:
            async for change in inventory.watch(self.inventory_paths, self.inventory_options):
                if isinstance(change, inventory.Batch):
                    self.apply(change.events)
                else:
                    self._report(change)
        except KdnsError as error:
            self._failed = error
        finally:
            self._started.set()

    def apply(self, events: Iterable[Event]) -> None:
        """Take in events of the source, and let the answers go that depend on what they change."""
        changed = set()
        for event in events:
            seen = self._visible.see(event)
            if seen is not None:
                changed |= self.cluster.apply(seen)
        if changed:
            self._process.forget(changed)

    def _report(self, report: inventory.Report) -> None:
        numbers = self._process.metrics
        numbers.set(metrics.INVENTORY_LOADED, 1 if report.loaded else 0)
        numbers.set(metrics.INVENTORY_PROBLEMS, len(report.problems))
        numbers.increase(metrics.INVENTORY_RELOADS, "ok" if report.loaded else "failed")
        first = self.loaded is None
        if first and not report.loaded:
            # The start is refused, and whoever started us is told there.
            return
        for problem in report.problems:
            for line in draw(problem).splitlines():
                log.log(logging.WARNING if problem.warning else logging.ERROR, "%s", line.removeprefix("warning: "))
        if not report.loaded:
            log.error("the inventory has mistakes; the last good one is still served")
            return
        self.loaded = report
        numbers.clear(metrics.INVENTORY_OBJECTS)
        for kind, count in report.counts.items():
            numbers.set(metrics.INVENTORY_OBJECTS, count, kind)
        self._started.set()
        if not first:
            log.info("inventory loaded again: %s", _summary(report.counts))

    async def started(self) -> None:
        await self._started.wait()
        if self._failed is not None:
            raise self._failed
        if self._options.inventory and not self.cluster.synced:
            raise KdnsError("the inventory could not be read to its end; the log says why")

    def ready(self) -> bool:
        return self.cluster.synced

    def notices(self) -> Iterable[str]:
        if self.loaded is not None:
            yield f"inventory: {_summary(self.loaded.counts)}"
            if self.loaded.passed_over:
                yield f"passed over: {_summary(self.loaded.passed_over)}"
        if not self._options.inventory:
            return
        if self._options.cluster_ips == "endpoints":
            yield "every service is answered with its endpoints (cluster_ips endpoints)"
        else:
            yield f"services without an address get one of {' '.join(self._options.service_cidr)}"


def _zone(text: str) -> _Zone:
    name = names.from_text(text).lower()
    labels = names.labels_of(name)
    return _Zone(name, labels, labels[-2:] in ([b"in-addr", b"arpa"], [b"ip6", b"arpa"]))


def _summary(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(counts).items())) or "nothing"
