"""Dicts in which one key nearly always has one value: several are one object beside it, and none is no key.

Made for a hundred thousand keys that live for long, so nothing here is the garbage collector's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeAlias, TypeVar

import msgspec

V = TypeVar("V")


class Several(msgspec.Struct, Generic[V], frozen=True, gc=False):
    """More than one of what nearly always is one.

    Not a tuple: with the first one in it an index of 100,000 addresses becomes the collector's business, which walks
    all of it for 20 ms.
    """

    all: tuple[V, ...]


Some: TypeAlias = V | Several[V]


def all_of(held: Some[V] | None) -> tuple[V, ...]:
    """The values of a key."""
    if held is None:
        return ()
    return held.all if isinstance(held, Several) else (held,)


def some(all: Sequence[V]) -> Some[V]:
    """What stands for these values."""
    return all[0] if len(all) == 1 else Several(tuple(all))


def reindex(index: dict[bytes, Some[V]], key: bytes, value: V, present: bool) -> None:
    """Put this very object under a key, or take it away."""
    if present:
        held = index.setdefault(key, value)
        if held is not value:
            index[key] = Several((*all_of(held), value))
        return
    left = [each for each in all_of(index.get(key)) if each is not value]
    if left:
        index[key] = some(left)
    else:
        index.pop(key, None)
