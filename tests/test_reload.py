"""Reloads as a user has them: a changed Corefile is served, a broken one is not, and no query is lost meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.message
import dns.query
import pytest

from kdns import corefile, serve
from kdns.app import App, build
from kdns.chain import Process
from kdns.metrics import Metrics
from kdns.reloading import REFUSED, Reloading
from kdns.signals import ECHO_SECONDS, Signals
from tests import started
from tests.rollout import asking
from tests.started import Started

WEB = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}
"""


@contextmanager
def running(folder: Path, corefile: str) -> Iterator[Started]:
    (folder / "web.yaml").write_text(WEB)
    path = folder / "Corefile"
    path.write_text(corefile)
    with started.started("coredns", "-conf", str(path), "-dns.port", "PORT", cwd=folder) as server:
        yield server


def reload(server: Started, folder: Path, corefile: str) -> str:
    """Change the Corefile and tell the process. Returns what it said of it."""
    (folder / "Corefile").write_text(corefile)
    return server.reload()


def wait(check: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def block(*lines: str, zone: str = ".") -> str:
    return f"{zone} {{\n    bind 127.0.0.1\n" + "".join(f"    {line}\n" for line in lines) + "}\n"


KUBERNETES = "kubernetes cluster.local in-addr.arpa {\n inventory web.yaml\n}"


def test_a_changed_corefile_is_served_and_says_so(tmp_path: Path) -> None:
    with running(tmp_path, block(KUBERNETES)) as server:
        assert "5 IN A 10.96.0.7" in server.dig("+noall", "+answer", "web.shop.svc.cluster.local").replace("\t", " ")
        said = reload(server, tmp_path, block(KUBERNETES.replace("inventory", "ttl 60\n inventory")))
        assert said.splitlines()[0] == "[INFO] SIGUSR1: Reloading"
        assert "[INFO] plugin/reload: Running configuration SHA512 = " in said
        assert said.splitlines()[-1] == "[INFO] Reloading complete"
        # What was kept is from before.
        assert "60 IN A 10.96.0.7" in server.dig("+noall", "+answer", "web.shop.svc.cluster.local").replace("\t", " ")
        assert server.end() == 0


def test_a_broken_corefile_changes_nothing_and_is_told_with_its_place(tmp_path: Path) -> None:
    with running(tmp_path, block(KUBERNETES)) as server:
        said = reload(server, tmp_path, block(KUBERNETES, "forwrad . 192.0.2.1"))
        assert "Corefile:6:5" in said
        assert "forwrad" in said
        assert "[ERROR] SIGUSR1: Corefile changed but reload failed: " in said
        assert server.reload().splitlines()[1:] == said.splitlines()[1:], "who asks again is told again"
        assert "10.96.0.7" in server.dig("+short", "web.shop.svc.cluster.local")
        said = reload(server, tmp_path, block(KUBERNETES, "loadbalance"))
        assert "Reloading complete" in said


def test_what_is_worth_a_word_is_said_at_a_reload_as_at_start(tmp_path: Path) -> None:
    doubtful = block("errors", "whoami", "forward . 192.0.2.1 {\n doh_method GET\n}")
    with running(tmp_path, doubtful) as server:
        (word,) = (line for line in server.said.splitlines() if "doh_method" in line)
        assert word.startswith("[WARNING] ")
        assert word not in reload(server, tmp_path, block("whoami")).splitlines()
        assert word in reload(server, tmp_path, doubtful).splitlines()


def test_an_inventory_that_went_missing_keeps_the_old_configuration(tmp_path: Path) -> None:
    with running(tmp_path, block(KUBERNETES)) as server:
        said = reload(server, tmp_path, block(KUBERNETES.replace("web.yaml", "none.yaml")))
        assert "reload failed" in said
        assert "10.96.0.7" in server.dig("+short", "web.shop.svc.cluster.local")


def test_the_directive_looks_by_itself(tmp_path: Path) -> None:
    with running(tmp_path, block("reload 2s 0s", "whoami")) as server:
        assert "[INFO] plugin/reload: Running configuration SHA512 = " in server.said
        (tmp_path / "Corefile").write_text(block("reload 2s 0s", KUBERNETES))
        server.says("Reloading complete")
        assert "10.96.0.7" in server.dig("+short", "web.shop.svc.cluster.local")


def test_a_mistake_that_stays_is_told_once_and_another_one_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lines = ["whoami"]

    def read() -> corefile.Corefile:
        return corefile.parse(f". {{\n{lines[0]}\n}}", "Corefile")

    reloading = Reloading(App(build(read(), Process(Metrics()))), read, serve.log_warnings)
    reloading.begin()

    async def looks() -> list[list[str]]:
        """What is said of three looks, the first and the last line of each."""
        told: list[list[str]] = []
        for _ in range(3):
            caplog.clear()
            await reloading.look()
            said = [record.getMessage() for record in caplog.records]
            told.append([*said[:1], *said[-1:]])
        return told

    once = [["Reloading", REFUSED], [], []]
    for line, told in [
        ("whoami", [[]] * 3),
        ("whomai", once),
        ("forwrad", once),
        ("whoami", [[]] * 3),
        ("whomai", once),
    ]:
        lines[0] = line
        assert asyncio.run(looks()) == told


def test_a_file_that_is_empty_for_a_moment_is_not_served(tmp_path: Path) -> None:
    with running(tmp_path, block("reload 2s 0s", KUBERNETES)) as server:
        said = reload(server, tmp_path, "")
        assert "[ERROR] SIGUSR1: error: there is no server block" in said
        assert "10.96.0.7" in server.dig("+short", "web.shop.svc.cluster.local")
        (tmp_path / "Corefile").write_text(block("reload 2s 0s", "whoami"))
        server.says("Reloading complete")


def test_a_signal_before_it_serves_is_heeded_when_it_does(tmp_path: Path) -> None:
    http = started.free_port()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = f"endpoint http://127.0.0.1:{silent.getsockname()[1]}"
        late = f"kubernetes cluster.local {{\n {api}\n startup_timeout 1s\n}}"
        path = tmp_path / "Corefile"
        path.write_text(block(f"health 127.0.0.1:{http}", late, zone=f".:{started.free_port()}"))
        line = [started.COMMANDS / "coredns", "-conf", path]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=started.plain_environment()) as process:
            asking.wait(lambda: asking.page(http, "/health")[0] == 200)
            process.send_signal(signal.SIGUSR1)
            assert process.stdout is not None
            said = []
            for each in process.stdout:
                said.append(each.strip())
                if "Reloading complete" in each:
                    break
            process.terminate()
            assert process.wait(asking.PATIENCE_SECONDS) == 0
    assert said[0] == "[INFO] SIGUSR1: Reloading"
    assert any(each.startswith("CoreDNS-") for each in said[:-2]), "it was served first"
    assert said[-1] == "[INFO] Reloading complete"


def test_the_end_of_the_process_gives_up_a_reload(tmp_path: Path) -> None:
    with running(tmp_path, block(KUBERNETES)) as server, socket.create_server(("127.0.0.1", 0)) as silent:
        # It is waited for as long as the one that is served answers.
        api = f"endpoint http://127.0.0.1:{silent.getsockname()[1]}\n startup_timeout 0s"
        (tmp_path / "Corefile").write_text(block(f"kubernetes cluster.local {{\n {api}\n}}"))
        server.process.send_signal(signal.SIGUSR1)
        silent.settimeout(asking.PATIENCE_SECONDS)
        silent.accept()[0].close()
        assert "10.96.0.7" in server.dig("+short", "web.shop.svc.cluster.local")
        assert server.end() == 0
        assert server.said.splitlines()[-1] == "[INFO] SIGTERM: Shutting down servers then terminating"


def test_one_signal_that_the_loop_tells_twice_is_one() -> None:
    async def story() -> None:
        signals = Signals(asyncio.get_running_loop())
        os.kill(os.getpid(), signal.SIGTERM)
        await signals.told.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(ECHO_SECONDS / 4)
        assert not signals.hurry.is_set()
        await asyncio.sleep(ECHO_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        await signals.hurry.wait()

    asyncio.run(story())


def test_a_signal_while_it_reloads_has_the_file_read_once_more() -> None:
    async def story() -> None:
        read = 0
        parsed = corefile.parse(block("whoami", zone=f".:{started.free_port()}"), "Corefile")

        def again() -> corefile.Corefile:
            nonlocal read
            read += 1
            if read == 1:
                reloading.signalled()
            return parsed

        app = App(build(parsed, Process(Metrics())))
        reloading = Reloading(app, again, serve.log_warnings)
        await app.start()
        reloading.begin()
        await reloading.look()
        assert read == 2
        await reloading.end()
        await reloading.look()
        reloading.signalled()
        assert read == 2, "the process ends"
        await app.stop()

    asyncio.run(story())


def test_listeners_come_and_go(tmp_path: Path) -> None:
    other = started.free_port()
    with running(tmp_path, block("whoami")) as server:
        second = block(KUBERNETES, zone=f".:{other}")
        assert "complete" in reload(server, tmp_path, block("whoami") + second)
        assert "10.96.0.7" in started.dig("@127.0.0.1", "-p", str(other), "+short", "web.shop.svc.cluster.local")
        assert "complete" in reload(server, tmp_path, block("whoami"))

        def closed() -> bool:
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", other)) != 0

        wait(closed)
        assert "NOERROR" in server.dig("a.example")


def test_what_has_not_changed_lives_on(tmp_path: Path) -> None:
    with running(tmp_path, block(KUBERNETES)) as server:
        before = _children(server.process.pid)
        assert len(before) == 1
        reload(server, tmp_path, block(KUBERNETES, "loadbalance"))
        assert _children(server.process.pid) == before


def _children(pid: int) -> list[str]:
    """The processes that read inventories."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_no_query_is_lost_in_many_reloads(tmp_path: Path, tcp: bool) -> None:
    ask = dns.query.tcp if tcp else dns.query.udp
    query = dns.message.make_query("web.shop.svc.cluster.local", "A")
    with running(tmp_path, block(KUBERNETES)) as server:
        done = threading.Event()
        lost: list[object] = []
        asked = 0

        def client() -> None:
            nonlocal asked
            while not done.is_set():
                try:
                    reply = ask(query, "127.0.0.1", timeout=5, port=server.port)
                except Exception as error:
                    lost.append(error)
                else:
                    asked += 1
                    if not reply.answer:
                        lost.append(reply)

        threads = [threading.Thread(target=client) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for number in range(20):
                more = ["loadbalance"] if number % 2 else ["errors"]
                changed = (
                    KUBERNETES.replace("inventory", f"ttl {number}\n inventory") if number % 5 == 0 else KUBERNETES
                )
                assert "Reloading complete" in reload(server, tmp_path, block(changed, *more))
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert not lost
        assert asked > 100
        assert server.end() == 0
