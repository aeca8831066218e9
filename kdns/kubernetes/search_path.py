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
        self._counts: dict[tuple[bytes, bool], float] = {}
        self._counters: dict[tuple[bytes, bool], Used] = {}

    def counter(self, labels: list[bytes]) -> Used:
        """Who is to be told how often a denial of this name was sent; `labels` are those left of the zone."""
        if len(labels) < 3 or labels[-1] != b"svc" or labels[-2] not in self._namespaces:
            return ()
        key = (labels[-2], len(labels) - 3 >= NDOTS)
        found = self._counters.get(key)
        if found is None:

            def used(times: int) -> None:
                self._counts[key] = self._counts.get(key, 0) + times

            found = self._counters[key] = (used,)
        return found

    def misses(self) -> dict[tuple[str, ...], float]:
        """How many there were, by namespace; of those that are there."""
        self._forget()
        sums: dict[tuple[str, ...], float] = {}
        for (namespace, _), count in self._counts.items():
            sums[(namespace.decode(),)] = sums.get((namespace.decode(),), 0) + count
        return sums

    def saved(self) -> dict[tuple[str, ...], float]:
        """How many of them `ndots:2` would have saved."""
        self._forget()
        return {(namespace.decode(),): count for (namespace, dotted), count in self._counts.items() if dotted}

    def _forget(self) -> None:
        """Let go of namespaces that are gone, so that there are no more series than namespaces."""
        for key in {*self._counters, *self._counts}:
            if key[0] not in self._namespaces:
                self._counters.pop(key, None)
                self._counts.pop(key, None)
