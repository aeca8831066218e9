"""The cluster that the tests of this folder share, and clusters of their own for those that break theirs."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests import started
from tests.cluster import control_plane
from tests.cluster.control_plane import ControlPlane, Namespace


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: waits for what takes its time by a limit: more than 20 seconds")


@pytest.fixture(scope="session")
def cluster() -> Iterator[ControlPlane]:
    """The control plane that all tests share. A test changes its own namespace only, and stops nothing."""
    with control_plane.running() as plane:
        yield plane


@pytest.fixture
def private_cluster() -> Iterator[ControlPlane]:
    """A control plane of the test's own, to kill, stop and restart."""
    with control_plane.running() as plane:
        yield plane


@pytest.fixture
def namespace(cluster: ControlPlane) -> Iterator[Namespace]:
    """A new namespace of the shared cluster."""
    with cluster.namespace() as found:
        yield found


@pytest.fixture(scope="session")
def deployed(cluster: ControlPlane) -> ControlPlane:
    """The shared cluster with deploy/ applied: its ServiceAccount is `coredns` in kube-system."""
    done = cluster.kubectl("apply", "-k", str(started.ROOT / "deploy"))
    assert done.returncode == 0, done.stderr
    return cluster


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    # As long as the fixtures live: what the components said last stands below the failure.
    report = yield
    if report.failed:
        for plane in getattr(item, "funcargs", {}).values():
            if isinstance(plane, ControlPlane):
                report.sections += [(f"the end of {each.log}", each.tail()) for each in plane.components]
    return report
