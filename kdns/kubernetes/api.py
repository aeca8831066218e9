"""An API server as a source of events: a watch of each kind that is wanted, and what keeps them honest.

Watches are told apart from their connection: a small request every few seconds, on a connection of its own, notices a
server that has fallen silent, whose kernel may go on acknowledging; audits notice what was never told.
Knows no model and no DNS.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from random import Random
from typing import Any

import msgspec

from kdns import metrics
from kdns.kubernetes.audit import audit, look_back
from kdns.kubernetes.changes import key_of
from kdns.kubernetes.client import SILENT, ApiError, Client
from kdns.kubernetes.objects import Metadata, Namespace, Object, Synced
from kdns.kubernetes.resources import NAMESPACES, PODS, SERVICES, SLICES, Resource, Scope
from kdns.kubernetes.troubles import Troubles
from kdns.kubernetes.waiting import Backoff, Timing
from kdns.kubernetes.watch import Tell, Watch
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

    `live` is False for what lists say. Nothing that the server sends ends it. `synced` stays True from then on;
    `suspect` is True while the server gives no sign of life.
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
        self._sync_seconds = 0.0
        self.synced = False
        self.suspect = False
        self._troubles = Troubles()
        self.watches = [
            Watch(
                client,
                resource,
                scope,
                tell,
                numbers,
                self._troubles,
                changed=self._note_synced,
                timing=self._timing,
                presumed=Namespace(Metadata(name=scope.name)) if scope.name else None,
                random=self._random,
                clock=clock,
            )
            for resource, scope in wanted.scopes()
        ]
        self._by_place = {(each.resource.kind, each.scope.namespace or each.scope.name): each for each in self.watches}

    def version(self, kind: str, namespace: str, name: str) -> str:
        """The resourceVersion of an object as it was told last; empty where that isn't known."""
        key = key_of(namespace, name)
        found = (str(watch.known[key]) for watch in self.watches if watch.resource.kind == kind and key in watch.known)
        return next(found, "")

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

    def assume(self, object: Object) -> None:
        """Take this for told, as a snapshot had it: if the server doesn't have it any more it will be told as gone."""
        kind, metadata = type(object).__name__, object.metadata
        of = metadata.namespace or metadata.name
        watch = self._by_place.get((kind, of)) or self._by_place.get((kind, ""))
        if watch is not None:
            watch.assume(metadata.namespace, metadata.name)

    async def run(self) -> None:
        """Watch for ever; ends only by being cancelled, and closes its connections then."""
        self._began = self._clock()
        shown: dict[metrics.Metric, metrics.Source] = {
            metrics.KUBERNETES_AGE: self._ages,
            metrics.KUBERNETES_CONNECTED: lambda: {(): float(self.connected)},
            metrics.KUBERNETES_SYNC_SECONDS: lambda: {(): self._sync_seconds} if self.synced else {},
        }
        try:
            with self._numbers.reading(shown):
                await self._watch()
        finally:
            self._troubles.close()
            await self._client.close()

    async def _watch(self) -> None:
        async with asyncio.TaskGroup() as group:
            for watch in self.watches:
                group.create_task(self._unending(watch.run))
                group.create_task(self._unending(partial(self._audit, watch)))
                group.create_task(self._unending(partial(self._look_back, watch)))
            group.create_task(self._unending(self._probe))

    def _ages(self) -> dict[tuple[str, ...], float]:
        now = self._clock()
        return {(watch.label,): now - watch.heard for watch in self.watches}

    def _note_synced(self) -> None:
        """A watch has read its list; the last one makes the whole complete."""
        if self.synced or not all(watch.synced for watch in self.watches):
            return
        self.synced = True
        self._sync_seconds = self._clock() - self._began
        self._tell([Synced()], False)

    async def _unending(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a part of it again after an error of ours, which must not leave names to go stale unseen."""
        backoff = Backoff(self._timing, self._random)
        while True:
            began = self._clock()
            try:
                await work()
                backoff.reset()
            except Exception:
                log.exception("watching the API failed by an error of kdns; it goes on")
                self._numbers.increase(metrics.PANICS)
                if self._clock() - began >= self._timing.longest_pause:
                    backoff.reset()
            await asyncio.sleep(backoff.next())

    async def _audit(self, watch: Watch) -> None:
        # The servers of a cluster start together; their audits need not come together.
        await asyncio.sleep(self._timing.audit * self._random.uniform(0.75, 1.25))
        if not watch.synced or not watch.connected:
            return
        try:
            await audit(watch, self._client, self._numbers, self._timing.second_look)
        except ApiError as error:
            log.info("%s: no audit: %s", watch.label, error)

    async def _look_back(self, watch: Watch) -> None:
        """Soon after a watch was interrupted, find out whether the history goes on where it was."""
        await asyncio.sleep(self._timing.probe * self._random.uniform(0.5, 1.0))
        if not (watch.interrupted and watch.connected and watch.progress.resume):
            return
        watch.interrupted = False
        try:
            await look_back(watch, self._client)
        except ApiError as error:
            # Who may not list has asked in vain for now; the audits, which are rarer, go on asking.
            watch.interrupted = error.status != 403

    async def _probe(self) -> None:
        """Ask for a sign of life for ever; two that don't come make every connection suspect."""
        misses = 0
        while True:
            # The second look follows the first at once.
            await asyncio.sleep(0 if misses == 1 else self._timing.probe)
            silent = await self._client.is_silent(PROBE, self._timing.probe_reply)
            misses = misses + 1 if silent else 0
            if misses == 2:
                for watch in self.watches:
                    watch.drop(SILENT)
            self.suspect = misses >= 2
