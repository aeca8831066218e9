"""The end of the process, as those see it who ask it, probe it and wait for it."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import pytest

from tests import started
from tests.rollout.asking import NAME, PATIENCE_SECONDS, addresses, ask, page, wait
from tests.rollout.load import HOST
from tests.rollout.port import Port
from tests.rollout.upstreams import ADDRESS, upstream


class Asking:
    """Asks the same over UDP, one question after the other, until the port is closed. `ended` is when that was."""

    def __init__(self, port: Port) -> None:
        self.answers: list[list[str]] = []
        self.ended = 0.0
        self.failure: Exception | None = None
        self._port = port
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()

    def _ask(self) -> None:
        packet = dns.message.make_query(NAME, "A").to_wire()
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE_SECONDS)
            sock.connect((HOST, self._port.number))
            try:
                while True:
                    sock.send(packet)
                    self.answers.append(addresses(dns.message.from_wire(sock.recv(4096))))
                    time.sleep(0.002)
            except ConnectionRefusedError:
                self.ended = time.monotonic()
            except Exception as error:
                self.failure = error


def test_the_whole_lameduck_is_served_while_ready_says_that_it_ends(tmp_path: Path) -> None:
    http = started.free_port()
    port = Port(tmp_path, 9)
    port.write("bind 127.0.0.1", f"health 127.0.0.1:{http} {{\n lameduck 2s\n}}", f"ready 127.0.0.1:{http}")
    with port.serving() as server:
        asking = Asking(port)
        assert page(http, "/ready") == (200, "OK")
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.says("Going into lameduck mode for 2s")
        assert page(http, "/ready") == (503, "Shutting down")
        assert page(http, "/health") == (200, "OK")
        for tcp in (False, True):
            assert addresses(ask(port.number, tcp=tcp)) == ["10.96.0.7"]
        asking.wait()
        assert server.process.wait(PATIENCE_SECONDS) == 0
        assert server.said.splitlines()[-2:] == [
            "[INFO] SIGTERM: Shutting down servers then terminating",
            "[INFO] plugin/health: Going into lameduck mode for 2s",
        ]
    assert asking.failure is None, "each was answered until the port was closed"
    assert asking.answers == [["10.96.0.7"]] * len(asking.answers)
    assert asking.ended - told >= 2.0


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_who_waits_for_an_upstream_when_it_ends_gets_the_answer(tmp_path: Path, tcp: bool) -> None:
    with upstream(delay_seconds=1.0) as found:
        port = Port(tmp_path, found.port)
        port.write("bind 127.0.0.1")
        with port.serving() as server:
            replies: list[dns.message.Message] = []
            waiting = threading.Thread(target=lambda: replies.append(ask(port.number, "www.example.", tcp)))
            waiting.start()
            wait(lambda: found.asked > 0)
            assert server.end() == 0
            waiting.join(PATIENCE_SECONDS)
    assert [addresses(reply) for reply in replies] == [[ADDRESS]]


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_who_waits_for_an_upstream_that_is_silent_is_told_before_the_end(tmp_path: Path, tcp: bool) -> None:
    with upstream(delay_seconds=None) as found:
        port = Port(tmp_path, found.port)
        port.write("bind 127.0.0.1")
        with port.serving() as server:
            replies: list[dns.message.Message] = []
            waiting = threading.Thread(target=lambda: replies.append(ask(port.number, "www.example.", tcp)))
            waiting.start()
            wait(lambda: found.asked > 0)
            assert server.end() == 0
            waiting.join(PATIENCE_SECONDS)
    assert [dns.rcode.to_text(reply.rcode()) for reply in replies] == ["SERVFAIL"]


def test_a_connection_without_a_question_is_closed_and_no_other_is_taken(tmp_path: Path) -> None:
    port = Port(tmp_path, 9)
    port.write("bind 127.0.0.1")
    with port.serving() as server, socket.create_connection((HOST, port.number), PATIENCE_SECONDS) as idle:
        query = dns.message.make_query(NAME, "A")
        dns.query.send_tcp(idle, query)
        reply, _ = dns.query.receive_tcp(idle)
        assert addresses(reply) == ["10.96.0.7"]
        server.process.send_signal(signal.SIGTERM)
        assert idle.recv(1) == b"", "a FIN, no reset"
        assert server.process.wait(PATIENCE_SECONDS) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port.number))


def test_it_can_be_ended_before_it_serves(tmp_path: Path) -> None:
    port, http = started.free_port(), started.free_port()
    with socket.create_server((HOST, 0)) as silent:
        api = f"http://{HOST}:{silent.getsockname()[1]}"
        kubernetes = f"kubernetes cluster.local {{\n endpoint {api}\n}}"
        (tmp_path / "Corefile").write_text(f".:{port} {{\nhealth {HOST}:{http}\n{kubernetes}\n}}\n")
        line = [started.COMMANDS / "coredns", "-conf", tmp_path / "Corefile"]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=started.plain_environment()) as process:
            wait(lambda: page(http, "/health")[0] == 200)
            process.terminate()
            said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert said.endswith("[INFO] SIGTERM: Shutting down servers then terminating\n")
    assert "CoreDNS-" not in said, "it never listened"
