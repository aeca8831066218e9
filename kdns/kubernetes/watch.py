"""One kind of object of an API server: all of them, then every change, for as long as it is wanted.

`Watch.run` lists, follows, resumes where it stopped, lists again only where the server has forgotten that place, and
waits longer after each failure. What it tells are the events of `objects`; it holds no object, only the version of
each, to tell what a second list changes. What versions mean is `progress`'s, how long to wait `waiting`'s. Knows no
DNS and no model.
Law: the API concepts of Kubernetes (resource versions, watch, streaming lists, bookmarks, 410 Gone).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any, NoReturn

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
    decode,
    key_of,
    older,
    parts_of,
    version_of,
)
from kdns.kubernetes.client import SILENT, ApiError, Client, SilentError, Status
from kdns.kubernetes.listing import MOST_EVENTS, Listing, key_of_object
from kdns.kubernetes.objects import UNREADABLE, Delete, Event, Object, Put
from kdns.kubernetes.progress import Progress
from kdns.kubernetes.resources import Resource, Scope
from kdns.kubernetes.troubles import Troubles
from kdns.kubernetes.waiting import Backoff, Timing
from kdns.metrics import Metrics

log = logging.getLogger("kdns.plugin.kubernetes")

Tell = Callable[[Sequence[Event], bool], None]

PAGE = 500
# What a broken proxy may ask for has an end, in seconds.
LONGEST_RETRY_AFTER = 300.0
# After this long a stream that breaks was no failure to set it up.
LIVED_SECONDS = 5.0
# So many streaming lists in a row may be cut off before pages are tried.
MOST_BROKEN_LISTS = 3
# Of a watch that is still open after the time that was asked for.
ENDLESS = Status(0, "given up", "it did not end when it should have")
# Of objects that can't be read so many are named in the log, for whoever makes them can make ever more.
MOST_NAMED = 1000


class _NoListError(ApiError):
    """The server can't begin a watch with a list, or does not do it as it is written."""

    def __init__(self, what: str) -> None:
        super().__init__(Status(0, "no streaming list", what))


class _StaleError(ApiError):
    """A list that is older than what was seen before."""

    def __init__(self, version: Version, floor: Version) -> None:
        super().__init__(Status(0, "stale", f"a list of version {version}, after {floor} was seen"))


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
        troubles: Troubles,
        changed: Callable[[], None] = lambda: None,
        timing: Timing | None = None,
        presumed: Object | None = None,
        random: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resource = resource
        self.scope = scope
        self.known: dict[str, Version] = {}
        self.progress = Progress()
        self.synced = False
        self.connected = False
        self.trouble = ""
        self.heard = clock()
        # Whether a request has failed since the history was looked at: it may have been set back meanwhile.
        self.interrupted = False
        # What could not be read, by key, and at which version; an audit passes over that.
        self.poisoned: dict[str, Version] = {}
        self._client = client
        self._tell = tell
        self._numbers = numbers
        self._troubles = troubles
        self._changed = changed
        self._timing = timing or Timing()
        self._presumed = presumed
        self._random = random or Random()
        self._clock = clock
        self._backoff = Backoff(self._timing, self._random)
        # Of the request that is under way: what ends it when nothing comes, what that means, and why it was dropped.
        self._deadline: asyncio.Timeout | None = None
        self._overdue = SILENT
        self._dropped: Status | None = None
        self._opened = math.inf
        self._ends = 0.0
        # Until when lists are read by pages, and how many streaming ones have broken off in a row.
        self._paged_until = clock()
        self._broken_lists = 0
        self._named = 0

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
            before, self._opened = self.progress.resume, math.inf
            refusal: ApiError | None = None
            try:
                await self._turn()
            except ApiError as error:
                refusal = error
                self.interrupted = True
            finally:
                self.connected = False
            # A request that is never answered is no stream, however long that took.
            lived = max(0.0, self._clock() - self._opened)
            await asyncio.sleep(self._pause(refusal, lived, self.progress.resume != before))

    def drop(self, why: Status) -> None:
        """Give up the request that is under way, whose connection is not to be trusted any more, and make another."""
        if self._deadline is not None and self._dropped is None and not self._deadline.expired():
            self._dropped = why
            self._deadline.reschedule(asyncio.get_running_loop().time())

    def relist(self, reason: str) -> None:
        """List again at the next turn, as a diff against what is known."""
        self.progress.start_over()
        self._numbers.increase(metrics.KUBERNETES_RELISTS, self.resource.kind, reason)

    # Failures

    def _pause(self, refusal: ApiError | None, lived: float, got_on: bool) -> float:
        """How long to wait before the next request."""
        if lived >= self._timing.longest_pause:
            self._backoff.reset()
        a_moment = self._random.random() * min(0.2, self._timing.first_pause)
        if refusal is None:
            # A watch ends by itself after some minutes. One that ends at once and had nothing new is a failure.
            if lived >= min(1.0, self._timing.first_pause):
                return 0.0
            return a_moment if got_on else self._backoff.next()
        self._note(refusal)
        self._draw_conclusions(refusal)
        if isinstance(refusal, _NoListError):
            return 0.0
        if refusal.status == 0 and self.progress.resume and lived >= LIVED_SECONDS:
            return a_moment
        return max(self._backoff.next(), min(refusal.retry_after or 0.0, LONGEST_RETRY_AFTER))

    def _draw_conclusions(self, refusal: ApiError) -> None:
        """What the next turn has to do otherwise."""
        if isinstance(refusal, MalformedError):
            self.relist("malformed")
        elif refusal.expired:
            self.progress.forgotten()
            self.relist("expired")
        elif refusal.too_large:
            if self.progress.behind():
                self.relist("too_large")
        elif refusal.status == 403 and self._presumed is not None and not self.synced:
            self._presume(self._presumed)

    def _note(self, refusal: ApiError) -> None:
        status = str(refusal.status) if refusal.status else "none"
        self._numbers.increase(metrics.KUBERNETES_FAILURES, self.resource.kind, status)
        if isinstance(refusal, _NoListError):
            # No trouble: the pages come at once.
            log.info("%s: lists are read by pages for now: %s", self.label, refusal.message)
            return
        self.trouble = str(refusal)
        if refusal.status == 403:
            verb = "watch" if self.progress.resume or self._streams else "list"
            self.trouble = f"not allowed to {verb} {self.label}: {refusal.message}"
        self._troubles.note(self.label, self.trouble)

    def _presume(self, object: Object) -> None:
        log.warning("%s: it is taken to exist, as the configuration says", self.label)
        # Without a version, so that a later list may say otherwise.
        self.assume(object.metadata.namespace, object.metadata.name)
        self._tell([Put(object)], False)
        self._be_synced()

    def _be_untroubled(self) -> None:
        if self.trouble:
            self.trouble = ""
            self._troubles.note(self.label, "")

    def _be_synced(self) -> None:
        if not self.synced:
            self.synced = True
            self._changed()

    # Lists and watches

    async def _turn(self) -> None:
        if self.progress.resume:
            await self._follow(None)
        elif self._streams:
            await self._follow_from_a_list()
        else:
            await self._list()
            await self._follow(None)

    @property
    def _streams(self) -> bool:
        """Whether the next list is one with which a watch begins; a server that can't do that may learn it."""
        return self._clock() >= self._paged_until

    def _new_listing(self) -> Listing:
        # What a snapshot had is older than any list; of what follows it only the slices of a service belong together.
        return Listing(self.known, protected=self.synced or self.resource.kind == "EndpointSlice")

    async def _follow_from_a_list(self) -> None:
        """Read a watch that begins with a list. Raises _NoListError where pages are to be read instead."""
        listing = self._new_listing()
        try:
            await self._follow(listing)
        except ApiError as error:
            if listing.ended or not self._can_not_stream(listing, error):
                raise
            self._paged_until = self._clock() + self._timing.pages
            self._broken_lists = 0
            raise _NoListError(error.message) from error

    def _can_not_stream(self, listing: Listing, error: ApiError) -> bool:
        """Whether the end of a streaming list tells that the server can't do it, or what is between us can't."""
        if error.status in (400, 422) or isinstance(error, _NoListError):
            # 422 without the feature, 400 from servers that never heard of it.
            return True
        if isinstance(error, SilentError) and listing.begun:
            # Who passes over what it doesn't know tells all objects, and then nothing.
            return True
        broke_off = self.connected and not error.status and self._dropped is None
        self._broken_lists = self._broken_lists + 1 if broke_off else 0
        return self._broken_lists >= MOST_BROKEN_LISTS

    async def _follow(self, listing: Listing | None) -> None:
        """Read one watch to its end; with `listing` it begins with a list."""
        lines = Lines()
        seconds = int(self._random.uniform(*self._timing.watch)) or 1
        path, parameters = self.resource.path(self.scope.namespace), self._watch_parameters(listing, seconds)
        async with (
            self._within_reason(),
            self._client.stream(path, parameters, seconds=self._timing.reply) as chunks,
        ):
            self.connected = True
            self._opened = self._clock()
            self._ends = asyncio.get_running_loop().time() + seconds + self._timing.silence
            self._hear(listing)
            if listing is None:
                self._be_untroubled()
            async for chunk in chunks:
                self._hear(listing)
                await self._take(lines.take(chunk), listing)
                if listing is not None and listing.ended:
                    # From here on it may be silent.
                    listing = None
                    self._hear(listing)
                # Chunks may lie ready for as long as a list is; queries are to have their turn.
                await asyncio.sleep(0)
        if listing is not None:
            raise ApiError(Status(0, "incomplete", "the watch ended within its list"))

    @contextlib.asynccontextmanager
    async def _within_reason(self) -> AsyncIterator[None]:
        """What happens in here ends when nothing came for too long, or when it is dropped. Raises ApiError then."""
        self._dropped = None
        try:
            async with asyncio.timeout(None) as self._deadline:
                yield
        except TimeoutError as error:
            raise self._given_up() from error
        finally:
            self._deadline = None

    def _given_up(self) -> ApiError:
        if self._dropped is not None:
            return ApiError(self._dropped)
        return SilentError() if self._overdue is SILENT else ApiError(self._overdue)

    def _hear(self, listing: Listing | None) -> None:
        """Something came: from now on it may be silent for so long.

        What is silent in the middle of a list has stopped. A watch may be silent for as long as it was asked to last.
        """
        self.heard = self._clock()
        # What was given up stays so, whatever it still says.
        if self._deadline is None or self._dropped is not None or self._deadline.expired():
            return
        if listing is None:
            self._overdue = ENDLESS
            self._deadline.reschedule(self._ends)
        else:
            self._overdue = SILENT
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._timing.silence)

    async def _take(self, lines: Iterable[bytes], listing: Listing | None) -> None:
        """Tell what some lines say."""
        events: list[Event] = []
        try:
            for line in lines:
                if listing is not None:
                    listing.begun = True
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
                        self.progress.bookmark(version_of(change.object.metadata.resource_version))
                    case Error(object=status):
                        raise ApiError(status)
                if len(events) >= MOST_EVENTS:
                    self._tell(events, listing is None)
                    events = []
                    await asyncio.sleep(0)
        finally:
            self._tell(events, listing is None)

    async def _list(self) -> None:
        """Read a list by pages: what servers before 1.32 do, and what remains when a watch can't begin with one."""
        listing = self._new_listing()
        parameters = self.scope.parameters | {"limit": str(PAGE)}
        async with self._within_reason():
            page = await self._page(parameters | self._not_older(), listing)
            # Should later pages be of later versions: what a watch tells twice does no harm, what it leaves out does.
            version = version_of(page.metadata.resource_version)
            while page.metadata.continue_:
                page = await self._page(parameters | {"continue": page.metadata.continue_}, listing)
            await self._listed(listing, version)

    async def _page(self, parameters: Mapping[str, str], listing: Listing) -> Page[Any]:
        path = self.resource.path(self.scope.namespace)
        body = await self._client.get(path, parameters, seconds=self._timing.reply)
        self.heard = self._clock()
        try:
            page: Page[Any] = decode(self.resource.page, body)
        except UNREADABLE:
            page = self._page_with_poison(body, listing)
        items = page.items or []
        for start in range(0, len(items), MOST_EVENTS):
            events = [event for item in items[start : start + MOST_EVENTS] for event in self._put(item, listing)]
            self._tell(events, False)
            await asyncio.sleep(0)
        return page

    def _page_with_poison(self, body: bytes, listing: Listing) -> Page[Any]:
        """A page of which some object can't be read: the others."""
        try:
            raw = decode(RAW_PAGE, body)
        except UNREADABLE as error:
            raise MalformedError(str(error)) from error
        items = []
        for item in raw.items or ():
            try:
                items.append(decode(self.resource.object, item))
            except UNREADABLE as error:
                try:
                    self._skip(decode(PARTIAL, item).metadata, listing, str(error))
                except UNREADABLE:
                    self._numbers.increase(metrics.KUBERNETES_SKIPPED, self.resource.kind)
        return Page(raw.metadata, items)

    async def _listed(self, listing: Listing, version: Version) -> None:
        """The end of a list: what it says otherwise is so, and what it did not name is gone, unless it is older."""
        if version in ("", 0):
            # Nothing could go on from there.
            raise MalformedError("a list without a version")
        listing.ended = True
        if self.progress.is_past(version):
            await self._reject_past(version)
        for batch in listing.batches():
            current = [each for each in batch if not self._knows_better(key_of_object(each), version)]
            for each in current:
                self._know(each)
            self._tell([Put(each) for each in current], False)
            await asyncio.sleep(0)
        gone = [key for key in listing.unseen if key in self.known]
        for start in range(0, len(gone), MOST_EVENTS):
            some = [key for key in gone[start : start + MOST_EVENTS] if not self._knows_better(key, version)]
            for key in some:
                self._forget(key)
            self._tell([Delete(self.resource.kind, *parts_of(key)) for key in some], False)
            await asyncio.sleep(0)
        self.poisoned = listing.poisoned
        self.progress.listed(version)
        self._broken_lists = 0
        self.interrupted = False
        self._be_untroubled()
        self._be_synced()

    def _knows_better(self, key: str, version: Version) -> bool:
        """Whether an audit, while the list was read, has found what came after it."""
        held = self.known.get(key)
        return held is not None and older(version, held)

    async def _reject_past(self, version: Version) -> NoReturn:
        """A list from the past: nothing of it is told. Raises _StaleError, at once or after some seconds."""
        floor = self.progress.floor
        if self.progress.from_the_past(version):
            log.error("%s: the API's history was set back, from %s to %s", self.label, floor, version)
            # The same number now may mean another state, so every object counts as changed.
            self.known = dict.fromkeys(self.known, "")
            self.relist("set_back")
        else:
            await asyncio.sleep(self._timing.second_look)
        raise _StaleError(version, floor)

    def _watch_parameters(self, listing: Listing | None, seconds: int) -> dict[str, str]:
        parameters = self.scope.parameters | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        if listing is None:
            return parameters | {"resourceVersion": str(self.progress.resume)}
        not_older = self._not_older() or {"resourceVersionMatch": "NotOlderThan"}
        return parameters | {"sendInitialEvents": "true"} | not_older

    def _not_older(self) -> dict[str, str]:
        version = self.progress.not_older
        return {} if version == "" else {"resourceVersion": str(version), "resourceVersionMatch": "NotOlderThan"}

    # Objects

    def put_right(self, found: Iterable[Object], gone: Iterable[tuple[str, Version]]) -> list[str]:
        """Take in at one moment what an audit has found, and what is gone, at which version.

        Returns the keys of what was news. Events that come late may still tell of what is gone.
        """
        events: list[Event] = []
        keys: list[str] = []
        for object in found:
            key, version = key_of_object(object), version_of(object.metadata.resource_version)
            if self.known.get(key) != version:
                self._know(object)
                self.progress.seen_at(version)
                events.append(Put(object))
                keys.append(key)
        for key, version in gone:
            self._forget(key)
            self.progress.taken_out(key, version)
            events.append(Delete(self.resource.kind, *parts_of(key)))
            keys.append(key)
        self._tell(events, False)
        return keys

    def _decode(self, line: bytes, listing: Listing | None) -> object:
        try:
            return decode(self.resource.change, line)
        except UNREADABLE as error:
            why = str(error)
        try:
            unknown = decode(UNKNOWN, line)
        except UNREADABLE:
            self._skip_nameless(line)
            return None
        self._skip(unknown.object.metadata, listing, why)
        return None

    def _skip_nameless(self, line: bytes) -> None:
        """A change of nobody knows what. What is no change at all may stand for any number of them."""
        try:
            decode(SHAPELESS, line)
        except UNREADABLE as error:
            raise MalformedError(str(error)) from error
        self._numbers.increase(metrics.KUBERNETES_SKIPPED, self.resource.kind)

    def _skip(self, metadata: Named, listing: Listing | None, why: str) -> None:
        """An object that we can't read: what we had of it stays as it was, and nobody else's suffers."""
        key, version = key_of(metadata.namespace, metadata.name), version_of(metadata.resource_version)
        if key in self.known and not older(version, self.known[key]):
            self.known[key] = version
        if listing is not None:
            listing.poison(key, version)
        else:
            self.progress.bookmark(version)
        self._numbers.increase(metrics.KUBERNETES_SKIPPED, self.resource.kind)
        if key not in self.poisoned and self._named < MOST_NAMED:
            self._named += 1
            log.warning("%s %s is passed over: %s", self.resource.kind, key, why)
        self.poisoned[key] = version

    def _put(self, object: Object, listing: Listing | None) -> Iterable[Event]:
        key, version = key_of_object(object), version_of(object.metadata.resource_version)
        held = self.known.get(key)
        if listing is not None:
            late = not listing.names(key, version)
        else:
            late = self.progress.is_late(version, key, held)
            self.progress.event(version)
        # A list that isn't from the past is right about what is older, too.
        if late or (version == held and version != ""):
            return ()
        if listing is not None and not listing.at_once:
            listing.hold(key, object)
            return ()
        self._know(object)
        return (Put(object),)

    def _know(self, object: Object) -> None:
        key = key_of_object(object)
        self.known[key] = version_of(object.metadata.resource_version)
        self.poisoned.pop(key, None)
        self._numbers.increase(metrics.KUBERNETES_EVENTS, self.resource.kind, "put")

    def _forget(self, key: str) -> None:
        self.poisoned.pop(key, None)
        if self.known.pop(key, None) is not None:
            self._numbers.increase(metrics.KUBERNETES_EVENTS, self.resource.kind, "delete")

    def _delete(self, metadata: Named, listing: Listing | None) -> Iterable[Event]:
        key, version = key_of(metadata.namespace, metadata.name), version_of(metadata.resource_version)
        if listing is not None:
            listing.poisoned.pop(key, None)
            if not listing.at_once:
                if listing.names(key, version) and key in self.known:
                    listing.unseen.add(key)
                return ()
        self.progress.event(version)
        held = self.known.get(key)
        if held is None or older(version, held):
            self.poisoned.pop(key, None)
            return ()
        self._forget(key)
        return (Delete(self.resource.kind, metadata.namespace, metadata.name),)
