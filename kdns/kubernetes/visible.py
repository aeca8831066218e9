"""What a `kubernetes` directive shows of what its source tells: by namespace, by labels, with or without endpoints.

An object that stops matching is a deletion to those behind, just as a watch with a selector has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from kdns.kubernetes.objects import Delete, EndpointSlice, Event, Namespace, Put

Matcher = Callable[[Mapping[str, str]], bool]


class Visible(msgspec.Struct, frozen=True):
    """The filter of one directive. None for a matcher or an empty set of namespaces means all."""

    namespaces: frozenset[str] = frozenset()
    labels: Matcher | None = None
    namespace_labels: Matcher | None = None
    endpoints: bool = True

    def see(self, event: Event) -> Event | None:
        """The event as those behind the filter should have it; None when it is none of their business."""
        match event:
            case Put(object=object):
                metadata = object.metadata
                namespaced = not isinstance(object, Namespace)
                namespace = (metadata.namespace or "default") if namespaced else metadata.name
                if self.namespaces and namespace not in self.namespaces:
                    return None
                if isinstance(object, EndpointSlice) and not self.endpoints:
                    return None
                matcher = self.labels if namespaced else self.namespace_labels
                if matcher is not None and not matcher(metadata.labels or {}):
                    return Delete(type(object).__name__, metadata.namespace, metadata.name)
                return event
            case _:
                return event
