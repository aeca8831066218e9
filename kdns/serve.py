"""What `serve` and `check` do: options to a Corefile, a Corefile to a running server, signals to its end."""

from __future__ import annotations

import asyncio
import gc
import glob
import ipaddress
import logging
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, cast

import msgspec
import uvloop

from kdns import corefile
from kdns.app import App, Configuration, build
from kdns.chain import Process
from kdns.corefile import Corefile, CorefileError, ServerBlock, Token, normalize_zone, quote, spell
from kdns.errors import ConfigError, Place, Problem, note
from kdns.explain.running import explained
from kdns.kubernetes import inventory as inventories
from kdns.kubernetes.controller import InventoryOptions
from kdns.metrics import Metrics
from kdns.options import Address, wrong_ranges
from kdns.plugins.bind import interface_addresses
from kdns.plugins.kubernetes import Kubernetes
from kdns.plugins.search import NAMESPACE
from kdns.reloading import Reloading
from kdns.signals import Signals, done_before

log = logging.getLogger("kdns")

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 1053
OPTIONS = "options of `kdns serve`"
# What CoreDNS serves where a Corefile has no server block, or there is none.
NO_BLOCK = ". {\n    whoami\n    log\n}\n"
_LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
_INVENTORY_ENDINGS = (".yaml", ".yml", ".json")


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
    share_port: bool = False
    client: tuple[str, ...] = ()
    default_namespace: str = ""


def corefile_text(wish: Wish) -> str:
    """The Corefile that the options stand for. Raises ConfigError for each of them that can't be."""
    places: list[Address] = []
    problems = [*_wrong_zone(wish.zone), *_wrong_cidrs(wish.service_cidr), *_wrong_clients(wish)]
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
        # NUMBER has no effect, and without one a warning would say so.
        lines += ["multisocket 1"] if wish.share_port else []
        lines += ["errors", "search {", *(f"    {line}" for line in _search_lines(wish)), "}"]
        lines += [f"kubernetes {_spelled(wish.zone)} in-addr.arpa ip6.arpa {{"]
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


def _search_lines(wish: Wish) -> list[str]:
    lines = ["names qualified"]
    networks: dict[str, list[str]] = {}
    for text in wish.client:
        network, _, namespace = text.partition("=")
        networks.setdefault(namespace, []).append(network)
    given = [ipaddress.ip_network(network) for each in networks.values() for network in each]
    for loopback in () if wish.default_namespace else _LOOPBACK:
        # Who asks from this machine is somebody with a shell, in the namespace that `kubectl` has for them.
        if not any(each.version == loopback.version and loopback.subnet_of(each) for each in given):  # type: ignore[arg-type]
            networks.setdefault("default", []).append(str(loopback))
    lines += [f"client {' '.join(each)} {namespace}" for namespace, each in networks.items()]
    if wish.default_namespace:
        lines.append(f"default {wish.default_namespace}")
    # A laptop's clients are no pods of a cluster elsewhere, whose pods not everybody may watch.
    return [*lines, "without_pods"] if wish.kubeconfig else lines


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
    """Every mistake, warning and note of a Corefile (with the inventories that it names) or of an inventory."""
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
    return msgspec.structs.replace(default, warnings=[*parsed.warnings, warning], default=True)


def warnings(parsed: Corefile, configuration: Configuration) -> list[Problem]:
    """What was accepted and is worth a word, with its place: doubtful lines, and what means something else here.

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
                notices.setdefault(text, note(text, place))
    told = dict.fromkeys([*found, *notices.values()])
    # What we wrote ourselves was never meant for CoreDNS.
    return in_order(each for each in told if not (each.note and each.place and each.place.file == OPTIONS))


def log_warnings(parsed: Corefile, configuration: Configuration) -> None:
    """Each of the warnings in a line of the log."""
    for problem in warnings(parsed, configuration):
        log.log(logging.INFO if problem.note else logging.WARNING, "%s", _in_a_line(problem))


def _in_a_line(problem: Problem) -> str:
    # A problem of the file as a whole has no line.
    where = ":".join(str(each) for each in (problem.place.file, problem.place.line) if each) if problem.place else ""
    text = ": ".join(filter(None, (where, problem.subject, problem.message)))
    return f"{text} ({problem.hint})" if problem.hint else text


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """As they stand in the files, one file after the other; those without a place first."""
    files: dict[str, int] = {}

    def rank(problem: Problem) -> tuple[int, int, int]:
        if problem.place is None:
            return -1, 0, 0
        place = problem.place
        return files.setdefault(place.file, len(files)), place.line, place.column

    return sorted(problems, key=rank)


def run(parsed: Corefile, show: Callable[[Configuration], None], again: Callable[[], Corefile] | None = None) -> int:
    """Serve until a signal ends it, and return the exit code; `show` is called once it listens.

    `again` reads the Corefile anew, for a reload. Raises ConfigError where it can't start.
    """
    configuration = build(parsed, Process(Metrics()))
    named = [token for tokens, _ in _named_inventories(parsed.blocks) for token in tokens if token.file != OPTIONS]
    if _wrong_paths(named):
        raise ConfigError(_check_named(parsed.blocks).problems)
    _open_standard_streams()
    # What was imported stays: 50,000 objects, and a collection that looks through them holds queries up for 30 ms.
    gc.freeze()
    return uvloop.run(_serve(configuration, show, again))


def _open_standard_streams() -> None:
    """Put /dev/null where a stream was closed by who started us: a socket in its place would be written to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free: this one.
            os.open(os.devnull, os.O_RDWR)


def _tell(show: Callable[[Configuration], None], configuration: Configuration) -> None:
    """Say what is served; on a full disk or to a reader that is gone nothing is said, and served all the same."""
    try:
        show(configuration)
    except OSError as error:
        log.warning("could not say what is served: %s", os.strerror(error.errno or 0))


async def _serve(
    configuration: Configuration, show: Callable[[Configuration], None], again: Callable[[], Corefile] | None
) -> int:
    loop = asyncio.get_running_loop()
    signals = Signals(loop)
    app = App(configuration)
    reloading = Reloading(app, again, log_warnings)
    configuration.process.reload = reloading.look
    loop.add_signal_handler(signal.SIGUSR1, reloading.signalled)
    if await done_before(signals.told, asyncio.create_task(app.start())):
        async with explained(app):
            _tell(show, configuration)
            reloading.begin()
            await signals.told.wait()
        await reloading.end()
        await done_before(signals.hurry, asyncio.create_task(app.stop()))
    return signals.code


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


def _wrong_clients(wish: Wish) -> list[Problem]:
    problems: list[Problem] = []
    for text in wish.client:
        network, equals, namespace = text.partition("=")
        if not equals or not NAMESPACE.fullmatch(namespace):
            expected = "CIDR=NAMESPACE, such as `10.1.0.0/16=shop`"
            problems.append(Problem(f"`--client {text}` names no namespace", expected=expected))
            continue
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            problems.append(Problem(f"`--client {text}`: {error}"))
    name = wish.default_namespace
    if name and not NAMESPACE.fullmatch(name):
        problems.append(Problem(f"`--default-namespace {name}` is no name of a namespace"))
    return problems


def _path(path: str) -> str:
    # Not resolved: a mounted ConfigMap changes where its links lead.
    return _spelled(str(Path(path).absolute()))


def _spelled(word: str) -> str:
    return quote(word) if "{" in word or "}" in word else spell(word)
