"""A running server that can be asked to explain: its admin socket, as long as it serves.

Knows as little as possible, for most servers are never asked: `answering` is loaded when the first one asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator

from kdns.addresses import host_and_port
from kdns.app import App, Configuration
from kdns.listening import Listener
from kdns.plugins.kubernetes import Kubernetes
from kdns.server import admin


@contextlib.asynccontextmanager
async def explained(app: App) -> AsyncIterator[None]:
    """Let a running server be asked, as long as the block lasts."""

    async def answer(question: bytes) -> bytes:
        # 60 ms at the first time, in which clients are answered all the same, and 0.8 MB.
        answering = await asyncio.to_thread(importlib.import_module, "kdns.explain.answering")
        return bytes(await answering.answer(app.configuration, question))

    server = admin.AdminServer(answer)
    listener = main_listener(app.configuration)
    await server.start(host_and_port(listener.address, listener.port))
    try:
        yield
    finally:
        await server.stop()


def main_listener(configuration: Configuration) -> Listener:
    """The listener that clients of the cluster ask: the first that knows a cluster, else the first."""
    listeners = configuration.listeners
    return next((each for each in listeners if clusters_of(each)), listeners[0])


def clusters_of(listener: Listener) -> list[Kubernetes]:
    """The `kubernetes` directives of a listener's blocks, each once."""
    found = [plugin for site in listener.sites for plugin in site.plugins if isinstance(plugin, Kubernetes)]
    return list(dict.fromkeys(found))
