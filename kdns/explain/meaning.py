"""What a name below a cluster's zone is meant to be, read off its labels, whether that exists or not.

Pure. Law: kubernetes/dns, docs/specification.md 1.1.0, as `kubernetes/schema.py` answers it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kdns.kubernetes.cluster import address_text
from kdns.kubernetes.schema import dashed_address, reverse_address


class Meaning(msgspec.Struct, frozen=True):
    """`kind` is `service`, `endpoint`, `port`, `namespace`, `pod`, `address`, `zone`, or `other` for what is none.

    `label` is the endpoint's; `address` that of a pod or of a reverse name, as text, empty where it can't be read.
    """

    kind: str
    namespace: str = ""
    service: str = ""
    label: str = ""
    port: str = ""
    protocol: str = ""
    address: str = ""

    @property
    def of_service(self) -> bool:
        """Whether it stands for a service or a part of one."""
        return self.kind in ("service", "endpoint", "port")


def meaning_of(labels: Sequence[bytes]) -> Meaning:
    """What the labels to the left of a forward zone mean; they are in lower case."""
    texts = [label.decode("utf-8", "backslashreplace") for label in labels]
    match texts:
        case []:
            return Meaning("zone")
        case ["svc" | "pod"]:
            return Meaning("zone")
        case [namespace, "svc" | "pod"]:
            return Meaning("namespace", namespace)
        case [service, namespace, "svc"]:
            return Meaning("service", namespace, service)
        case [label, service, namespace, "svc"]:
            return Meaning("endpoint", namespace, service, label)
        case [port, protocol, service, namespace, "svc"]:
            return Meaning("port", namespace, service, port=port.removeprefix("_"), protocol=protocol.removeprefix("_"))
        case [*_, label, namespace, "pod"]:
            return Meaning("pod", namespace, label=label, address=_dashed(labels[-3]))
    return Meaning("other")


def meaning_of_reverse(labels: Sequence[bytes]) -> Meaning:
    """What a whole name below in-addr.arpa or ip6.arpa means."""
    packed = reverse_address(labels)
    return Meaning("address", address=address_text(packed) if packed else "")


def _dashed(label: bytes) -> str:
    packed = dashed_address(label)
    return address_text(packed) if packed else ""
