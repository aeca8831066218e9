"""The audit: does what a watch has told agree with what the server has?

A watch that loses an event, by whoever's mistake, stays wrong for ever otherwise: there is no second telling. An audit
reads the version of every object, nothing else of it, and repairs single ones. `look_back` asks less: whether the
server's history is still the one that the watch knows. Knows no model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple

from kdns import metrics
from kdns.kubernetes.changes import (
    VERSIONS_PAGE,
    MalformedError,
    Page,
    Partial,
    Version,
    decode,
    key_of,
    older,
    parts_of,
    version_of,
)
from kdns.kubernetes.client import Client, Status
from kdns.kubernetes.objects import UNREADABLE, Object
from kdns.kubernetes.troubles import named
from kdns.kubernetes.watch import PAGE, Watch
from kdns.metrics import Metrics

log = logging.getLogger("kdns.plugin.kubernetes")

VERSIONS_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
# Nobody waits for an audit: it leaves the processor to queries between two pages.
PAUSE_SECONDS = 0.02


async def audit(watch: Watch, client: Client, numbers: Metrics, second_look: float) -> None:
    """Compare what a watch has told with what the server has, and repair what an event that was lost left wrong.

    A difference counts only if the watch has not caught up with it `second_look` seconds later. Raises ApiError.
    """
    # What the watch has been told while we read is no reason to call what we read old.
    before, floor = dict(watch.known), watch.progress.floor
    theirs, version = await _versions(watch, client)
    if _is_set_back(watch, version, floor):
        return
    watch.progress.seen_at(version)
    doubtful = [key for key in theirs.keys() | before.keys() if _behind(before.get(key), theirs.get(key), version)]
    if not doubtful:
        return
    await asyncio.sleep(second_look)
    lost = [
        key
        for key in doubtful
        if _behind(watch.known.get(key), theirs.get(key), version)
        and not (key in watch.poisoned and watch.poisoned[key] == theirs.get(key))
    ]
    if len(lost) > PAGE:
        watch.relist("audit")
        watch.drop(Status(0, "given up", f"{len(lost)} objects are not as the server has them"))
        return
    looks = [look for look in [await _look(watch, client, key) for key in lost] if look is not None]
    repaired = _repair(watch, looks)
    if repaired:
        numbers.increase(metrics.KUBERNETES_DRIFT, watch.resource.kind, by=len(repaired))
        text = "%s: nothing had been told of %d changes, which are made now: %s"
        log.error(text, watch.label, len(repaired), named(repaired))


async def look_back(watch: Watch, client: Client) -> None:
    """Find out whether the store was set back, say to a backup, while a watch was interrupted. Raises ApiError.

    A place that it has not reached yet is one to wait at, so the watch would be told nothing until it gets there.
    """
    floor = watch.progress.floor
    page = await _page(watch, client, {"limit": "1"})
    _is_set_back(watch, version_of(page.metadata.resource_version), floor)


def _is_set_back(watch: Watch, version: Version, floor: Version) -> bool:
    """Whether the present is older than what was seen before it was asked for; then the watch is to look again."""
    if not older(version, floor):
        return False
    watch.relist("set_back")
    watch.drop(Status(0, "given up", "the API's history was set back"))
    return True


def _behind(held: Version | None, theirs: Version | None, at: Version) -> bool:
    """Whether what we hold is not what the server had at version `at`, and hasn't come since then either.

    Something older than we hold, though not since, is what a history that was set back has.
    """
    return held != theirs and not (held is not None and older(at, held))


async def _versions(watch: Watch, client: Client) -> tuple[dict[str, Version], Version]:
    """The version of every object that the server has, and of the whole, read consistently from its store."""
    versions: dict[str, Version] = {}
    more: dict[str, str] = {}
    while True:
        page = await _page(watch, client, {"limit": str(PAGE)} | more)
        for item in page.items or ():
            of = item.metadata
            versions[key_of(of.namespace, of.name)] = version_of(of.resource_version)
        if not page.metadata.continue_:
            return versions, version_of(page.metadata.resource_version)
        more = {"continue": page.metadata.continue_}
        await asyncio.sleep(PAUSE_SECONDS)


async def _page(watch: Watch, client: Client, parameters: dict[str, str]) -> Page[Partial]:
    path = watch.resource.path(watch.scope.namespace)
    body = await client.get(path, watch.scope.parameters | parameters, VERSIONS_ONLY)
    try:
        return decode(VERSIONS_PAGE, body)
    except UNREADABLE as error:
        raise MalformedError(str(error)) from error


class _Look(NamedTuple):
    """One object as the server has it, None if it is gone, at `version`; and the version that we held meanwhile.

    `past` tells that the server was behind what had been seen before it was asked.
    """

    key: str
    held: Version | None
    object: Object | None
    version: Version
    past: bool


async def _look(watch: Watch, client: Client, key: str) -> _Look | None:
    held, floor = watch.known.get(key), watch.progress.floor
    namespace, name = parts_of(key)
    # A list of one: who may list and watch, and nothing else, may not get.
    only = {"fieldSelector": f"metadata.name={name}"}
    body = await client.get(watch.resource.path(namespace), watch.scope.parameters | only)
    try:
        page = decode(watch.resource.page, body)
    except UNREADABLE:
        return None
    version = version_of(page.metadata.resource_version)
    return _Look(key, held, page.items[0] if page.items else None, version, older(version, floor))


def _repair(watch: Watch, looks: Sequence[_Look]) -> list[str]:
    """Put objects right that still differ, all at one moment: the slices of a service are only right together."""
    current = [look for look in looks if watch.known.get(look.key) == look.held and not look.past]
    found = [look.object for look in current if look.object is not None]
    gone = [(look.key, look.version) for look in current if look.object is None and look.held is not None]
    return watch.put_right(found, gone)
