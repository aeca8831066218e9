"""How often search lists ask in vain, by the namespace that their first name spells.

Law: Kubernetes gives a pod `search NAMESPACE.svc.ZONE svc.ZONE ZONE` and `ndots:5`, so that `api.example.com` is first
asked for as `api.example.com.NAMESPACE.svc.ZONE`. With `ndots:2` a name with two dots or more is tried as it is first.
"""

from __future__ import annotations

from collections.abc import Callable, Container

# What a name needs of dots to be tried as it is first, with the `ndots` that saves the most and breaks the least.
NDOTS = 2

Used = tuple[Callable[[int], None], ...]


class SearchPathMisses:
    """Counts questions for what isn't there, below the services of each namespace.

    `saved` are those of them that clients with `ndots:2` would have asked last, and mostly not at all.
    """

    def __init__(self, namespaces: Container[bytes]) -> None:
        self._namespaces = namespaces
        # Of each namespace: those that would not be saved, and those that would.
        self._counts: dict[bytes, tuple[_Count, _Count]] = {}

    def counter(self, labels: list[bytes]) -> Used:
        """Who is to be told how often a denial of this name was sent; `labels` are those left of the zone."""
        count = len(labels)
        if count < 3 or labels[-1] != b"svc":
            return ()
        found = self._counts.get(labels[-2])
        if found is None:
            if labels[-2] not in self._namespaces:
                return ()
            found = self._counts[labels[-2]] = (_Count(), _Count())
        return found[count - 3 >= NDOTS].used

    def misses(self) -> dict[tuple[str, ...], float]:
        """How many there were, by namespace; of those that are there."""
        self._forget()
        sums = ((namespace, few.times + many.times) for namespace, (few, many) in self._counts.items())
        return {(namespace.decode(),): times for namespace, times in sums if times}

    def saved(self) -> dict[tuple[str, ...], float]:
        """How many of them `ndots:2` would have saved."""
        self._forget()
        return {(namespace.decode(),): many.times for namespace, (_, many) in self._counts.items() if many.times}

    def _forget(self) -> None:
        """Let go of namespaces that are gone, so that there are no more series than namespaces."""
        for namespace in [each for each in self._counts if each not in self._namespaces]:
            del self._counts[namespace]


class _Count:
    """How many there were; `used` is who is to be told of more."""

    __slots__ = ("times", "used")

    def __init__(self) -> None:
        self.times = 0.0
        self.used: Used = (self._more,)

    def _more(self, times: int) -> None:
        self.times += times
