"""What is asked and by whom: the question of a command line, and the client that it is to come from.

A pod that is known as an object has its own dnsPolicy and dnsConfig; of any other client the default ones are taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kdns.addresses import pack_address
from kdns.errors import ConfigError, Problem
from kdns.explain import report
from kdns.explain.knowledge import Source
from kdns.explain.near import near, nearest_of
from kdns.explain.stub import Resolver, in_cluster, of_pod
from kdns.kubernetes.cluster import address_text
from kdns.kubernetes.objects import Pod
from kdns.kubernetes.schema import reverse_name
from kdns.wire import names
from kdns.wire.records import Type, type_from_text

DEFAULT_NAMESPACE = "default"
DEFAULT_ZONE = "cluster.local"
LOOPBACK = "127.0.0.1"
_TYPES = "A, AAAA, SRV and PTR are; without a type A and AAAA are asked for"


class AskError(ConfigError):
    """What is asked can't be a question; `hint` says what could."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__([Problem(message, hint=hint)])


class Ask(msgspec.Struct, frozen=True):
    """What is to be explained. `of` is `NAMESPACE` or `NAMESPACE/POD`, `client` an address; both may be empty.

    Without `type` it is that of the name: addresses, SRV for a name of a port, PTR for an address or a reverse
    name.
    """

    name: str
    type: str = ""
    of: str = ""
    client: str = ""


def question_of(ask: Ask) -> tuple[str, list[int]]:
    """The name to ask for, and the types. Raises AskError."""
    packed = pack_address(ask.name)
    if packed is not None:
        return names.to_text(reverse_name(packed)), [_type_of(ask.type or "PTR")]
    text = ask.name
    if not text or any(character in "/:@" or character.isspace() for character in text):
        raise AskError(f"`{text}` is no name", _without_the_rest(text))
    try:
        names.from_text(text)
    except ValueError as error:
        raise AskError(f"`{text}` is no name: {error}") from None
    if ask.type:
        return text, [_type_of(ask.type)]
    if text.lower().rstrip(".").endswith((".in-addr.arpa", ".ip6.arpa")):
        return text, [Type.PTR]
    return text, [Type.SRV] if text.startswith("_") else [Type.A, Type.AAAA]


def _type_of(text: str) -> int:
    try:
        rtype = type_from_text(text)
    except ValueError as error:
        raise AskError(str(error), _TYPES) from None
    # RFC 6895 §3.1: from 128 to 255 they are of questions and of the protocol itself, and so is OPT.
    if rtype == Type.OPT or (128 <= rtype <= 255 and rtype != Type.ANY):
        raise AskError(f"`{text}` is no type that a record has", _TYPES)
    return rtype


def _without_the_rest(text: str) -> str:
    """`http://web.shop:80/` was a URL; its host is a name. `[fd00::1]:53` and `fe80::1%eth0` have an address."""
    host = text.partition("://")[2] or text
    host = host.partition("/")[0].rpartition("@")[2].strip()
    address = host.removeprefix("[").partition("]")[0].partition("%")[0]
    if pack_address(address) is not None:
        return f"an address stands alone: `{address}`"
    host = host.partition(":")[0]
    return f"a name stands alone: `{host}`" if host and host != text else ""


async def client_of(ask: Ask, sources: Sequence[Source]) -> tuple[report.Client, Resolver]:
    """Who asks, and what its resolver makes of a name. Raises AskError."""
    if ask.of and ask.client:
        raise AskError("`--from` and `--client` are two ways to say who asks", "give one of them")
    zone = sources[0].zone if sources else DEFAULT_ZONE
    if ask.client:
        return _client_at(ask.client, zone, sources)
    namespace, _, pod = ask.of.partition("/")
    if pod:
        return _pod(namespace or DEFAULT_NAMESPACE, pod, zone, sources)
    return await _in_namespace(namespace, zone, sources)


def _client_at(address: str, zone: str, sources: Sequence[Source]) -> tuple[report.Client, Resolver]:
    packed = pack_address(address)
    if packed is None:
        raise AskError(f"`{address}` is no address", "`--client` takes the IP address of a client")
    for source in sources:
        for pod in source.objects.pods_at(address) if source.objects else ():
            return _as_told(pod, zone, address)
        if namespace := source.namespace_at(packed):
            client, resolver = _told(namespace, in_cluster(namespace, zone), address=address_text(packed))
            client.notes.append("its pod, and so its dnsPolicy, isn't known here: taken for ClusterFirst")
            return client, resolver
    client, resolver = _told("", Resolver("", "", (), 1), address=address_text(packed))
    client.notes.append("no pod with this address is known here, so no search list either")
    return client, resolver


def _pod(namespace: str, name: str, zone: str, sources: Sequence[Source]) -> tuple[report.Client, Resolver]:
    for source in sources:
        if source.objects is not None and (pod := source.objects.pods.get((namespace, name))) is not None:
            return _as_told(pod, zone)
        if addresses := source.cluster.pod_addresses(namespace, name):
            client, resolver = _told(namespace, in_cluster(namespace, zone), name, address_text(addresses[0]))
            client.notes.append("its dnsPolicy isn't known here: taken for ClusterFirst")
            return client, resolver
    objects = [source.objects for source in sources if source.objects is not None]
    if objects:
        meant = nearest_of(name, {pod for each in objects for of, pod in each.pods if of == namespace})
        raise AskError(f"there is no pod `{namespace}/{name}`", f"did you mean `{namespace}/{meant}`?" if meant else "")
    client, resolver = _told(namespace, in_cluster(namespace, zone), name)
    client.notes.append(f"its address isn't known here without `pods verified`: {LOOPBACK} asks in its place")
    return client, resolver


async def _in_namespace(namespace: str, zone: str, sources: Sequence[Source]) -> tuple[report.Client, Resolver]:
    """Any pod of a namespace; nobody named is one of `default`, as kubectl has it."""
    known = {each for source in sources for each in source.namespaces}
    if namespace and known and namespace not in known:
        found = await near(namespace, sorted(known))
        raise AskError(f"there is no namespace `{namespace}`", f"did you mean `{found[0]}`?" if found else "")
    of = namespace or DEFAULT_NAMESPACE
    client, resolver = _told(of, in_cluster(of, zone), assumed=not namespace)
    # Where the client stands may decide what it is told.
    one = next(filter(any, (source.address_in(of) for source in sources)), None) if namespace else None
    if one is not None:
        pod, client.address = one
        client.notes.append(f"that is the address of pod {pod}")
    elif namespace:
        client.notes.append(f"no address of a pod of it is known here: {LOOPBACK} asks in its place")
    return client, resolver


def _as_told(pod: Pod, zone: str, address: str = "") -> tuple[report.Client, Resolver]:
    metadata = pod.metadata
    resolver = of_pod(pod.spec, metadata.namespace, zone)
    return _told(metadata.namespace, resolver, metadata.name, address or next(iter(pod.addresses), ""))


def _told(
    namespace: str, resolver: Resolver, pod: str = "", address: str = "", assumed: bool = False
) -> tuple[report.Client, Resolver]:
    search = list(resolver.search)
    client = report.Client(
        namespace, pod, address, resolver.policy, resolver.asks, search, resolver.ndots, assumed, notes=[]
    )
    return client, resolver
