"""A pod with little: kubeadm's Corefile and a cluster of 2,000 services, with 128 MiB and a tenth of a CPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import started
from tests.rollout.asking import addresses, ask, page, wait
from tests.rollout.cgroups import limited
from tests.rollout.clusters import address_of, cluster, name_of
from tests.rollout.load import HOST
from tests.rollout.upstreams import ADDRESS, upstream

KUBEADM = Path(__file__).parent.parent / "corefiles/kubeadm/Corefile"
SERVICES = 2000
# What kubelet's startup and liveness probes of kubeadm's manifest give it.
READY_SECONDS = 60.0


@pytest.mark.timeout(180)
def test_it_starts_is_ready_within_a_minute_and_answers(tmp_path: Path) -> None:
    port, http = started.free_port(), started.free_port()
    with cluster(SERVICES) as url, upstream(delay_seconds=0) as found, limited(128, 0.1) as group:
        (tmp_path / "resolv.conf").write_text(f"nameserver {HOST}\n")
        text = KUBEADM.read_text()
        for old, new in (
            (".:53 {", f".:{port} {{\n    bind {HOST}"),
            ("health {", f"health {HOST}:{http} {{"),
            ("ready", f"ready {HOST}:{http}"),
            (":9153", f"{HOST}:{http}"),
            ("pods insecure", f"pods insecure\n       endpoint {url}"),
            ("/etc/resolv.conf", f"{HOST}:{found.port}"),
        ):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (tmp_path / "Corefile").write_text(text)
        line = [*group.enter, str(started.COMMANDS / "coredns"), "-conf", str(tmp_path / "Corefile")]
        with (tmp_path / "said").open("wb") as out:
            process = subprocess.Popen(line, stdout=out, stderr=out, env=started.plain_environment())
        try:
            wait(lambda: page(http, "/ready") == (200, "OK"), READY_SECONDS)
            for number in range(0, SERVICES, 40):
                assert addresses(ask(port, name_of(number), tcp=number % 80 == 0)) == [address_of(number)]
            assert addresses(ask(port, "www.example.")) == [ADDRESS]
            assert process.poll() is None
            assert group.most_megabytes < 128
        finally:
            process.kill()
            process.wait()
