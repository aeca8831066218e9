"""`local`: names that mean this machine wherever they are asked, and that nobody else should be asked for.

Law: docs/plugins/local.md, RFC 6761 §6.3 (localhost), RFC 6303 §4 (the reverse zones).
"""

from __future__ import annotations

import struct
from collections.abc import Coroutine
from typing import Annotated, Any, ClassVar

from kdns.chain import Answer, Block, Next, Plugin, Request
from kdns.metrics import LOCAL_REQUESTS
from kdns.options import Options, choice
from kdns.wire import names
from kdns.wire.records import CLASS_IN, Rcode, Record, Type, address

TTL_SECONDS = 604800

_LOCALHOST = names.from_text("localhost")
_REVERSE = tuple(names.labels_of(names.from_text(f"{net}.in-addr.arpa")) for net in (0, 127, 255))
_LOOPBACK = names.labels_of(names.from_text("1.0.0.127.in-addr.arpa"))
_SOA = _LOCALHOST + names.from_text("root.localhost") + struct.pack("!5I", 1, 0, 0, 0, TTL_SECONDS)
_ADDRESSES = {Type.A: b"\x7f\x00\x00\x01", Type.AAAA: bytes(15) + b"\x01"}


class LocalOptions(Options, directive="local"):
    localhost_prefix: Annotated[
        str, choice("on", "off"), "whether names that begin with `localhost.` are this machine's, too"
    ] = "on"


class Local(Plugin):
    name = "local"
    options: ClassVar[type[Options]] = LocalOptions

    def __init__(self, options: LocalOptions, block: Block) -> None:
        self._metrics = block.process.metrics
        self._takes_prefix = options.localhost_prefix == "on"

    def notices(self) -> tuple[str, ...]:
        """RFC 8020, which CoreDNS doesn't heed here."""
        return ("`0.0.127.in-addr.arpa` and `0.127.in-addr.arpa` exist, without data",)

    def handle(self, request: Request, next: Next) -> Coroutine[Any, Any, Answer]:
        """All other names are the next plugin's; no coroutine of its own for them."""
        labels = request.query.labels
        if labels and request.query.rclass == CLASS_IN:
            # `localhost.shop.svc.cluster.local`: a search path was put behind it.
            if labels[-1] == b"localhost" or (labels[0] == b"localhost" and self._takes_prefix):
                return self._localhost(request)
            if labels[-3:] in _REVERSE:
                return self._reverse(request)
        return next(request)

    async def _localhost(self, request: Request) -> Answer:
        query = request.query
        packed = _ADDRESSES.get(query.rtype)
        if len(query.labels) > 1:
            self._metrics.increase(LOCAL_REQUESTS)
        if packed is not None:
            return self._says(address(query.qname, TTL_SECONDS, packed))
        return self._apex(request) if len(query.labels) == 1 else self._no_data(query.qname)

    async def _reverse(self, request: Request) -> Answer:
        query = request.query
        labels = query.labels
        if len(labels) == len(_REVERSE[0]):
            return self._apex(request)
        zone = names.from_labels(labels[-3:])
        if labels == _LOOPBACK and query.rtype == Type.PTR:
            return self._says(Record(query.qname, Type.PTR, TTL_SECONDS, _LOCALHOST))
        # RFC 8020: what has a name below it exists.
        if labels == _LOOPBACK[-len(labels) :]:
            return self._no_data(zone)
        return self._no_data(zone, Rcode.NXDOMAIN)

    def _apex(self, request: Request) -> Answer:
        zone = request.query.qname
        if request.query.rtype == Type.SOA:
            return self._says(_soa(zone))
        if request.query.rtype == Type.NS:
            return self._says(Record(zone, Type.NS, TTL_SECONDS, _LOCALHOST))
        return self._no_data(zone)

    def _says(self, record: Record) -> Answer:
        return Answer(answer=[record], flags=0, plugin=self.name)

    def _no_data(self, zone: bytes, rcode: int = Rcode.NOERROR) -> Answer:
        return Answer(rcode, authority=[_soa(zone)], flags=0, plugin=self.name)


def _soa(zone: bytes) -> Record:
    return Record(zone, Type.SOA, TTL_SECONDS, _SOA)
