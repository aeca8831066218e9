"""kdns on a real API server: a process of its own, who asks it, and what stands between and behind.

A reply is compared as dig would print it. Each question goes over UDP and over TCP, and both must say the same.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import signal
import socket
import socketserver
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype

from tests import needs
from tests.cluster.api import eventually
from tests.started import COMMANDS, PATIENCE_SECONDS, ROOT, Started, free_port, plain_environment

# A busy machine is slow, not broken.
ANSWER_SECONDS = 5.0
VISIBLE_SECONDS = 20.0
ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"


class Reply:
    """What came back, in dig's notation: each section's records in alphabetical order, `ordered` as they came.

    The serial of a SOA, the time of the last change, is left out: others change the cluster, too.
    """

    def __init__(self, message: dns.message.Message) -> None:
        self.rcode = dns.rcode.to_text(message.rcode())
        self.ordered = _texts(message.answer)
        self.answer = sorted(self.ordered)
        self.authority = sorted(_texts(message.authority))
        self.additional = sorted(_texts(message.additional))
        self.authoritative = bool(message.flags & dns.flags.AA)
        # Extended DNS errors (RFC 8914) by their number.
        self.errors = [int(option.code) for option in message.options if option.otype == 15]

    @property
    def data(self) -> list[str]:
        """What the records of the answer say, without their names and TTLs."""
        return sorted(record.split(maxsplit=4)[4] for record in self.answer)

    @property
    def longest_ttl(self) -> int:
        """In seconds, of all records."""
        return max(int(record.split()[1]) for record in self.answer + self.authority + self.additional)

    def __str__(self) -> str:
        sections = {"answer": self.answer, "authority": self.authority, "additional": self.additional}
        lines = [f";; {name}\n" + "\n".join(found) for name, found in sections.items() if found]
        return "\n".join([self.rcode + (" aa" if self.authoritative else ""), *lines])


def _texts(section: Sequence[Any]) -> list[str]:
    return [
        re.sub(r"( SOA \S+ \S+) \d+", r"\1 SERIAL", f"{group.name} {group.ttl} IN {_type(group.rdtype)} {data}")
        for group in section
        for data in group
    ]


def _type(rtype: Any) -> str:
    return dns.rdatatype.to_text(rtype)


class Server(Started):
    """A running kdns and its HTTP port; `/ready`, `/health` and `/metrics` are there."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, http: int, log: Path) -> None:
        super().__init__(process, port, log)
        self.http = http

    # DNS

    def ask(self, name: str, rtype: str = "A", transport: str = "", edns: bool = False) -> Reply:
        """The reply to one question, by `udp` or `tcp`, or by both, which must be alike but for who may be shuffled."""
        if transport:
            return Reply(self._send(name, rtype, transport, edns))
        udp, tcp = (Reply(self._send(name, rtype, each, edns)) for each in ("udp", "tcp"))
        assert str(udp) == str(tcp), f"UDP and TCP differ for {name} {rtype}:\n{udp}\n\n{tcp}"
        return tcp

    def _send(self, name: str, rtype: str, transport: str, edns: bool) -> dns.message.Message:
        query = dns.message.make_query(name, rtype, use_edns=0 if edns else None)
        if transport == "tcp":
            return dns.query.tcp(query, "127.0.0.1", ANSWER_SECONDS, self.port)
        return dns.query.udp(query, "127.0.0.1", ANSWER_SECONDS, self.port, ignore_unexpected=True)

    def expect(self, name: str, rtype: str, *data: str, seconds: float = VISIBLE_SECONDS) -> Reply:
        """Wait until a name has exactly this data of a type, and return the reply that says so."""

        def same() -> Reply:
            reply = self.ask(name, rtype)
            assert (reply.rcode, reply.data) == ("NOERROR", sorted(data)), f"{name} {rtype}\n{reply}"
            assert reply.answer, f"{name} {rtype} is expected to have data"
            return reply

        return eventually(same, seconds)

    def expect_nothing(
        self, name: str, rtype: str = "A", rcode: str = "NXDOMAIN", seconds: float = VISIBLE_SECONDS
    ) -> Reply:
        """Wait until a name doesn't exist, or, with NOERROR, has nothing of a type; the zone's SOA says so."""

        def same() -> Reply:
            reply = self.ask(name, rtype)
            assert (reply.rcode, reply.answer) == (rcode, []), f"{name} {rtype}\n{reply}"
            assert [record.split()[3] for record in reply.authority] == ["SOA"], f"{name} {rtype}\n{reply}"
            return reply

        return eventually(same, seconds)

    # HTTP

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=ANSWER_SECONDS) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's numbers that have these labels; 0 where there is none."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            found = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
            if found and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found[1] or "")).items():
                total += float(found[2])
        return total

    def wait_metric(self, name: str, least: float, seconds: float = VISIBLE_SECONDS, **labels: str) -> None:
        """Wait until a metric has come to a number."""
        eventually(lambda: self.metric(name, **labels) >= least, seconds, f"{name} {labels} is below {least}")

    def wait_connected(self, connected: bool, seconds: float = 60.0) -> None:
        """Wait until kdns says that every watch is open, or isn't."""
        wanted = float(connected)
        eventually(lambda: self.metric("kdns_kubernetes_connected") == wanted, seconds, f"connected isn't {wanted}")

    # The process

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        self.process.send_signal(signal.SIGCONT)


def corefile(port: int, http: int, options: str, forward: str = "", more: Sequence[str] = ()) -> str:
    """A Corefile with all that tests look at; `options` are lines of `kubernetes`, `more` are other directives."""
    lines = [
        "bind 127.0.0.1",
        "errors",
        *(f"{each} 127.0.0.1:{http}" for each in ("health", "ready", "prometheus")),
        *more,
        "kubernetes cluster.local in-addr.arpa ip6.arpa {",
        *(f"    {line.strip()}" for line in options.strip().splitlines()),
        "}",
    ]
    lines += [f"forward . {forward}"] if forward else []
    return f".:{port} {{\n" + "".join(f"    {line}\n" for line in lines) + "}\n"


@contextlib.contextmanager
def serving(
    folder: Path,
    options: str,
    forward: str = "",
    environment: Mapping[str, str] | None = None,
    account_folder: Path | None = None,
    more: Sequence[str] = (),
) -> Iterator[Server]:
    """kdns with these lines in its `kubernetes`, once it listens; it ends with the block.

    With `account_folder` it runs as in a pod: that folder is where a service account's files are.
    """
    number = next(_NUMBERS)
    port, http = free_port(), free_port()
    written = folder / f"Corefile-{number}"
    written.write_text(corefile(port, http, options, forward, more))
    # setpriv: the kernel ends it when we end without coming to our own end.
    line = [needs.command("setpriv", "unshare"), "--pdeathsig", "KILL"]
    if account_folder is not None:
        needs.root()
        line += [*_AS_IN_A_POD, ACCOUNT_FOLDER, str(account_folder)]
    line += [str(COMMANDS / "coredns"), "-conf", str(written)]
    log = folder / f"said-{number}"
    with log.open("wb") as out:
        process = subprocess.Popen(
            line, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=plain_environment() | dict(environment or {})
        )
    server = Server(process, port, http, log)
    try:
        server.says("CoreDNS-")
        yield server
    except BaseException as error:
        error.add_note(f"what kdns said:\n{server.said}")
        raise
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)


_NUMBERS = itertools.count(1)
# A /var/run of its own, with nothing in it but the folder that a kubelet would have mounted.
_MOUNT = """
at=$1 from=$2
shift 2
mount -t tmpfs -o mode=755 none "$(readlink -f /var/run)"
mkdir -p "$at"
mount --bind "$from" "$at"
exec "$@"
"""
_AS_IN_A_POD = ["unshare", "--mount", "--propagation=private", "sh", "-euc", _MOUNT, "sh"]


class Asker:
    """Asks the same questions all the time, and keeps what it was told that it should not be told."""

    def __init__(self, server: Server, questions: Sequence[tuple[str, str]]) -> None:
        self.answered = 0
        self.unanswered = 0
        self.wrong: list[str] = []
        self._server = server
        self._questions = questions
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="asker")

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _ask(self) -> None:
        for number, (name, rtype) in enumerate(itertools.cycle(self._questions)):
            if self._ended.wait(0.005):
                return
            try:
                reply = self._server.ask(name, rtype, "tcp" if number % 10 == 9 else "udp")
            except (dns.exception.DNSException, OSError, EOFError):
                self.unanswered += 1
                continue
            self.answered += 1
            if reply.rcode != "NOERROR" or not reply.answer:
                self.wrong.append(f"{time.strftime('%T')} {name} {rtype}: {reply}")

    def more(self, count: int = 20) -> None:
        """Wait until it was answered some times more: what holds now, it has seen."""
        until = self.answered + count
        eventually(lambda: self.answered >= until, 60, "nothing is answered")


@contextlib.contextmanager
def asking(server: Server, *questions: tuple[str, str], silence: bool = False) -> Iterator[Asker]:
    """Ask for names that exist all the time. None of them may ever be NXDOMAIN, SERVFAIL or empty.

    Nor may a question remain without a reply, unless `silence` says that the server itself is stopped.
    """
    asker = Asker(server, questions)
    asker.start()
    try:
        asker.more()
        yield asker
        asker.more()
    finally:
        asker.end()
        assert not asker.wrong, "\n".join(asker.wrong[:10])
    assert silence or not asker.unanswered


# What stands behind: an upstream


class Upstream:
    """Answers A questions for the names that it knows; all others don't exist."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = {dns.name.from_text(name): address for name, address in names.items()}
        handlers = {socketserver.ThreadingUDPServer: _Datagram, socketserver.ThreadingTCPServer: _Stream}
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self._servers = [kind(("127.0.0.1", port), handler) for kind, handler in handlers.items()]
        self._threads = []
        for server in self._servers:
            server.daemon_threads = True
            server.answer = self._answer  # type: ignore[attr-defined]
            self._threads.append(threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True))
            self._threads[-1].start()

    def end(self) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    def _answer(self, packet: bytes) -> bytes:
        query = dns.message.from_wire(packet)
        reply = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        address = self._names.get(question.name)
        if address is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A:
            reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", address))
        return reply.to_wire()


class _Datagram(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        packet, sock = self.request
        sock.sendto(self.server.answer(packet), self.client_address)  # type: ignore[attr-defined]


class _Stream(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while size := self.rfile.read(2):
                reply = self.server.answer(self.rfile.read(int.from_bytes(size, "big")))  # type: ignore[attr-defined]
                self.wfile.write(len(reply).to_bytes(2, "big") + reply)


@contextlib.contextmanager
def upstream(names: Mapping[str, str]) -> Iterator[str]:
    """The address and port of an upstream that knows these names, for as long as the block lasts."""
    found = Upstream(names)
    try:
        yield found.address
    finally:
        found.end()


# What stands between: a way to the API that can be cut


class Way:
    """Passes bytes on from a port of its own to a server's, until it is cut; the next connection goes through again."""

    def __init__(self, address: str, port: int) -> None:
        self._to = (address, port)
        self._listener = socket.create_server((address, 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """End every connection, as a server does that goes away."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._to, ANSWER_SECONDS)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._pairs.append((near, far))
            passing = [threading.Thread(target=_pass_on, args=each, daemon=True) for each in ((near, far), (far, near))]
            for thread in passing:
                thread.start()
            threading.Thread(target=_close_after, args=(passing, near, far), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for sock in (source, target):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _close_after(passing: Sequence[threading.Thread], *socks: socket.socket) -> None:
    for thread in passing:
        thread.join()
    for sock in socks:
        sock.close()


@contextlib.contextmanager
def way(address: str, port: int) -> Iterator[Way]:
    """A way to a server, for as long as the block lasts."""
    found = Way(address, port)
    try:
        yield found
    finally:
        found.end()


def search(ask: Callable[[str], Reply], name: str, domains: Sequence[str], final: bool = True) -> Reply:
    """What a resolver finds that walks a search list, first to last, and then asks for the name as it is.

    It ends as musl does, at the first reply that isn't NXDOMAIN; that is what glibc goes on from, too, if it is empty.
    """
    reply = None
    for domain in [*domains, *([""] if final else [])]:
        reply = ask(f"{name}.{domain.strip('.')}.".replace("..", "."))
        if reply.rcode != "NXDOMAIN":
            break
    assert reply is not None
    return reply


def some_address() -> str:
    """An address for a pod that no other test has, by all likelihood."""
    return f"10.{random.randrange(128, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"


def environment_of(port: int) -> dict[str, str]:
    """The variables of a pod whose API server is at this port of loopback."""
    return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
