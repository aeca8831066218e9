"""Explanations without a server, of an inventory, a cluster or a Corefile.

It is built as `kdns serve` would build it, and given its objects by hand; no port is opened, and no upstream asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Iterator

import msgspec

from kdns import corefile, dump, serve
from kdns.app import Configuration, build, own_addresses
from kdns.chain import Process
from kdns.errors import ConfigError, Problem
from kdns.explain import report, text
from kdns.explain.answering import ask_running
from kdns.explain.asking import Ask
from kdns.explain.explanation import World, explain
from kdns.explain.knowledge import Objects, Source
from kdns.explain.running import clusters_of, main_listener
from kdns.kubernetes.objects import Object, Put, Synced
from kdns.metrics import Metrics
from kdns.plugins.hosts import Hosts
from kdns.plugins.kubernetes import Kubernetes

__all__ = ["Ask", "Wish", "as_json", "as_text", "ask_running", "offline"]


class Wish(msgspec.Struct, frozen=True):
    """What to answer from. With a Corefile, inventory and kubeconfig stand for the cluster that it would watch."""

    inventory: tuple[str, ...] = ()
    kubeconfig: str = ""
    context: str = ""
    corefile: str = ""
    zone: str = "cluster.local"
    service_cidr: tuple[str, ...] = ()
    cluster_ips: str = "allocate"


def offline(ask: Ask, wish: Wish) -> report.Explanation:
    """Explain without a server. Raises KdnsError."""
    parsed = serve.tolerant(functools.partial(_read, wish))
    # What a server would log of its objects is told here, where it has to do with the name.
    logging.disable(logging.WARNING)
    try:
        return asyncio.run(_explain(ask, _world(wish, build(parsed, Process(Metrics(), time.time)))))
    finally:
        logging.disable(logging.NOTSET)


def _world(wish: Wish, configuration: Configuration) -> World:
    listener = main_listener(configuration)
    # For NS records: those that a server here would have.
    configuration.process.addresses = own_addresses(each.address for each in configuration.listeners)
    read: dict[object, list[Object]] = {}
    sources: list[Source] = []
    for plugin in clusters_of(listener):
        objects = _objects(plugin, wish, read)
        plugin.apply([*map(Put, objects), Synced()])
        sources.append(Source(plugin, Objects(objects)))
    source = " ".join(filter(None, (wish.corefile, *wish.inventory, wish.kubeconfig)))
    return World(source, listener, configuration.process, sources)


def _read(wish: Wish) -> corefile.Corefile:
    if wish.corefile:
        return corefile.load(wish.corefile)
    # Where it would listen makes no difference; the API is asked once, by us.
    shown = serve.Wish(wish.inventory, wish.kubeconfig, wish.context, (), wish.zone, None, wish.service_cidr)
    text = serve.corefile_text(msgspec.structs.replace(shown, cluster_ips=wish.cluster_ips))
    return corefile.parse(text, serve.OPTIONS)


def _objects(plugin: Kubernetes, wish: Wish, read: dict[object, list[Object]]) -> list[Object]:
    """What stands behind a directive, each source read once."""
    kubeconfig, context = (wish.kubeconfig, wish.context) if wish.kubeconfig else plugin.kubeconfig
    paths, options = plugin.inventory_paths, plugin.inventory_options
    if wish.corefile and wish.inventory and not paths:
        paths, options = wish.inventory, serve.inventory_options(wish.service_cidr, wish.cluster_ips)
    key: object = (paths, options) if paths else (kubeconfig, context)
    if key in read:
        return read[key]
    if paths:
        read[key] = dump.of_inventory(paths, options)
    elif kubeconfig:
        read[key] = dump.of_cluster(kubeconfig, context)
    else:
        message = "the Corefile's cluster can't be reached from here"
        hint = "give `--kubeconfig FILE`, or `--inventory PATH` with what `kubectl get -o yaml` printed"
        raise ConfigError([Problem(message, hint=hint)])
    return read[key]


async def _explain(ask: Ask, world: World) -> report.Explanation:
    for site in world.listener.sites:
        for plugin in site.plugins:
            if isinstance(plugin, Hosts):
                await _read_hosts(plugin)
    return await explain(ask, world)


async def _read_hosts(plugin: Hosts) -> None:
    feeding = asyncio.create_task(plugin.feed())
    await plugin.started()
    feeding.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await feeding


def as_text(told: report.Explanation, colour: bool = False) -> Iterator[str]:
    """The lines of it for people."""
    return text.draw(told, colour)


def as_json(told: report.Explanation) -> str:
    """All of it for tools."""
    return msgspec.json.format(msgspec.json.encode(told)).decode()
