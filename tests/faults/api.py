"""The API of Kubernetes over a store, as kube-apiserver 1.36 serves it: who may, lists in pages, watches, bookmarks.

From request to reply, without sockets and without a fault: what `fake` spoils is made here.
Law: the API concepts of Kubernetes; in doubt, what a real server of that version said.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.faults import statuses
from tests.faults.statuses import Status, refusal
from tests.faults.store import RESOURCES, Change, Key, Matcher, Replica, Store, Version, field_matcher, label_matcher
from tests.faults.wire import End, Reply, Request, json_reply

VERSION = {"major": "1", "minor": "36", "gitVersion": "v1.36.3", "platform": "linux/amd64"}
INITIAL_END = "k8s.io/initial-events-end"
# A piece of a list that goes out at once; between two of them the loop is anybody's.
ITEMS_PER_PIECE = 500

_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1(?:/namespaces/(?P<namespace>[^/]+)(?=/[^/]+))?/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?"
)


@dataclass(frozen=True)
class Event:
    """What a watch tells: a type, and a version; a bookmark's is a number alone, an error's a Status."""

    type: str
    version: Version | None = None
    number: int = 0
    initial_end: bool = False
    status: Status | None = None


# What flows through a watch before it is bytes; faults may add bytes, pauses and ends of their own.
Part = Event | bytes | float | End


def error(status: Status) -> Event:
    """The event by which a watch says that it can't go on."""
    return Event("ERROR", status=status)


def expired(asked: str = "1", oldest: int = 2) -> Event:
    """410 in the stream."""
    return error(statuses.expired_watch(asked, oldest))


@dataclass(frozen=True)
class Told:
    """A version of an object that went to a client. `how` is `list`, or the type of the event."""

    time: float
    how: str
    version: Version


@dataclass(eq=False)
class Watch:
    """A watch that runs: what it asked for, and what waits to be told.

    It tells no change up to `after`. Once the replica has reached `complete_at`, all that existed was told.
    """

    request: Request
    matches: Matcher
    waiting: asyncio.Queue[Part | Change]
    after: int = 0
    complete_at: int | None = None


class RefusalError(Exception):
    """The right answer is a Status."""

    def __init__(self, status: Status) -> None:
        super().__init__(status["message"])
        self.status = status


class Api:
    """A right server over a store, behind as many replicas as a test adds."""

    def __init__(self, store: Store) -> None:
        self.store = store
        # Tokens that are good; none at all: nobody is asked for one.
        self.tokens: set[str] = set()
        # Seconds between bookmarks of an idle watch, as far as the client allows them.
        self.bookmark_seconds = 60.0
        self.replicas = {"": Replica(self.store)}
        # Which replica a request reaches, when there are several.
        self.route: Callable[[Request], str] = lambda request: ""
        self.told: list[Told] = []
        self.watches: list[Watch] = []
        self._forbidden: set[tuple[str, str, str]] = set()

    def forbid(self, verb: str, resource: str, namespace: str = "") -> None:
        """Take a right away; running watches go on, as they do. Without a namespace it is the right everywhere."""
        self._forbidden.add((verb, resource, namespace))

    def allow(self, verb: str, resource: str, namespace: str = "") -> None:
        """Give it back."""
        self._forbidden.discard((verb, resource, namespace))

    def add_replica(self, name: str, lies: bool = False) -> Replica:
        """One more API server over the same store; `route` says who reaches it, `hold` keeps it behind."""
        replica = self.replicas[name] = Replica(self.store, lies)
        return replica

    def changed(self, watch: Watch, event: Event) -> Iterable[Part]:
        """What a watch tells of a change or bookmark: itself."""
        return [event]

    def encode(self, request: Request, event: Event) -> bytes:
        """An event as a line of a watch."""
        if event.status is not None:
            content = json.dumps(event.status, separators=(",", ":")).encode()
        elif event.version is not None:
            self._tell(event.type, [event.version])
            content = event.version.partial if request.partial else event.version.whole
        else:
            content = self._bookmark(request, event)
        return b'{"type":"%s","object":%s}\n' % (event.type.encode(), content)

    def _bookmark(self, request: Request, event: Event) -> bytes:
        resource = RESOURCES[request.resource]
        annotations = b',"annotations":{"%s":"true"}' % INITIAL_END.encode() if event.initial_end else b""
        metadata = b'"metadata":{"resourceVersion":"%s"%s}' % (self.store.spell(event.number).encode(), annotations)
        return b"{" + resource.title + b"," + metadata + b"," + resource.blank + b"}"

    def _tell(self, how: str, versions: Iterable[Version]) -> None:
        now = asyncio.get_running_loop().time()
        self.told.extend(Told(now, how, version) for version in versions)

    # Answers

    def reply(self, request: Request) -> Reply:
        try:
            if self.tokens and request.token not in self.tokens:
                raise RefusalError(statuses.unauthorized())
            if request.path == "/version":
                return json_reply(200, VERSION)
            if request.path in ("/readyz", "/livez", "/healthz"):
                return Reply(200, {"Content-Type": "text/plain; charset=utf-8"}, b"ok")
            if not request.resource:
                return Reply(404, {"Content-Type": "text/plain; charset=utf-8"}, b"404 page not found\n")
            rights = {(request.verb, request.resource, where) for where in ("", request.namespace)}
            if rights & self._forbidden:
                raise RefusalError(statuses.forbidden(request))
            replica = self.replicas[self.route(request)]
            match request.verb:
                case "get":
                    return self._get(request, replica)
                case "list":
                    return self._list(request, replica)
                case _:
                    return self._watch(request, replica)
        except RefusalError as refused:
            return refusal(refused.status)

    def _get(self, request: Request, replica: Replica) -> Reply:
        # A single object is read from etcd, whatever the replica knows.
        number = replica.number if replica.lies else self.store.number
        version = self.store.at(request.resource, number).get((request.namespace, request.name))
        if version is None:
            raise RefusalError(statuses.not_found(request))
        self._tell("get", [version])
        return Reply(200, {"Content-Type": "application/json"}, version.partial if request.partial else version.whole)

    def _list(self, request: Request, replica: Replica) -> Reply:
        asked = request.parameters
        if "sendInitialEvents" in asked:
            raise RefusalError(
                statuses.invalid_options(("sendInitialEvents", "sendInitialEvents is forbidden for list"))
            )
        number, start = self._page_start(request, replica)
        matches = _matcher(request)
        found = [version for version in self.store.in_order(request.resource, number) if matches(version)]
        if start is not None:
            found = [version for version in found if version.key > start]
        # A list at version 0 comes from the cache, whole.
        limit = 0 if asked.get("resourceVersion") == "0" else int(asked.get("limit") or 0)
        page = found[:limit] if limit else found
        left = len(found) - len(page)
        metadata: dict[str, Any] = {"resourceVersion": self.store.spell(number)}
        if left:
            metadata |= {"continue": _token(number, page[-1].key), "remainingItemCount": left}
        headers = {"Content-Type": "application/json"}
        return Reply(200, headers, stream=self._pieces(request, metadata, page))

    def _page_start(self, request: Request, replica: Replica) -> tuple[int, Key | None]:
        """The version that a list shows, and the key that its last page ended with."""
        asked = request.parameters
        wanted, match = asked.get("resourceVersion", ""), asked.get("resourceVersionMatch", "")
        if token := asked.get("continue"):
            if wanted not in ("", "0"):
                raise RefusalError(
                    statuses.bad_request("specifying resource version is not allowed when using continue")
                )
            return self._continued(token)
        if match and not wanted:
            text = "resourceVersionMatch is forbidden unless resourceVersion is provided"
            raise RefusalError(statuses.invalid_options(("resourceVersionMatch", text)))
        # What a consistent read shows comes from etcd; what has to be not older, from the replica's cache.
        if wanted == "":
            return (replica.number if replica.lies else self.store.number), None
        if wanted == "0":
            return replica.number, None
        number = self._number(wanted)
        if match == "Exact":
            if number < self.store.compacted:
                raise RefusalError(statuses.expired_list())
            return number, None
        if number > replica.number:
            raise RefusalError(statuses.too_large(wanted, replica.number))
        return replica.number, None

    def _continued(self, token: str) -> tuple[int, Key]:
        try:
            content = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
            namespace, _, name = content["start"].removesuffix("\0").rpartition("/")
        except ValueError as wrong:
            raise RefusalError(
                statuses.bad_request(f"invalid continue token: continue key is not valid: {wrong}")
            ) from None
        key = (namespace.strip("/"), name)
        if content["rv"] == -1:
            return self.store.number, key
        if content["rv"] < self.store.compacted:
            raise RefusalError(statuses.expired_page(_token(-1, key)))
        return content["rv"], key

    async def _pieces(self, request: Request, metadata: dict[str, Any], page: list[Version]) -> AsyncIterator[bytes]:
        resource = RESOURCES[request.resource]
        title = b'"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1"'
        if not request.partial:
            title = b'"kind":"%sList","apiVersion":"%s"' % (resource.kind.encode(), resource.api_version.encode())
        yield b"{" + title + b',"metadata":' + json.dumps(metadata, separators=(",", ":")).encode() + b',"items":['
        for start in range(0, len(page), ITEMS_PER_PIECE):
            piece = page[start : start + ITEMS_PER_PIECE]
            self._tell("list", piece)
            yield (b"," if start else b"") + b",".join(
                version.partial if request.partial else version.item for version in piece
            )
            await asyncio.sleep(0)
        yield b"]}\n"

    def _watch(self, request: Request, replica: Replica) -> Reply:
        asked = request.parameters
        initial = asked.get("sendInitialEvents") == "true"
        if initial and asked.get("resourceVersionMatch") != "NotOlderThan":
            text = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            raise RefusalError(statuses.invalid_options(("resourceVersionMatch", text)))
        if not initial and asked.get("resourceVersionMatch"):
            text = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
            raise RefusalError(statuses.invalid_options(("resourceVersionMatch", text)))
        watch = Watch(request, _matcher(request), asyncio.Queue())
        # Both at one moment: what was, and the ear for what comes.
        first = list(self._first(watch, replica, initial))

        def hear(change: Change) -> None:
            if change.resource.plural == request.resource:
                watch.waiting.put_nowait(change)

        def heard() -> None:
            replica.listeners.pop(watch, None)
            self.watches.remove(watch)

        replica.listeners[watch] = hear
        self.watches.append(watch)
        stream = self._events(watch, first, replica)
        return Reply(200, {"Content-Type": "application/json"}, stream=stream, heard=heard)

    def _first(self, watch: Watch, replica: Replica, initial: bool) -> Iterator[Event]:
        """What a watch tells at once: all there is, or what happened since the version that it names."""
        request = watch.request
        wanted = request.parameters.get("resourceVersion", "")
        number = self._number(wanted) if wanted else 0
        if initial and number > replica.number:
            yield error(statuses.too_large(wanted, replica.number))
        elif initial or number == 0:
            for version in self.store.in_order(request.resource, replica.number):
                if watch.matches(version):
                    yield Event("ADDED", version)
            # Without a version, all there is means all that etcd has: a replica that is behind has to wait for it.
            watch.complete_at = replica.number if wanted or replica.lies else self.store.number
        elif number < self.store.compacted:
            yield error(statuses.expired_watch(wanted, self.store.compacted))
        else:
            # A version that is yet to come is waited for in silence.
            watch.after = number
            for change in self.store.since(request.resource, number):
                if change.number <= replica.number and (told := self._as_event(watch, change)):
                    yield told

    async def _events(self, watch: Watch, first: list[Event], replica: Replica) -> AsyncIterator[Part]:
        for event in first:
            yield event
        if first and first[-1].type == "ERROR":
            return
        bookmarks = watch.request.parameters.get("allowWatchBookmarks") == "true"
        now = asyncio.get_running_loop().time
        ends_at = now() + float(watch.request.parameters.get("timeoutSeconds") or 1800)
        while True:
            complete = watch.complete_at is not None and watch.complete_at <= replica.number and watch.waiting.empty()
            if bookmarks and complete:
                watch.complete_at = None
                yield Event("BOOKMARK", number=replica.number, initial_end=True)
            part = await self._next(watch, min(ends_at - now(), self.bookmark_seconds))
            if part is None:
                # As the real one does, once more before the end.
                if bookmarks and watch.complete_at is None and replica.number >= watch.after:
                    for changed in self.changed(watch, Event("BOOKMARK", number=replica.number)):
                        yield changed
                if now() >= ends_at:
                    return
                continue
            event_or_other = self._as_event(watch, part) if isinstance(part, Change) else part
            if isinstance(event_or_other, Event):
                # What belongs to a list still is told as it is: nobody could tell an old event from an object.
                for changed in self.changed(watch, event_or_other) if watch.complete_at is None else [event_or_other]:
                    yield changed
                if event_or_other.type == "ERROR":
                    return
            elif event_or_other is not None:
                yield event_or_other

    async def _next(self, watch: Watch, seconds: float) -> Part | Change | None:
        if not watch.waiting.empty():
            return watch.waiting.get_nowait()
        try:
            return await asyncio.wait_for(watch.waiting.get(), max(0.0, seconds))
        except TimeoutError:
            return None

    def _as_event(self, watch: Watch, change: Change) -> Event | None:
        if change.number <= watch.after:
            return None
        told = change.seen_by(watch.matches, self.store.spell)
        return Event(told[0], told[1]) if told else None

    def _number(self, text: str) -> int:
        try:
            return self.store.unspell(text)
        except ValueError:
            raise RefusalError(
                statuses.status(500, "", f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: invalid syntax')
            ) from None


def understand(request: Request) -> None:
    """What the path means, as RBAC would put it."""
    found = _PATH.fullmatch(request.path)
    resource = RESOURCES.get(found["resource"]) if found else None
    if found is None or resource is None or (found["group"] or "") != resource.group:
        return
    request.resource = resource.plural
    request.namespace = found["namespace"] or ""
    request.name = found["name"] or ""
    if request.name:
        request.verb = "get"
        return
    request.verb = "watch" if request.parameters.get("watch") in ("1", "true") else "list"
    name = re.search(r"metadata\.name==?([^,]+)", request.parameters.get("fieldSelector", ""))
    request.name = name[1] if name else ""


def _matcher(request: Request) -> Matcher:
    try:
        labels = label_matcher(request.parameters.get("labelSelector", ""))
        fields = field_matcher(request.parameters.get("fieldSelector", ""))
    except ValueError as wrong:
        raise RefusalError(statuses.bad_request(str(wrong))) from None
    namespace = request.namespace
    return lambda version: (not namespace or version.key[0] == namespace) and labels(version) and fields(version)


def _token(number: int, last: Key) -> str:
    start = f"{'/'.join(last)}\0" if last[0] else f"/{last[1]}\0"
    content = json.dumps({"v": "meta.k8s.io/v1", "rv": number, "start": start}, separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")
