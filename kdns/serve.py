"""What the commands `serve` and `check` do: options to a Corefile, a Corefile to a running server, signals to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, cast

import msgspec
import uvloop

from kdns import corefile
from kdns.app import App, Configuration, build
from kdns.chain import Process
from kdns.corefile import Corefile
from kdns.errors import ConfigError, Place, Problem
from kdns.kubernetes import inventory as inventories
from kdns.kubernetes.controller import InventoryOptions
from kdns.metrics import Metrics
from kdns.options import Address
from kdns.plugins.kubernetes import Kubernetes
from kdns.wire import names

log = logging.getLogger("kdns")

DEFAULT_LISTEN = "127.0.0.1:1053"
_INVENTORY_ENDINGS = (".yaml", ".yml", ".json")


class Wish(msgspec.Struct, frozen=True):
    """The options of `kdns serve --inventory`, as they were given."""

    inventory: tuple[str, ...]
    listen: tuple[str, ...] = ()
    zone: str = "cluster.local"
    forward: str | None = None
    service_cidr: tuple[str, ...] = ()
    cluster_ips: str = "allocate"


def corefile_text(wish: Wish) -> str:
    """The Corefile that the options stand for. Raises ConfigError for an address that is none."""
    places = [_listen_address(text) for text in wish.listen or (DEFAULT_LISTEN,)]
    blocks = []
    # A block serves one port on several addresses, so there is one for each port.
    for port in dict.fromkeys(place.port for place in places):
        hosts = dict.fromkeys(place.host for place in places if place.port == port)
        lines = [f"bind {' '.join(hosts)}"] if all(hosts) else []
        lines += ["errors", f"kubernetes {wish.zone} in-addr.arpa ip6.arpa {{"]
        lines += [f"    inventory {' '.join(map(_quoted, wish.inventory))}", "    ttl 5", "    pods verified"]
        if wish.service_cidr:
            lines.append(f"    service_cidr {' '.join(wish.service_cidr)}")
        if wish.cluster_ips != "allocate":
            lines.append(f"    cluster_ips {wish.cluster_ips}")
        if wish.forward:
            # Names outside of the cluster's address ranges have a reverse name elsewhere.
            lines.append("    fallthrough in-addr.arpa ip6.arpa")
        lines.append("}")
        lines += ["loadbalance"] + ([f"forward . {wish.forward}"] if wish.forward else [])
        blocks.append(f".:{port} {{\n" + "".join(f"    {line}\n" for line in lines) + "}\n")
    return "\n".join(blocks)


def inventory_options(service_cidr: Sequence[str], cluster_ips: str) -> InventoryOptions:
    """What an inventory is completed with; an empty range is the default one."""
    chosen = cast(Literal["allocate", "endpoints"], cluster_ips)
    return InventoryOptions(tuple(service_cidr), chosen) if service_cidr else InventoryOptions(cluster_ips=chosen)


def check(path: str) -> list[Problem]:
    """Every mistake and warning of a Corefile (with the inventories that it names) or of an inventory."""
    if os.path.isdir(path) or path.endswith(_INVENTORY_ENDINGS):
        return _check_inventory([path], InventoryOptions())
    try:
        configuration = build(corefile.load(path), Process(Metrics()))
    except ConfigError as error:
        return list(error.problems)
    problems = list(configuration.warnings)
    for plugin in configuration.plugins:
        if isinstance(plugin, Kubernetes) and plugin.inventory_paths:
            problems += _check_inventory(plugin.inventory_paths, plugin.inventory_options)
    return problems


def run(parsed: Corefile, show: Callable[[Sequence[str]], None]) -> None:
    """Serve until SIGTERM or SIGINT. `show` gets the lines that tell what was loaded and where it listens.

    Raises ConfigError where it can't start.
    """
    configuration = build(parsed, Process(Metrics()))
    uvloop.run(_serve(configuration, show))


async def _serve(configuration: Configuration, show: Callable[[Sequence[str]], None]) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    app = App(configuration)
    starting = asyncio.create_task(app.start())
    ending = asyncio.create_task(told.wait())
    await asyncio.wait((starting, ending), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return
    await starting
    show(list(start_lines(configuration)))
    await ending
    log.info("stopping")
    await app.stop()


def start_lines(configuration: Configuration) -> Iterable[str]:
    """What a person wants to know at start: what was loaded, where it listens, what to try."""
    for problem in configuration.warnings:
        yield f"warning: {problem.message}"
    for plugin in configuration.plugins:
        for notice in plugin.notices():
            yield f"{plugin.name}: {notice}"
    for listener in configuration.listeners:
        zones = " ".join(site.zone_text for site in listener.sites)
        yield f"listening on {listener.address or 'all addresses'} port {listener.port} (UDP, TCP) for {zones}"
    yield from _examples(configuration)


def _examples(configuration: Configuration) -> Iterable[str]:
    listener = configuration.listeners[0]
    for plugin in configuration.plugins:
        if isinstance(plugin, Kubernetes):
            services = [each for each in plugin.cluster.all_services() if each.addresses]
            if not services:
                return
            service = services[0]
            host = f"{service.name.decode()}.{service.namespace.decode()}.svc.{names.to_text(plugin.view.primary)[:-1]}"
            at = f"dig @{listener.address or '127.0.0.1'} -p {listener.port}"
            yield "try:"
            yield f"  {at} {host}"
            port = next((port.name.decode() for port in service.ports if port.name), "")
            yield f"  {at} _{port}._tcp.{host} SRV" if port else f"  {at} {host} SRV"
            return


def _check_inventory(paths: Sequence[str], options: InventoryOptions) -> list[Problem]:
    try:
        return list(inventories.load(paths, options).warnings)
    except ConfigError as error:
        return list(error.problems)


def _listen_address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if colon and port.isdigit() and int(port) < 65536 and (":" not in host or host.startswith("[")):
        return Address(host.strip("[]"), int(port))
    raise ConfigError([Problem(f"`--listen {text}` is no address", Place("the command line"), expected="ADDR:PORT")])


def _quoted(path: str) -> str:
    absolute = os.path.abspath(path)
    return '"' + absolute.replace('"', '\\"') + '"' if any(each in absolute for each in ' \t#"{}') else absolute
