"""Every row of tests/cases: asked of the responder, of a UDP socket and of a TCP socket, and each reply compared whole.

A file is a cluster (`objects`: manifests, or the path of an inventory), what the `kubernetes` block says (`options`),
perhaps an `upstream`, and rows. A section that a row doesn't name has to be empty; a serial is written `SERIAL`, and is
the cluster's.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import msgspec
import pytest
import uvloop

from kdns import corefile
from kdns.app import App, Configuration, build, own_addresses
from kdns.chain import Process
from kdns.kubernetes import inventory
from kdns.kubernetes.objects import Put, Synced
from kdns.metrics import Metrics
from kdns.plugins.kubernetes import Kubernetes
from kdns.responder import Responder
from kdns.server.tcp import open_tcp
from kdns.server.udp import open_udp

CASES = Path(__file__).parent / "cases"
ROOT = CASES.parent.parent
NOON = 1_700_000_000
HOST = "127.0.0.1"
SECONDS = 5.0

COREFILE = """
.:PORT {
    bind 127.0.0.1
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        INVENTORY
        OPTIONS
    }
    FORWARD
}
"""

T = TypeVar("T")


class Upstream(msgspec.Struct, forbid_unknown_fields=True):
    """A server behind kdns: its records, and the names for which it fails.

    Of `large` names no record comes over UDP, with TC; of `endless` ones a part comes, with TC, over TCP too.
    """

    records: list[str] = []
    servfail: list[str] = []
    large: list[str] = []
    endless: list[str] = []


class Row(msgspec.Struct, forbid_unknown_fields=True):
    """A question and its whole reply. `error` is an extended error (RFC 8914): code and text."""

    name: str
    ask: str
    status: str = "NOERROR"
    flags: str = "qr aa"
    answer: list[str] = []
    authority: list[str] = []
    additional: list[str] = []
    error: str = ""
    ordered: bool = False

    def lines(self) -> list[str]:
        """The reply that is expected, in dig's notation."""
        sections = [
            [" ".join(line.split()) for line in each] for each in (self.answer, self.authority, self.additional)
        ]
        return _drawn(self.status, self.flags, self.error, sections, self.ordered)


class Case(msgspec.Struct, forbid_unknown_fields=True):
    """A file of rows. `soa` only holds what rows repeat."""

    about: str
    cases: list[Row]
    options: str = ""
    corefile: str = COREFILE
    objects: str = ""
    synced: bool = True
    upstream: Upstream | None = None
    soa: Any = None


class Running:
    """One file's cluster, twice: as a responder that was told all, and as a server that read its inventory."""

    def __init__(self, loop: asyncio.AbstractEventLoop, case: Case, folder: Path) -> None:
        self._loop = loop
        self._fake: list[asyncio.BaseTransport | asyncio.Server] = []
        self.port = _free_port()
        text = self._corefile(case, folder)
        self._told = build(corefile.parse(text, "Corefile"), Process(Metrics(), lambda: NOON))
        self._told.process.addresses = own_addresses([HOST])
        if case.synced:
            for plugin in _kubernetes(self._told):
                objects = inventory.load(plugin.inventory_paths, plugin.inventory_options).objects
                plugin.apply([*map(Put, objects.values()), Synced()])
        self._responder = Responder(self._told.listeners[0].sites, self._told.process, self._told.process.metrics)
        self._serving = build(corefile.parse(text, "Corefile"), Process(Metrics(), lambda: NOON))
        self._app = App(self._serving)
        self._run(self._app.start())

    def stop(self) -> None:
        self._run(self._close())

    def ask(self, row: Row, way: str) -> list[str]:
        """The reply to a row's question, in dig's notation."""
        name, rtype = row.ask.split()
        query = dns.message.make_query(name, rtype, flags=0, use_edns=0, payload=1232)
        packet = query.to_wire()
        if way == "responder":
            wire, asked = self._run(self._respond(packet)), self._told
        else:
            wire, asked = (_ask_udp if way == "udp" else _ask_tcp)(packet, self.port), self._serving
        reply = dns.message.from_wire(wire, one_rr_per_rrset=True)
        assert reply.id == query.id
        assert [each.to_text() for each in reply.question] == [each.to_text() for each in query.question]
        return reply_lines(reply, {plugin.cluster.serial for plugin in _kubernetes(asked)}, row.ordered)

    def _corefile(self, case: Case, folder: Path) -> str:
        path = ROOT / case.objects.strip()
        if "\n" in case.objects.strip():
            path = folder / "objects.yaml"
            path.write_text(case.objects)
        forward = ""
        if case.upstream is not None:
            forward = f"forward . {HOST}:{self._run(self._start_upstream(case.upstream))}"
        # An API server that isn't there, and no patience with it.
        given = f"inventory {path}" if case.synced else f"endpoint http://{HOST}:9\nstartup_timeout 0s"
        text = case.corefile.replace("INVENTORY", given).replace("OPTIONS", case.options)
        return text.replace("PORT", str(self.port)).replace("FORWARD", forward)

    async def _start_upstream(self, upstream: Upstream) -> int:
        port = _free_port()
        fake = _Fake(upstream)
        udp, _ = await self._loop.create_datagram_endpoint(lambda: fake, (HOST, port))
        self._fake = [udp, await asyncio.start_server(fake.serve, HOST, port)]
        return port

    async def _respond(self, packet: bytes) -> bytes:
        later: asyncio.Future[bytes] = self._loop.create_future()
        reply = self._responder.respond(packet, "udp", (HOST, 4711), (HOST, self.port), later.set_result)
        return reply if isinstance(reply, bytes) else await later

    async def _close(self) -> None:
        await self._app.stop()
        for plugin in self._told.plugins:
            plugin.close()
        for each in self._fake:
            each.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)


class _Fake(asyncio.DatagramProtocol):
    """An upstream server of a few records."""

    def __init__(self, upstream: Upstream) -> None:
        self._records = [line.split(maxsplit=4) for line in upstream.records]
        self._failing = upstream.servfail
        self._large, self._endless = upstream.large, upstream.endless

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._transport.sendto(self._reply(data, "udp"), addr)  # type: ignore[attr-defined]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (size,) = struct.unpack("!H", await reader.readexactly(2))
                reply = self._reply(await reader.readexactly(size), "tcp")
                writer.write(struct.pack("!H", len(reply)) + reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _reply(self, packet: bytes, transport: str) -> bytes:
        query = dns.message.from_wire(packet)
        name, rtype = query.question[0].name.to_text().lower(), dns.rdatatype.to_text(query.question[0].rdtype)
        reply = dns.message.make_response(query, recursion_available=True)
        at_name = [record for record in self._records if record[0] == name]
        for owner, ttl, rclass, kind, data in at_name:
            if kind == rtype:
                reply.answer.append(dns.rrset.from_text(owner, int(ttl), rclass, kind, data))
        if name in self._failing:
            reply.set_rcode(dns.rcode.SERVFAIL)
        elif not at_name:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        if name in self._large and transport == "udp":
            reply.answer.clear()
            reply.flags |= dns.flags.TC
        if name in self._endless:
            reply.flags |= dns.flags.TC
        return reply.to_wire()


def reply_lines(reply: dns.message.Message, serials: Iterable[int], ordered: bool = False) -> list[str]:
    """A reply in dig's notation, its serials replaced by `SERIAL`."""
    sections = [
        [
            f"{rrset.name} {rrset.ttl} IN {dns.rdatatype.to_text(rrset.rdtype)} {rdata}"
            for rrset in section
            for rdata in rrset
        ]
        for section in (reply.answer, reply.authority, reply.additional)
    ]
    for serial in serials:
        sections = [
            [line.replace(f" {serial} ", " SERIAL ") if " SOA " in line else line for line in section]
            for section in sections
        ]
    errors = [f"{each.code.value} {each.text}" for each in reply.options if isinstance(each, dns.edns.EDEOption)]
    flags = dns.flags.to_text(reply.flags).lower()
    return _drawn(dns.rcode.to_text(reply.rcode()), flags, ", ".join(errors), sections, ordered)


def side_by_side(expected: list[str], got: list[str]) -> str:
    """Two replies in two columns, `|` between lines that differ."""
    width = max(map(len, [*expected, "expected"]))
    rows = [("expected", "got", " ")]
    rows += [(left, right, " " if left == right else "|") for left, right in zip_longest(expected, got, fillvalue="")]
    return "\n".join(f"{left:{width}} {mark} {right}".rstrip() for left, right, mark in rows)


def _drawn(status: str, flags: str, error: str, sections: list[list[str]], ordered: bool) -> list[str]:
    lines = [f";; status: {status}, flags: {flags}"]
    if error:
        lines.append(f"; EDE: {error}")
    for title, records in zip(("ANSWER", "AUTHORITY", "ADDITIONAL"), sections, strict=True):
        if records:
            lines += [f";; {title}:", *(records if ordered else sorted(records))]
    return lines


def _kubernetes(configuration: Configuration) -> list[Kubernetes]:
    return [plugin for plugin in configuration.plugins if isinstance(plugin, Kubernetes)]


def _ask_udp(packet: bytes, port: int) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        sock.connect((HOST, port))
        sock.send(packet)
        return sock.recv(65535)


def _ask_tcp(packet: bytes, port: int) -> bytes:
    with socket.create_connection((HOST, port), SECONDS) as sock, sock.makefile("rb") as stream:
        sock.sendall(struct.pack("!H", len(packet)) + packet)
        (size,) = struct.unpack("!H", stream.read(2))
        return stream.read(size)


def _free_port() -> int:
    with open_tcp(HOST, 0) as tcp:
        port = int(tcp.getsockname()[1])
        with open_udp(HOST, port):
            return port


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread, as long as there are rows."""
    made = uvloop.new_event_loop()
    thread = threading.Thread(target=made.run_forever, daemon=True)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """The server of one file of rows."""
    made = Running(loop, request.param, tmp_path_factory.mktemp("cluster"))
    yield made
    made.stop()


FILES = {path.stem: msgspec.yaml.decode(path.read_bytes(), type=Case) for path in sorted(CASES.glob("*.yaml"))}


@pytest.mark.parametrize("way", ["responder", "udp", "tcp"])
@pytest.mark.parametrize(
    ("running", "row"),
    [pytest.param(case, row, id=f"{stem}: {row.name}") for stem, case in FILES.items() for row in case.cases],
    indirect=["running"],
    scope="module",
)
def test_case(running: Running, row: Row, way: str) -> None:
    expected, got = row.lines(), running.ask(row, way)
    if expected != got:
        pytest.fail(f"{row.name}\n; {row.ask} ({way})\n{side_by_side(expected, got)}", pytrace=False)


def test_each_row_has_a_name_of_its_own() -> None:
    names = [f"{stem}: {row.name}" for stem, case in FILES.items() for row in case.cases]
    assert len(names) == len(set(names))
