"""Which namespace a client stands in: the pods of a cluster by their addresses.

Pure: pods come in, a namespace comes out. Knows nothing of queries, and nothing of clients that are no pods.
Law: an address is nobody's where it might be several's. The network of a node is that of many pods; of an address that
was given to another pod the one that stays is the owner, however long the one that leaves takes to go.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from kdns.kubernetes.index import Some, all_of, reindex
from kdns.kubernetes.objects import Pod

Tag = tuple[str, *tuple[bytes, ...]]


def client_tag(address: bytes) -> Tag:
    """On whatever was decided by where the client of this address stands."""
    return ("client", address)


class Standing(msgspec.Struct, frozen=True, gc=False):
    """A pod that may ask. `leaving` is one that was told to end; `created` is in seconds since 1970."""

    namespace: bytes
    addresses: Some[bytes]
    leaving: bool
    created: int


def uses_host_network(pod: Pod) -> bool:
    """Whether its addresses are those of its node."""
    if pod.spec is not None and pod.spec.host_network:
        return True
    return pod.status is not None and pod.status.host_ip is not None and pod.status.host_ip in pod.addresses


def created_at(pod: Pod) -> int:
    """When it was created, in seconds since 1970; 0 where nobody says so."""
    try:
        return int(datetime.fromisoformat(pod.metadata.creation_timestamp or "").timestamp())
    except (ValueError, OverflowError, OSError):
        return 0


class Clients:
    """The pods that may ask, by name and by address."""

    def __init__(self) -> None:
        self._pods: dict[str, dict[str, Standing]] = {}
        self._at: dict[bytes, Some[Standing]] = {}

    def namespace_at(self, address: bytes) -> bytes | None:
        """The namespace of the one whose address this is; None where it is no pod's, empty where it may be several's.

        Of these at most one asks, and nobody knows which: it stands nowhere, least of all where strangers stand.
        """
        held = self._at.get(address)
        if held is None or isinstance(held, Standing):
            return None if held is None else held.namespace
        owners = {pod.namespace for pod in held.all if not pod.leaving}
        if not owners:
            latest = max(pod.created for pod in held.all)
            owners = {pod.namespace for pod in held.all if pod.created == latest}
        return owners.pop() if len(owners) == 1 else b""

    def has(self, key: tuple[str, str]) -> bool:
        """Whether there is such a pod, by namespace and name, that has addresses of its own."""
        return key[1] in self._pods.get(key[0], ())

    def replace(self, key: tuple[str, str], pod: Standing | None) -> set[Tag]:
        """Take in a pod, by namespace and name, as it is now; None is one that is gone.

        Returns the tags of the addresses that are another's now.
        """
        pods = self._pods.get(key[0], {})
        before = pods.get(key[1])
        if before == pod:
            return set()
        if pod is not None:
            self._pods.setdefault(key[0], pods)[key[1]] = pod
        else:
            del pods[key[1]]
            if not pods:
                del self._pods[key[0]]
        old, new = _addresses(before), _addresses(pod)
        was = {address: self.namespace_at(address) for address in (*old, *new)}
        for address in old:
            reindex(self._at, address, before, present=False)  # type: ignore[misc]
        for address in new:
            reindex(self._at, address, pod, present=True)  # type: ignore[misc]
        return {client_tag(address) for address, namespace in was.items() if self.namespace_at(address) != namespace}


def _addresses(pod: Standing | None) -> tuple[bytes, ...]:
    return () if pod is None else tuple(dict.fromkeys(all_of(pod.addresses)))
