"""What `serve` and `check` do: options to a Corefile, a Corefile to a running server, signals to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, cast

import msgspec
import uvloop

from kdns import corefile
from kdns.app import App, Configuration, Listener, build
from kdns.chain import Process
from kdns.corefile import Corefile
from kdns.errors import ConfigError, Place, Problem
from kdns.kubernetes import inventory as inventories
from kdns.kubernetes.cluster import Kind, Port, ServiceModel
from kdns.kubernetes.controller import InventoryOptions
from kdns.metrics import Metrics
from kdns.options import Address
from kdns.plugins.kubernetes import Kubernetes
from kdns.wire import names

log = logging.getLogger("kdns")

DEFAULT_LISTEN = "127.0.0.1:1053"
_INVENTORY_ENDINGS = (".yaml", ".yml", ".json")
_NO_SOURCE = "kdns doesn't watch the API yet, so every name of the cluster is SERVFAIL"
_KINDS = {Kind.CLUSTER_IP: "with a ClusterIP", Kind.HEADLESS: "headless", Kind.EXTERNAL_NAME: "ExternalName"}


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
    if Path(path).is_dir() or path.endswith(_INVENTORY_ENDINGS):
        return _check_inventory([path], InventoryOptions())
    try:
        parsed = corefile.load(path)
        configuration = build(parsed, Process(Metrics()))
    except ConfigError as error:
        return in_order(error.problems)
    problems = warnings(parsed, configuration)
    for plugin in configuration.plugins:
        if isinstance(plugin, Kubernetes) and plugin.inventory_paths:
            problems += _check_inventory(plugin.inventory_paths, plugin.inventory_options)
    return problems


def warnings(parsed: Corefile, configuration: Configuration) -> list[Problem]:
    """What was accepted and is hardly meant so, with its place: doubtful lines, directives without effect."""
    found = list(configuration.warnings)
    for server_block, block in zip(parsed.blocks, configuration.blocks, strict=True):
        for plugin in block.plugins:
            place = server_block.named(plugin.name)[0].name.place()
            if not isinstance(plugin, Kubernetes):
                found += [Problem(f"`{plugin.name}`: {each}", place, warning=True) for each in plugin.notices()]
            elif not plugin.inventory_paths:
                hint = "give it an `inventory PATH`"
                found.append(Problem(f"`kubernetes` has no source: {_NO_SOURCE}", place, hint=hint, warning=True))
    return in_order(found)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """As they stand in the files, one file after the other; those without a place first."""
    files: dict[str, int] = {}

    def rank(problem: Problem) -> tuple[int, int, int]:
        if problem.place is None:
            return -1, 0, 0
        place = problem.place
        return files.setdefault(place.file, len(files)), place.line, place.column

    return sorted(problems, key=rank)


def run(parsed: Corefile, show: Callable[[Configuration], None]) -> None:
    """Serve until SIGTERM or SIGINT; `show` is called once it listens. Raises ConfigError where it can't start."""
    configuration = build(parsed, Process(Metrics()))
    uvloop.run(_serve(configuration, show))


async def _serve(configuration: Configuration, show: Callable[[Configuration], None]) -> None:
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
    show(configuration)
    await ending
    log.info("stopping")
    await app.stop()


def start_lines(configuration: Configuration, colour: bool = False) -> Iterable[str]:
    """What a person wants to know at start: what was loaded, where it listens, what to try."""
    sources = [plugin for plugin in configuration.plugins if isinstance(plugin, Kubernetes) and plugin.inventory_paths]
    # Blocks of several ports read the same inventory; once is enough.
    for source in {(each.view.primary, each.inventory_paths): each for each in sources}.values():
        paths = " ".join(map(_short, source.inventory_paths))
        yield f"{_paint(names.to_text(source.view.primary)[:-1], colour)} from {paths}"
        yield from (f"  {line}" for line in _loaded(source))
    for listener in configuration.listeners:
        zones = " ".join(site.zone_text for site in listener.sites)
        yield f"listening on {_where(listener)}, UDP and TCP" + (f", for {zones}" if zones != "." else "")
    examples = list(_examples(configuration.listeners[0], sources))
    if examples:
        yield "try"
        yield from (f"  {_paint(line, colour)}" for line in examples)


def _loaded(source: Kubernetes) -> Iterable[str]:
    """What there is to ask for, counted."""
    cluster = source.cluster
    services = list(cluster.all_services())
    kinds = Counter(service.kind for service in services)
    parts = [f"{kinds[kind]} {text}" for kind, text in _KINDS.items() if kinds[kind]]
    yield f"{_count(len(services), 'service')}" + (f": {', '.join(parts)}" if parts else "")
    endpoints = {ready.address for service in services for part in service.slices.values() for ready in part.ready}
    yield ", ".join(
        (
            _count(len(cluster.namespaces), "namespace"),
            _count(len(endpoints), "address", "addresses") + " of ready endpoints",
            _count(len(cluster.all_pods()), "address", "addresses") + " of pods",
        )
    )
    if source.inventory_options.cluster_ips == "endpoints":
        yield "every service is answered with its endpoints (cluster_ips endpoints)"
    elif kinds[Kind.CLUSTER_IP]:
        yield f"a Service without a ClusterIP gets one of {' '.join(source.inventory_options.service_cidrs)}"


def _examples(listener: Listener, sources: Sequence[Kubernetes]) -> Iterable[str]:
    """Two questions that have an answer, of a service with a named port if there is one."""
    found = [
        (source, service)
        for source in sources
        for service in source.cluster.all_services()
        if service.addresses or service.has_ready()
    ]
    if not found:
        return
    # A ClusterIP is one line that everybody knows; a named port has an SRV record with a name.
    source, service = min(
        found, key=lambda pair: (not any(port.name for port in _ports(pair[1])), not pair[1].addresses)
    )
    host = f"{service.name.decode()}.{service.namespace.decode()}.svc.{names.to_text(source.view.primary)[:-1]}"
    at = f"dig @{listener.address or '127.0.0.1'} -p {listener.port}"
    port = next((port for port in _ports(service) if port.name), None)
    yield f"{at} {host}"
    yield f"{at} _{port.name.decode()}._{port.protocol.decode()}.{host} SRV" if port else f"{at} {host} SRV"


def _ports(service: ServiceModel) -> Sequence[Port]:
    return service.ports if service.addresses else [port for _, port in service.candidates()]


def _short(path: str) -> str:
    """The path as the user would type it here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _where(listener: Listener) -> str:
    if not listener.address:
        return f"port {listener.port} of all addresses"
    return f"{f'[{listener.address}]' if ':' in listener.address else listener.address}:{listener.port}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _paint(text: str, colour: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if colour else text


def _check_inventory(paths: Sequence[str], options: InventoryOptions) -> list[Problem]:
    try:
        return list(inventories.load(paths, options).warnings)
    except ConfigError as error:
        return list(error.problems)


def _listen_address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if colon and port.isdecimal() and 0 < int(port[:6]) < 65536 and (":" not in host or host.startswith("[")):
        return Address(host.strip("[]"), int(port))
    raise ConfigError([Problem(f"`--listen {text}` is no address", Place("the command line"), expected="ADDR:PORT")])


def _quoted(path: str) -> str:
    # Not resolved: a mounted ConfigMap changes where its links lead.
    absolute = str(Path(path).absolute())
    return '"' + absolute.replace('"', '\\"') + '"' if any(each in absolute for each in ' \t#"{}') else absolute
