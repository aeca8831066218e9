"""`autopath`: the search list of a client, gone through here instead of there.

A resolver with a search list asks for one name after the other until one exists. Who asks for the first of them in vain
is given what it would have found at the end. Each name on the way is asked of the whole server, as the client would
have done it, so that policies see the name that is answered.
Law: docs/plugins/autopath.md.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Coroutine, Iterable, Sequence
from typing import Annotated, Any, ClassVar

import msgspec

from kdns.chain import Answer, Block, Next, Plugin, Request
from kdns.corefile import Token, read_regular
from kdns.kubernetes.cluster import namespace_tag
from kdns.metrics import AUTOPATH_SUCCESS
from kdns.options import Fault, Options, RefusalError, WordError, argument, custom, flag, zones
from kdns.plugins.kubernetes import Kubernetes, kubernetes_of
from kdns.searching import aliased, search_domains
from kdns.wire import names
from kdns.wire.records import CLASS_IN, Rcode

KUBERNETES = "@kubernetes"
# The search domains of the node, where the server runs as its pods do.
OWN_RESOLV_CONF = "/etc/resolv.conf"


class Path(msgspec.Struct, frozen=True):
    """The zones in whose names a search list is looked for, and the list; None is that of the client's namespace."""

    zones: tuple[str, ...] = ()
    domains: tuple[bytes, ...] | None = None


def _read_path(tokens: Sequence[Token]) -> Path:
    *before, source = tokens
    of_zones = zones().read(before)
    if source.text == KUBERNETES:
        return Path(of_zones)
    if source.text.startswith("@"):
        raise RefusalError(source, f"a file in the form of /etc/resolv.conf, or `{KUBERNETES}`")
    try:
        domains = search_domains(read_regular(source.text))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise WordError(source, f"`{source.text}` can't be read: {reason}") from error
    if not domains:
        raise WordError(source, f"`{source.text}` has no search list: there is nothing to go through")
    return Path(of_zones, tuple(domains))


class AutopathOptions(Options, directive="autopath", once=True):
    path: Annotated[
        Path,
        argument(custom(_read_path, "[ZONES...] RESOLV-CONF|@kubernetes", "a file or `@kubernetes`", most=None)),
        "names in these zones, those of the block unless given, are looked up along this list",
    ]
    namespace_in_name: Annotated[
        bool, flag(), "with `@kubernetes`: the first name of a search list says itself whose it is"
    ] = False

    def faults(self) -> Iterable[Fault]:
        """A namespace that nobody looks for."""
        if self.namespace_in_name and self.path.domains is not None:
            yield Fault("namespace_in_name", f"`namespace_in_name` is for `{KUBERNETES}`")


class Autopath(Plugin):
    """Answers the first name of a search list with what the list leads to."""

    name: ClassVar[str] = "autopath"
    options: ClassVar[type[Options]] = AutopathOptions
    # What it says of one name it says of no sibling, and other names go through untouched.
    heeds_names: ClassVar[bool] = False

    def __init__(self, options: AutopathOptions, block: Block) -> None:
        path = options.path
        self._zones = names.Zones(map(names.from_text, path.zones or map(names.to_text, block.zones)))
        self._domains = path.domains
        self._of_client = path.domains is None and not options.namespace_in_name
        if self._of_client:
            block.locates_clients, self.locate = True, self._namespace_of
        self._metrics, self._server = block.process.metrics, block.server
        self._kubernetes: Kubernetes | None = None
        self._node_domains: list[bytes] = []
        if path.domains is None:
            with contextlib.suppress(OSError):
                self._node_domains = search_domains(read_regular(OWN_RESOLV_CONF))

    def join(self, block: Block) -> None:
        """Find the cluster whose namespaces the search lists are of."""
        if self._domains is not None:
            return
        self._kubernetes = kubernetes_of(block, f"autopath {KUBERNETES}")

    def notices(self) -> Iterable[str]:
        if self._of_client:
            yield "no list for pods in the network of their node, nor where pods of two namespaces have one address"
        if self._of_client and self._kubernetes is not None and self._kubernetes.view.pods != "verified":
            yield "works without `pods verified`, and watches the pods"

    def _namespace_of(self, address: bytes) -> bytes:
        """The namespace of the pod that has this address."""
        assert self._kubernetes is not None
        return self._kubernetes.namespace_at(address) or b""

    def handle(self, request: Request, next: Next) -> Coroutine[Any, Any, Answer]:
        """Names outside of the zones cost little here."""
        query = request.query
        if request.absolute or query.rclass != CLASS_IN or not self._zones.hold(query.qname, query.labels):
            return next(request)
        return self._first(request, next)

    async def _first(self, request: Request, next: Next) -> Answer:
        """The answer to the name itself if it exists, or to one that its list leads to."""
        answer = await next(request)
        if answer.rcode != Rcode.NXDOMAIN:
            return answer
        found = self._list_of(request) if self._kubernetes is not None else self._given_list(request.query.labels)
        if found is None:
            return answer
        # Another name of the same parent may be found where this one isn't. And that the others aren't there either is
        # known for a time of its own.
        request.siblings, answer.lifetime = None, None
        return await self._walk(request, answer, *found)

    def _given_list(self, labels: list[bytes]) -> tuple[list[bytes], Sequence[bytes]] | None:
        """What the client had in mind, and the domains that it would try next, root last."""
        assert self._domains is not None
        first, *rest = self._domains
        domain = names.labels_of(first)
        count = len(labels) - len(domain)
        if count < 1 or labels[count:] != domain:
            return None
        return labels[:count], (*rest, names.ROOT)

    def _list_of(self, request: Request) -> tuple[list[bytes], Sequence[bytes]] | None:
        """The same, where the list is that of the client's namespace."""
        assert self._kubernetes is not None
        labels = request.query.labels
        zone = self._kubernetes.forward_zone_of(labels)
        if zone is None:
            return None
        left = labels[: len(labels) - len(names.labels_of(zone))]
        if len(left) < 3 or left[-1] != b"svc":
            return None
        # Whoever denied the name may know nothing of namespaces.
        request.tags.add(namespace_tag(left[-2]))
        if left[-2] not in self._kubernetes.cluster.namespaces:
            return None
        if self._of_client and request.stand(self._namespace_of) != left[-2]:
            return None
        outside = [domain for domain in self._node_domains if not domain.endswith(zone)]
        return left[:-2], (b"\x03svc" + zone, zone, *outside, names.ROOT)

    async def _walk(self, request: Request, answer: Answer, base: list[bytes], domains: Sequence[bytes]) -> Answer:
        """The answer to the first name that exists; if there is none, the one that is there already.

        In the latter case the client goes on by itself, and ends where it would have ended.
        """
        query = request.query
        for domain in domains:
            try:
                name = names.from_labels([*base, *names.labels_of(domain)])
            except ValueError:
                continue
            before = request.until
            found = await request.ask(name, query.rtype)
            if found.rcode == Rcode.NXDOMAIN or found.unclaimed:
                continue
            # An alias that leads to no record holds for as long as that there is none (RFC 2308 §5).
            ttl_of_none = min([record.ttl for record in found.authority], default=0)
            made = aliased(query, name, found, ttl_of_none, self.name)
            if before != math.inf:
                # That the names before it don't exist is known for a time of its own.
                made.lifetime = None
            request.used = (*request.used, self._succeeded)
            return made
        return answer

    def _succeeded(self, times: int) -> None:
        self._metrics.increase(AUTOPATH_SUCCESS, self._server, by=times)
