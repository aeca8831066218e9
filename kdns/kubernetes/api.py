"""An API server as a source of events: a watch of each kind that is wanted, and what keeps them honest.

Watches are told apart from their connection: a small request every few seconds, on a connection of its own, notices a
server that has fallen silent, whose kernel may go on acknowledging; audits notice what was never told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from random import Random
from typing import Any

import msgspec

from kdns import metrics
from kdns.kubernetes.audit import audit
from kdns.kubernetes.client import ApiError, Client
from kdns.kubernetes.objects import Metadata, Namespace, Object, Synced
from kdns.kubernetes.watch import NAMESPACES, PODS, SERVICES, SLICES, Resource, Scope, Tell, Timing, Watch
from kdns.metrics import Metrics

log = logging.getLogger("kdns.plugin.kubernetes")

# Everybody who may log in may ask for it, and any answer to it is a sign of life.
PROBE = "/version"


class Wanted(msgspec.Struct, frozen=True):
    """What of a cluster is to be watched. Empty `namespaces` are all; the selectors are texts as the API takes them."""

    namespaces: tuple[str, ...] = ()
    labels: str = ""
    namespace_labels: str = ""
    endpoints: bool = True
    pods: bool = False

    def scopes(self) -> Iterable[tuple[Resource, Scope]]:
        """Each list that this amounts to. With namespaces named, Roles in them are rights enough."""
        if self.namespaces:
            yield from ((NAMESPACES, Scope(name=name)) for name in self.namespaces)
        else:
            yield NAMESPACES, Scope(labels=self.namespace_labels)
        kinds = [SERVICES] + [SLICES] * self.endpoints + [PODS] * self.pods
        for kind in kinds:
            for namespace in self.namespaces or ("",):
                yield kind, Scope(namespace, self.labels)


class ApiSource:
    """The events of an API server: `tell(events, live)` for each change, and `Synced` once all was read.

    `live` is False for what lists say. Nothing that the server sends ends it.
    """

    def __init__(
        self,
        client: Client,
        wanted: Wanted,
        tell: Tell,
        numbers: Metrics,
        timing: Timing | None = None,
        random: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._tell = tell
        self._numbers = numbers
        self._timing = timing or Timing()
        self._random = random or Random()
        self._clock = clock
        self._began = clock()
        self.synced = False
        self.suspect = False
        self.watches = [
            Watch(
                client,
                resource,
                scope,
                tell,
                numbers,
                self._look,
                self._timing,
                Namespace(Metadata(name=scope.name)) if scope.name else None,
                self._random,
                clock,
            )
            for resource, scope in wanted.scopes()
        ]

    @property
    def missing(self) -> list[str]:
        """What has not been read yet, each with what hinders it."""
        return [
            f"{watch.label}: {watch.trouble}" if watch.trouble else watch.label
            for watch in self.watches
            if not watch.synced
        ]

    @property
    def connected(self) -> bool:
        """Whether every watch is open, as far as can be known."""
        return not self.suspect and all(watch.connected for watch in self.watches)

    def assume(self, objects: Iterable[Object]) -> None:
        """Take these for told, as a snapshot had them: what the server doesn't have any more will be told as gone."""
        watches = {(watch.resource.kind, watch.scope.namespace or watch.scope.name): watch for watch in self.watches}
        for object in objects:
            kind, metadata = type(object).__name__, object.metadata
            of = metadata.namespace or metadata.name
            watch = watches.get((kind, of)) or watches.get((kind, ""))
            if watch is not None:
                watch.assume(metadata.namespace, metadata.name)

    async def run(self) -> None:
        """Watch for ever; ends only by being cancelled, and closes its connections then."""
        self._began = self._clock()
        self._numbers.read(metrics.KUBERNETES_AGE, self._ages)
        self._numbers.read(metrics.KUBERNETES_CONNECTED, self._connected)
        try:
            async with asyncio.TaskGroup() as group:
                for watch in self.watches:
                    group.create_task(self._unending(watch.run))
                    group.create_task(self._unending(lambda watch=watch: self._audit(watch)))  # type: ignore[misc]
                group.create_task(self._unending(self._probe))
        finally:
            self._numbers.unread(metrics.KUBERNETES_AGE, self._ages)
            self._numbers.unread(metrics.KUBERNETES_CONNECTED, self._connected)
            await self._client.close()

    def _connected(self) -> dict[tuple[str, ...], float]:
        return {(): float(self.connected)}

    def _ages(self) -> dict[tuple[str, ...], float]:
        now = self._clock()
        return {(watch.label,): now - watch.heard for watch in self.watches}

    def _look(self) -> None:
        """A watch has read its list; the last one makes the whole complete."""
        if self.synced or not all(watch.synced for watch in self.watches):
            return
        self.synced = True
        self._numbers.set(metrics.KUBERNETES_SYNC_SECONDS, self._clock() - self._began)
        self._tell([Synced()], False)

    async def _unending(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a part of it again after an error of ours, which must not leave names to go stale unseen."""
        while True:
            try:
                await work()
            except Exception:
                log.exception("watching the API failed by an error of kdns; it goes on")
                self._numbers.panic()
            await asyncio.sleep(self._timing.first_pause)

    async def _audit(self, watch: Watch) -> None:
        # The servers of a cluster start together; their audits need not come together.
        await asyncio.sleep(self._timing.audit * self._random.uniform(0.75, 1.25))
        if not watch.synced or not watch.connected:
            return
        try:
            await audit(watch, self._client, self._numbers, self._timing.second_look)
        except ApiError as error:
            log.info("%s: no audit: %s", watch.label, error)

    async def _probe(self) -> None:
        """Ask for a sign of life for ever; two that don't come make every connection suspect."""
        misses = 0
        while True:
            await asyncio.sleep(0 if misses == 1 else self._timing.probe)
            try:
                await self._client.get(PROBE, {}, seconds=self._timing.probe_reply)
            except ApiError as error:
                # A refusal is a sign of life.
                misses = misses + 1 if not error.status else 0
            else:
                misses = 0
            if misses == 2:
                log.warning("the API server has fallen silent; the answers stay as they are")
                for watch in self.watches:
                    watch.drop("the API server has fallen silent")
            elif not misses and self.suspect:
                log.info("the API server speaks again")
            self.suspect = misses >= 2
