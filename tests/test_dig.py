"""The started command, asked by a real dig: what a person at a shell sees."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs, started
from tests.started import Started

SHOP = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.3.4
  ports: [{name: http, port: 80}]
"""
CACHE = """\
apiVersion: v1
kind: Service
metadata: {name: cache, namespace: shop}
spec:
  clusterIP: 10.96.3.5
  ports: [{name: memcache, port: 11211}]
"""
MANY = 100


def crowd() -> str:
    """A headless service of so many pods that its addresses fit no UDP reply."""
    service = "apiVersion: v1\nkind: Service\nmetadata: {name: crowd, namespace: shop}\n"
    service += "spec: {clusterIP: None, selector: {app: crowd}, ports: [{name: http, port: 8080}]}\n"
    pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: crowd-%d, namespace: shop, labels: {app: crowd}}\n"
    pod += "status: {podIP: 10.1.7.%d}\n"
    return service + "".join(pod % (number, number) for number in range(1, MANY + 1))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """One server for all questions that change nothing."""
    needs.command("dig")
    folder = tmp_path_factory.mktemp("inventory")
    shutil.copytree(started.ROOT / "zones", folder, dirs_exist_ok=True)
    (folder / "crowd.yaml").write_text(crowd())
    with started.started("kdns", "serve", "--inventory", str(folder), "--listen", "127.0.0.1:PORT") as running:
        yield running


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        pytest.param("redis-master.default.svc.cluster.local", "10.0.0.11", id="a service has its ClusterIP"),
        pytest.param("REDIS-master.default.SVC.cluster.local", "10.0.0.11", id="names are the same in any case"),
        pytest.param("web.dual.svc.cluster.local AAAA", "fd00:10:96::50", id="a service of both families has an AAAA"),
        pytest.param(
            "cassandra.data.svc.cluster.local", "10.1.4.10\n10.1.4.11", id="a headless service has its ready endpoints"
        ),
        pytest.param(
            "_redis._tcp.redis-master.default.svc.cluster.local SRV",
            "0 100 6379 redis-master.default.svc.cluster.local.",
            id="a named port has an SRV",
        ),
        pytest.param("-x 10.0.0.11", "redis-master.default.svc.cluster.local.", id="a ClusterIP leads to its service"),
        pytest.param("-x fd00:10:96::50", "web.dual.svc.cluster.local.", id="and so does an IPv6 one"),
        pytest.param(
            "cache.shop.svc.cluster.local",
            "10.96.0.40\nmemcached.platform.svc.cluster.local.",
            id="an alias within the cluster is followed",
        ),
        pytest.param(
            "external-service.default.svc.cluster.local",
            "example.com.",
            id="an alias to outside stands alone without forward",
        ),
        pytest.param("dns-version.cluster.local TXT", '"1.1.0"', id="the schema tells its version"),
        pytest.param("nobody.default.svc.cluster.local", "", id="what doesn't exist has no answer"),
    ],
)
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_an_answer_is_the_same_over_udp_and_tcp(server: Started, question: str, answer: str, transport: str) -> None:
    said = server.dig("+short", transport, *question.split())
    assert sorted(said.splitlines()) == answer.splitlines()


@pytest.mark.parametrize(
    ("question", "status", "flags"),
    [
        pytest.param("nobody.default.svc.cluster.local", "NXDOMAIN", "qr aa rd", id="a name that doesn't exist"),
        pytest.param(
            "redis-master.default.svc.cluster.local MX", "NOERROR", "qr aa rd", id="a type that it doesn't have"
        ),
        pytest.param("www.example.com", "REFUSED", "qr rd", id="a name that is nobody's here"),
        pytest.param("CH TXT version.bind", "REFUSED", "qr rd", id="another class"),
        pytest.param(
            "+noedns redis-master.default.svc.cluster.local", "NOERROR", "qr aa rd", id="a client without EDNS"
        ),
        pytest.param("+norec redis-master.default.svc.cluster.local", "NOERROR", "qr aa", id="a client without RD"),
        pytest.param("+edns=1 +noednsneg cluster.local SOA", "BADVERS", "qr rd", id="a later EDNS"),
        pytest.param("+opcode=notify cluster.local SOA", "NOTAUTH", "qr rd", id="a NOTIFY"),
    ],
)
def test_the_header_tells_what_kind_of_answer_it_is(server: Started, question: str, status: str, flags: str) -> None:
    said = server.dig(*question.split())
    assert f"status: {status}," in said, said
    assert f";; flags: {flags};" in said, said


def test_a_negative_answer_carries_the_soa(server: Started) -> None:
    said = server.dig("+noall", "+authority", "nobody.default.svc.cluster.local")
    assert said.split()[:5] == ["cluster.local.", "5", "IN", "SOA", "ns.dns.cluster.local."]


@pytest.mark.parametrize("cookie", ["+cookie", "+nocookie"])
def test_a_cookie_is_neither_echoed_nor_minded(server: Started, cookie: str) -> None:
    said = server.dig(cookie, "redis-master.default.svc.cluster.local")
    assert "status: NOERROR" in said
    assert "COOKIE" not in said


def test_without_edns_no_opt_comes_back(server: Started) -> None:
    assert "OPT PSEUDOSECTION" not in server.dig("+noedns", "redis-master.default.svc.cluster.local")


@pytest.mark.parametrize("size", ["+bufsize=512", "+bufsize=4096", "+noedns"])
def test_a_large_answer_is_cut_and_then_whole_over_tcp(server: Started, size: str) -> None:
    name = "crowd.shop.svc.cluster.local"
    cut = server.dig("+ignore", size, name)
    assert ";; flags: qr aa tc rd;" in cut
    addresses = [line for line in cut.splitlines() if line.startswith(name)]
    # RFC 9715: never more than 1232 bytes, whatever the client takes.
    assert 512 // 16 - 8 <= len(addresses) <= 1232 // 16
    whole = server.dig(size, name)
    assert "Truncated, retrying in TCP mode." in whole
    assert f"ANSWER: {MANY}," in whole
    assert "(TCP)" in whole


def test_lost_glue_cuts_nothing_from_the_answer(server: Started) -> None:
    said = server.dig("+ignore", "+bufsize=1232", "_cql._tcp.cassandra.data.svc.cluster.local", "SRV")
    assert ";; flags: qr aa rd; QUERY: 1, ANSWER: 2, AUTHORITY: 0, ADDITIONAL: 3" in said


def test_it_listens_where_it_is_told(tmp_path: Path) -> None:
    needs.command("dig")
    if not started.has_ipv6():
        needs.lacking("no IPv6 on loopback")
    (tmp_path / "shop.yaml").write_text(SHOP)
    other = started.free_port()
    listen = ["--listen", "127.0.0.1:PORT", "--listen", "[::1]:PORT", "-l", f"127.0.0.1:{other}"]
    with started.started("kdns", "serve", "-i", str(tmp_path), *listen) as running:
        running.says("try")
        for place in (["@127.0.0.1", "-p", str(running.port)], ["@::1", "-p", str(running.port)]):
            assert started.dig(*place, "+short", "web.shop.svc.cluster.local") == "10.96.3.4\n"
            assert started.dig(*place, "+short", "+tcp", "web.shop.svc.cluster.local") == "10.96.3.4\n"
        assert started.dig("@127.0.0.1", "-p", str(other), "+short", "web.shop.svc.cluster.local") == "10.96.3.4\n"


def test_all_names_that_are_not_ours_are_forwarded(server: Started) -> None:
    """The second server knows no cluster; it asks the first."""
    # An inventory must hold something: a service that nobody asks for.
    zone = ["--zone", "other.local", "--inventory", str(started.ROOT / "zones/redis.yaml")]
    at = ["--listen", "127.0.0.1:PORT", "--forward", f"127.0.0.1:{server.port}"]
    with started.started("kdns", "serve", *zone, *at) as asking:
        assert asking.dig("+short", "httpenv.default.svc.cluster.local") == "10.108.189.10\n"
        assert asking.dig("+short", "redis-master.default.svc.other.local") == "10.0.0.11\n"
        assert asking.dig("+short", "-x", "10.108.189.10") == "httpenv.default.svc.cluster.local.\n"


def test_a_changed_inventory_is_served_without_a_restart(tmp_path: Path) -> None:
    needs.command("dig")
    (tmp_path / "shop.yaml").write_text(SHOP)
    (tmp_path / "cache.yaml").write_text(CACHE)
    with started.started("kdns", "serve", "-i", str(tmp_path), "--listen", "127.0.0.1:PORT") as running:
        assert running.dig("+short", "web.shop.svc.cluster.local") == "10.96.3.4\n"

        (tmp_path / "shop.yaml").write_text(SHOP.replace("10.96.3.4", "10.96.3.40"))
        _becomes(running, "web.shop.svc.cluster.local", "10.96.3.40\n")
        assert running.dig("+short", "cache.shop.svc.cluster.local") == "10.96.3.5\n"
        running.says("inventory loaded again")

        (tmp_path / "shop.yaml").write_text(SHOP.replace("port: 80", "port: eighty"))
        running.says("the inventory has mistakes; the last good one is still served")
        assert "shop.yaml:6" in running.said
        assert running.dig("+short", "web.shop.svc.cluster.local") == "10.96.3.40\n"
        assert running.dig("+short", "cache.shop.svc.cluster.local") == "10.96.3.5\n"

        (tmp_path / "shop.yaml").unlink()
        _becomes(running, "web.shop.svc.cluster.local", "")
        assert running.dig("+short", "cache.shop.svc.cluster.local") == "10.96.3.5\n"


def _becomes(running: Started, name: str, answer: str) -> None:
    # It takes 0.1 s; a busy machine gets more.
    deadline = time.monotonic() + 5
    while (said := running.dig("+short", name)) != answer:
        assert time.monotonic() < deadline, f"{name} is still {said!r}"


def test_a_port_that_another_has_is_named(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(SHOP)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = started.run("kdns", "serve", "-i", str(tmp_path), "--listen", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"error: 127.0.0.1:{port} is taken; port " in done.stderr
