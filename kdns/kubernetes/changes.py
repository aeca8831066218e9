"""What an API server sends for a list or a watch, as values: pages, changes, versions, keys.

Whatever a tenant wrote into an object, the others of its page or stream are read; one that can't be read has still its
name and version. Law: the API concepts of Kubernetes (watch events, bookmarks, chunked lists).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from kdns.kubernetes.client import ApiError, Status

T = TypeVar("T")

# An opaque text by law, a number that grows in every server there is; numbers tell older from newer.
Version = int | str

# As large as objects get in etcd, several times over; more than that in one line is no event.
LONGEST_LINE = 16 * 1024 * 1024
# Levels of JSON. What is read of an object lies within ten, what servers add to it within thirty.
DEEPEST = 100


class Named(msgspec.Struct, rename="camel"):
    """What every object has."""

    name: str
    namespace: str = ""
    resource_version: str = ""


class Partial(msgspec.Struct):
    """An object of any kind, read for its name and version alone."""

    metadata: Named


class BookmarkMetadata(msgspec.Struct, rename="camel"):
    """The metadata of a bookmark."""

    resource_version: str
    annotations: dict[str, str] | None = None


class BookmarkObject(msgspec.Struct):
    """The object of a bookmark, of which only the metadata means something."""

    metadata: BookmarkMetadata


class Added(msgspec.Struct, Generic[T], tag_field="type", tag="ADDED"):
    """An object that is new to the watch."""

    object: T


class Modified(msgspec.Struct, Generic[T], tag_field="type", tag="MODIFIED"):
    """An object that has changed."""

    object: T


class Deleted(msgspec.Struct, tag_field="type", tag="DELETED"):
    """An object that is gone; its version is that of its end."""

    object: Partial


class Bookmark(msgspec.Struct, tag_field="type", tag="BOOKMARK"):
    """A place in the history to which nothing more belongs than was told."""

    object: BookmarkObject

    @property
    def ends_list(self) -> bool:
        """Whether the list with which a watch began is told to its end."""
        return (self.object.metadata.annotations or {}).get("k8s.io/initial-events-end") == "true"


class Error(msgspec.Struct, tag_field="type", tag="ERROR"):
    """The end of a watch, and why."""

    object: Status


class Unknown(msgspec.Struct):
    """A change whose object is not as it should be: what can be said of it nevertheless."""

    type: str
    object: Partial


class Shapeless(msgspec.Struct):
    """A change of which not even that can be said."""

    type: str
    object: msgspec.Raw


class ListMetadata(msgspec.Struct, rename="camel"):
    """The version of a whole list, and where it goes on."""

    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class Page(msgspec.Struct, Generic[T]):
    """A list or a part of one; with `metadata.continue_` there is more."""

    metadata: ListMetadata
    items: list[T] | None = None


UNKNOWN = msgspec.json.Decoder(Unknown)
SHAPELESS = msgspec.json.Decoder(Shapeless)
PARTIAL = msgspec.json.Decoder(Partial)
RAW_PAGE = msgspec.json.Decoder(Page[msgspec.Raw])
VERSIONS_PAGE = msgspec.json.Decoder(Page[Partial])


def change_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """The decoder of a line of a watch for objects of this type."""
    return msgspec.json.Decoder(Added[kind] | Modified[kind] | Deleted | Bookmark | Error)


def page_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """The decoder of a list of objects of this type."""
    return msgspec.json.Decoder(Page[kind])


def object_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """The decoder of one object of this type."""
    return msgspec.json.Decoder(kind)


def decode(decoder: msgspec.json.Decoder[T], text: bytes) -> T:
    """What a text says; raises what is in `UNREADABLE`.

    Decoding goes down a level of Python's stack with each level of JSON, in what is passed over too, and a tenant may
    write more of these than there are. So what lies deeper than anything that is read is left out then.
    """
    try:
        return decoder.decode(text)
    except RecursionError:
        return decoder.decode(shallow(text))


# A string, or brackets in a row.
_NESTING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]+|[\]}]+', re.DOTALL)


def shallow(text: bytes, deepest: int = DEEPEST) -> bytes:
    """JSON with null in the place of each list and object that is nested deeper than that."""
    kept: list[bytes] = []
    depth, start = 0, 0
    for token in _NESTING.finditer(text):
        first = text[token.start()]
        if first in b"[{":
            opened = token.end() - token.start()
            if depth <= deepest < depth + opened:
                kept.append(text[start : token.start() + deepest - depth] + b"null")
            depth += opened
        elif first in b"]}":
            closed = token.end() - token.start()
            if depth > deepest >= depth - closed:
                start = token.start() + depth - deepest
            depth -= closed
    return b"".join(kept) + (text[start:] if depth <= deepest else b"")


class MalformedError(ApiError):
    """The server sent what is no event; how many it meant to send can't be known."""

    def __init__(self, what: str) -> None:
        super().__init__(Status(0, "malformed", what))


class Lines:
    """Chunks of any size put together to lines. Raises ApiError for one that is longer than any event."""

    def __init__(self, longest: int = LONGEST_LINE) -> None:
        self._longest = longest
        self._parts: list[bytes] = []
        self._size = 0

    def take(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that this chunk completes, without their ends; empty ones are passed over."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            line = chunk[start:end]
            if self._parts:
                line = b"".join([*self._parts, line])
                self._parts, self._size = [], 0
            start = end + 1
            if line and not line.isspace():
                yield line
        rest = chunk[start:]
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
            if self._size > self._longest:
                raise MalformedError(f"a line of more than {self._longest} bytes")


def key_of(namespace: str, name: str) -> str:
    """An object of a kind under one text; without a namespace for what has none."""
    return f"{namespace}/{name}"


def parts_of(key: str) -> tuple[str, str]:
    """The namespace and name of a key."""
    namespace, _, name = key.partition("/")
    return namespace, name


def version_of(text: str) -> Version:
    """A resource version as the number that it is, or as the text that it should not be."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else text


def older(version: Version, than: Version) -> bool:
    """Whether a version is known to be older; of texts that can't be said."""
    return isinstance(version, int) and isinstance(than, int) and version < than
