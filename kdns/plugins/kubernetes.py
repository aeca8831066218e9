"""The `kubernetes` directive: names of the cluster, answered from the model that a source keeps up to date.

The source is an API server (`kubernetes/live.py`), or manifests on disk (`kubernetes/inventory.py`).

The records are `kubernetes/schema.py`'s, the model `kubernetes/cluster.py`'s. Here: which zones, what a client is told
when there is no such name, where an alias leads, and the source's life.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec

from kdns import metrics
from kdns.addresses import pack_address
from kdns.chain import Answer, Block, Next, Plugin, Request, failure
from kdns.corefile import Directive, Token
from kdns.errors import ConfigError, KdnsError, Problem, draw
from kdns.kubernetes import inventory
from kdns.kubernetes.clients import Clients
from kdns.kubernetes.cluster import Cluster, Kind, Tag, external_target
from kdns.kubernetes.controller import InventoryOptions
from kdns.kubernetes.objects import Delete, EndpointSlice, Event, Put, Service
from kdns.kubernetes.schema import Alias, Found, NoData, NxDomain, Question, View, authority, lookup
from kdns.kubernetes.search_path import SearchPathMisses
from kdns.kubernetes.visible import Visible
from kdns.options import (
    Fault,
    Options,
    RefusalError,
    Selector,
    choice,
    custom,
    differs,
    duration,
    flag,
    number,
    once,
    parse_duration,
    parse_options,
    repeatable,
    selector,
    spell_duration,
    without_effect,
    word,
    words,
    wrong_ranges,
    zone_arguments,
    zones,
)
from kdns.wire import names
from kdns.wire.query import AA, TC
from kdns.wire.records import Rcode, Record, Type, rcode_to_text
from kdns.wire.reply import limit_bytes

if TYPE_CHECKING:
    from kdns.kubernetes.live import Live

log = logging.getLogger("kdns.plugin.kubernetes")

# RFC 8914 §4.1, §4.15 and §4.4
OTHER = 0
NOT_READY = (14, "not synced with the cluster yet")
STALE = (3, "the last known state of the cluster")
# Whose slices say when the change that they show began; others of a headless service had no selector to begin with.
_FROM_SELECTOR = "endpointslice-controller.k8s.io"
# What may be old is not to be kept by others for longer than that, in seconds.
STALE_TTL = 5
# A chain of aliases ends here: enough for any that somebody meant, and a bound on what one question costs.
LONGEST_CHAIN = 8

_NO_FORWARD_ZONE = "a zone that is no reverse zone is needed: names point into it"
_ONE_SERVER = "as in CoreDNS: put a load balancer before several servers"
_FEW = "kdns asks the API a few long questions and no more"


class SnapshotFile(msgspec.Struct, frozen=True):
    """Where the last known state is kept, and how often it is written, in seconds."""

    path: str = ""
    interval: float = 60.0

    def __str__(self) -> str:
        return f"{self.path} {spell_duration(self.interval)}"


def _snapshot(tokens: Sequence[Token]) -> SnapshotFile:
    interval = parse_duration(tokens[1]) if len(tokens) > 1 else 60.0
    if interval < 1:
        raise RefusalError(tokens[1], "a duration of at least 1s")
    return SnapshotFile(tokens[0].text, interval)


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
        differs("every address of a pod has its name, not only the first", lambda pods: pods == "verified"),
    ] = "disabled"
    endpoint_pod_names: Annotated[
        bool,
        flag(),
        "an endpoint without a hostname is named as its pod",
        differs("an endpoint of a pod whose name has a dot is named by its address"),
    ] = False
    namespaces: Annotated[tuple[str, ...], words("NAMESPACE..."), "only these namespaces exist"] = ()
    namespace_labels: Annotated[
        Selector | None,
        selector(),
        "only namespaces with these labels exist",
        differs("addresses in the other namespaces have no PTR records either"),
    ] = None
    labels: Annotated[Selector | None, selector(), "only services, slices and pods with these labels exist"] = None
    noendpoints: Annotated[bool, flag(), "headless services and endpoints have no names"] = False
    ignore: Annotated[str, choice("empty_service"), "a service without a ready endpoint has no name"] = ""
    rfc_cname: Annotated[bool, flag(), "an ExternalName is an alias for all types, whatever it leads to"] = False
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
    kubeconfig: Annotated[
        tuple[str, ...], words("FILE [CONTEXT]", at_most=2), "whom to ask as whom, instead of as a pod does"
    ] = ()
    endpoint: Annotated[
        str, custom(lambda tokens: tokens[0].text, "URL...", "a URL", most=None), "the API server; the first one counts"
    ] = ""
    tls: Annotated[
        tuple[str, ...], words("CERT KEY CA", at_least=3, at_most=3), "with `endpoint`: certificate, its key, CA"
    ] = ()
    startup_timeout: Annotated[float, duration(0), "how long to wait for the API before names are served"] = 5.0
    snapshot: Annotated[
        SnapshotFile,
        custom(_snapshot, "FILE [INTERVAL]", "a file and how often to write it", least=1, most=2, show=str),
        "a file to keep the last known state in, and to start from where the API can't be reached",
    ] = SnapshotFile()
    ready_on_snapshot: Annotated[float, duration(0), "how old a snapshot may be to count as ready"] = 3600.0
    apiserver_qps: Annotated[str, word("NUMBER"), without_effect(_FEW), "queries a second to the API"] = ""
    apiserver_burst: Annotated[str, word("NUMBER"), without_effect(_FEW), "queries at once to the API"] = ""
    apiserver_max_inflight: Annotated[str, word("NUMBER"), without_effect(_FEW), "queries in flight to the API"] = ""

    def faults(self) -> Iterable[Fault]:
        """Zones and address ranges that can't be."""
        if self.zones and all(_zone(text).reverse for text in self.zones):
            yield Fault("", _NO_FORWARD_ZONE)
        for text, sentence, hint in wrong_ranges(self.service_cidr):
            yield Fault("service_cidr", sentence, text, hint)
        if self.inventory:
            for name in ("kubeconfig", "endpoint", "snapshot"):
                if getattr(self, name) != getattr(KubernetesOptions(), name):
                    yield Fault(name, "the API is not asked where there is an `inventory`")
        if self.kubeconfig and self.endpoint:
            yield Fault("endpoint", "the API server is the one of `kubeconfig`")


class _Zone(msgspec.Struct, frozen=True):
    name: bytes
    labels: list[bytes]
    reverse: bool


class Kubernetes(Plugin):
    """Answers for the zones of a cluster."""

    name: ClassVar[str] = "kubernetes"
    options: ClassVar[type[KubernetesOptions]] = KubernetesOptions
    heeds_names: ClassVar[bool] = False
    # A cluster is read and kept once, however many blocks answer from it.
    shared: ClassVar[bool] = True

    def __init__(self, options: KubernetesOptions, block: Block) -> None:
        self._options = options
        self._process = block.process
        texts = options.zones or [names.to_text(zone) for zone in block.zones]
        zones = [_zone(text) for text in dict.fromkeys(texts)]
        if all(zone.reverse for zone in zones):
            raise ConfigError([Problem(_NO_FORWARD_ZONE, hint="it may stand behind `kubernetes`")])
        self._zones = sorted(zones, key=lambda zone: -len(zone.labels))
        # With one zone within another a name's siblings may be of the inner one.
        self._nested = any(one is not other and one.name.endswith(other.name) for one in zones for other in zones)
        falling = [names.from_text(text).lower() for text in options.fallthrough or ()]
        self._fallthrough = names.Zones(falling)
        # Those of which a part falls through at all: with reverse zones alone, as most have it, not the cluster's own.
        self._falling = {
            zone.name for zone in zones for each in falling if zone.name.endswith(each) or each.endswith(zone.name)
        }
        self.cluster = Cluster(self._process.clock, options.endpoint_pod_names, block.locates_clients)
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
            rfc_cname=options.rfc_cname,
            own=lambda: self._process.addresses,
        )
        # ExternalName services, by namespace and name, whose target was told to be none.
        self._dead_aliases: dict[tuple[str, str], str] = {}
        self._misses = SearchPathMisses(self.cluster.namespaces)
        # Whether the source was asked yet: from then on it is as it is.
        self._is_fed = False
        self._started = asyncio.Event()
        self._failed: KdnsError | None = None
        # What the inventory came to when it was read last, and when it was last right.
        self._latest: inventory.Report | None = None
        self.loaded: inventory.Report | None = None
        self.live: Live | None = None if options.inventory else self._make_live()

    @classmethod
    def read(cls, directives: Sequence[Directive], problems: list[Problem]) -> KubernetesOptions | None:
        for line in (line for directive in directives for line in directive.body or ()):
            if line.name.text == "endpoint" and len(line.args) > 1:
                message = "`endpoint`: the first URL is used, and the others aren't"
                problems.append(Problem(message, line.args[1].place(), hint=_ONE_SERVER, warning=True))
        return parse_options(cls.options, directives, problems)

    def join(self, block: Block) -> None:
        """Know the pods as clients where somebody in this block wants to, though nobody in the first one did."""
        if block.locates_clients and self.cluster.clients is None:
            self.cluster.clients = Clients()
            self.live = None if self._options.inventory else self._make_live()

    def _make_live(self) -> Live:
        # Not wanted with an inventory, and a fifth of a second and ten megabytes to import.
        from kdns.kubernetes.api import Wanted
        from kdns.kubernetes.live import Live, LiveOptions, Server

        given = self._options
        kubeconfig, context = (*given.kubeconfig, "", "")[:2]
        certificate, key, ca = given.tls or ("", "", "")
        wanted = Wanted(
            given.namespaces,
            given.labels.text if given.labels else "",
            given.namespace_labels.text if given.namespace_labels else "",
            endpoints=not given.noendpoints,
            pods=given.pods == "verified" or self.cluster.clients is not None,
        )
        options = LiveOptions(
            Server(kubeconfig, context, given.endpoint, certificate, key, ca),
            wanted,
            endpoint_pod_names=given.endpoint_pod_names,
            locates_clients=self.cluster.clients is not None,
            startup_timeout=given.startup_timeout,
            snapshot=given.snapshot.path,
            snapshot_interval=given.snapshot.interval,
            ready_on_snapshot=given.ready_on_snapshot,
        )
        return Live(options, self.cluster, self.apply, self._process.metrics, self._process.clock)

    def lives_on(self, options: KubernetesOptions, block: Block) -> bool:
        """Whether it says the same of the same zones: then nobody needs to read the whole cluster again."""
        if block.locates_clients and self.cluster.clients is None and self._is_fed:
            return False
        texts = options.zones or [names.to_text(zone) for zone in block.zones]
        return options == self._options and {_zone(text).name for text in texts} == set(self.zones)

    @property
    def zones(self) -> list[bytes]:
        """The zones it answers for, in wire form."""
        return [zone.name for zone in self._zones]

    @property
    def visible(self) -> Visible:
        """What it shows of what its source tells."""
        return self._visible

    @property
    def inventory_paths(self) -> tuple[str, ...]:
        """The files, folders and globs that it answers from."""
        return self._options.inventory

    @property
    def kubeconfig(self) -> tuple[str, str]:
        """The kubeconfig and the context with which it asks the API; empty where it needs none."""
        file, context = (*self._options.kubeconfig, "", "")[:2]
        return file, context

    @property
    def server(self) -> str:
        """The API server that it answers from, as the configuration names it; empty with an inventory."""
        if self.live is None:
            return ""
        if self._options.kubeconfig:
            return " ".join(("kubeconfig", *self._options.kubeconfig))
        return self._options.endpoint or "the API server of this cluster"

    @property
    def inventory_options(self) -> InventoryOptions:
        """How the inventory is completed."""
        chosen: Literal["allocate", "endpoints"] = (
            "endpoints" if self._options.cluster_ips == "endpoints" else "allocate"
        )
        return InventoryOptions(self._options.service_cidr, chosen)

    @property
    def stale(self) -> bool:
        """Whether it answers from a snapshot."""
        return self.live is not None and self.live.stale

    # For who finds names by where their clients stand

    def namespace_at(self, address: bytes) -> bytes | None:
        """The namespace of the pod whose packed address this is; None where it is no pod's, empty where several's."""
        return None if self.cluster.clients is None else self.cluster.clients.namespace_at(address)

    def has_zone(self, labels: list[bytes]) -> bool:
        """Whether a name is in one of the zones."""
        return self._zone_of(labels) is not None

    def forward_zone_of(self, labels: list[bytes]) -> bytes | None:
        """The longest of the zones that a name is in, if that is no reverse zone; in wire form."""
        zone = self._zone_of(labels)
        return None if zone is None or zone.reverse else zone.name

    def knows(self, labels: list[bytes], tags: set[Tag]) -> bool:
        """Whether there is such a name in the first forward zone, `labels` being those left of it.

        The tags of what that depends on are added.
        """
        primary = self.view.primary
        # A name exists once for all types; this one costs no records.
        question = Question(primary, labels, primary, Type.TXT, tags)
        return type(lookup(self.view, question, reverse=False)) is not NxDomain

    # The query

    async def handle(self, request: Request, next: Next) -> Answer:
        query = request.query
        zone = self._zone_of(query.labels)
        if zone is None:
            return await next(request)
        if not self.cluster.synced:
            # Never NXDOMAIN and never forwarded: neither would be true in a moment.
            request.keep = False
            answer = failure("", self.name, NOT_READY)
            answer.authority = [authority(self.view, zone.name)]
            return answer
        answer = await self._answer(request, next, zone)
        # As the property `stale` has it, without its call.
        if self.live is not None and self.live.stale:
            request.keep = False
            if answer.plugin == self.name and answer.error is None:
                answer.error = STALE
        return answer

    async def _answer(self, request: Request, next: Next, zone: _Zone) -> Answer:
        query = request.query
        labels = query.labels[: len(query.labels) - len(zone.labels)]
        room = limit_bytes(query, request.transport)
        question = Question(query.qname, labels, zone.name, query.rtype, request.tags, room)
        outcome = lookup(self.view, question, zone.reverse)
        if question.varies:
            request.varies = True
        if type(outcome) is Found:
            return Answer(answer=outcome.answer, additional=outcome.additional, plugin=self.name)
        if type(outcome) is Alias:
            return await self._follow(request, outcome.target, zone.name)
        if type(outcome) is NoData:
            return self._negative(Rcode.NOERROR, zone.name)
        if zone.name in self._falling and self._fallthrough.hold(query.qname, query.labels):
            answer = await next(request)
            if answer.unclaimed:
                # Nobody behind us: the name is of our zone, so this is a failure and no refusal.
                return failure("no next plugin found", self.name)
        else:
            if not self._nested:
                request.siblings = question.siblings
            answer = self._negative(Rcode.NXDOMAIN, zone.name)
        if answer.rcode == Rcode.NXDOMAIN and not request.absolute:
            request.used += self._misses.counter(labels)
        return answer

    def _zone_of(self, labels: list[bytes]) -> _Zone | None:
        for zone in self._zones:
            count = len(zone.labels)
            if not count or labels[-count:] == zone.labels:
                return zone
        return None

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
            room = limit_bytes(query, request.transport)
            question = Question(target, labels[:count], target[-len(inside.name) :], rtype, request.tags, room)
            outcome = lookup(self.view, question, inside.reverse)
            request.varies = request.varies or question.varies
            match outcome:
                case Found(answer=answer, additional=additional):
                    return Answer(answer=chain + answer, additional=additional, plugin=self.name)
                case Alias(target=following):
                    chain.append(Record(target, Type.CNAME, self.view.ttl, following))
                    target = following
                case NoData() | NxDomain():
                    if not self.view.rfc_cname:
                        return self._negative(Rcode.NOERROR, zone)
                    # RFC 6604 §3: the response code is that of the last name.
                    rcode = Rcode.NXDOMAIN if type(outcome) is NxDomain else Rcode.NOERROR
                    return self._negative(rcode, inside.name, chain)
        return failure(f"more than {LONGEST_CHAIN} aliases follow one another", self.name)

    async def _ask_outside(self, request: Request, chain: list[Record], target: bytes) -> Answer:
        answer = await request.ask(target, request.query.rtype)
        if answer.unclaimed:
            # Nobody here resolves the target: the alias alone is all that we know, and it is right.
            return Answer(answer=chain, plugin=self.name)
        if answer.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
            code = rcode_to_text(answer.rcode)
            # RFC 8914 §4.1; the text goes to strangers, so whose code it is only the log says.
            error = answer.error or (OTHER, f"the alias leads to a name that is answered with {code}")
            cause = answer.cause or f"{names.to_text(target)}, where the alias leads: {code} of `{answer.plugin}`"
            return failure(cause, self.name, error)
        whole, flags = [*chain, *answer.answer], AA | answer.flags & TC
        if self.view.rfc_cname:
            return Answer(answer.rcode, whole, answer.authority, flags=flags, plugin=self.name)
        return Answer(answer=whole, flags=flags, plugin=self.name)

    # The source

    async def feed(self) -> None:
        """Apply what the source tells, as long as the configuration holds."""
        self._is_fed = True
        counted: dict[metrics.Metric, metrics.Source] = {
            metrics.SEARCH_PATH_MISSES: self._misses.misses,
            metrics.SEARCH_PATH_SAVED: self._misses.saved,
        }
        try:
            with self._process.metrics.reading(counted):
                await self._follow_source()
        except KdnsError as error:
            self._failed = error
        finally:
            self._started.set()

    async def _follow_source(self) -> None:
        if self.live is not None:
            await self.live.run()
        with self._process.metrics.reading(self._inventory_gauges()):
            async for change in inventory.watch(self.inventory_paths, self.inventory_options):
                if isinstance(change, inventory.Batch):
                    self.apply(change.events)
                else:
                    self._report(change)

    def apply(self, events: Iterable[Event], just_happened: bool = False) -> None:
        """Take in events of the source, and let the answers go that depend on what they change.

        What has `just_happened` is measured: from the change of the pods that caused it to here is what it took.
        """
        changed = set()
        for event in events:
            try:
                # What a snapshot has was seen through the same filter; the labels that it goes by are not kept.
                restoring = self.live is not None and self.live.restoring
                seen = event if restoring else self._visible.see(event)
                if seen is None:
                    continue
                changed |= self.cluster.apply(seen)
                if self.live is not None:
                    self._doubt(seen)
            except Exception:
                # One tenant's object must not cost the others theirs.
                log.exception("an object could not be taken in: %s", event)
                self._process.metrics.increase(metrics.KUBERNETES_SKIPPED, "model")
        if changed:
            self._process.forget(changed)
        if self.live is not None:
            # The source becomes stale, or is so no more, only right before a call of this.
            self.view.ttl = min(self._options.ttl, STALE_TTL) if self.live.stale else self._options.ttl
            if just_happened:
                self._measure(events)

    def _doubt(self, event: Event) -> None:
        """Say once of an ExternalName that leads to no name that it has no record; an inventory says so by itself."""
        match event:
            case Put(object=Service(metadata=metadata, spec=spec)) if spec.type == "ExternalName":
                target = spec.external_name or ""
                # Without its final dot an address is what it is.
                wrong = "an address" if pack_address(target.rstrip(".")) else "no name of a host"
                if external_target(target):
                    self._dead_aliases.pop((metadata.namespace, metadata.name), None)
                elif self._dead_aliases.get((metadata.namespace, metadata.name)) != target:
                    self._dead_aliases[metadata.namespace, metadata.name] = target
                    text = "the ExternalName %s/%s has no record, for `%s` is %s"
                    log.warning(text, metadata.namespace, metadata.name, target, wrong)
            case Put(object=Service(metadata=metadata)):
                self._dead_aliases.pop((metadata.namespace, metadata.name), None)
            case Delete(kind="Service", namespace=namespace, name=name):
                self._dead_aliases.pop((namespace, name), None)

    def _measure(self, events: Iterable[Event]) -> None:
        """Observe how long changes of endpoints took to get here, by the time that their controller wrote down."""
        now = self._process.clock()
        for event in events:
            if not isinstance(event, Put) or not isinstance(event.object, EndpointSlice):
                continue
            metadata = event.object.metadata
            began = metadata.annotations.last_change if metadata.annotations else None
            service = self.cluster.service(metadata.namespace.encode(), (event.object.service or "").encode())
            kind = _service_kind(service.kind, event.object) if service else ""
            if began is None or not kind:
                continue
            with contextlib.suppress(ValueError):
                seconds = now - datetime.fromisoformat(began).timestamp()
                self._process.metrics.observe(metrics.KUBERNETES_PROGRAMMING, max(0.0, seconds), kind)

    def _inventory_gauges(self) -> dict[metrics.Metric, metrics.Source]:
        return {
            metrics.INVENTORY_LOADED: lambda: {(): float(self._latest is not None and self._latest.loaded)},
            metrics.INVENTORY_PROBLEMS: lambda: {(): len(self._latest.problems) if self._latest else 0},
            metrics.INVENTORY_OBJECTS: self._objects,
        }

    def _objects(self) -> dict[tuple[str, ...], float]:
        return {(kind,): count for kind, count in self.loaded.counts.items()} if self.loaded else {}

    def _report(self, report: inventory.Report) -> None:
        self._latest = report
        self._process.metrics.increase(metrics.INVENTORY_RELOADS, "ok" if report.loaded else "failed")
        first = self.loaded is None
        if first and not report.loaded:
            # The start is refused, and whoever started us is told there.
            return
        # The warnings of the start are told with the others of the configuration.
        for problem in () if first else report.problems:
            for line in draw(problem).splitlines():
                log.log(logging.WARNING if problem.warning else logging.ERROR, "%s", line.removeprefix("warning: "))
        if not report.loaded:
            log.error("%s", report.verdict)
            return
        self.loaded = report
        self._started.set()
        if not first:
            log.info("inventory loaded again: %s", _summary(report.counts))

    async def started(self) -> None:
        if self.live is None:
            await self._started.wait()
        else:
            waits = [asyncio.ensure_future(event.wait()) for event in (self._started, self.live.started)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for each in waits:
                each.cancel()
        if self._failed is not None:
            raise self._failed
        if self._options.inventory and not self.cluster.synced:
            raise KdnsError("the inventory could not be read to its end; the log says why")

    def ready(self) -> bool:
        return self.cluster.synced if self.live is None else self.live.ready()

    def missing(self) -> str:
        return "; ".join(self.live.missing) if self.live is not None else ""

    def writes(self) -> Iterable[str]:
        return filter(None, [self._options.snapshot.path])

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


def kubernetes_of(block: Block, directive: str) -> Kubernetes:
    """The one of a server block, with which a directive works. Raises ConfigError if there is none."""
    for plugin in block.plugins:
        if isinstance(plugin, Kubernetes):
            return plugin
    hint = "that one knows the services and the pods"
    raise ConfigError([Problem(f"`{directive}` needs `kubernetes` in the same server block", hint=hint)])


def _service_kind(kind: Kind, part: EndpointSlice) -> str:
    """What CoreDNS calls the kind of a service with this slice, in its metric; nothing for one without endpoints."""
    if kind is Kind.HEADLESS:
        made_by = (part.metadata.labels or {}).get("endpointslice.kubernetes.io/managed-by")
        return f"headless_{'with' if made_by == _FROM_SELECTOR else 'without'}_selector"
    return "cluster_ip" if kind is Kind.CLUSTER_IP else ""


def _zone(text: str) -> _Zone:
    name = names.from_text(text).lower()
    labels = names.labels_of(name)
    return _Zone(name, labels, labels[-2:] in ([b"in-addr", b"arpa"], [b"ip6", b"arpa"]))


def _summary(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(counts).items())) or "nothing"
