"""Explanations of a running server: what `kdns explain` asks of it over the admin socket, and what it answers.

What the server knows is its model, and the chains are those that it serves. Questions of clients have their turn
between any two of an explanation's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator

import msgspec

from kdns.addresses import host_and_port
from kdns.app import App, Configuration
from kdns.errors import KdnsError
from kdns.explain.asking import Ask, AskError
from kdns.explain.explanation import World, explain
from kdns.explain.knowledge import Source
from kdns.explain.report import Explanation
from kdns.kubernetes.objects import UNREADABLE
from kdns.listening import Listener
from kdns.plugins.kubernetes import Kubernetes
from kdns.server import admin


class Reply(msgspec.Struct, omit_defaults=True):
    """An explanation, or why there is none."""

    explanation: Explanation | None = None
    error: str = ""
    hint: str = ""


@contextlib.asynccontextmanager
async def explained(app: App) -> AsyncIterator[None]:
    """Let a running server be asked, as long as the block lasts."""

    async def answer(question: bytes) -> bytes:
        return msgspec.json.encode(await _reply(app, question))

    server = admin.AdminServer(answer)
    listener = main_listener(app.configuration)
    await server.start(host_and_port(listener.address, listener.port))
    try:
        yield
    finally:
        await server.stop()


async def _reply(app: App, question: bytes) -> Reply:
    try:
        wish = msgspec.json.decode(question, type=Ask)
    except UNREADABLE as error:
        return Reply(error=f"the question can't be read: {error}")
    try:
        return Reply(await explain(wish, _world(app)))
    except AskError as error:
        return Reply(error=error.problems[0].message, hint=error.problems[0].hint)


def _world(app: App) -> World:
    configuration = app.configuration
    listener = main_listener(configuration)
    place = host_and_port(listener.address, listener.port)
    source = f"the kdns that listens at {place}, process {os.getpid()}"
    sources = [Source(plugin) for plugin in clusters_of(listener)]
    process = configuration.process
    return World(source, listener, process, sources, network=True, kept=process.answers)


def ask_running(ask: Ask, place: str = "") -> Explanation:
    """The explanation of the kdns that runs here, or of the one that listens at this place. Raises KdnsError."""
    answer = admin.ask(place, msgspec.json.encode(ask))
    try:
        reply = msgspec.json.decode(answer, type=Reply)
    except UNREADABLE as error:
        raise KdnsError(f"the running kdns is of another version: {error}") from error
    if reply.explanation is None:
        raise AskError(reply.error, reply.hint)
    return reply.explanation


def main_listener(configuration: Configuration) -> Listener:
    """The listener that clients of the cluster ask: the first that knows a cluster, else the first."""
    listeners = configuration.listeners
    return next((each for each in listeners if clusters_of(each)), listeners[0])


def clusters_of(listener: Listener) -> list[Kubernetes]:
    """The `kubernetes` directives of a listener's blocks, each once."""
    found = [plugin for site in listener.sites for plugin in site.plugins if isinstance(plugin, Kubernetes)]
    return list(dict.fromkeys(found))
