"""`search`: short names of services, answered by where the client stands.

Which names these are is `searching.py`'s, which of them exist `kubernetes` knows. Here: where a client stands, and what
it is told. The answer to a short name is that to the whole name, asked of the whole server, behind an alias.
Law: docs/plugins/search.md.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from typing import Annotated, Any, ClassVar

import msgspec

from kdns.chain import Answer, Block, Next, Plugin, Request, failure
from kdns.corefile import Token
from kdns.options import Fault, Options, RefusalError, choice, custom, flag, repeatable
from kdns.plugins.kubernetes import NOT_READY, Kubernetes, kubernetes_of
from kdns.searching import LONGEST_SHORT_NAME, aliased, below_zone, in_own_namespace
from kdns.wire import names
from kdns.wire.records import CLASS_IN

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
# Where a client stands of whom only that is known: that it is a pod. No namespace has such a name.
_SOME_POD = b"?"
# RFC 8914 §4.15
_UNKNOWN_POD = (14, "the pod that asks isn't known yet")


class ClientNetwork(msgspec.Struct, frozen=True):
    """A network, and the namespace in which its clients stand."""

    network: Network
    namespace: str


def _read_network(token: Token) -> Network:
    try:
        return ipaddress.ip_network(token.text)
    except ValueError:
        pass
    try:
        hint = f"the network is `{ipaddress.ip_network(token.text, strict=False)}`"
    except ValueError:
        hint = ""
    raise RefusalError(token, "an address, or a network such as `10.1.0.0/16`", hint)


def _read_namespace(token: Token) -> str:
    if not NAMESPACE.fullmatch(token.text):
        hint = "the namespace stands last" if "/" in token.text else ""
        raise RefusalError(token, "the name of a namespace", hint)
    return token.text


def _read_clients(tokens: Sequence[Token]) -> tuple[ClientNetwork, ...]:
    namespace = _read_namespace(tokens[-1])
    return tuple(ClientNetwork(_read_network(token), namespace) for token in tokens[:-1])


class SearchOptions(Options, directive="search", once=True):
    client: Annotated[
        tuple[ClientNetwork, ...],
        custom(_read_clients, "CIDR... NAMESPACE", "networks, then a namespace", least=2, most=None),
        repeatable,
        "where the clients of these networks stand, if they are no pods that are known",
    ] = ()
    default: Annotated[
        str,
        custom(lambda tokens: _read_namespace(tokens[0]), "NAMESPACE", "a namespace"),
        "where all other clients stand",
    ] = ""
    pods: Annotated[
        tuple[Network, ...],
        custom(lambda tokens: tuple(map(_read_network, tokens)), "CIDR...", "networks", most=None),
        repeatable,
        "networks of pods: who asks from there and isn't known yet is told to ask again",
    ] = ()
    names_: Annotated[
        str,
        choice("single", "qualified"),
        "which names: those of services alone, or also those with a namespace",
    ] = "single"
    namespaces: Annotated[
        tuple[str, ...],
        custom(lambda tokens: tuple(map(_read_namespace, tokens)), "NAMESPACE...", "namespaces", most=None),
        repeatable,
        "with `names qualified`: the namespaces that a name may end in; all unless given",
    ] = ()
    without_pods: Annotated[bool, flag(), "no client is looked for among the pods, which aren't watched for it"] = False

    def faults(self) -> Iterable[Fault]:
        """Lines that contradict one another, or have no effect."""
        counts = Counter([*(each.network for each in self.client), *self.pods])
        for network, count in counts.items():
            if count > 1:
                option = "pods" if network in self.pods else "client"
                yield Fault(option, f"`{network}` is given twice", str(network))
        if self.namespaces and self.names_ != "qualified":
            yield Fault("namespaces", "`namespaces` is for `names qualified`", besides=("names",))
        if self.without_pods and self.pods:
            yield Fault("pods", "`pods` is of no use with `without_pods`: no pod is ever known")


class _Table:
    """Networks and what holds for them; the smallest network that an address is in counts."""

    def __init__(self, rows: Iterable[tuple[Network, bytes]]) -> None:
        ordered = sorted(rows, key=lambda row: -row[0].prefixlen)
        self._rows = [
            (len(network.network_address.packed), int(network.netmask), int(network.network_address), value)
            for network, value in ordered
        ]

    def find(self, address: bytes) -> bytes:
        """What holds for a packed address; empty where nothing does."""
        size, number = len(address), int.from_bytes(address, "big")
        for of_size, mask, value, found in self._rows:
            if size == of_size and number & mask == value:
                return found
        return b""


class Search(Plugin):
    """Finds services by the names that clients have for them."""

    name: ClassVar[str] = "search"
    options: ClassVar[type[Options]] = SearchOptions
    # Names of the cluster's zones go through untouched.
    heeds_names: ClassVar[bool] = False

    def __init__(self, options: SearchOptions, block: Block) -> None:
        block.locates_clients = block.locates_clients or not options.without_pods
        self._qualified = options.names_ == "qualified"
        self._namespaces = frozenset(namespace.encode() for namespace in options.namespaces)
        self._others = _Table(
            [(each.network, each.namespace.encode()) for each in options.client]
            + [(network, _SOME_POD) for network in options.pods]
        )
        self._default = options.default.encode()
        self._kubernetes: Kubernetes

    def join(self, block: Block) -> None:
        """Find the cluster whose services the names are of."""
        self._kubernetes = kubernetes_of(block, self.name)

    def locate(self, address: bytes) -> bytes:
        """The namespace in which the client of this address stands; empty where it stands in none."""
        of_pod = self._kubernetes.namespace_at(address)
        return self._others.find(address) or self._default if of_pod is None else of_pod

    def handle(self, request: Request, next: Next) -> Coroutine[Any, Any, Answer]:
        """Most names are no short ones, and cost little here."""
        query = request.query
        labels = query.labels
        if not 0 < len(labels) <= LONGEST_SHORT_NAME or request.absolute or query.rclass != CLASS_IN:
            return next(request)
        if self._kubernetes.has_zone(labels):
            return next(request)
        if in_own_namespace(labels):
            return self._in_own_namespace(request, next)
        full = below_zone(labels, self._namespaces) if self._qualified else None
        return next(request) if full is None else self._qualified_name(request, next, full)

    async def _in_own_namespace(self, request: Request, next: Next) -> Answer:
        if not self._kubernetes.cluster.synced:
            return self._not_ready(request, NOT_READY)
        namespace = request.stand(self.locate)
        if namespace == _SOME_POD:
            # One of two questions for A and AAAA might be answered before the pod is known, and the other after.
            return self._not_ready(request, _UNKNOWN_POD)
        if not namespace:
            return await next(request)
        return await self._found(request, next, [*request.query.labels, namespace, b"svc"])

    async def _qualified_name(self, request: Request, next: Next, full: list[bytes]) -> Answer:
        if not self._kubernetes.cluster.synced:
            # Such a name may be a public one, and others must be found before the cluster is known.
            if self._namespaces or request.query.labels[-1] == b"svc":
                return self._not_ready(request, NOT_READY)
            request.keep = False
            return await next(request)
        return await self._found(request, next, full)

    async def _found(self, request: Request, next: Next, full: list[bytes]) -> Answer:
        """The answer of the whole name if there is one, else what those behind say."""
        kubernetes = self._kubernetes
        try:
            target = names.from_labels([*full, *names.labels_of(kubernetes.view.primary)])
        except ValueError:
            return await next(request)
        if not kubernetes.knows(full, request.tags):
            return await next(request)
        answer = await request.ask(target, request.query.rtype)
        return aliased(request.query, target, answer, kubernetes.view.ttl, self.name)

    def _not_ready(self, request: Request, error: tuple[int, str]) -> Answer:
        request.keep = False
        return failure("", self.name, error)
