"""One kind of object of an API server: all of them, then every change, for as long as it is wanted.

`Watch.run` lists, follows, resumes where it stopped, lists again only where the server has forgotten that place, and
waits longer after each failure. What it tells are the events of `objects`; it holds no object, only the version of
each, to tell what a second list changes. Knows no DNS and no model.
Law: the API concepts of Kubernetes (resource versions, watch, streaming lists, bookmarks, 410 Gone).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from random import Random
from typing import Any

import msgspec

from kdns import metrics
from kdns.kubernetes.changes import (
    PARTIAL,
    RAW_PAGE,
    SHAPELESS,
    UNKNOWN,
    Added,
    Bookmark,
    Deleted,
    Error,
    Lines,
    MalformedError,
    Modified,
    Named,
    Page,
    Partial,
    Version,
    change_decoder,
    key_of,
    object_decoder,
    older,
    page_decoder,
    parts_of,
    version_of,
)
from kdns.kubernetes.client import ApiError, Client, Status
from kdns.kubernetes.objects import UNREADABLE, Delete, EndpointSlice, Event, Namespace, Object, Pod, Put, Service
from kdns.metrics import Metrics

log = logging.getLogger("kdns.plugin.kubernetes")

Tell = Callable[[Sequence[Event], bool], None]

# What is applied between two looks at the sockets: some 5 ms of work.
MOST_EVENTS = 100
PAGE = 500
# What a broken proxy may ask for has an end, in seconds.
LONGEST_RETRY_AFTER = 300.0
# A server that is behind what we have seen gets this many chances to catch up.
MOST_TOO_LARGE = 3
# After this long a stream that breaks was no failure to set it up.
LIVED_SECONDS = 5.0


class Timing(msgspec.Struct, frozen=True):
    """How long is long; all in seconds."""

    first_pause: float = 0.8
    longest_pause: float = 30.0
    watch: tuple[float, float] = (300.0, 600.0)
    silence: float = 10.0
    probe: float = 10.0
    probe_reply: float = 4.0
    audit: float = 240.0
    second_look: float = 5.0


class Resource(msgspec.Struct, frozen=True):
    """A kind of object and where the API has it."""

    kind: str
    plural: str
    prefix: str
    change: msgspec.json.Decoder[Any]
    page: msgspec.json.Decoder[Any]
    object: msgspec.json.Decoder[Any]

    @classmethod
    def of(cls, kind: type[Any], plural: str, prefix: str) -> Resource:
        """The resource of a type of objects, with what reads it."""
        return cls(kind.__name__, plural, prefix, change_decoder(kind), page_decoder(kind), object_decoder(kind))

    def path(self, namespace: str = "") -> str:
        """The path of the collection, of one namespace or of all."""
        return f"{self.prefix}{f'/namespaces/{namespace}' if namespace else ''}/{self.plural}"


NAMESPACES = Resource.of(Namespace, "namespaces", "/api/v1")
SERVICES = Resource.of(Service, "services", "/api/v1")
SLICES = Resource.of(EndpointSlice, "endpointslices", "/apis/discovery.k8s.io/v1")
PODS = Resource.of(Pod, "pods", "/api/v1")


class Scope(msgspec.Struct, frozen=True):
    """Which objects of a kind: of one namespace or all, with these labels, of this name. Empty means any."""

    namespace: str = ""
    labels: str = ""
    name: str = ""

    @property
    def parameters(self) -> dict[str, str]:
        """The same as parameters of a request."""
        selectors = {"labelSelector": self.labels, "fieldSelector": self.name and f"metadata.name={self.name}"}
        return {key: value for key, value in selectors.items() if value}


class _NoListError(ApiError):
    """The server can't begin a watch with a list, or does not do it as it is written."""

    def __init__(self, what: str) -> None:
        super().__init__(Status(0, "no streaming list", what))


class _StaleError(ApiError):
    """A list that is older than what was seen before."""

    def __init__(self, version: Version, floor: Version) -> None:
        super().__init__(Status(0, "stale", f"a list of version {version}, after {floor} was seen"))


class Backoff:
    """Pauses that double up to a longest one, each with as much again by chance (a herd must not come back at once)."""

    def __init__(self, timing: Timing, random: Random) -> None:
        self._timing = timing
        self._random = random
        self._pause = timing.first_pause

    def reset(self) -> None:
        """What came after the last pause went well for long enough."""
        self._pause = self._timing.first_pause

    def next(self) -> float:
        """The pause to make now, in seconds."""
        pause = self._pause
        self._pause = min(pause * 2, self._timing.longest_pause)
        return min(pause * (1 + self._random.random()), self._timing.longest_pause)


class _Listing:
    """A list while it is read: what of the known it has not named yet, and what it says otherwise than is known.

    That is held back until its end: only then is it certain that the list is whole and not from the past, and only
    together do its objects say what was true at one moment. Where nothing is known yet there is nothing to protect, so
    then it is told `at_once`.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self.unseen = set(known)
        self.at_once = not self.unseen
        self.changed: dict[str, Object] = {}
        self._versions: dict[str, Version] = {}

    def names(self, key: str, version: Version) -> bool:
        """The list has this object; False if it had it in a newer version already."""
        if older(version, self._versions.get(key, "")):
            return False
        self._versions[key] = version
        self.unseen.discard(key)
        self.changed.pop(key, None)
        return True

    def batches(self) -> Iterator[list[Object]]:
        """What has changed, the slices of one service never apart: between them it might have no address at all."""
        batch: list[Object] = []
        for _, together in groupby(sorted(self.changed.values(), key=_owner), key=_owner):
            batch += together
            if len(batch) >= MOST_EVENTS:
                yield batch
                batch = []
        yield batch


class Watch:
    """The objects of one kind and scope, told as events: `tell(events, live)`.

    `live` is False for what a list says, which may have happened long ago. `presumed` is told to exist where the
    server doesn't let us look. `changed` is called when `synced` has become true.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        scope: Scope,
        tell: Tell,
        numbers: Metrics,
        changed: Callable[[], None] = lambda: None,
        timing: Timing | None = None,
        presumed: Object | None = None,
        random: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resource = resource
        self.scope = scope
        self.known: dict[str, Version] = {}
        self.synced = False
        self.connected = False
        self.trouble = ""
        self.heard = clock()
        # The newest version that was ever seen. No list may be older, or what is new would be taken for gone.
        self.floor: Version = ""
        # What could not be read, by key; an audit passes over it.
        self.poisoned: set[str] = set()
        self._client = client
        self._tell = tell
        self._numbers = numbers
        self._changed = changed
        self._timing = timing or Timing()
        self._presumed = presumed
        self._random = random or Random()
        self._clock = clock
        self._backoff = Backoff(self._timing, self._random)
        self._deadline: asyncio.Timeout | None = None
        self._ends = 0.0
        # The newest version that an event or a list had; a bookmark's is a promise only.
        self._told: Version = ""
        # What audits have taken out since the last list, and at which version.
        self._removed: dict[str, Version] = {}
        self._streaming_list = True
        # Where the next watch goes on; without it there is a list first.
        self._resume: Version = ""
        self._dropped = ""
        self._too_large = 0
        self._stale_before: Version = ""
        self._received = 0

    @property
    def label(self) -> str:
        """What is watched, for a person: `services`, `pods of shop`."""
        of = self.scope.namespace or self.scope.name
        return self.resource.plural + (f" of {of}" if of else "")

    def assume(self, namespace: str, name: str) -> None:
        """Take an object for told, in an unknown version; the first list says whether it is still there."""
        self.known[key_of(namespace, name)] = ""

    async def run(self) -> None:
        """Tell for ever; ends only by being cancelled."""
        while True:
            began, received = self._clock(), self._received
            refusal: ApiError | None = None
            try:
                if self._resume:
                    await self._follow(None)
                elif self._streaming_list:
                    await self._follow(_Listing(self.known))
                else:
                    await self._list()
                    continue
            except ApiError as error:
                refusal = error
            finally:
                self.connected = False
            lived = self._clock() - began
            await asyncio.sleep(self._pause(refusal, lived, self._received > received))

    def drop(self, reason: str) -> None:
        """Give up the connection, which is not to be trusted any more, and take another."""
        if self._deadline is not None and self.connected and not self._deadline.expired():
            self._dropped = reason
            self._deadline.reschedule(asyncio.get_running_loop().time())

    def relist(self, reason: str) -> None:
        """List again at the next turn, as a diff against what is known."""
        self._resume = ""
        self._numbers.increase(metrics.KUBERNETES_RELISTS, self.resource.kind, reason)

    # Failures

    def _pause(self, refusal: ApiError | None, lived: float, received: bool) -> float:
        """How long to wait before the next request."""
        if lived >= self._timing.longest_pause:
            self._backoff.reset()
        if refusal is None:
            # A watch ends by itself after some minutes. One that ends at once without a word is a failure like others.
            return 0.0 if received or lived >= min(1.0, self._timing.first_pause) else self._backoff.next()
        self._note(refusal)
        if isinstance(refusal, _NoListError):
            self._streaming_list = False
            return 0.0
        if isinstance(refusal, MalformedError):
            self.relist("malformed")
        elif refusal.expired:
            if not self._resume:
                # The list itself began in a past that is forgotten: what the store has now will do.
                self._too_large = MOST_TOO_LARGE
            self.relist("expired")
        elif refusal.too_large:
            self._too_large += 1
            if self._resume and self._too_large >= MOST_TOO_LARGE:
                self.relist("too_large")
        elif refusal.status == 403 and self._presumed is not None and not self.synced:
            self._presume(self._presumed)
        elif refusal.status == 0 and self._resume and lived >= LIVED_SECONDS:
            return self._random.random() * min(0.2, self._timing.first_pause)
        return max(self._backoff.next(), min(refusal.retry_after or 0.0, LONGEST_RETRY_AFTER))

    def _note(self, refusal: ApiError) -> None:
        status = str(refusal.status) if refusal.status else "none"
        self._numbers.increase(metrics.KUBERNETES_FAILURES, self.resource.kind, status)
        trouble = str(refusal)
        if refusal.status == 403:
            verb = "watch" if self._resume or self._streaming_list else "list"
            trouble = f"not allowed to {verb} {self.label}: {refusal.message}"
        if trouble != self.trouble:
            level = logging.INFO if isinstance(refusal, _NoListError) else logging.WARNING
            log.log(level, "%s: %s", self.label, trouble)
        self.trouble = trouble

    def _presume(self, object: Object) -> None:
        log.warning("%s: it is taken to exist, as the configuration says", self.label)
        # Without a version, so that a later list may say otherwise.
        self.assume(object.metadata.namespace, object.metadata.name)
        self._tell([Put(object)], False)
        self._be_synced()

    def _be_untroubled(self, how: str) -> None:
        if self.trouble:
            log.info("%s: %s", self.label, how)
            self.trouble = ""

    def _be_synced(self) -> None:
        if not self.synced:
            self.synced = True
            self._changed()

    # Lists and watches

    async def _follow(self, listing: _Listing | None) -> None:
        """Read one watch to its end; with `listing` it begins with a list."""
        lines = Lines()
        seconds = int(self._random.uniform(*self._timing.watch)) or 1
        # What is silent in the middle of a list has stopped. A watch may be silent for as long as it was asked to last.
        self._ends = asyncio.get_running_loop().time() + seconds + self._timing.silence
        try:
            async with asyncio.timeout(self._timing.silence) as self._deadline:
                async with self._client.stream(
                    self.resource.path(self.scope.namespace), self._watch_parameters(listing is not None, seconds)
                ) as chunks:
                    self.connected = True
                    if listing is None:
                        self._hear(listing=False)
                        self._be_untroubled("watched again")
                    async for chunk in chunks:
                        self._hear(listing is not None)
                        if not await self._take(lines.take(chunk), listing) and listing is not None:
                            # The list has ended in this chunk: from here on it may be silent.
                            listing = None
                            self._hear(listing=False)
                        # Chunks may lie ready for as long as a list is; queries are to have their turn.
                        await asyncio.sleep(0)
        except TimeoutError as error:
            if listing and not self._dropped:
                raise _NoListError("the list has no end") from error
            reason, self._dropped = self._dropped or "it did not end when it should have", ""
            raise ApiError(Status(0, "given up", reason)) from error
        except ApiError as error:
            # 422 without the feature, 400 from servers that never heard of it.
            if listing and error.status in (400, 422):
                raise _NoListError(error.message) from error
            raise
        if listing:
            raise ApiError(Status(0, "incomplete", "the watch ended within its list"))

    def _hear(self, listing: bool) -> None:
        self.heard = self._clock()
        # What was given up stays so, whatever it still says.
        if self._deadline is not None and not self._deadline.expired() and not self._dropped:
            now = asyncio.get_running_loop().time()
            self._deadline.reschedule(now + self._timing.silence if listing else self._ends)

    async def _take(self, lines: Iterable[bytes], listing: _Listing | None) -> bool:
        """Tell what some lines say. Returns whether the list that they are part of still goes on."""
        events: list[Event] = []
        try:
            for line in lines:
                change = self._decode(line, listing)
                match change:
                    case Added(object=object) | Modified(object=object):
                        # While a server that was behind catches up, its list goes on with changes.
                        events += self._put(object, listing)
                    case Deleted(object=Partial(metadata=metadata)):
                        events += self._delete(metadata, listing)
                    case Bookmark() if listing is not None:
                        if not change.ends_list:
                            raise _NoListError("a bookmark that is not the list's end")
                        self._tell(events, False)
                        events = []
                        await self._listed(listing, version_of(change.object.metadata.resource_version))
                        listing = None
                    case Bookmark():
                        self._advance(version_of(change.object.metadata.resource_version))
                    case Error(object=status):
                        raise ApiError(status)
                if len(events) >= MOST_EVENTS:
                    self._tell(events, listing is None)
                    events = []
                    await asyncio.sleep(0)
        finally:
            self._tell(events, listing is None)
        return listing is not None

    async def _list(self) -> None:
        """Read a list by pages: what servers before 1.32 do, and what remains when a watch can't begin with one."""
        listing = _Listing(self.known)
        parameters = self.scope.parameters | {"limit": str(PAGE)}
        first = parameters | self._not_older()
        page = await self._page(first, listing)
        while page.metadata.continue_:
            following = parameters | {"continue": page.metadata.continue_}
            page = await self._page(following, listing)
        await self._listed(listing, version_of(page.metadata.resource_version))

    async def _page(self, parameters: Mapping[str, str], listing: _Listing) -> Page[Any]:
        body = await self._client.get(self.resource.path(self.scope.namespace), parameters)
        self.heard = self._clock()
        try:
            page: Page[Any] = self.resource.page.decode(body)
        except UNREADABLE:
            page = self._page_with_poison(body, listing)
        items = page.items or []
        for start in range(0, len(items), MOST_EVENTS):
            events = [event for item in items[start : start + MOST_EVENTS] for event in self._put(item, listing)]
            self._tell(events, False)
            await asyncio.sleep(0)
        return page

    def _page_with_poison(self, body: bytes, listing: _Listing) -> Page[Any]:
        """A page of which some object can't be read: the others."""
        try:
            raw = RAW_PAGE.decode(body)
        except UNREADABLE as error:
            raise MalformedError(str(error)) from error
        items = []
        for item in raw.items or ():
            try:
                items.append(self.resource.object.decode(item))
            except UNREADABLE as error:
                try:
                    self._skip(PARTIAL.decode(item).metadata, listing, str(error))
                except UNREADABLE:
                    self._numbers.increase(metrics.KUBERNETES_SKIPPED, self.resource.kind)
        return Page(raw.metadata, items)

    async def _listed(self, listing: _Listing, version: Version) -> None:
        """The end of a list: what it says otherwise is so, and what it did not name is gone, unless it is older."""
        if version in ("", 0):
            # Nothing could go on from there.
            raise MalformedError("a list without a version")
        if older(version, self.floor):
            await self._look_again(version)
            return
        for batch in listing.batches():
            current = [each for each in batch if not self._knows_better(_key_of(each), version)]
            for each in current:
                self._know(each)
            self._tell([Put(each) for each in current], False)
            await asyncio.sleep(0)
        gone = [key for key in listing.unseen if key in self.known]
        for start in range(0, len(gone), MOST_EVENTS):
            some = [key for key in gone[start : start + MOST_EVENTS] if not self._knows_better(key, version)]
            for key in some:
                self.known.pop(key, None)
            self._tell([Delete(self.resource.kind, *parts_of(key)) for key in some], False)
            await asyncio.sleep(0)
        self._stale_before, self._too_large = "", 0
        self._removed.clear()
        self._resume = self.floor = self._told = version
        self._be_untroubled("the list was read")
        self._be_synced()

    def _knows_better(self, key: str, version: Version) -> bool:
        """Whether an audit, while the list was read, has found what came after it."""
        held = self.known.get(key)
        return held is not None and older(version, held)

    async def _look_again(self, version: Version) -> None:
        """A list from the past: a server that is behind, or a history that was set back (etcd from a backup).

        Only if another list, some seconds later, says so too is the past what holds now.
        """
        floor = self.floor
        if self._stale_before == "":
            self._stale_before = version
            await asyncio.sleep(self._timing.second_look)
        else:
            log.error("%s: the API's history was set back, from %s to %s", self.label, floor, version)
            self._stale_before, self.floor = "", ""
            # The same number now may mean another state, so every object counts as changed.
            self.known = dict.fromkeys(self.known, "")
            self.relist("set_back")
        raise _StaleError(version, floor)

    def _watch_parameters(self, listing: bool, seconds: int) -> dict[str, str]:
        parameters = self.scope.parameters | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        if not listing:
            return parameters | {"resourceVersion": str(self._resume)}
        not_older = self._not_older() or {"resourceVersionMatch": "NotOlderThan"}
        return parameters | {"sendInitialEvents": "true"} | not_older

    def _not_older(self) -> dict[str, str]:
        """What a list is asked for: nothing older than we know, or, where that leads nowhere, what etcd has now."""
        if self.floor == "" or self._too_large >= MOST_TOO_LARGE or self._stale_before != "":
            return {}
        return {"resourceVersion": str(self.floor), "resourceVersionMatch": "NotOlderThan"}

    # Objects

    def has_been_at(self, version: Version) -> None:
        """Somebody has seen the server at this version: nothing older is the present."""
        if self.floor == "" or older(self.floor, version):
            self.floor = version

    def put_right(self, found: Iterable[Object], gone: Iterable[tuple[str, Version]]) -> list[str]:
        """Take in at one moment what an audit has found, and what is gone, at which version.

        Returns the keys of what was news. Events that come late may still tell of what is gone.
        """
        events: list[Event] = []
        keys: list[str] = []
        for object in found:
            key, version = _key_of(object), version_of(object.metadata.resource_version)
            if self.known.get(key) != version:
                self._know(object)
                self.has_been_at(version)
                events.append(Put(object))
                keys.append(key)
        for key, version in gone:
            del self.known[key]
            self._removed[key] = version
            events.append(Delete(self.resource.kind, *parts_of(key)))
            keys.append(key)
        self._tell(events, False)
        return keys

    def _decode(self, line: bytes, listing: _Listing | None) -> object:
        try:
            return self.resource.change.decode(line)
        except UNREADABLE as error:
            why = str(error)
        try:
            unknown = UNKNOWN.decode(line)
        except UNREADABLE:
            self._skip_nameless(line)
            return None
        self._skip(unknown.object.metadata, listing, why)
        return None

    def _skip_nameless(self, line: bytes) -> None:
        """A change of nobody knows what. What is no change at all may stand for any number of them."""
        try:
            SHAPELESS.decode(line)
        except UNREADABLE as error:
            raise MalformedError(str(error)) from error
        self._numbers.increase(metrics.KUBERNETES_SKIPPED, self.resource.kind)

    def _skip(self, metadata: Named, listing: _Listing | None, why: str) -> None:
        """An object that we can't read: what we had of it stays as it was, and nobody else's suffers."""
        key = key_of(metadata.namespace, metadata.name)
        if listing is not None:
            listing.unseen.discard(key)
        if key in self.known:
            self.known[key] = version_of(metadata.resource_version)
        if listing is None:
            self._advance(version_of(metadata.resource_version))
        self._numbers.increase(metrics.KUBERNETES_SKIPPED, self.resource.kind)
        if key not in self.poisoned and len(self.poisoned) < 1000:
            self.poisoned.add(key)
            log.warning("%s %s is passed over: %s", self.resource.kind, key, why)

    def _put(self, object: Object, listing: _Listing | None) -> Iterable[Event]:
        metadata = object.metadata
        key = key_of(metadata.namespace, metadata.name)
        version = version_of(metadata.resource_version)
        held = self.known.get(key)
        self._received += 1
        if listing is not None:
            late = not listing.names(key, version)
        else:
            # What we don't know any more has gone; told again from before its end it would come back.
            late = older(version, self._told if held is None else held) or older(version, self._removed.get(key, ""))
            self._tell_up_to(version)
        # A list that isn't from the past is right about what is older, too.
        if late or (version == held and version != ""):
            return ()
        if listing is not None and not listing.at_once:
            listing.changed[key] = object
            return ()
        self._know(object)
        return (Put(object),)

    def _know(self, object: Object) -> None:
        metadata = object.metadata
        key = key_of(metadata.namespace, metadata.name)
        self.known[key] = version_of(metadata.resource_version)
        self.poisoned.discard(key)
        self._numbers.increase(metrics.KUBERNETES_EVENTS, self.resource.kind, "put")

    def _delete(self, metadata: Named, listing: _Listing | None) -> Iterable[Event]:
        key = key_of(metadata.namespace, metadata.name)
        version = version_of(metadata.resource_version)
        if listing is not None and not listing.at_once:
            if listing.names(key, version) and key in self.known:
                listing.unseen.add(key)
            return ()
        self._tell_up_to(version)
        self._received += 1
        held = self.known.get(key)
        if held is None or older(version, held):
            return ()
        del self.known[key]
        self._numbers.increase(metrics.KUBERNETES_EVENTS, self.resource.kind, "delete")
        return (Delete(self.resource.kind, metadata.namespace, metadata.name),)

    def _tell_up_to(self, version: Version) -> None:
        """An event of this version: the server tells them in order."""
        if not older(version, self._told):
            self._told = version
        self._advance(version)

    def _advance(self, version: Version) -> None:
        """The place in the server's history that we have reached; it never goes back."""
        if version == "" or self._resume == "" or older(version, self._resume):
            return
        self._resume = self.floor = version
        self._too_large = 0


def _key_of(object: Object) -> str:
    return key_of(object.metadata.namespace, object.metadata.name)


def _owner(object: Object) -> tuple[str, str]:
    """The service that an object belongs to, as far as it belongs to any."""
    metadata = object.metadata
    name = object.service if isinstance(object, EndpointSlice) else metadata.name
    return metadata.namespace, name or ""
