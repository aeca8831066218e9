"""A list while it is read: what it has not named yet, and what it says otherwise than is known. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import msgspec

from kdns.kubernetes.changes import Version, key_of, older
from kdns.kubernetes.objects import EndpointSlice, Namespace, Object, Pod, Service

# What is applied between two looks at the sockets: some 5 ms of work.
MOST_EVENTS = 100

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Object] = msgspec.msgpack.Decoder(Namespace | Service | EndpointSlice | Pod)


class _Held(NamedTuple):
    """An object that is held back, as bytes: 10,000 slices of ten endpoints are 100 MB as objects, and 30 so."""

    owner: str
    encoded: bytes


class Listing:
    """What it says otherwise than is known is held back (`hold`) until its end.

    Only then is it certain that the list is whole and not from the past, and only together do its objects say what was
    true at one moment. Where nothing is known yet there is nothing to protect, so then it is told `at_once`; nor is
    there where what is known is not to be `protected`.
    """

    def __init__(self, known: Iterable[str], protected: bool = True) -> None:
        self.unseen = set(known)
        self.at_once = not self.unseen or not protected
        self._held: dict[str, _Held] = {}
        # What of it could not be read, and at which version.
        self.poisoned: dict[str, Version] = {}
        # Whether anything was told, and whether that was all.
        self.begun = False
        self.ended = False
        self._versions: dict[str, Version] = {}

    def names(self, key: str, version: Version) -> bool:
        """The list has this object; False if it had it in a newer version already."""
        if older(version, self._versions.get(key, "")):
            return False
        self._versions[key] = version
        self.unseen.discard(key)
        self._held.pop(key, None)
        self.poisoned.pop(key, None)
        return True

    def poison(self, key: str, version: Version) -> None:
        """The list has this object, and it can't be read."""
        # What it said of it before was good, and stays.
        self.unseen.discard(key)
        self.poisoned[key] = version

    def hold(self, key: str, object: Object) -> None:
        """Keep what the list says of an object for its end."""
        self._held[key] = _Held(_owner(object), _ENCODER.encode(object))

    def batches(self) -> Iterator[list[Object]]:
        """What has changed, the slices of one service never apart: between them it might have no address at all.

        Once: it is let go then, for whoever has the list may have it as long as the stream that began with it.
        """
        held = sorted(self._held.values())
        self._held, self._versions = {}, {}
        batch: list[Object] = []
        for _, together in groupby(held, key=lambda each: each.owner):
            batch += (_DECODER.decode(each.encoded) for each in together)
            if len(batch) >= MOST_EVENTS:
                yield batch
                batch = []
        yield batch


def key_of_object(object: Object) -> str:
    """The key of an object by its metadata."""
    return key_of(object.metadata.namespace, object.metadata.name)


def _owner(object: Object) -> str:
    """The key of the service that an object belongs to, as far as it belongs to any."""
    metadata = object.metadata
    name = object.service if isinstance(object, EndpointSlice) else metadata.name
    return key_of(metadata.namespace, name or "")
