"""Whole transcripts of the commands: what is typed, what comes back on which stream, and the exit code."""

from __future__ import annotations

import contextlib
import os
import platform
import pty
import random
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import pytest

from kdns import __version__, corefile, serve
from kdns.plugins import PLUGINS
from kdns.signals import ECHO_SECONDS
from tests import needs, started
from tests.started import run

COREFILE = """\
.:1053 {
    kubernets cluster.local
    errors
    forward . 192.0.2.1 {
        policy fastest
    }
    loadbalance weighted
}
"""
COREFILE_MISTAKES = """\
error: there is no directive `kubernets`
  Corefile:2:5
    2 |     kubernets cluster.local
      |     ^^^^^^^^^
hint: did you mean `kubernetes`?

error: `policy` takes `random`, `round_robin` or `sequential`
  Corefile:5:16
    5 |         policy fastest
      |                ^^^^^^^
  expected one of these, found `fastest`
hint: the default is `policy random`

error: `loadbalance` takes `round_robin`
  Corefile:7:17
    7 |     loadbalance weighted
      |                 ^^^^^^^^
  expected `round_robin`, found `weighted`
hint: `weighted` isn't in kdns yet

"""
BAD_SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.3
  ports:
    - port: http
"""
BAD_SERVICE_MISTAKES = """\
error: `10.96.3` is no IP address
  bad.yaml:5:14
  in Service default/web: spec.clusterIP
    5 |   clusterIP: 10.96.3
      |              ^^^^^^^
  expected an IPv4 or IPv6 address
hint: `clusterIP: "None"` is a headless service

error: `port` takes a whole number, found a string `http`
  bad.yaml:7:13
  in Service default/web: spec.ports[0].port
    7 |     - port: http
      |             ^^^^
  expected a number from 1 to 65535

"""
# What kubeadm writes, but for where the resolv.conf is.
KUBEADM = """\
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
"""
WEB = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.3.4
  ports: [{name: http, port: 80}]
"""
DEPLOYMENT = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\n"
KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: "https://127.0.0.1:9"}}]
users: [{name: me, user: {token: secret}}]
contexts: [{name: a b, context: {cluster: here, user: me}}]
current-context: a b
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file of each kind, good and bad."""
    (tmp_path / "Corefile").write_text(COREFILE)
    (tmp_path / "Kubeadm").write_text(KUBEADM)
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    (tmp_path / "bad.yaml").write_text(BAD_SERVICE)
    (tmp_path / "web.yaml").write_text(WEB)
    return tmp_path


# kdns check


def test_check_tells_every_mistake_of_a_corefile(folder: Path) -> None:
    done = run("kdns", "check", "Corefile", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{COREFILE_MISTAKES}3 mistakes\n")


def test_check_tells_every_mistake_of_an_inventory(folder: Path) -> None:
    done = run("kdns", "check", "bad.yaml", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{BAD_SERVICE_MISTAKES}2 mistakes\n")


def test_check_takes_a_pattern_for_an_inventory(folder: Path) -> None:
    done = run("kdns", "check", "w*.yaml*", cwd=folder)
    assert done.returncode == 0
    assert "no mistake" in done.stderr


def test_check_takes_several_files(folder: Path) -> None:
    done = run("kdns", "check", "Corefile", "web.yaml", "bad.yaml", cwd=folder)
    assert (done.returncode, done.stderr) == (1, f"{COREFILE_MISTAKES}{BAD_SERVICE_MISTAKES}5 mistakes\n")


def test_check_reads_the_inventory_that_a_corefile_names(folder: Path) -> None:
    (folder / "Shop").write_text(".:1053 {\n    kubernetes cluster.local {\n        inventory bad.yaml\n    }\n}\n")
    done = run("kdns", "check", "Shop", cwd=folder)
    assert (done.returncode, done.stderr) == (1, f"{BAD_SERVICE_MISTAKES}2 mistakes\n")


def test_check_is_short_where_all_is_well(folder: Path) -> None:
    done = run("kdns", "check", "web.yaml", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no mistake\n")


def test_check_accepts_the_corefile_of_kubeadm_without_a_word(folder: Path) -> None:
    done = run("kdns", "check", "Kubeadm", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no mistake\n")


def test_check_says_where_the_same_corefile_means_something_else_than_in_coredns(folder: Path) -> None:
    (folder / "Other").write_text(
        ".:1053 {\n"
        "    trace\n"
        "    kubernetes cluster.local {\n        pods verified\n        apiserver_qps 5\n    }\n"
        "    hosts {\n        10.0.0.1 a.example\n        fallthrough\n    }\n"
        "    forward . 192.0.2.1 {\n        read_timeout 10s\n        tls_servername dns.example\n    }\n"
        "    cache 30\n"
        "}\n"
    )
    done = run("kdns", "check", "Other", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "")
    told = [
        line.strip() for line in done.stderr.splitlines() if line.startswith(("note", "warning", "  Other", "hint"))
    ]
    assert told == [
        "note: `trace`: no effect: no traces are sent; `prometheus` and `log` tell of queries",
        "Other:2:5",
        "note: `pods`: every address of a pod has its name, not only the first",
        "Other:4:9",
        "note: `apiserver_qps` has no effect",
        "Other:5:9",
        "hint: kdns asks the API a few long questions and no more",
        "note: `read_timeout`: an answer has 4s in all, and then is SERVFAIL",
        "Other:12:9",
        "warning: `tls_servername` has no effect",
        "Other:13:9",
        "hint: it is for upstreams with `tls://` or `https://` before them",
        "note: `cache`: no effect on answers of `hosts` and `kubernetes`, which have the TTL that those say",
        "Other:15:5",
    ]
    assert done.stderr.endswith("\n\nno mistake, 1 warning, 5 notes\n")


def test_check_goes_on_to_the_inventory_after_a_mistake_and_shows_where_a_path_is_wrong(folder: Path) -> None:
    corefile = (
        ".:1053 {\n    kubernetes cluster.local {\n        inventory bad.yaml wob.yaml\n    }\n    forward . x..y\n}\n"
    )
    (folder / "Shop").write_text(corefile)
    done = run("kdns", "check", "Shop", cwd=folder)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith(("error", "  Shop", "  bad"))] == [
        "error: there is no file or folder `wob.yaml`",
        "  Shop:3:28",
        "error: TO of `forward` takes an address, `IP[:PORT]` or `[IPv6]:PORT`, a name, or a file like resolv.conf",
        "  Shop:5:15",
        "error: `10.96.3` is no IP address",
        "  bad.yaml:5:14",
        "error: `port` takes a whole number, found a string `http`",
        "  bad.yaml:7:13",
    ]
    assert done.stderr.endswith("4 mistakes\n")


def test_check_tells_the_mistakes_of_directives_beside_those_of_zones(folder: Path) -> None:
    (folder / "Unset").write_text("{$NOSUCHZONE}:53 {\n    forward . {$NOSUCHUP}\n}\na.example:x {\n    kubernets\n}\n")
    done = run("kdns", "check", "Unset", cwd=folder)
    assert [line for line in done.stderr.splitlines() if line.startswith(("error", "warning", "  Unset"))] == [
        "error: a zone has a name, `.` is the root",
        "  Unset:1:1",
        "warning: `NOSUCHZONE` isn't set in the environment, so `{$NOSUCHZONE}` is empty",
        "  Unset:1:1",
        "warning: `NOSUCHUP` isn't set in the environment, so `{$NOSUCHUP}` is empty",
        "  Unset:2:15",
        "error: TO of `forward` takes an address, `IP[:PORT]` or `[IPv6]:PORT`, a name, or a file like resolv.conf",
        "  Unset:2:15",
        "error: `x` is no port",
        "  Unset:4:1",
        "error: there is no directive `kubernets`",
        "  Unset:5:5",
    ]
    assert done.stderr.endswith("4 mistakes\n")


@pytest.mark.parametrize("text", ["", "# nothing\n", "{$NOSUCHZONE} {\n    errors\n}\n"])
def test_a_corefile_without_a_block_gets_the_one_of_coredns(folder: Path, text: str) -> None:
    (folder / "Empty").write_text(text)
    done = run("kdns", "check", "Empty", cwd=folder)
    assert done.returncode == 0
    assert "warning: there is no server block\n  Empty\nhint: `whoami` answers, as in CoreDNS\n" in done.stderr
    parsed = serve.tolerant(lambda: corefile.parse(text, "Empty", environment={}), 1053)
    assert corefile.render(parsed) == ".:1053 {\n    whoami\n    log\n}\n"


def test_a_reverse_zone_alone_is_a_mistake_of_the_directive(folder: Path) -> None:
    (folder / "Reverse").write_text("10.in-addr.arpa {\n    kubernetes {\n        inventory web.yaml\n    }\n}\n")
    done = run("kdns", "check", "Reverse", cwd=folder)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: a zone that is no reverse zone is needed: names point into it\n  Reverse:2:5\n"
    )


def test_check_counts_what_dns_has_no_use_for(folder: Path) -> None:
    (folder / "web.yaml").write_text(f"{WEB}---\n{DEPLOYMENT}")
    done = run("kdns", "check", "web.yaml", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "passed over: 1 Deployment\nno mistake\n")


def test_check_names_a_file_that_is_not_there(folder: Path) -> None:
    done = run("kdns", "check", "Corefil", cwd=folder)
    assert (done.returncode, done.stderr) == (1, "error: open Corefil: no such file or directory\n\n1 mistake\n")


def test_check_wants_a_file() -> None:
    done = run("kdns", "check")
    assert done.returncode == 2
    assert "Missing argument 'FILE...'" in done.stderr


# kdns serve


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        pytest.param([], 2, "give one of --inventory PATH, --kubeconfig FILE", id="without a source"),
        pytest.param(["-i", "web.yaml", "--corefile", "Corefile"], 2, "give one of", id="with two sources"),
        pytest.param(["-i", "web.yaml", "--kubeconfig", "config"], 2, "give one of", id="with two others"),
        pytest.param(["-i", "web.yaml", "--context", "x"], 2, "--context is", id="with a context of nothing"),
        pytest.param(
            ["--kubeconfig", "config", "--service-cidr", "10.0.0.0/8"],
            2,
            "for an --inventory",
            id="with a range of a cluster",
        ),
        pytest.param(["--kubeconfig", "nowhere"], 1, "there is no kubeconfig `", id="with no such kubeconfig"),
        pytest.param(["-i", "web.yaml", "--port", "53"], 2, "No such option '--port'", id="with an unknown option"),
        pytest.param(["-i", "web.yaml", "--cluster-ips", "none"], 2, "'none' is not one of", id="with a wrong choice"),
        pytest.param(
            ["-i", "web.yaml", "-l", "here"], 1, "`--listen here` is no address", id="with a place that is none"
        ),
        pytest.param(["-i", "web.yaml", "-l", "127.0.0.1:0"], 1, "is no address", id="with port 0"),
        pytest.param(
            ["-i", "web.yaml", "-l", "localhost:1054"],
            1,
            "error: `--listen localhost:1054` is no address\n  expected ADDR or ADDR:PORT\n"
            "hint: `localhost` is `127.0.0.1` or `[::1]`\n",
            id="with a name for an address",
        ),
        pytest.param(["-i", "web.yaml", "-l", "1053"], 1, "hint: `--listen :1053` is that", id="with a port alone"),
        pytest.param(
            ["-i", "web.yaml", "--zone", ".."], 1, "`--zone`: `..` isn't a valid domain", id="with a zone that is none"
        ),
        pytest.param(
            ["-i", "web.yaml", "--zone", "x {\n ttl 9\n}\nx"], 1, "error: `--zone`: ", id="with lines for a zone"
        ),
        pytest.param(
            ["-i", "web.yaml", "--zone", "10.0.0.0/8"],
            1,
            "`--zone`: `10.0.0.0/8` is a reverse",
            id="with a reverse zone",
        ),
        pytest.param(
            ["-i", "web.yaml", "--service-cidr", "10.96.0.5/12"],
            1,
            "error: `--service-cidr`: `10.96.0.5/12` is an address within a range\nhint: the range is `10.96.0.0/12`\n",
            id="with an address for a range",
        ),
        pytest.param(
            ["-i", "web.yaml", "--service-cidr", "10.0.0.0/16", "--service-cidr", "10.1.0.0/16"],
            1,
            "`10.1.0.0/16` is a second range of IPv4",
            id="with two ranges of a family",
        ),
        pytest.param(["-i", "web.yaml", "--service-cidr", "x"], 1, "`x` is no range", id="with a range that is none"),
        pytest.param(["-i", "web.yaml", "--forward", "nobody:0"], 1, "forward", id="with a forwarder that is none"),
        pytest.param(["-i", "wob.yaml"], 1, "web.yaml` meant?", id="with an inventory that isn't there"),
        pytest.param(["-i", "bad.yaml"], 1, "`10.96.3` is no IP address", id="with an inventory that has mistakes"),
        pytest.param(
            ["--corefile", "nowhere"], 1, "open nowhere: no such file or directory", id="with no such Corefile"
        ),
        pytest.param(["--corefile", "Corefile"], 1, COREFILE_MISTAKES.rstrip(), id="with a Corefile that has mistakes"),
    ],
)
def test_serve_refuses_to_start(folder: Path, arguments: list[str], code: int, sentence: str) -> None:
    done = run("kdns", "serve", *arguments, cwd=folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_prints_the_corefile_that_its_options_amount_to(folder: Path) -> None:
    options = [
        "--zone",
        "k.test",
        "--forward",
        "192.0.2.1",
        "--service-cidr",
        "10.100.0.0/16",
        "--cluster-ips",
        "endpoints",
    ]
    listen = ["-l", "127.0.0.1:53", "-l", "[::1]:53"]
    done = run("kdns", "serve", "-i", "a b.yaml", *options, *listen, "--print-corefile", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == f"""\
.:53 {{
    bind 127.0.0.1 ::1
    errors
    search {{
        names qualified
        client 127.0.0.0/8 ::1/128 default
    }}
    kubernetes k.test in-addr.arpa ip6.arpa {{
        inventory "{folder}/a b.yaml"
        ttl 5
        pods verified
        service_cidr 10.100.0.0/16
        cluster_ips endpoints
        fallthrough in-addr.arpa ip6.arpa
    }}
    loadbalance
    forward . 192.0.2.1
}}
"""
    )


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        pytest.param(
            ["--client", "10.1.0.0/16=shop", "--client", "2001:db8::7=shop", "--client", "10.2.0.1=web"],
            ["client 10.1.0.0/16 2001:db8::7 shop", "client 10.2.0.1 web", "client 127.0.0.0/8 ::1/128 default"],
            id="networks stand together by namespace, and loopback is where it was",
        ),
        pytest.param(
            ["--client", "127.0.0.0/8=shop"],
            ["client 127.0.0.0/8 shop", "client ::1/128 default"],
            id="loopback that was told otherwise",
        ),
        pytest.param(["--client", "0.0.0.0/0=shop", "--client", "::/0=shop"], ["client 0.0.0.0/0 ::/0 shop"], id="all"),
        pytest.param(["--default-namespace", "shop"], ["default shop"], id="a default is loopback's too"),
    ],
)
def test_clients_stand_where_the_options_say(folder: Path, options: list[str], lines: list[str]) -> None:
    done = run("kdns", "serve", "-i", "web.yaml", *options, "--print-corefile", cwd=folder)
    assert done.returncode == 0, done.stderr
    search = done.stdout.partition("    search {\n")[2].partition("    }\n")[0]
    assert search.split("\n") == [f"        {line}" for line in ["names qualified", *lines]] + [""]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--client", "10.1.0.0/16"], "`--client 10.1.0.0/16` names no namespace"),
        (["--client", "10.1.0.0/16=My_Shop"], "`--client 10.1.0.0/16=My_Shop` names no namespace"),
        (["--client", "10.1.0.5/16=shop"], "`--client 10.1.0.5/16=shop`: 10.1.0.5/16 has host bits set"),
        (["--default-namespace", "-"], "`--default-namespace -` is no name of a namespace"),
    ],
)
def test_clients_that_stand_nowhere_are_told(folder: Path, options: list[str], said: str) -> None:
    done = run("kdns", "serve", "-i", "web.yaml", *options, "--print-corefile", cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


def test_a_cluster_is_served_as_a_kubeconfig_says(folder: Path) -> None:
    line = ["--kubeconfig", "config", "--context", "a b", "--zone", "k.test", "-l", "127.0.0.1"]
    done = run("kdns", "serve", *line, "--print-corefile", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == f"""\
.:1053 {{
    bind 127.0.0.1
    errors
    search {{
        names qualified
        client 127.0.0.0/8 ::1/128 default
        without_pods
    }}
    kubernetes k.test in-addr.arpa ip6.arpa {{
        kubeconfig {folder}/config "a b"
        ttl 5
    }}
    loadbalance
}}
"""
    )


def test_serve_says_what_is_missing_of_a_cluster(folder: Path) -> None:
    (folder / "config").write_text(KUBECONFIG)
    source = "kubernetes cluster.local {\n kubeconfig config\n startup_timeout 200ms\n}\n"
    (folder / "Live").write_text(f".:{started.free_port()} {{\nbind 127.0.0.1\n{source}}}\n")
    with started.started("kdns", "serve", "--corefile", "Live", cwd=folder) as running:
        told = running.said.partition("cluster.local from ")[2].splitlines()
        assert told[:2] == ["kubeconfig config", "  not read yet, so each name is SERVFAIL:"]
        assert {line.partition(":")[0].strip() for line in told[2:5]} == {"namespaces", "services", "endpointslices"}
        assert running.end() == 0


def test_a_second_server_on_a_port_says_in_a_line_that_it_is_taken(folder: Path) -> None:
    with started.started("kdns", "serve", "-i", "web.yaml", "-l", "127.0.0.1:PORT", cwd=folder) as running:
        done = run("kdns", "serve", "-i", "web.yaml", "-l", f"127.0.0.1:{running.port}", cwd=folder)
    assert done.returncode == 1
    assert re.fullmatch(rf"error: 127\.0\.0\.1:{running.port} is taken; port \d+ is free\n", done.stderr)


def test_one_address_and_all_addresses_share_a_port_with_each_other_and_nobody_else(folder: Path) -> None:
    port = free_everywhere()
    one = f".:{port} {{\n bind 127.0.0.1\n whoami\n}}\n"
    (folder / "Shared").write_text(f"{one}b.example:{port} {{\n bind 0.0.0.0\n whoami\n}}\n")
    with started.started("kdns", "serve", "--corefile", "Shared", cwd=folder):
        for ask in (dns.query.udp, dns.query.tcp):
            codes = [
                ask(dns.message.make_query(name, "A"), at, timeout=5, port=port).rcode()
                for name, at in (("a.example", "127.0.0.1"), ("a.example", "127.0.0.2"), ("b.example", "127.0.0.2"))
            ]
            assert codes == [dns.rcode.NOERROR, dns.rcode.REFUSED, dns.rcode.NOERROR]
        for text in (one, f"{one}c.example:{port} {{\n whoami\n}}\n"):
            (folder / "Other").write_text(text)
            done = run("kdns", "serve", "--corefile", "Other", cwd=folder)
            assert f"127.0.0.1:{port} is taken" in done.stderr


def test_a_printed_corefile_serves_the_same(folder: Path) -> None:
    text = run("kdns", "serve", "-i", "web.yaml", "--print-corefile", cwd=folder).stdout
    (folder / "Printed").write_text(text)
    assert run("kdns", "serve", "--corefile", "Printed", "--print-corefile", cwd=folder).stdout == text


def test_serve_says_what_was_loaded_and_what_to_try(folder: Path) -> None:
    with started.started("kdns", "serve", "-i", "web.yaml", "-l", "127.0.0.1:PORT", cwd=folder) as running:
        assert (
            running.says("SRV")
            == f"""\
cluster.local from web.yaml
  1 service: 1 with a ClusterIP
  1 namespace, 0 addresses of ready endpoints, 0 addresses of pods
  a Service without a ClusterIP gets one of 10.96.0.0/12
listening on 127.0.0.1:{running.port}, UDP and TCP
try
  dig @127.0.0.1 -p {running.port} web.shop.svc.cluster.local
  dig @127.0.0.1 -p {running.port} _http._tcp.web.shop.svc.cluster.local SRV
"""
        )


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGTERM, "SIGTERM: Shutting down servers then terminating"),
        (signal.SIGINT, "SIGINT: Shutting down"),
        (signal.SIGQUIT, "SIGQUIT: Quitting process immediately"),
    ],
)
def test_serve_ends_cleanly_when_told(folder: Path, number: signal.Signals, words: str) -> None:
    with started.started("kdns", "serve", "-i", "web.yaml", "-l", "127.0.0.1:PORT", cwd=folder) as running:
        assert running.end(number) == 0
        assert running.said.endswith(f"[INFO] {words}\n")


@pytest.mark.parametrize(
    ("first", "second", "code", "words"),
    [
        (signal.SIGINT, signal.SIGINT, 2, "SIGINT: Force quit"),
        (signal.SIGTERM, signal.SIGTERM, 0, "SIGTERM: Shutting down servers then terminating"),
        (signal.SIGTERM, signal.SIGQUIT, 0, "SIGQUIT: Quitting process immediately"),
    ],
)
def test_who_asks_twice_need_not_wait_for_lameduck(
    folder: Path, first: signal.Signals, second: signal.Signals, code: int, words: str
) -> None:
    (folder / "Lame").write_text(
        ". {\n    bind 127.0.0.1\n    whoami\n    health 127.0.0.1:0 {\n        lameduck 10m\n    }\n}\n"
    )
    with started.started("coredns", "-p", "PORT", "-conf", "Lame", "-pidfile", "pid", cwd=folder) as running:
        running.process.send_signal(first)
        running.says("[INFO] plugin/health: Going into lameduck mode for 10m\n")
        # What comes sooner is taken for the first one, told twice.
        time.sleep(2 * ECHO_SECONDS)
        assert running.end(second) == code
        assert running.said.endswith(f"[INFO] {words}\n")
        assert not (folder / "pid").exists()


def test_serve_goes_on_at_the_signals_that_coredns_goes_on_at(folder: Path) -> None:
    with started.started("kdns", "serve", "-i", "web.yaml", "-l", "127.0.0.1:PORT", cwd=folder) as running:
        running.process.send_signal(signal.SIGHUP)
        running.process.send_signal(signal.SIGUSR2)
        running.process.send_signal(signal.SIGUSR1)
        running.says("[INFO] Reloading complete\n")
        assert running.end() == 0


def test_a_warning_that_holds_for_several_blocks_is_drawn_once(folder: Path) -> None:
    (folder / "web.yaml").write_text(f"{WEB.replace('clusterIP: 10.96.3.4', 'selector: {app: web}')}---\n{DEPLOYMENT}")
    rest = "bind 127.0.0.1\ndebug\nkubernetes cluster.local {\n inventory web.yaml\n}\n"
    (folder / "Twice").write_text("".join(f".:{started.free_port()} {{\n{rest}}}\n" for _ in range(2)))
    with started.started("kdns", "serve", "--corefile", "Twice", cwd=folder) as running:
        assert running.said.count("note: `debug`: ") == 1
        assert running.said.count("warning: the selector matches no Pod") == 1
        assert "[WARNING]" not in running.said
        assert running.said.count("  passed over: 1 Deployment\n") == 1


def test_warnings_stand_before_all_else(folder: Path) -> None:
    inventory = "kubernetes cluster.local {\n inventory web.yaml\n}\n"
    (folder / "Warned").write_text(f".:{started.free_port()} {{\nbind 127.0.0.1\ndebug\n{inventory}}}\n")
    with started.started("kdns", "serve", "--corefile", "Warned", cwd=folder) as running:
        assert running.said.startswith("note: `debug`: ")


def free_everywhere() -> int:
    """A port that no socket has at any address, of those that no client gets by chance."""
    for port in random.sample(range(20_000, 30_000), 100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                stack.enter_context(socket.socket(type=kind)).bind(("0.0.0.0", port))
            return port
    raise AssertionError("no port is free")


# kdns dump, kdns version, help


def test_dump_prints_an_inventory_in_full(folder: Path) -> None:
    done = run("kdns", "dump", "-i", "web.yaml", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == """\
---
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  labels:
    kubernetes.io/metadata.name: shop
---
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
spec:
  type: ClusterIP
  clusterIP: 10.96.3.4
  clusterIPs:
  - 10.96.3.4
  ipFamilies:
  - IPv4
  ipFamilyPolicy: SingleStack
  ports:
  - port: 80
    name: http
    protocol: TCP
"""
    )


SLICE = """apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.7]}]
ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]
"""


def test_dump_says_the_protocol_of_a_slices_ports_too(folder: Path) -> None:
    (folder / "slice.yaml").write_text(SLICE)
    done = run("kdns", "dump", "-i", "web.yaml", "-i", "slice.yaml", cwd=folder)
    ports = "ports:\n- name: http\n  protocol: TCP\n  port: 8080\n- name: dns\n  protocol: UDP\n  port: 53\n"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(ports)


def test_what_dump_prints_is_an_inventory_that_amounts_to_the_same(folder: Path) -> None:
    once = run("kdns", "dump", "-i", str(started.ROOT / "zones")).stdout
    (folder / "once.yaml").write_text(once)
    again = run("kdns", "dump", "-i", "once.yaml", cwd=folder)
    assert (again.returncode, again.stderr) == (0, "")
    assert sorted(again.stdout.split("---\n")) == sorted(once.split("---\n"))


def test_dump_prints_a_zone_file(folder: Path) -> None:
    done = run("kdns", "dump", "-i", "web.yaml", "--format", "zone", "--ttl", "30", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        re.sub(r"(?<=hostmaster.cluster.local. )\d+", "SERIAL", done.stdout)
        == """\
$ORIGIN cluster.local.
cluster.local. 30 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. SERIAL 7200 1800 86400 30
cluster.local. 30 IN NS ns.dns.cluster.local.
ns.dns.cluster.local. 30 IN A 127.0.0.1
dns-version.cluster.local. 28800 IN TXT "1.1.0"
web.shop.svc.cluster.local. 30 IN A 10.96.3.4
web.shop.svc.cluster.local. 30 IN SRV 0 100 80 web.shop.svc.cluster.local.
_http._tcp.web.shop.svc.cluster.local. 30 IN A 10.96.3.4
_http._tcp.web.shop.svc.cluster.local. 30 IN SRV 0 100 80 web.shop.svc.cluster.local.
"""
    )


@pytest.mark.parametrize("zone", ["cluster.local", "10.in-addr.arpa"])
def test_a_dumped_zone_is_one_that_others_load(zone: str, tmp_path: Path) -> None:
    checker = needs.command("named-checkzone")
    text = run("kdns", "dump", "-i", str(started.ROOT / "zones"), "--format", "zone", "--zone", zone).stdout
    (tmp_path / "zone").write_text(text)
    done = subprocess.run(
        [checker, "-k", "ignore", "-i", "local-sibling", zone, str(tmp_path / "zone")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("OK\n")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        pytest.param(["-i", "bad.yaml"], 1, BAD_SERVICE_MISTAKES.rstrip(), id="of an inventory that has mistakes"),
        pytest.param(["-i", "web.yaml", "--service-cidr", "x"], 1, "`10.96.0.0/12`", id="with a range that is none"),
        pytest.param(
            ["-i", "web.yaml", "--format", "zone", "--zone", "x y"], 1, "`x y` isn't a valid", id="of no zone"
        ),
        pytest.param([], 2, "give either --inventory PATH or --kubeconfig FILE", id="of nothing"),
    ],
)
def test_dump_refuses(folder: Path, arguments: list[str], code: int, sentence: str) -> None:
    done = run("kdns", "dump", *arguments, cwd=folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_enough_is_no_error() -> None:
    line = f"'{started.COMMANDS}/kdns' dump -i zones --format zone | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=started.ROOT, check=False)
    assert (done.stdout, done.stderr) == ("$ORIGIN cluster.local.\n0\n", "")


def test_version_names_what_it_runs_on() -> None:
    done = run("kdns", "version")
    expected = f"kdns {__version__}\nPython {platform.python_version()} {platform.system()} {platform.machine()}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_an_unknown_command_is_asked_wrong() -> None:
    done = run("kdns", "sevre")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean 'serve'?" in done.stderr


# Colours


def test_a_terminal_gets_colours_and_nothing_else_does(folder: Path) -> None:
    assert "\x1b" not in run("kdns", "check", "bad.yaml", cwd=folder).stderr
    assert "\x1b[31;1merror\x1b[0m: `10.96.3`" in _on_a_terminal(folder, {})
    assert "\x1b" not in _on_a_terminal(folder, {"NO_COLOR": "1"})


def _on_a_terminal(folder: Path, environment: dict[str, str]) -> str:
    """What `kdns check bad.yaml` says where stderr is a terminal."""
    ours, theirs = pty.openpty()
    try:
        command = [str(started.COMMANDS / "kdns"), "check", "bad.yaml"]
        whole = started.plain_environment() | {"TERM": "xterm"} | environment
        subprocess.run(command, cwd=folder, env=whole, stderr=theirs, check=False)
        return os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)


# coredns


def test_coredns_has_the_version_that_tools_look_for() -> None:
    for flag in ("-version", "--version"):
        done = run("coredns", flag)
        assert done.returncode == 0
        assert done.stdout.splitlines()[0] == "CoreDNS-1.14.7"
        assert re.fullmatch(r"linux/[a-z0-9]+, Python [0-9.]+, kdns [0-9.]+", done.stdout.splitlines()[1])
        assert f"kdns {__version__}" in done.stdout


def test_coredns_lists_its_plugins() -> None:
    done = run("coredns", "-plugins")
    assert (done.returncode, done.stderr) == (0, "")
    *plugins, empty = done.stdout.removesuffix("\n").split("\n")
    assert plugins == sorted(plugin.name for plugin in PLUGINS)
    assert empty == ""


@pytest.mark.parametrize(
    ("flags", "first"), [(["-version=true"], "CoreDNS-1.14.7"), (["-version=f", "-plugins"], "acl")]
)
def test_a_flag_of_coredns_may_be_said_to_be_true_or_false(flags: list[str], first: str) -> None:
    assert run("coredns", *flags).stdout.splitlines()[0] == first


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        pytest.param(
            ["-conf", "missing"], 1, "error: open missing: no such file or directory\n", id="no such Corefile"
        ),
        pytest.param(["-conf=missing"], 1, "error: open missing: no such file or directory\n", id="the same with ="),
        pytest.param(["--conf", "Corefile"], 1, COREFILE_MISTAKES.rstrip(), id="a Corefile that has mistakes"),
        pytest.param(["-config", "Corefile"], 2, "No such option '-config'", id="an unknown flag"),
        pytest.param(["-dns.port", "http"], 2, "'http' is not a valid integer", id="a port that is none"),
        pytest.param(["serve"], 1, "error: extra command line arguments: [serve]\n", id="a stray word"),
    ],
)
def test_coredns_refuses_to_start(folder: Path, arguments: list[str], code: int, sentence: str) -> None:
    done = run("coredns", *arguments, cwd=folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr


def test_the_flags_of_coredns_are_shown_with_one_dash() -> None:
    done = run("coredns", "-h")
    assert done.returncode == 0
    assert "  -dns.port, -p INTEGER" in done.stdout
    assert "--" not in done.stdout


def test_coredns_reads_stdin(folder: Path) -> None:
    done = run("coredns", "-conf", "stdin", text=COREFILE)
    assert done.returncode == 1
    assert "  stdin:2:5\n" in done.stderr


def test_a_reload_of_what_stdin_said_is_the_same(folder: Path) -> None:
    text = folder / "Piped"
    text.write_text(". {\n    bind 127.0.0.1\n    template ANY ANY {\n        rcode NXDOMAIN\n    }\n}\n")
    with text.open() as piped, started.started("coredns", "-p", "PORT", "-conf", "stdin", stdin=piped) as running:
        assert "status: NXDOMAIN" in running.dig("a.example")
        assert "Reloading complete\n" in running.reload()
        assert "status: NXDOMAIN" in running.dig("a.example")


def test_coredns_starts_as_its_deployment_starts_it(folder: Path) -> None:
    inventory = "kubernetes cluster.local {\n inventory web.yaml\n}\n"
    (folder / "Corefile").write_text(f". {{\nbind 127.0.0.1\ndebug\n{inventory}}}\n")
    with started.started("coredns", "-p", "PORT", "-pidfile", "pid", "-conf", "Corefile", cwd=folder) as running:
        assert (folder / "pid").read_text() == f"{running.process.pid}\n"
        said = running.said.splitlines()
        assert said[0].startswith("[INFO] Corefile:3: `debug`: ")
        assert said[1:3] == [f".:{running.port} on 127.0.0.1", "CoreDNS-1.14.7"]
        assert running.end(signal.SIGINT) == 0
        assert not (folder / "pid").exists()


def test_a_pidfile_that_cannot_be_written_is_an_error_and_no_end(folder: Path) -> None:
    (folder / "Corefile").write_text(". 9.example {\n    bind 127.0.0.1\n    whoami\n}\n")
    with started.started("coredns", "-p", "PORT", "-pidfile", "no/such", cwd=folder) as running:
        assert running.said.splitlines()[:5] == [
            "[ERROR] Could not write pidfile: open no/such: no such file or directory",
            f".:{running.port} on 127.0.0.1",
            'Warning: Domain "9.example." does not follow RFC1035 preferred syntax',
            f"9.example.:{running.port} on 127.0.0.1",
            "CoreDNS-1.14.7",
        ]
        assert running.end() == 0


def test_without_a_corefile_coredns_answers_who_asks(tmp_path: Path) -> None:
    with started.started("coredns", "-dns.port=PORT", cwd=tmp_path) as running:
        assert running.said.startswith(f".:{running.port}\n")
        assert running.end() == 0


def test_the_options_of_serve_are_one_corefile_block_for_each_port() -> None:
    text = serve.corefile_text(serve.Wish(("/x",), listen=("127.0.0.1:53", "[::1]:53", ":99")))
    assert [line for line in text.splitlines() if line.endswith("{") or "bind" in line] == [
        ".:53 {",
        "    bind 127.0.0.1 ::1",
        "    search {",
        "    kubernetes cluster.local in-addr.arpa ip6.arpa {",
        ".:99 {",
        "    search {",
        "    kubernetes cluster.local in-addr.arpa ip6.arpa {",
    ]
