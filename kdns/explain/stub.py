"""The resolver in a client: the resolv.conf that the kubelet gives to a pod, and the names that it makes of one.

Pure. Law: kubernetes 1.36, `pkg/kubelet/network/dns`; glibc 2.41, `resolv/res_query.c` (`__res_context_search`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from kdns.kubernetes.objects import PodDnsConfig, PodSpec
from kdns.wire import names

# What the kubelet writes for ClusterFirst, and what a resolver does without the option.
CLUSTER_NDOTS = 5
DEFAULT_NDOTS = 1
# resolv.conf(5): glibc takes no more.
MOST_NDOTS = 15
# The kubelet's limits (`MaxDNSSearchPaths`, `MaxDNSSearchListChars`); 253 is the longest name.
MOST_SEARCHES = 32
MOST_SEARCH_CHARACTERS = 2048
LONGEST_SEARCH = 253

CLUSTER, NODE, OTHER = "the cluster's DNS", "the node's resolver", "the nameservers of its dnsConfig"


class Resolver(msgspec.Struct, frozen=True):
    """A resolv.conf: whom it names, in which domains names are searched, and how many dots make one whole.

    `policy` is the dnsPolicy that made it.
    """

    policy: str = "ClusterFirst"
    asks: str = CLUSTER
    search: tuple[str, ...] = ()
    ndots: int = CLUSTER_NDOTS


class Candidate(msgspec.Struct, frozen=True):
    """A name as it is asked for, and the search domain that was put behind; None for the name as it was given."""

    name: bytes
    domain: str | None = None


def in_cluster(namespace: str, zone: str) -> Resolver:
    """The resolver of a pod that says nothing about it. `zone` is the cluster's, without a final dot."""
    return Resolver(search=(f"{namespace}.svc.{zone}", f"svc.{zone}", zone))


def of_pod(spec: PodSpec | None, namespace: str, zone: str) -> Resolver:
    """The resolver of a pod. The node's own search domains, which the kubelet appends, nobody here knows."""
    spec = spec or PodSpec()
    policy = spec.dns_policy or "ClusterFirst"
    if policy == "Default" or (policy == "ClusterFirst" and spec.host_network):
        base = Resolver(policy, NODE, (), DEFAULT_NDOTS)
    elif policy == "None":
        base = Resolver(policy, OTHER, (), DEFAULT_NDOTS)
    else:
        base = msgspec.structs.replace(in_cluster(namespace, zone), policy=policy)
    return _merged(base, spec.dns_config) if spec.dns_config else base


def _merged(base: Resolver, config: PodDnsConfig) -> Resolver:
    ndots = base.ndots
    for option in config.options or ():
        if option.name == "ndots" and (option.value or "").isdecimal():
            ndots = min(int(option.value or 0), MOST_NDOTS)
    search = _bounded([*base.search, *(config.searches or ())])
    return msgspec.structs.replace(base, search=tuple(search), ndots=ndots)


def _bounded(domains: Iterable[str]) -> Iterator[str]:
    """As many as the kubelet writes, each once."""
    count = characters = 0
    for domain in dict.fromkeys(each.rstrip(".") or "." for each in domains):
        if len(domain) > LONGEST_SEARCH:
            continue
        count, characters = count + 1, characters + len(domain) + (1 if count else 0)
        if count > MOST_SEARCHES or characters > MOST_SEARCH_CHARACTERS:
            return
        yield domain


def candidates(text: str, resolver: Resolver) -> list[Candidate]:
    """The names that are asked for, one after the other, until one has an answer. Raises ValueError for no name."""
    whole = Candidate(names.from_text(text))
    if text.endswith("."):
        return [whole]
    expanded = list(_expanded(text, resolver.search))
    if text.count(".") >= resolver.ndots:
        return [whole, *(each for each in expanded if each.name != whole.name)]
    # A lone `.` in the list is the name itself, asked for where it stands.
    return expanded if any(each.name == whole.name for each in expanded) else [*expanded, whole]


def _expanded(text: str, search: Sequence[str]) -> Iterator[Candidate]:
    for domain in search:
        try:
            yield Candidate(names.from_text(f"{text}.{domain.strip('.')}"), domain)
        except ValueError:
            # Too long for a name: a resolver passes over it as well.
            continue
