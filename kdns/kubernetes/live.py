"""A cluster's model kept up to date from an API server, with the last known state on disk beside it.

From the start of the process to its end: the snapshot, if there is one, is served at once and marked as stale; the API
takes over when all of it was read; from then on nothing that happens to the API takes an answer away.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from kdns import metrics
from kdns.errors import ConfigError, KdnsError, Problem
from kdns.kubernetes import client, snapshot
from kdns.kubernetes.api import ApiSource, Wanted
from kdns.kubernetes.cluster import Cluster
from kdns.kubernetes.objects import Delete, Event, Namespace, Object, Put, Synced
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
    startup_timeout: float = 5.0
    snapshot: str = ""
    snapshot_interval: float = 60.0
    ready_on_snapshot: float = 3600.0


class Live:
    """`apply(events, live)` takes what changes into the model of `cluster`; `clock` gives seconds since 1970.

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
    def missing(self) -> list[str]:
        """What of the API has not been read yet, each with what hinders it."""
        return self._source.missing if self._source else ["the API server"]

    async def run(self) -> None:
        """Keep the model up to date for ever; raises ConfigError where the configuration names no API server."""
        restored = self._restore() if self._options.snapshot else []
        self._source = open_source(self._options.server, self._options.wanted, self._tell, self._numbers)
        self._source.assume(restored)
        if restored:
            self.started.set()
        self._numbers.read(metrics.SNAPSHOT_AGE, self._snapshot_age)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._source.run())
                group.create_task(self._give_up_waiting())
                if self._options.snapshot:
                    group.create_task(self._write_snapshots())
        finally:
            self._numbers.unread(metrics.SNAPSHOT_AGE, self._snapshot_age)

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
        if self.stale:
            log.info("the API was read; the snapshot is no longer needed")
        self.stale = False
        self._numbers.set(metrics.KUBERNETES_STALE, 0)
        self._numbers.set(metrics.KUBERNETES_SYNCED, 1)
        self._apply(events, live)
        self._synced.set()
        self.started.set()

    # The snapshot

    async def _touch(self) -> None:
        try:
            os.utime(self._options.snapshot)
        except FileNotFoundError:
            await snapshot.write(self._cluster, self._options.snapshot)

    def _restore(self) -> list[Object]:
        """Serve what was known last; what an API server says later is told as a difference to it."""
        path = self._options.snapshot
        if not Path(path).exists():
            return []
        try:
            found = snapshot.read(path)
        except snapshot.SnapshotError as error:
            log.warning("the snapshot can't be used: %s", error)
            return []
        if found.skipped:
            self._numbers.increase(metrics.KUBERNETES_SKIPPED, "snapshot", by=found.skipped)
            log.warning("%d objects of the snapshot could not be read", found.skipped)
        self._snapshot_time = found.written
        wanted = [each for each in found.objects if self._is_wanted(each)]
        age = self._clock() - found.written
        log.warning("answering from a snapshot of %.0f s ago until the API was read", age)
        self.stale = True
        self._numbers.set(metrics.KUBERNETES_STALE, 1)
        self.restoring = True
        self._apply((Put(each) for each in wanted), False)
        self._apply((Synced(),), False)
        self.restoring = False
        return wanted

    def _is_wanted(self, object: Object) -> bool:
        namespaces = self._options.wanted.namespaces
        metadata = object.metadata
        return not namespaces or (metadata.name if isinstance(object, Namespace) else metadata.namespace) in namespaces

    async def _write_snapshots(self) -> None:
        path, written = self._options.snapshot, -1
        await self._synced.wait()
        while True:
            serial = self._cluster.serial
            try:
                # Where nothing has changed and we would know, what the file says holds now as well.
                current = self._source is not None and self._source.connected
                if serial != written:
                    await snapshot.write(self._cluster, path)
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


def open_source(server: Server, wanted: Wanted, tell: Tell, numbers: Metrics) -> ApiSource:
    """The source that a configuration names. Raises ConfigError where it names none."""
    if server.kubeconfig:
        if not Path(server.kubeconfig).is_file():
            raise ConfigError([Problem(f"there is no kubeconfig `{server.kubeconfig}`")])
        credentials = client.from_kubeconfig(server.kubeconfig, server.context)
    elif server.endpoint:
        credentials = client.at_endpoint(server.endpoint, server.certificate, server.key, server.ca)
    else:
        credentials = client.in_cluster()
    return ApiSource(client.Client(credentials), wanted, tell, numbers)


async def read_once(server: Server, seconds: float) -> list[Object]:
    """Everything in a cluster that DNS may need, as it is now. Raises KdnsError if it takes longer than that."""
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

    source = open_source(server, Wanted(pods=True), tell, Metrics())
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
