"""The kinds of objects that are watched: where the API has them, what reads them, and which of them are wanted."""

from __future__ import annotations

from typing import Any

import msgspec

from kdns.kubernetes.changes import change_decoder, object_decoder, page_decoder
from kdns.kubernetes.objects import EndpointSlice, Namespace, Pod, Service


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
