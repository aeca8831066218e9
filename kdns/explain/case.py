"""A case: all that is known of one question, what its name was probably meant to be, and what is near to that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec

from kdns.addresses import pack_address
from kdns.explain import report
from kdns.explain.knowledge import EXTERNAL_NAME, Source
from kdns.explain.meaning import Meaning, meaning_of
from kdns.explain.near import MOST_SUGGESTED, NAMES_A_TURN, near
from kdns.explain.stub import Resolver
from kdns.wire import names
from kdns.wire.records import Type

MOST_ALIASES = 8
# Without `rfc_cname` an ExternalName is an alias for these (`kubernetes/schema.py`, `_lookup_external`).
_OF_ALIASES = frozenset((Type.A, Type.AAAA, Type.CNAME, Type.ANY))


class Meant(msgspec.Struct):
    """A name of the walk that lies in the zone of a cluster, and what it means there; `text` has a final dot."""

    text: str
    source: Source
    meaning: Meaning
    answered: bool


class Case(msgspec.Struct):
    """Everything that is known of one question.

    `text` is the name as it was asked for, `told` the explanation as far as it has come, `meant` what the names of the
    walk mean to a cluster, `running` whether it is a server that explains. The rest is what `settle` finds: what was
    meant, the objects behind it, and what is near.
    """

    text: str
    types: list[int]
    client: report.Client
    resolver: Resolver
    told: report.Explanation
    sources: list[Source]
    meant: list[Meant]
    running: bool = False
    best: Meant | None = None
    objects: list[report.Object] = []
    service: report.Object | None = None
    near_services: list[str] = []
    near_namespaces: list[str] = []
    elsewhere: list[str] = []

    @property
    def in_full(self) -> bool:
        """Whether the name as it was given lies in a zone of a cluster."""
        labels = names.labels_of(names.from_text(self.text).lower())
        return any(source.left_of_zone(labels) is not None for source in self.sources)

    @property
    def unresolved(self) -> bool:
        """Whether it has no answer here, be it that others may have one."""
        return self.told.resolves is not True

    @property
    def outside(self) -> bool:
        """Whether the name was refused in the end, and hasn't anything to do with the cluster."""
        last = self.told.walk[-1]
        if not self.unresolved or last.rcode != "REFUSED" or last.directive:
            return False
        return self.best is None and ("." in self.text.rstrip(".") or not self.resolver.search)

    @property
    def alias(self) -> report.Object | None:
        """The ExternalName that the name is, where it stands for another one in questions of this type."""
        best, service = self.best, self.service
        if best is None or service is None or service.kind_for_dns != EXTERNAL_NAME or best.meaning.kind != "service":
            return None
        return service if best.source.plugin.view.rfc_cname or _OF_ALIASES.issuperset(self.types) else None

    async def settle(self) -> None:
        """Find what was meant, and what there is of it."""
        self.best = self._likeliest()
        self.objects = list(self._behind_name())
        await self._look_around()
        if self.best is not None and not self._has_to_do_with_cluster(self.best):
            self.best, self.objects = None, []

    def _has_to_do_with_cluster(self, best: Meant) -> bool:
        """`google.com` may be Service `google` of namespace `com`, and where there is nothing like that it isn't."""
        meaning = best.meaning
        if not self.unresolved or self.in_full or best.source.has_namespace(meaning.namespace):
            return True
        if self.text.lower().rstrip(".").endswith((".svc", ".pod")):
            return True
        swapped = best.source.model(meaning.service, meaning.namespace) is not None
        there = any(each.exists for each in self.objects)
        return bool(not meaning.namespace or there or self.near_namespaces or self.elsewhere or swapped)

    def _likeliest(self) -> Meant | None:
        """The name that was answered, else the one that is nearest to something there."""
        meant = self.meant
        if self.in_full:
            # Whoever writes the zone doesn't mean a name to which it is added once more.
            whole = names.to_text(names.from_text(self.text)).lower()
            meant = [each for each in meant if each.text.lower() == whole] or meant
        if not self.unresolved:
            # What others have answered is no business of the cluster.
            return next((each for each in meant if each.answered), None)
        best = max(meant, key=_likelihood, default=None)
        return best if best is not None and _likelihood(best) > 0 else None

    def _behind_name(self) -> Iterator[report.Object]:
        """What is behind the name, whether it exists or not."""
        if self.best is None:
            return
        source, meaning = self.best.source, self.best.meaning
        if meaning.kind == "namespace":
            yield source.namespace(meaning.namespace)
        elif meaning.kind == "address":
            yield from _at_address(source, meaning.address)
        elif meaning.kind == "pod":
            yield from _pods_at(source, meaning)
        elif meaning.of_service:
            found = source.service(meaning.namespace, meaning.service)
            if not found.exists and not source.has_namespace(meaning.namespace):
                yield source.namespace(meaning.namespace)
                return
            self.service = found
            yield found
            yield from _behind(source, found)

    async def _look_around(self) -> None:
        """Find what is near to a name that isn't there."""
        best = self.best
        if best is None or not self.unresolved or not best.meaning.namespace:
            return
        source, meaning = best.source, best.meaning
        if not source.has_namespace(meaning.namespace):
            self.near_namespaces = await near(meaning.namespace, source.namespaces)
        if not meaning.of_service or (self.service is not None and self.service.exists):
            return
        for position, namespace in enumerate(sorted(source.namespaces)):
            if namespace != meaning.namespace and source.model(namespace, meaning.service) is not None:
                self.elsewhere.append(namespace)
            if position % (20 * NAMES_A_TURN) == 0:
                await asyncio.sleep(0)
        if not self.elsewhere:
            self.near_services = await near(meaning.service, source.service_names(meaning.namespace))


def _likelihood(meant: Meant) -> float:
    """How likely a name is the one that was meant; 0 is that it means nothing that a cluster has."""
    source, meaning = meant.source, meant.meaning
    if meaning.kind in ("zone", "address"):
        return 3
    if meaning.kind in ("pod", "namespace"):
        return 3 if source.has_namespace(meaning.namespace) else 0.5
    if not meaning.of_service:
        return 0
    whole = meaning.kind == "service"
    if source.service(meaning.namespace, meaning.service).exists:
        return 5 if whole else 4
    # `web.shop` is a Service and its namespace rather than an endpoint called `web` of a Service called `shop`.
    if source.has_namespace(meaning.namespace):
        return 2 if whole else 0.4 if meant.text.startswith("_") else 0
    return 0.6 if whole else 0


def _at_address(source: Source, address: str) -> Iterator[report.Object]:
    packed = pack_address(address)
    if packed is None:
        return
    services = source.cluster.services_at(packed) or [service for service, _ in source.cluster.endpoints_at(packed)]
    for service in list(dict.fromkeys(services))[:MOST_SUGGESTED]:
        yield source.service(service.namespace.decode(), service.name.decode())


def _pods_at(source: Source, meaning: Meaning) -> Iterator[report.Object]:
    if source.objects is None or not meaning.address:
        return
    for pod in source.objects.pods_at(meaning.address)[:MOST_SUGGESTED]:
        metadata = pod.metadata
        yield report.Object(
            "Pod", metadata.namespace, metadata.name, True, metadata.resource_version, addresses=list(pod.addresses)
        )


def _behind(source: Source, alias: report.Object) -> Iterator[report.Object]:
    """The services that an alias leads to, one after the other; the last may be one that was met before."""
    seen: set[tuple[str, str]] = set()
    while alias.kind_for_dns == EXTERNAL_NAME and len(seen) <= MOST_ALIASES:
        seen.add((alias.namespace, alias.name))
        meaning = target_of(source, alias)
        if meaning is None or not meaning.of_service or (meaning.namespace, meaning.service) in seen:
            return
        alias = source.service(meaning.namespace, meaning.service)
        yield alias


def target_of(source: Source, alias: report.Object) -> Meaning | None:
    """What the target of an alias means; None where it lies outside of the cluster."""
    try:
        labels = names.labels_of(names.from_text(alias.external_name).lower())
    except ValueError:
        return None
    left = source.left_of_zone(labels)
    return None if left is None else meaning_of(left)


def full(object: report.Object) -> str:
    """An object's namespace and name."""
    return f"{object.namespace}/{object.name}" if object.namespace else object.name
