"""What `serve` and `check` do: options to a Corefile, a Corefile to a running server, signals to its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import glob
import ipaddress
import logging
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, cast

import msgspec
import uvloop

from kdns import corefile
from kdns.app import App, Configuration, Listener, build
from kdns.chain import Process
from kdns.corefile import Corefile, CorefileError, ServerBlock, Token, normalize_zone, quote, spell
from kdns.errors import ConfigError, Place, Problem
from kdns.kubernetes import inventory as inventories
from kdns.kubernetes.cluster import Kind, Port, ServiceModel
from kdns.kubernetes.controller import InventoryOptions
from kdns.metrics import Metrics
from kdns.options import Address, wrong_ranges
from kdns.plugins.bind import interface_addresses
from kdns.plugins.kubernetes import Kubernetes
from kdns.reloading import Reloading
from kdns.wire import names

log = logging.getLogger("kdns")

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 1053
OPTIONS = "options of `kdns serve`"
# What CoreDNS serves where a Corefile has no server block, or there is none.
NO_BLOCK = ". {\n    whoami\n    log\n}\n"
_INVENTORY_ENDINGS = (".yaml", ".yml", ".json")
_KINDS = {Kind.CLUSTER_IP: "with a ClusterIP", Kind.HEADLESS: "headless", Kind.EXTERNAL_NAME: "ExternalName"}


class Wish(msgspec.Struct, frozen=True):
    """The options of `kdns serve --inventory` or `--kubeconfig`, as they were given."""

    inventory: tuple[str, ...] = ()
    kubeconfig: str = ""
    context: str = ""
    listen: tuple[str, ...] = ()
    zone: str = "cluster.local"
    forward: str | None = None
    service_cidr: tuple[str, ...] = ()
    cluster_ips: str = "allocate"


def corefile_text(wish: Wish) -> str:
    """The Corefile that the options stand for. Raises ConfigError for each of them that can't be."""
    places: list[Address] = []
    problems = [*_wrong_zone(wish.zone), *_wrong_cidrs(wish.service_cidr)]
    for text in wish.listen:
        try:
            places.append(_listen_address(text))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    places = places or [Address(DEFAULT_HOST, DEFAULT_PORT)]
    blocks = []
    # A block serves one port on several addresses, so there is one for each port.
    for port in dict.fromkeys(place.port for place in places):
        hosts = dict.fromkeys(place.host for place in places if place.port == port)
        lines = [f"bind {' '.join(hosts)}"] if all(hosts) else []
        lines += ["errors", f"kubernetes {_spelled(wish.zone)} in-addr.arpa ip6.arpa {{"]
        lines += [f"    {line}" for line in _source_lines(wish)]
        if wish.service_cidr:
            lines.append(f"    service_cidr {' '.join(wish.service_cidr)}")
        if wish.cluster_ips != "allocate":
            lines.append(f"    cluster_ips {wish.cluster_ips}")
        if wish.forward:
            # Names outside of the cluster's address ranges have a reverse name elsewhere.
            lines.append("    fallthrough in-addr.arpa ip6.arpa")
        lines.append("}")
        lines += ["loadbalance"]
        if wish.forward:
            lines.append(f"forward . {' '.join(map(_spelled, wish.forward.split()))}")
        blocks.append(f".:{port} {{\n" + "".join(f"    {line}\n" for line in lines) + "}\n")
    return "\n".join(blocks)


def _source_lines(wish: Wish) -> list[str]:
    if wish.kubeconfig:
        # No `pods`: to verify their names, all pods of the cluster would be watched.
        words = [_path(wish.kubeconfig)] + ([_spelled(wish.context)] if wish.context else [])
        return [f"kubeconfig {' '.join(words)}", "ttl 5"]
    return [f"inventory {' '.join(map(_path, wish.inventory))}", "ttl 5", "pods verified"]


def inventory_options(service_cidr: Sequence[str], cluster_ips: str) -> InventoryOptions:
    """What an inventory is completed with; no range is the default one. Raises ConfigError for one that can't be."""
    if problems := _wrong_cidrs(service_cidr):
        raise ConfigError(problems)
    chosen = cast(Literal["allocate", "endpoints"], cluster_ips)
    return InventoryOptions(tuple(service_cidr), chosen) if service_cidr else InventoryOptions(cluster_ips=chosen)


class Checked(msgspec.Struct, frozen=True):
    """What is to be said of a Corefile or an inventory, and how many objects of it DNS has no use for, by kind."""

    problems: list[Problem]
    passed_over: dict[str, int] = {}


def check(path: str) -> Checked:
    """Every mistake and warning of a Corefile (with the inventories that it names) or of an inventory."""
    if Path(path).is_dir() or path.lower().endswith(_INVENTORY_ENDINGS) or glob.has_magic(path):
        return _check_inventory([path], InventoryOptions())
    parsed = Corefile([])
    try:
        parsed = tolerant(lambda: corefile.load(path))
        problems = warnings(parsed, build(parsed, Process(Metrics())))
    except ConfigError as error:
        problems = list(error.problems)
    named = _check_named(parsed.blocks)
    return Checked(in_order([*problems, *named.problems]), named.passed_over)


def tolerant(parse: Callable[[], Corefile], default_port: int = 53) -> Corefile:
    """What can be read of a Corefile: mistakes stand among its warnings, and `build` raises them with all others.

    One without a server block gets CoreDNS's. Raises ConfigError where there is nothing to read.
    """
    try:
        parsed = parse()
    except CorefileError as error:
        return Corefile(error.blocks, list(error.problems))
    if parsed.blocks:
        return parsed
    file = parsed.files[0]
    warning = Problem("there is no server block", Place(file), hint="`whoami` answers, as in CoreDNS", warning=True)
    default = corefile.parse(NO_BLOCK, file, default_port=default_port)
    return msgspec.structs.replace(default, warnings=[*parsed.warnings, warning])


def warnings(parsed: Corefile, configuration: Configuration) -> list[Problem]:
    """What was accepted and is hardly meant so, with its place: doubtful lines, directives without effect.

    Once each, whatever the number of blocks.
    """
    found = list(configuration.warnings)
    notices: dict[str, Problem] = {}
    for server_block, block in zip(parsed.blocks, configuration.blocks, strict=True):
        for plugin in block.plugins:
            if isinstance(plugin, Kubernetes):
                found += plugin.loaded.problems if plugin.loaded else ()
                continue
            place = server_block.named(plugin.name)[0].name.place()
            for each in plugin.notices():
                text = f"`{plugin.name}`: {each}"
                notices.setdefault(text, Problem(text, place, warning=True))
    return in_order(dict.fromkeys([*found, *notices.values()]))


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """As they stand in the files, one file after the other; those without a place first."""
    files: dict[str, int] = {}

    def rank(problem: Problem) -> tuple[int, int, int]:
        if problem.place is None:
            return -1, 0, 0
        place = problem.place
        return files.setdefault(place.file, len(files)), place.line, place.column

    return sorted(problems, key=rank)


def run(parsed: Corefile, show: Callable[[Configuration], None], again: Callable[[], Corefile] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; `show` is called once it listens. Raises ConfigError where it can't start.

    `again` reads the Corefile anew, for a reload.
    """
    configuration = build(parsed, Process(Metrics()))
    named = [token for tokens, _ in _named_inventories(parsed.blocks) for token in tokens if token.file != OPTIONS]
    if _wrong_paths(named):
        raise ConfigError(_check_named(parsed.blocks).problems)
    # What was imported stays: 50,000 objects, and a collection that looks through them holds queries up for 30 ms.
    gc.freeze()
    uvloop.run(_serve(configuration, show, again))


async def _serve(
    configuration: Configuration, show: Callable[[Configuration], None], again: Callable[[], Corefile] | None
) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    app = App(configuration)
    reloading = Reloading(app, again)
    configuration.process.reload = reloading.look
    # As CoreDNS: a terminal that goes away is no reason to end.
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    loop.add_signal_handler(signal.SIGUSR1, reloading.signalled)
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
    # Who asks twice has waited long enough.
    stopping = asyncio.create_task(app.stop())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await stopping


def start_lines(configuration: Configuration, colour: bool = False) -> Iterable[str]:
    """What a person wants to know at start: what was loaded, where it listens, what to try."""
    sources = [plugin for plugin in configuration.plugins if isinstance(plugin, Kubernetes)]
    # Blocks of several ports have the same source; once is enough.
    for source in {(each.view.primary, each.inventory_paths, each.server): each for each in sources}.values():
        where = source.server or " ".join(map(_short, source.inventory_paths))
        yield f"{_paint(names.to_text(source.view.primary)[:-1], colour)} from {where}"
        yield from (f"  {line}" for line in (_loaded(source) if source.cluster.synced else _not_loaded(source)))
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
    counts = [_count(len(cluster.namespaces), "namespace")]
    counts.append(_count(len(endpoints), "address", "addresses") + " of ready endpoints")
    if source.live is None or source.view.pods == "verified":
        counts.append(_count(len(cluster.all_pods()), "address", "addresses") + " of pods")
    yield ", ".join(counts)
    if source.loaded and source.loaded.passed_over:
        yield f"passed over: {kinds_text(source.loaded.passed_over)}"
    if source.live is not None:
        if source.live.stale:
            yield "as a snapshot had it, until the API is read"
        return
    if source.inventory_options.cluster_ips == "endpoints":
        yield "every service is answered with its endpoints (cluster_ips endpoints)"
    elif kinds[Kind.CLUSTER_IP]:
        yield f"a Service without a ClusterIP gets one of {' '.join(source.inventory_options.service_cidrs)}"


def _not_loaded(source: Kubernetes) -> Iterable[str]:
    """What is still to be read before a name of the cluster has an answer."""
    yield "not read yet, so each name is SERVFAIL:"
    yield from (f"  {each}" for each in (source.live.missing if source.live else ()))


def kinds_text(counts: dict[str, int]) -> str:
    """Kinds of objects with their number: `1 ConfigMap, 3 Deployment`."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


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


def _check_inventory(paths: Sequence[str], options: InventoryOptions) -> Checked:
    try:
        inventory = inventories.load(paths, options)
    except ConfigError as error:
        return Checked(list(error.problems))
    return Checked(list(inventory.warnings), inventory.passed_over)


def _check_named(blocks: Sequence[ServerBlock]) -> Checked:
    """What is to be said of the inventories of a Corefile. A path that leads nowhere is told where it stands."""
    problems: list[Problem] = []
    passed_over: Counter[str] = Counter()
    # Blocks of several ports name the same inventory.
    different = {
        (tuple(token.text for token in tokens), options): tokens for tokens, options in _named_inventories(blocks)
    }
    for (_, options), tokens in different.items():
        problems += _wrong_paths(tokens)
        paths = [token.text for token in tokens if not _wrong_paths([token])]
        if paths:
            checked = _check_inventory(paths, options)
            problems += checked.problems
            passed_over += Counter(checked.passed_over)
    return Checked(problems, dict(passed_over))


def _named_inventories(blocks: Sequence[ServerBlock]) -> Iterator[tuple[list[Token], InventoryOptions]]:
    """The paths of each `kubernetes` with an inventory, and its options as far as they are right."""
    for block in blocks:
        directives = block.named("kubernetes")
        lines = [line for directive in directives for line in directive.body or () if line.name.text == "inventory"]
        tokens = [token for line in lines for token in line.args]
        if tokens:
            read = Kubernetes.read(directives, [])
            yield tokens, inventory_options(read.service_cidr, read.cluster_ips) if read else InventoryOptions()


def _wrong_paths(tokens: Sequence[Token]) -> list[Problem]:
    return [
        msgspec.structs.replace(problem, place=token.place())
        for token in tokens
        for problem in inventories.find_files([token.text])[1]
    ]


def _listen_address(text: str) -> Address:
    found = re.fullmatch(r"\[(?P<six>[^\[\]]*)\](?::(?P<port6>.*))?|(?P<host>[^:]*)(?::(?P<port>[^:]*))?", text)
    host, port = (found["six"] or found["host"] or "", found["port6"] or found["port"]) if found else (text, None)
    number = DEFAULT_PORT if port is None else int(port) if re.fullmatch("[0-9]{1,5}", port) else 0
    if (host or port is not None) and 0 < number < 65536 and (not host or _is_local(host)):
        return Address(host, number)
    hint = "`localhost` is `127.0.0.1` or `[::1]`" if host == "localhost" else ""
    hint = f"`--listen :{text}` is that port of all addresses" if text.isdecimal() else hint
    raise ConfigError([Problem(f"`--listen {text}` is no address", expected="ADDR or ADDR:PORT", hint=hint)])


def _is_local(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return any(host == name for name, _ in interface_addresses())
    return True


def _wrong_zone(text: str) -> list[Problem]:
    try:
        zones = normalize_zone(text)
    except ValueError as error:
        return [Problem(f"`--zone`: {error}")]
    if any(zone.endswith((".in-addr.arpa.", ".ip6.arpa.")) or zone in ("in-addr.arpa.", "ip6.arpa.") for zone in zones):
        return [Problem(f"`--zone`: `{text}` is a reverse zone", hint="those of all addresses are served anyway")]
    return []


def _wrong_cidrs(texts: Sequence[str]) -> list[Problem]:
    return [Problem(f"`--service-cidr`: {sentence}", hint=hint) for _, sentence, hint in wrong_ranges(texts)]


def _path(path: str) -> str:
    # Not resolved: a mounted ConfigMap changes where its links lead.
    return _spelled(str(Path(path).absolute()))


def _spelled(word: str) -> str:
    return quote(word) if "{" in word or "}" in word else spell(word)
