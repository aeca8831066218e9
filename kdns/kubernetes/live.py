"""A cluster's model kept up to date from an API server, with the last known state on disk beside it.

From the start of the process to its end: the snapshot, if there is one, is served at once and marked as stale; the API
takes over when all of it was read; from then on nothing that happens to the API takes an answer away.
Besides, the source that a configuration names (`open_source`), and one reading of it without a model (`read_once`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from kdns import metrics
from kdns.errors import ConfigError, KdnsError, Problem
from kdns.kubernetes import snapshot
from kdns.kubernetes.api import ApiSource, Wanted
from kdns.kubernetes.client import Client
from kdns.kubernetes.cluster import Cluster
from kdns.kubernetes.credentials import at_endpoint, from_kubeconfig, in_cluster
from kdns.kubernetes.objects import UNREADABLE, Delete, EndpointSlice, Event, Namespace, Object, Pod, Put, Synced
from kdns.kubernetes.snapshot import MadeFor
from kdns.kubernetes.watch import Tell
from kdns.metrics import Metrics

log = logging.getLogger("kdns.plugin.kubernetes")


class Server(msgspec.Struct, frozen=True):
    """Where the API is and as whom to ask it; without any of these, as a pod of the cluster does."""

    kubeconfig: str = ""
    context: str = ""
    endpoint: str = ""
    certificate: str = ""
    key: str = ""
    ca: str = ""


class LiveOptions(msgspec.Struct, frozen=True):
    """All that a live source needs; durations in seconds. Without `snapshot` nothing is written or read."""

    server: Server = Server()
    wanted: Wanted = Wanted()
    endpoint_pod_names: bool = False
    locates_clients: bool = False
    startup_timeout: float = 5.0
    snapshot: str = ""
    snapshot_interval: float = 60.0
    ready_on_snapshot: float = 3600.0

    @property
    def made_for(self) -> MadeFor:
        """What decides which objects the model has, as the configuration names it; where the cluster is, always."""
        wanted = self.wanted
        given = {
            "cluster": server_url(self.server),
            "namespaces": " ".join(sorted(set(wanted.namespaces))),
            "labels": wanted.labels,
            "namespace_labels": wanted.namespace_labels,
            "noendpoints": "" if wanted.endpoints else "on",
            "pods": "verified" if wanted.pods else "",
            "endpoint_pod_names": "on" if self.endpoint_pod_names else "",
            "clients": "on" if self.locates_clients else "",
        }
        return {name: value for name, value in given.items() if value}


class Live:
    """What keeps one model up to date, from `run` until that is cancelled.

    `apply(events, live)` takes what changes into the model of `cluster`; `clock` gives seconds since 1970.

    `stale` is True while the model is the snapshot's, `restoring` while that is being applied. `started` is set once
    there is something to serve, or `startup_timeout` has passed.
    """

    def __init__(
        self,
        options: LiveOptions,
        cluster: Cluster,
        apply: Callable[[Iterable[Event], bool], None],
        numbers: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._options = options
        self._cluster = cluster
        self._apply = apply
        self._numbers = numbers
        self._clock = clock
        self._source: ApiSource | None = None
        self._snapshot_time = 0.0
        # The file that we wrote, as `_identity` has it.
        self._written_file = (0, 0)
        self.stale = False
        self.restoring = False
        self.started = asyncio.Event()
        self._synced = asyncio.Event()

    def ready(self) -> bool:
        """Whether the API was read, or a snapshot that is young enough."""
        if not self._cluster.synced:
            return False
        return not self.stale or self._clock() - self._snapshot_time < self._options.ready_on_snapshot

    @property
    def connected(self) -> bool:
        """Whether every watch is open, as far as can be known."""
        return self._source is not None and self._source.connected

    def version(self, kind: str, namespace: str, name: str) -> str:
        """The resourceVersion of an object as it was told last; empty where that isn't known."""
        return self._source.version(kind, namespace, name) if self._source else ""

    @property
    def missing(self) -> list[str]:
        """What of the API has not been read yet, each with what hinders it."""
        return self._source.missing if self._source else ["the API server"]

    async def run(self) -> None:
        """Keep the model up to date for ever; raises ConfigError where the configuration names no API server."""
        self._source = open_source(self._options.server, self._options.wanted, self._tell, self._numbers)
        if self._options.snapshot:
            self._restore(self._source)
        shown: dict[metrics.Metric, metrics.Source] = {
            metrics.KUBERNETES_SYNCED: lambda: {(): float(self._synced.is_set())},
            metrics.KUBERNETES_STALE: lambda: {(): float(self.stale)},
            metrics.SNAPSHOT_AGE: self._snapshot_age,
        }
        with self._numbers.reading(shown):
            async with asyncio.TaskGroup() as group:
                group.create_task(self._source.run())
                group.create_task(self._give_up_waiting())
                if self._options.snapshot:
                    group.create_task(self._write_snapshots())

    def _snapshot_age(self) -> dict[tuple[str, ...], float]:
        if not self._snapshot_time:
            return {}
        return {(self._options.snapshot,): self._clock() - self._snapshot_time}

    async def _give_up_waiting(self) -> None:
        await asyncio.sleep(self._options.startup_timeout)
        if not self.started.is_set():
            log.warning("the API was not read within %g s: %s", self._options.startup_timeout, "; ".join(self.missing))
            self.started.set()

    def _tell(self, events: Sequence[Event], live: bool) -> None:
        if not any(isinstance(event, Synced) for event in events):
            self._apply(events, live)
            return
        restored, self.stale = self.stale, False
        self._apply(events, live)
        if restored:
            log.info("the API was read; the snapshot is no longer needed")
            _give_back_memory()
        self._synced.set()
        self.started.set()

    # The snapshot

    async def _write(self) -> None:
        await snapshot.write(self._cluster, self._options.snapshot, self._options.made_for)
        self._written_file = _identity(self._options.snapshot)

    async def _touch(self) -> None:
        """Say that what we wrote holds now as well, unless it is gone or another process has written its own."""
        with contextlib.suppress(FileNotFoundError):
            if _identity(self._options.snapshot) == self._written_file:
                os.utime(self._options.snapshot)
                self._written_file = _identity(self._options.snapshot)
                return
        await self._write()

    def _restore(self, source: ApiSource) -> None:
        """Serve what was known last; what an API server says later is told as a difference to it."""
        path = self._options.snapshot
        if not Path(path).exists():
            return
        try:
            found = snapshot.read(path)
        except snapshot.SnapshotError as error:
            log.warning("the snapshot can't be used: %s", error)
            return
        if found.made_for is None:
            log.warning("the snapshot doesn't say with which options it was made; it is taken for one of these")
        elif differences := snapshot.differences(found.made_for, self._options.made_for):
            log.warning("the snapshot can't be used: %s: with other options: %s", path, "; ".join(differences))
            return
        self._snapshot_time = found.written
        age = self._clock() - found.written
        log.warning("answering from a snapshot of %.0f s ago until the API was read", age)
        self.stale = True
        self.restoring = True
        self._apply(self._restored(found, source), False)
        self._apply((Synced(),), False)
        self.restoring = False
        self.started.set()

    def _restored(self, found: snapshot.Snapshot, source: ApiSource) -> Iterator[Event]:
        skipped = 0
        for each in found.objects():
            if each is None:
                skipped += 1
            elif self._is_wanted(each):
                source.assume(each)
                yield Put(each)
        if skipped:
            self._numbers.increase(metrics.KUBERNETES_SKIPPED, "snapshot", by=skipped)
            log.warning("%d objects of the snapshot could not be read", skipped)

    def _is_wanted(self, object: Object) -> bool:
        """Whether there is a watch that would tell of it when it changes: a snapshot without a mark may have more."""
        wanted, metadata = self._options.wanted, object.metadata
        if not {EndpointSlice: wanted.endpoints, Pod: wanted.pods}.get(type(object), True):
            return False
        namespace = metadata.name if isinstance(object, Namespace) else metadata.namespace
        return not wanted.namespaces or namespace in wanted.namespaces

    async def _write_snapshots(self) -> None:
        written = -1
        await self._synced.wait()
        while True:
            serial = self._cluster.serial
            try:
                # Where nothing has changed and we would know, what the file says holds now as well.
                current = self.connected
                if serial != written:
                    await self._write()
                elif current:
                    await self._touch()
                if serial != written or current:
                    self._snapshot_time = self._clock()
                written = serial
            except Exception as error:
                # Whatever it is, even ours: the names that are served must not suffer from it.
                written = -1
                self._numbers.increase(metrics.SNAPSHOT_FAILURES)
                expected = isinstance(error, snapshot.SnapshotError | OSError)
                log.error("the snapshot could not be written: %s", error, exc_info=None if expected else error)
            await asyncio.sleep(self._options.snapshot_interval)


def _identity(path: str) -> tuple[int, int]:
    """What tells a file from another that has taken its place. Raises FileNotFoundError."""
    found = Path(path).stat()
    return found.st_ino, found.st_mtime_ns


def _give_back_memory() -> None:
    """Return to the system what was needed for a moment: of 136 MB 48 (bench/scale.py snapshot), in 6 ms."""
    # The C library keeps it otherwise; one that isn't glibc has no such call.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class _Named(msgspec.Struct):
    name: str


class _Cluster(msgspec.Struct):
    server: str


class _NamedCluster(_Named):
    cluster: _Cluster


class _Context(msgspec.Struct):
    cluster: str


class _NamedContext(_Named):
    context: _Context


class _Kubeconfig(msgspec.Struct, rename="kebab"):
    """As much of a kubeconfig as tells where the cluster is."""

    clusters: list[_NamedCluster]
    contexts: list[_NamedContext]
    current_context: str = ""


def server_url(server: Server) -> str:
    """Where the API is. Credentials aren't looked at, for to get them may take long; a bad kubeconfig is its path."""
    if not server.kubeconfig:
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{each}", "") for each in ("HOST", "PORT"))
        return server.endpoint or f"{host}:{port}"
    try:
        content = msgspec.yaml.decode(Path(server.kubeconfig).read_bytes(), type=_Kubeconfig)
        contexts = {each.name: each.context for each in content.contexts}
        clusters = {each.name: each.cluster for each in content.clusters}
        return clusters[contexts[server.context or content.current_context].cluster].server
    except (OSError, KeyError, *UNREADABLE):
        # Who follows the API says what is wrong with it.
        return server.kubeconfig


def open_source(server: Server, wanted: Wanted, tell: Tell, numbers: Metrics) -> ApiSource:
    """The source that a configuration names. Raises ConfigError where it names none."""
    if server.kubeconfig:
        if not Path(server.kubeconfig).is_file():
            raise ConfigError([Problem(f"there is no kubeconfig `{server.kubeconfig}`")])
        credentials = from_kubeconfig(server.kubeconfig, server.context)
    elif server.endpoint:
        credentials = at_endpoint(server.endpoint, server.certificate, server.key, server.ca)
    else:
        credentials = in_cluster()
    return ApiSource(Client(credentials, numbers=numbers), wanted, tell, numbers)


async def read_once(server: Server, seconds: float, wanted: Wanted = Wanted(pods=True)) -> list[Object]:  # noqa: B008
    """What is wanted of a cluster, as it is now. Raises KdnsError if it takes longer than that."""
    found: dict[tuple[str, str, str], Object] = {}
    done = asyncio.Event()

    def tell(events: Sequence[Event], live: bool) -> None:
        for event in events:
            match event:
                case Put(object=object):
                    found[type(object).__name__, object.metadata.namespace, object.metadata.name] = object
                case Delete(kind=kind, namespace=namespace, name=name):
                    found.pop((kind, namespace, name), None)
                case Synced():
                    done.set()

    source = open_source(server, wanted, tell, Metrics())
    reading = asyncio.create_task(source.run())
    try:
        async with asyncio.timeout(seconds):
            await done.wait()
    except TimeoutError:
        raise KdnsError(f"the cluster was not read within {seconds:g} s: {'; '.join(source.missing)}") from None
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    return list(found.values())
