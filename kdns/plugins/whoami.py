"""`whoami`: who asked, from which port, over which transport. For trying out a set-up.

Law: docs/plugins/whoami.md; like CoreDNS it says so in the additional section, and the answer section stays empty.
"""

from __future__ import annotations

import ipaddress
import struct

from kdns.chain import Answer, Next, Plugin, Request
from kdns.options import Options
from kdns.wire import names
from kdns.wire.records import Record, Type, address


class WhoamiOptions(Options, directive="whoami"):
    """It has none."""


class Whoami(Plugin):
    name = "whoami"
    options = WhoamiOptions

    async def handle(self, request: Request, next: Next) -> Answer:
        host, port = request.client
        qname = request.query.qname
        # A link-local address carries its interface, which is nothing to the client.
        packed = ipaddress.ip_address(host.partition("%")[0]).packed
        additional = [address(qname, 0, packed)]
        try:
            owner = names.from_labels([b"_" + request.transport.encode(), *names.labels_of(qname)])
        except ValueError:
            # No room for one more label: the address alone.
            pass
        else:
            additional.append(Record(owner, Type.SRV, 0, struct.pack("!HHH", 0, 0, port) + names.ROOT))
        return Answer(additional=additional, plugin=self.name)
