"""The directives of CoreDNS 1.14.7, and what to do without those that kdns doesn't have.

Knows no plugin: which directives kdns has is passed in. Law: CoreDNS's plugin.cfg, and its pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdns.corefile import Token
from kdns.errors import Problem, nearest

# In the order of its chain.
COREDNS_DIRECTIVES: tuple[str, ...] = tuple(
    """
    root metadata geoip cancel proxyproto quic grpc_server https https3 timeouts multisocket reload nsid bufsize bind
    debug trace ready health pprof shed prometheus errors log dnstap local dns64 any chaos loadbalance tsig rewrite
    autopath acl cache header dnssec tls minimal template transfer hosts route53 azure clouddns k8s_external
    kubernetes file auto secondary etcd loop forward grpc erratic whoami on sign view nomad
    """.split()  # noqa: SIM905
)

REMOVED_DIRECTIVES: Mapping[str, str] = {
    "proxy": "`forward . ADDRESS` takes its place",
    "federation": "it has no successor: delete the line",
    "reverse": "`template` takes its place",
}

_ELSEWHERE = "`forward ZONE ADDRESS` asks a server that has the zone"
_IN_FRONT = "delete it: clients are served over UDP and TCP, and a proxy in front can speak to them in another way"

# The directives of CoreDNS 1.14.7 that kdns can't honour yet, and what their user can do without them. None is left out
# in silence: with most of them answers would be others.
INSTEAD: Mapping[str, str] = {
    "metadata": "delete it: `log` shows `-` for what it would have gathered",
    "geoip": "delete it: it only gathers metadata",
    "cancel": "delete it: what is forwarded has 4 seconds in all anyway",
    "proxyproto": "delete it, and let the load balancer keep the client's address without the PROXY protocol",
    "quic": _IN_FRONT,
    "grpc_server": _IN_FRONT,
    "https": _IN_FRONT,
    "https3": _IN_FRONT,
    "tls": _IN_FRONT,
    "timeouts": "delete it: connections have bounds of their own, which docs/design.md tells",
    "shed": "delete it: `max_concurrent` of `forward` bounds the queries that wait",
    "dnstap": "`log` tells of queries, and `prometheus` counts them",
    "tsig": "delete it: there are no transfers that it would sign",
    "dnssec": "`forward ZONE ADDRESS` asks a server that signs the zone",
    "transfer": "delete it: transfers are refused",
    "route53": _ELSEWHERE,
    "azure": _ELSEWHERE,
    "clouddns": _ELSEWHERE,
    "k8s_external": "external-dns gives the names of LoadBalancers to a server that has the zone",
    "file": f"{_ELSEWHERE}; `hosts` has single names",
    "auto": f"{_ELSEWHERE}; `hosts` has single names",
    "secondary": _ELSEWHERE,
    "etcd": _ELSEWHERE,
    "nomad": _ELSEWHERE,
    "sign": _ELSEWHERE,
    "grpc": "`forward` asks upstreams over UDP, TCP, TLS and HTTPS",
    "erratic": "delete it: it is for tests",
    "on": "run the command outside of the server, such as in an init container",
    "view": "server blocks with different `bind` addresses answer different clients",
}

# Options of CoreDNS 1.14.7 that kdns would have to honour and can't yet: to leave them out would change answers.
OPTIONS_TO_COME: Mapping[str, tuple[str, ...]] = {
    "kubernetes": ("multicluster", "zonal"),
    "template": ("var",),
}

REMOVED_EVERYWHERE: Mapping[str, str] = {
    "upstream": "kdns resolves such names through itself: delete the line",
}


def unknown_directive(token: Token, known: Sequence[str]) -> Problem:
    """The problem of a directive that isn't among `known`, the ones kdns has: removed, to come, or misspelt."""
    name = token.text
    if name in REMOVED_DIRECTIVES:
        return Problem(f"`{name}` was removed from CoreDNS", token.place(), hint=REMOVED_DIRECTIVES[name])
    if name in COREDNS_DIRECTIVES:
        return Problem(f"`{name}` isn't in kdns yet", token.place(), hint=INSTEAD.get(name, ""))
    meant = nearest(name, known)
    return Problem(f"there is no directive `{name}`", token.place(), hint=f"did you mean `{meant}`?" if meant else "")
