"""An API server with a cluster of some size, in a thread of its own, for servers that are processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from tests.faults.fake import api_server
from tests.faults.store import Store, endpoint_slice, namespace, service

SERVICES_OF_A_NAMESPACE = 100


def name_of(number: int) -> str:
    """The name of a service, in DNS."""
    return f"web-{number}.team-{number // SERVICES_OF_A_NAMESPACE}.svc.cluster.local."


def address_of(number: int) -> str:
    """Its ClusterIP."""
    return f"10.96.{number >> 8}.{number & 255}"


@contextlib.contextmanager
def cluster(services: int) -> Iterator[str]:
    """The URL of one with so many services, each with a slice of two endpoints."""
    store = Store()
    for number in range(0, services, SERVICES_OF_A_NAMESPACE):
        store.put("namespaces", namespace(f"team-{number // SERVICES_OF_A_NAMESPACE}"))
    for number in range(services):
        within, name = f"team-{number // SERVICES_OF_A_NAMESPACE}", f"web-{number}"
        store.put("services", service(within, name, address_of(number)))
        endpoints = [f"10.{244 + each}.{number >> 8}.{number & 255}" for each in range(2)]
        store.put("endpointslices", endpoint_slice(within, f"{name}-1", name, endpoints))
    urls: list[str] = []
    started, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        async with api_server(store) as fake:
            urls.append(fake.url)
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="cluster")
    thread.start()
    try:
        started.wait()
        yield urls[0]
    finally:
        ended.set()
        thread.join()
