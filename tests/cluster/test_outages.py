"""An API server that dies, falls silent or forgets: kdns answers as it did, says so, and catches up by itself.

All the while somebody asks for names that exist throughout; one wrong answer fails the test.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import control_plane
from tests.cluster.api import eventually
from tests.cluster.control_plane import ControlPlane, Namespace
from tests.cluster.serving import Server, asking, serving, upstream
from tests.cluster.test_services import HTTP, OUTSIDE, ZONE, reverse

# The back-off grows to 30 s, and as much by chance as it has grown.
BACK_SECONDS = 60.0
# The limit for a peer that has fallen silent, and what a busy machine takes for itself.
SILENCE_SECONDS = 20.0 + 5.0

# Waits that end at a limit of ours end before pytest's, so that they can say what they waited for.
pytestmark = pytest.mark.timeout(180)

KUBERNETES = (f"kubernetes.default.svc.{ZONE}", "A")


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane to break."""
    with control_plane.running() as found:
        yield found


def come_back(plane: ControlPlane) -> None:
    """Start what was killed, let go on what was stopped.

    The controllers start anew: they back off as well as kdns, and it isn't they who are tested.
    """
    for component in plane.components:
        if component.alive:
            component.cont()
        else:
            component.start()
    plane.api_server.wait_ready()
    plane.controller_manager.restart()


class Shop:
    """A namespace with a name of each sort, which exist as long as it does."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.address = str(namespace.service("web", ports=HTTP)["spec"]["clusterIP"])
        namespace.service("db", {"app": "db"}, HTTP, clusterIP="None")
        namespace.service("alias", ports=(), type="ExternalName", externalName=self.name("web").rstrip("."))
        namespace.pod("db-0", "10.1.0.7", {"app": "db"}, hostname="db-0", subdomain="db")
        namespace.wait_endpoints("db", {"10.1.0.7": True}, BACK_SECONDS)

    def name(self, service: str) -> str:
        return f"{service}.{self.namespace.name}.svc.{ZONE}"

    @property
    def questions(self) -> list[tuple[str, str]]:
        """What has an answer all the time."""
        return [
            KUBERNETES,
            (self.name("web"), "A"),
            (self.name("alias"), "A"),
            (self.name("db"), "A"),
            (self.name("db-0.db"), "A"),
            (self.name("_http._tcp.db"), "SRV"),
            (f"10-1-0-7.{self.namespace.name}.pod.{ZONE}", "A"),
            (reverse("10.1.0.7"), "PTR"),
            (reverse(self.address), "PTR"),
        ]

    def expect_all(self, server: Server) -> None:
        """Wait until every name has its answer."""
        for name, rtype in self.questions:
            eventually(lambda name=name, rtype=rtype: server.ask(name, rtype).answer, BACK_SECONDS, f"{name} {rtype}")

    def change(self, number: int) -> Callable[[Server], None]:
        """A new service, an old one that goes, a new endpoint; returns what waits until a server shows all of it."""
        address = str(self.namespace.service(f"new-{number}")["spec"]["clusterIP"])
        self.namespace.pod(f"db-{number}", f"10.1.1.{number}", {"app": "db"}, hostname=f"db-{number}", subdomain="db")
        if number > 1:
            self.namespace.delete("Service", f"new-{number - 1}")

        def seen(server: Server) -> None:
            server.expect(self.name(f"new-{number}"), "A", address, seconds=BACK_SECONDS)
            if number > 1:
                server.expect_nothing(self.name(f"new-{number - 1}"), seconds=BACK_SECONDS)
            # Through the EndpointSlice controller, which has to find back as well.
            server.expect(self.name(f"db-{number}.db"), "A", f"10.1.1.{number}", seconds=BACK_SECONDS)
            server.wait_connected(True, BACK_SECONDS)

        return seen


@pytest.fixture
def shop(plane: ControlPlane) -> Iterator[Shop]:
    with plane.namespace() as namespace:
        try:
            yield Shop(namespace)
        finally:
            # Whatever a test left behind: the namespace is to go, and the next test to find a cluster.
            come_back(plane)


@pytest.fixture
def outside() -> Iterator[str]:
    with upstream(OUTSIDE) as address:
        yield address


def options(plane: ControlPlane, *more: str) -> str:
    return "\n".join([f"kubeconfig {plane.kubeconfig()}", "pods verified", "ttl 30", *more])


@pytest.fixture
def server(plane: ControlPlane, shop: Shop, tmp_path: Path) -> Iterator[Server]:
    """kdns, once it has read all of the API."""
    with serving(tmp_path, options(plane)) as found:
        shop.expect_all(found)
        found.wait_connected(True)
        yield found


def test_an_api_server_that_is_killed_and_comes_back(plane: ControlPlane, shop: Shop, server: Server) -> None:
    with asking(server, *shop.questions) as asker:
        plane.api_server.kill()
        server.wait_connected(False)
        asker.more(50)
        # What doesn't exist still doesn't, and who asks whether we are well is told so.
        assert server.ask(shop.name("nobody")).rcode == "NXDOMAIN"
        assert server.get("/ready") == (200, "OK")
        come_back(plane)
        shop.change(1)(server)
        # It goes on where it stood, or lists again, if the server has forgotten that place.
        shop.change(2)(server)
    assert "Traceback" not in server.said


def test_an_etcd_that_is_killed_and_comes_back(plane: ControlPlane, shop: Shop, server: Server) -> None:
    with asking(server, *shop.questions) as asker:
        plane.etcd.kill()
        asker.more(50)
        come_back(plane)
        shop.change(1)(server)
        # The API server dies as well, so that it and kdns begin anew on what etcd kept.
        plane.etcd.kill()
        plane.api_server.kill()
        asker.more(50)
        come_back(plane)
        shop.change(2)(server)
    assert "Traceback" not in server.said


def test_a_history_that_was_forgotten_while_kdns_stood_still(plane: ControlPlane, shop: Shop, server: Server) -> None:
    # Nobody answers while it stands still.
    with asking(server, *shop.questions, silence=True) as asker:
        seen = shop.change(1)
        seen(server)
        server.stop()
        try:
            # What is sent to a process that stands still waits for it; so its connection ends first.
            plane.api_server.kill()
            come_back(plane)
            # All that can be missed: a thing that comes, one that changes, one that goes, one under an old name.
            seen = shop.change(2)
            shop.namespace.service("brief")
            shop.namespace.delete("Service", "brief")
            shop.namespace.delete("Service", "new-2")
            address = shop.namespace.service("new-2")["spec"]["clusterIP"]
            plane.compact()
            # The API server remembers by itself, until it ends.
            plane.api_server.kill()
            come_back(plane)
        finally:
            server.cont()
        server.expect(shop.name("new-2"), "A", address, seconds=BACK_SECONDS)
        server.expect_nothing(shop.name("new-1"), seconds=BACK_SECONDS)
        server.expect_nothing(shop.name("brief"))
        server.expect(shop.name("db-2.db"), "A", "10.1.1.2", seconds=BACK_SECONDS)
        server.wait_metric("kdns_kubernetes_relists_total", 1, kind="Service", reason="expired")
        server.wait_connected(True)
        asker.more(50)
        shop.change(3)(server)
    assert "Traceback" not in server.said


@pytest.mark.slow
def test_an_api_server_that_falls_silent_and_goes_on(
    plane: ControlPlane, shop: Shop, server: Server, outside: str, tmp_path: Path
) -> None:
    """Its kernel goes on acknowledging, so no connection ends."""
    with asking(server, *shop.questions) as asker:
        plane.api_server.stop()
        began = time.monotonic()
        # Somebody else starts in the midst of it.
        with serving(tmp_path, options(plane, "startup_timeout 1s"), outside) as cold:
            _assert_knows_nothing(cold, shop)
            eventually(lambda: "the API server has fallen silent" in server.said, SILENCE_SECONDS)
            assert time.monotonic() - began < SILENCE_SECONDS
            server.wait_connected(False)
            asker.more(50)
            assert server.get("/ready") == (200, "OK")
            come_back(plane)
            seen = shop.change(1)
            seen(server)
            shop.expect_all(cold)
            seen(cold)
            assert cold.get("/ready") == (200, "OK")
        server.says("watched again")
        shop.change(2)(server)


def _assert_knows_nothing(server: Server, shop: Shop) -> None:
    """Nothing is known of the cluster, and nothing is said about it; all else works."""
    for name, rtype in [*shop.questions, (shop.name("nobody"), "A"), (ZONE, "SOA")]:
        reply = server.ask(name, rtype, edns=True)
        # RFC 8914 §4.15: not ready.
        assert (reply.rcode, reply.answer, reply.errors) == ("SERVFAIL", [], [14]), f"{name} {rtype}\n{reply}"
    assert server.ask(*KUBERNETES).rcode == "SERVFAIL"
    assert server.ask("foo.example.com.").data == [OUTSIDE["foo.example.com."]]
    assert server.ask("nobody.example.com.").rcode == "NXDOMAIN"
    status, missing = server.get("/ready")
    assert status == 503
    assert "kubernetes" in missing
    assert server.get("/health")[0] == 200
    assert server.metric("kdns_kubernetes_synced") == 0


def test_a_start_without_an_api_server_that_comes_later(
    plane: ControlPlane, shop: Shop, outside: str, tmp_path: Path
) -> None:
    plane.api_server.kill()
    with serving(tmp_path, options(plane, "startup_timeout 1s"), outside) as server:
        _assert_knows_nothing(server, shop)
        said: list[str] = []
        plane.api_server.start(wait=False)

        def all_answered() -> bool:
            # Until all of it was read nothing is NXDOMAIN and nothing is half there.
            for name, rtype in shop.questions:
                reply = server.ask(name, rtype, "udp")
                said.append(reply.rcode if reply.answer or reply.rcode != "NOERROR" else "empty")
            return said[-1] == "NOERROR"

        eventually(all_answered, BACK_SECONDS)
        assert set(said) == {"SERVFAIL", "NOERROR"}
        come_back(plane)
        shop.expect_all(server)
        assert server.get("/ready") == (200, "OK")
        shop.change(1)(server)
    assert "Traceback" not in server.said


def test_a_start_from_the_last_known_state(plane: ControlPlane, shop: Shop, outside: str, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot.json"
    gone = shop.namespace.service("gone")["spec"]["clusterIP"]
    with_snapshot = options(plane, f"snapshot {snapshot} 1s")
    with serving(tmp_path, with_snapshot, outside) as server:
        shop.expect_all(server)
        assert server.ask(*shop.questions[1]).longest_ttl == 30
        eventually(lambda: snapshot.exists() and shop.address in snapshot.read_text(), BACK_SECONDS)
        server.end()
    # Nobody is there to see it.
    shop.namespace.delete("Service", "gone")
    new = shop.namespace.service("new")["spec"]["clusterIP"]
    shop.namespace.pod("db-9", "10.1.1.9", {"app": "db"}, hostname="db-9", subdomain="db")
    shop.namespace.wait_endpoints("db", {"10.1.0.7": True, "10.1.1.9": True}, BACK_SECONDS)
    plane.api_server.kill()

    with serving(tmp_path, with_snapshot, outside) as server, asking(server, *shop.questions) as asker:
        for name, rtype in [*shop.questions, (shop.name("gone"), "A")]:
            reply = server.ask(name, rtype, edns=True)
            assert reply.rcode == "NOERROR"
            assert reply.longest_ttl <= 5
            # RFC 8914 §4.4: stale answer.
            assert reply.errors == [3]
        assert server.ask(shop.name("gone")).data == [gone]
        absent = server.ask(shop.name("new"), edns=True)
        assert (absent.rcode, absent.errors, absent.longest_ttl) == ("NXDOMAIN", [3], 5)
        assert server.ask("foo.example.com.", edns=True).errors == []
        assert server.get("/ready") == (200, "OK")
        assert server.metric("kdns_kubernetes_stale") == 1
        assert "answering from a snapshot" in server.said
        asker.more(50)

        come_back(plane)
        server.expect_nothing(shop.name("gone"), seconds=BACK_SECONDS)
        server.expect_nothing(reverse(gone), "PTR", seconds=BACK_SECONDS)
        server.expect(shop.name("new"), "A", new, seconds=BACK_SECONDS)
        server.expect(shop.name("db"), "A", "10.1.0.7", "10.1.1.9", seconds=BACK_SECONDS)
        eventually(lambda: server.metric("kdns_kubernetes_stale") == 0, BACK_SECONDS)
        reply = server.ask(*shop.questions[1], edns=True)
        assert (reply.longest_ttl, reply.errors) == (30, [])
        shop.change(1)(server)
    assert "Traceback" not in server.said


def test_a_snapshot_that_is_too_old_answers_and_is_not_ready(plane: ControlPlane, shop: Shop, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot.json"
    with serving(tmp_path, options(plane, f"snapshot {snapshot} 1s")) as server:
        eventually(lambda: snapshot.exists() and shop.address in snapshot.read_text(), BACK_SECONDS)
        server.end()
    plane.api_server.kill()
    with serving(tmp_path, options(plane, f"snapshot {snapshot} 1s", "ready_on_snapshot 0s")) as server:
        shop.expect_all(server)
        assert server.get("/ready")[0] == 503


def test_ready_names_what_is_missing(plane: ControlPlane, shop: Shop, tmp_path: Path) -> None:
    plane.api_server.kill()
    with serving(tmp_path, options(plane, "startup_timeout 1s")) as server:
        status, missing = server.get("/ready")
        assert status == 503
        for each in ("kubernetes", "namespaces", "services", "endpointslices", "pods"):
            assert each in missing


def test_a_snapshot_that_was_cut_off_is_as_none(plane: ControlPlane, shop: Shop, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot.json"
    with serving(tmp_path, options(plane, f"snapshot {snapshot} 1s")) as server:
        eventually(lambda: snapshot.exists() and shop.address in snapshot.read_text(), BACK_SECONDS)
        server.end()
    snapshot.write_bytes(snapshot.read_bytes()[:-100])
    plane.api_server.kill()
    with serving(tmp_path, options(plane, f"snapshot {snapshot} 1s", "startup_timeout 1s")) as server:
        assert "the snapshot can't be used" in server.said
        assert server.ask(*KUBERNETES, edns=True).errors == [14]
        come_back(plane)
        shop.expect_all(server)
        eventually(lambda: shop.address in snapshot.read_text() and snapshot.read_text().endswith("]}\n"))
    with contextlib.suppress(FileNotFoundError):
        snapshot.unlink()
