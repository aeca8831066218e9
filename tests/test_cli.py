"""Whole transcripts of the commands: what is typed, what comes back on which stream, and the exit code."""

from __future__ import annotations

import os
import platform
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from kdns import __version__, serve
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


def test_check_accepts_the_corefile_of_kubeadm_and_says_what_has_no_effect(folder: Path) -> None:
    done = run("kdns", "check", "Kubeadm", cwd=folder)
    assert done.returncode == 0
    told = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    assert [line.split(":")[1].split("`")[1] for line in told if line.startswith("warning")] == [
        "kubernetes",
        "cache",
        "loop",
        "reload",
    ]
    assert told[-1] == "no mistake, 4 warnings"


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
        pytest.param([], 2, "give either --inventory PATH or --corefile FILE", id="without a source"),
        pytest.param(["-i", "web.yaml", "--corefile", "Corefile"], 2, "give either", id="with two sources"),
        pytest.param(["-i", "web.yaml", "--port", "53"], 2, "No such option '--port'", id="with an unknown option"),
        pytest.param(["-i", "web.yaml", "--cluster-ips", "none"], 2, "'none' is not one of", id="with a wrong choice"),
        pytest.param(
            ["-i", "web.yaml", "-l", "here"], 1, "`--listen here` is no address", id="with a place that is none"
        ),
        pytest.param(["-i", "web.yaml", "-l", "127.0.0.1:0"], 1, "is no address", id="with port 0"),
        pytest.param(
            ["-i", "web.yaml", "--zone", ".."], 1, "`..` isn't a valid domain name", id="with a zone that is none"
        ),
        pytest.param(["-i", "web.yaml", "--service-cidr", "x"], 1, "`x` is no range", id="with a range that is none"),
        pytest.param(["-i", "web.yaml", "--forward", "nobody"], 1, "forward", id="with a forwarder that is none"),
        pytest.param(["-i", "wob.yaml"], 1, "web.yaml` meant?", id="with an inventory that isn't there"),
        pytest.param(["-i", "bad.yaml"], 1, "`10.96.3` is no IP address", id="with an inventory that has mistakes"),
        pytest.param(
            ["--corefile", "nowhere"], 1, "open nowhere: no such file or directory", id="with no such Corefile"
        ),
        pytest.param(["--corefile", "Corefile"], 1, COREFILE_MISTAKES, id="with a Corefile that has mistakes"),
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_cleanly_when_told(folder: Path, number: signal.Signals) -> None:
    with started.started("kdns", "serve", "-i", "web.yaml", "-l", "127.0.0.1:PORT", cwd=folder) as running:
        assert running.end(number) == 0
        assert running.said.endswith("[INFO] stopping\n")


def test_warnings_stand_before_all_else(folder: Path) -> None:
    inventory = "kubernetes cluster.local {\n inventory web.yaml\n}\n"
    (folder / "Warned").write_text(f".:{started.free_port()} {{\nbind 127.0.0.1\nreload\n{inventory}}}\n")
    with started.started("kdns", "serve", "--corefile", "Warned", cwd=folder) as running:
        assert running.said.startswith("warning: `reload`: ")


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
"""
    )


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
        pytest.param(["-i", "bad.yaml"], 1, BAD_SERVICE_MISTAKES, id="of an inventory that has mistakes"),
        pytest.param(["-i", "web.yaml", "--service-cidr", "x"], 1, "`10.96.0.0/12`", id="with a range that is none"),
        pytest.param(
            ["-i", "web.yaml", "--format", "zone", "--zone", "x y"], 1, "`x y` isn't a valid", id="of no zone"
        ),
        pytest.param([], 2, "Missing option '--inventory'", id="of nothing"),
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
        assert f"kdns {__version__}" in done.stdout


def test_coredns_lists_its_plugins() -> None:
    done = run("coredns", "-plugins")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  dns.kubernetes\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        pytest.param(
            ["-conf", "missing"], 1, "error: open missing: no such file or directory\n", id="no such Corefile"
        ),
        pytest.param(["-conf=missing"], 1, "error: open missing: no such file or directory\n", id="the same with ="),
        pytest.param(["--conf", "Corefile"], 1, COREFILE_MISTAKES.rstrip(), id="a Corefile that has mistakes"),
        pytest.param(["-config", "Corefile"], 2, "No such option '--config'", id="an unknown flag"),
        pytest.param(["-dns.port", "http"], 2, "'http' is not a valid integer", id="a port that is none"),
        pytest.param(["serve"], 1, "error: extra command line arguments: [serve]\n", id="a stray word"),
        pytest.param(
            ["-conf", "web.yaml", "-pidfile", "no/such"], 1, "can't write the process id", id="no place for its id"
        ),
    ],
)
def test_coredns_refuses_to_start(folder: Path, arguments: list[str], code: int, sentence: str) -> None:
    done = run("coredns", *arguments, cwd=folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr


def test_coredns_reads_stdin(folder: Path) -> None:
    done = run("coredns", "-conf", "stdin", text=COREFILE)
    assert done.returncode == 1
    assert "  stdin:2:5\n" in done.stderr


def test_coredns_starts_as_its_deployment_starts_it(folder: Path) -> None:
    inventory = "kubernetes cluster.local {\n inventory web.yaml\n}\n"
    (folder / "Corefile").write_text(f". {{\nbind 127.0.0.1\nreload\n{inventory}}}\n")
    with started.started("coredns", "-p", "PORT", "-pidfile", "pid", "-conf", "Corefile", cwd=folder) as running:
        assert (folder / "pid").read_text() == f"{running.process.pid}\n"
        assert running.said.splitlines()[:3] == [
            "[WARNING] Corefile:3: `reload`: no effect yet: a changed Corefile counts after a restart",
            f".:{running.port} on 127.0.0.1",
            "CoreDNS-1.14.7",
        ]
        assert running.end(signal.SIGINT) == 0


def test_without_a_corefile_coredns_answers_who_asks(tmp_path: Path) -> None:
    with started.started("coredns", "-dns.port=PORT", cwd=tmp_path) as running:
        assert running.said.startswith(f".:{running.port}\n")
        assert running.end() == 0


def test_the_options_of_serve_are_one_corefile_block_for_each_port() -> None:
    text = serve.corefile_text(serve.Wish(("/x",), listen=("127.0.0.1:53", "[::1]:53", ":99")))
    assert [line for line in text.splitlines() if line.endswith("{") or "bind" in line] == [
        ".:53 {",
        "    bind 127.0.0.1 ::1",
        "    kubernetes cluster.local in-addr.arpa ip6.arpa {",
        ".:99 {",
        "    kubernetes cluster.local in-addr.arpa ip6.arpa {",
    ]
