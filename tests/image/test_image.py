"""The image starts as CoreDNS's deployment starts it, and answers on port 53."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests import needs
from tests.image.conftest import Image

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]

COREFILE = """\
.:53 {
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        inventory /etc/coredns/shop.yaml
    }
}
"""
SHOP = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: ClusterIP
  clusterIP: 10.96.7.7
  clusterIPs: [10.96.7.7]
  ports: [{name: http, port: 80, protocol: TCP}]
"""
# A pod's network and mounts, its read-only root, its user, and the one capability that CoreDNS's manifests grant.
POD = """\
set -eu
ip link set lo up
mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -o remount,bind,ro "$ROOT"
exec chroot "$ROOT" env --ignore-environment "$@"
"""
NET_BIND_SERVICE = 1 << 10


@dataclass(frozen=True)
class Pod:
    """A started image, asked from inside its own network namespace."""

    process: subprocess.Popen[str]

    def dig(self, *question: str) -> tuple[str, list[str]]:
        """The rcode and the answer section, one space between fields; "" as long as nobody answers."""
        net = f"--net=/proc/{self.process.pid}/ns/net"
        ask = ["dig", "@127.0.0.1", "+tries=1", "+time=1", "+noall", "+comments", "+answer", *question]
        said = subprocess.run(["nsenter", net, *ask], capture_output=True, text=True, check=False).stdout
        status = re.search(r"status: (\w+)", said)
        answer = [" ".join(line.split()) for line in said.splitlines() if line and not line.startswith(";")]
        return (status[1] if status else ""), answer


def command_in(image: Image, *command: str) -> list[str]:
    """The command line that runs a command of the image as a pod would.

    Nothing may stand between setpriv and the command: under no_new_privs, what a program gave up stays lost.
    """
    user, group = image.user.split(":")
    limits = ["--reuid", user, "--regid", group, "--clear-groups", "--inh-caps=-all", "--no-new-privs"]
    limits.append("--bounding-set=-all,+net_bind_service")
    variables = [f"{name}={value}" for name, value in image.environment.items()]
    return ["unshare", "-n", "-m", "sh", "-c", POD, "pod", *variables, "setpriv", *limits, *command]


def run_in(image: Image, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ROOT": str(image.root)}
    return subprocess.run(command_in(image, *command), env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def pod(image: Image) -> Iterator[Pod]:
    needs.command("dig")
    etc = image.root / "etc/coredns"
    etc.mkdir()
    (etc / "Corefile").write_text(COREFILE)
    (etc / "shop.yaml").write_text(SHOP)
    # Serving needs no home, whatever the image says of one.
    variables = {name: value for name, value in image.environment.items() if name != "HOME"}
    homeless = replace(image, environment=variables)
    command = command_in(homeless, *image.entrypoint, "-conf", "/etc/coredns/Corefile")
    environment = {**os.environ, "ROOT": str(image.root)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        pod = Pod(process)
        give_up = time.monotonic() + 20
        # SERVFAIL is the answer until the inventory is loaded.
        while pod.dig("web.shop.svc.cluster.local.", "A")[0] in {"", "SERVFAIL"}:
            if process.poll() is None and time.monotonic() < give_up:
                time.sleep(0.1)
                continue
            process.kill()
            pytest.fail(f"the image doesn't serve; it said:\n{process.communicate()[0]}", pytrace=False)
        yield pod
        process.kill()


def test_the_configuration_is_that_of_a_drop_in(image: Image) -> None:
    assert image.user == "65532:65532"
    assert image.entrypoint == ["/coredns"]
    assert image.ports == {"53/tcp", "53/udp"}


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_a_service_of_the_inventory_is_answered_on_port_53(pod: Pod, transport: str) -> None:
    answer = pod.dig(transport, "web.shop.svc.cluster.local.", "A")
    assert answer == ("NOERROR", ["web.shop.svc.cluster.local. 5 IN A 10.96.7.7"])


def test_its_address_leads_back_to_its_name(pod: Pod) -> None:
    answer = pod.dig("-x", "10.96.7.7")
    assert answer == ("NOERROR", ["7.7.96.10.in-addr.arpa. 5 IN PTR web.shop.svc.cluster.local."])


def test_a_name_that_no_object_makes_does_not_exist(pod: Pod) -> None:
    assert pod.dig("nobody.shop.svc.cluster.local.", "A") == ("NXDOMAIN", [])


def test_it_runs_with_no_more_than_a_restricted_pod_grants(pod: Pod) -> None:
    lines = Path(f"/proc/{pod.process.pid}/status").read_text(encoding="ascii").splitlines()
    status = dict(line.split(":", 1) for line in lines)
    assert status["Uid"].split() == ["65532"] * 4
    assert status["Gid"].split() == ["65532"] * 4
    assert status["NoNewPrivs"].strip() == "1"
    assert int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == NET_BIND_SERVICE


@pytest.mark.parametrize("command", ["kdns", "coredns"])
def test_both_commands_are_on_the_path(image: Image, command: str) -> None:
    flag = "--help" if command == "kdns" else "-version"
    done = run_in(image, command, flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_kubeconfig_can_be_read(image: Image) -> None:
    """The library that reads it wants a home when it is imported, which the user 65532 has only from the image."""
    done = run_in(image, "/opt/kdns/bin/python3", "-c", "import kubernetes.aio")
    assert (done.returncode, done.stderr) == (0, "")


def test_no_module_is_compiled_at_start(image: Image) -> None:
    """The root is read-only, so what isn't compiled in the image is compiled at every start."""
    sources = list((image.root / "opt/kdns/lib").rglob("kdns/**/*.py"))
    assert sources
    assert [path for path in sources if not list(path.parent.glob(f"__pycache__/{path.stem}.cpython-*.pyc"))] == []


def test_sigterm_ends_it_cleanly(pod: Pod) -> None:
    pod.process.terminate()
    assert pod.process.wait(timeout=15) == 0
