"""Explanations of a running server: what `kdns explain` asks of it over the admin socket, and what it answers.

What the server knows is its model, and the chains are those that it serves. Questions of clients have their turn
between any two of an explanation's.
"""

from __future__ import annotations

import os

import msgspec

from kdns.addresses import host_and_port
from kdns.app import Configuration
from kdns.errors import KdnsError
from kdns.explain.asking import Ask, AskError
from kdns.explain.explanation import World, explain
from kdns.explain.knowledge import Source
from kdns.explain.report import Explanation
from kdns.explain.running import clusters_of, main_listener
from kdns.kubernetes.objects import UNREADABLE
from kdns.server import admin


class Reply(msgspec.Struct, omit_defaults=True):
    """An explanation, or why there is none."""

    explanation: Explanation | None = None
    error: str = ""
    hint: str = ""


async def answer(configuration: Configuration, question: bytes) -> bytes:
    """What the server that serves this says to a question of `ask_running`."""
    return msgspec.json.encode(await _reply(configuration, question))


async def _reply(configuration: Configuration, question: bytes) -> Reply:
    try:
        ask = msgspec.json.decode(question, type=Ask)
    except UNREADABLE as error:
        return Reply(error=f"the question can't be read: {error}")
    try:
        return Reply(await explain(ask, _world(configuration)))
    except AskError as error:
        return Reply(error=error.problems[0].message, hint=error.problems[0].hint)


def _world(configuration: Configuration) -> World:
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
