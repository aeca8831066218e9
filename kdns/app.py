"""A configuration's life: load, listen, sync, serve, give way to the next, stop. The only file that knows everyone.

`build` makes plugins, chains and listeners of a Corefile without touching the network, so that `kdns check` can use it;
`App` brings what was built to life.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile

import msgspec

from kdns import metrics
from kdns.chain import Block, Plugin, Process, Route, fold
from kdns.corefile import Corefile, Key, ServerBlock, fingerprint
from kdns.errors import ConfigError, Problem
from kdns.kubernetes.cluster import pack_address
from kdns.options import unknown_directive
from kdns.plugins import PLUGINS
from kdns.plugins.bind import interface_addresses
from kdns.responder import Responder, Site
from kdns.server.batch import serve_udp
from kdns.server.http import HttpServer
from kdns.server.tcp import TcpServer, open_tcp
from kdns.server.udp import UdpServer, open_udp
from kdns.wire import names
from kdns.wire.records import CLASS_IN

log = logging.getLogger("kdns")

DRAIN_SECONDS = 5.0
_NAMES = [plugin.name for plugin in PLUGINS]


class Listener(msgspec.Struct, frozen=True):
    """One address and port, and the zones that are served there. An empty address is all addresses."""

    address: str
    port: int
    sites: tuple[Site, ...]


class Configuration(msgspec.Struct, frozen=True):
    """What a Corefile amounts to, ready to be started."""

    process: Process
    blocks: tuple[Block, ...]
    listeners: tuple[Listener, ...]
    warnings: tuple[Problem, ...]
    fingerprint: str = ""

    @property
    def plugins(self) -> list[Plugin]:
        """The plugins of all blocks, in the order of their blocks and of the chain."""
        return [plugin for block in self.blocks for plugin in block.plugins]


def build(corefile: Corefile, process: Process, living: Iterable[Plugin] | None = None) -> Configuration:
    """Make plugins and chains of a Corefile. Raises ConfigError with every mistake in it.

    With `living`, plugins of the configuration that is served now, it is to take the place of that: what hasn't changed
    lives on, and the process knows nothing of it yet.
    """
    problems: list[Problem] = list(corefile.warnings)
    left = list(living or ())
    blocks = [(server_block, _build_block(server_block, process, problems, left)) for server_block in corefile.blocks]
    if any(not problem.warning for problem in problems):
        raise ConfigError(problems)
    listeners = _listeners(blocks, problems)
    if any(not problem.warning for problem in problems):
        raise ConfigError(problems)
    blocks_made = tuple(block for _, block in blocks)
    made = Configuration(process, blocks_made, tuple(listeners), tuple(problems), fingerprint(corefile))
    if living is None:
        _announce(made)
    return made


def _announce(configuration: Configuration) -> None:
    """Let the process, and who looks at its metrics, know what is served."""
    process = configuration.process
    process.plugins = configuration.plugins
    numbers = process.metrics
    numbers.clear(metrics.RELOAD_VERSION)
    numbers.set(metrics.RELOAD_VERSION, 1, "sha512", configuration.fingerprint)
    numbers.clear(metrics.PLUGIN_ENABLED)
    for listener in configuration.listeners:
        for site in listener.sites:
            numbers.enable(site.server, site.zone_text, site.directives)


def _build_block(server_block: ServerBlock, process: Process, problems: list[Problem], living: list[Plugin]) -> Block:
    zones = list(dict.fromkeys(names.from_text(key.zone) for key in server_block.keys))
    block = Block(process, zones, server_block.keys[0].port if server_block.keys else 0)
    before = len(problems)
    unknown = [directive.name for directive in server_block.directives if directive.name.text not in _NAMES]
    problems += [unknown_directive(name, _NAMES) for name in unknown]
    made: list[tuple[type[Plugin], object]] = []
    for plugin in PLUGINS:
        directives = server_block.named(plugin.name)
        options = plugin.read(directives, problems) if directives else None
        if options is not None:
            made.append((plugin, options))
    # A plugin may count on all of its block being right, so none is made before all is read.
    if zones and all(problem.warning for problem in problems[before:]):
        for plugin, options in made:
            same = next((each for each in living if type(each) is plugin and each.lives_on(options, block)), None)
            if same is not None:
                living.remove(same)
                block.plugins.append(same)
                continue
            try:
                block.plugins.append(plugin(options, block))
                block.plugins[-1].configure(block)
            except ConfigError as error:
                place = server_block.named(plugin.name)[0].name.place()
                problems += [msgspec.structs.replace(each, place=each.place or place) for each in error.problems]
    return block


def _listeners(blocks: Iterable[tuple[ServerBlock, Block]], problems: list[Problem]) -> list[Listener]:
    sites: dict[tuple[str, int], dict[bytes, Site]] = {}
    first: dict[tuple[str, int, bytes], Key] = {}
    for server_block, block in blocks:
        handling = [plugin for plugin in block.plugins if plugin.handle is not None]
        chain = fold([plugin.handle for plugin in handling if plugin.handle is not None])
        deniers = frozenset(plugin.name for plugin in takewhile(lambda plugin: not plugin.heeds_names, handling))
        classes = frozenset(each for plugin in block.plugins for each in plugin.classes) | {CLASS_IN}
        for key in server_block.keys:
            zone = names.from_text(key.zone)
            for address in block.addresses or [""]:
                place = (address, key.port)
                if (*place, zone) in first:
                    before = first[(*place, zone)].token
                    problems.append(
                        Problem(
                            f"cannot serve {key.zone} on port {key.port} twice",
                            key.token.place(),
                            hint=f"it is already defined in line {before.line} of {before.file}",
                        )
                    )
                    continue
                first[(*place, zone)] = key
                label = _server_label(address, key.port)
                directives = tuple(plugin.name for plugin in block.plugins)
                sites.setdefault(place, {})[zone] = Site(zone, chain, label, classes, directives, deniers)
    return [Listener(address, port, tuple(found.values())) for (address, port), found in sites.items()]


def _server_label(address: str, port: int) -> str:
    return f"dns://{f'[{address}]' if ':' in address else address}:{port}"


class _Open(msgspec.Struct, frozen=True):
    """A listener while it is served: who answers, and the servers of its sockets."""

    responder: Responder
    udp: list[UdpServer]
    tcp: TcpServer

    async def stop(self) -> None:
        """Answer what has arrived, and close."""
        servers: list[UdpServer | TcpServer] = [*self.udp, self.tcp]
        await asyncio.gather(*(server.stop(DRAIN_SECONDS) for server in servers))


class App:
    """Runs a configuration: `start`, `replace` as often as there is another, then `stop`. All of it in one loop."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._process = configuration.process
        self._feeds: dict[Plugin, asyncio.Task[None]] = {}
        self._open: dict[tuple[str, int], _Open] = {}
        self._http = HttpServer(_routes(configuration))
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def configuration(self) -> Configuration:
        """What is served."""
        return self._configuration

    async def start(self) -> None:
        """Open the probes, wait until the plugins can answer, then listen.

        Raises KdnsError where that can't be, and then holds nothing.
        """
        try:
            await self._http.start()
            self._process.addresses = own_addresses(listener.address for listener in self._configuration.listeners)
            plugins = self._configuration.plugins
            self._feeds = {plugin: asyncio.create_task(_feed(plugin)) for plugin in plugins}
            await asyncio.gather(*(plugin.started() for plugin in plugins))
            listeners = self._configuration.listeners
            self._listen(listeners, _all_sockets(listeners))
        except BaseException:
            await self._close()
            raise

    async def replace(self, configuration: Configuration) -> None:
        """Serve another configuration from the next query on; sockets that both have stay open, and lose nothing.

        It is made ready beside the one that is served. Raises KdnsError where that can't be, and then all is as it was.
        """
        before = self._configuration
        fresh = [plugin for plugin in configuration.plugins if plugin not in self._feeds]
        feeds = {plugin: asyncio.create_task(_feed(plugin)) for plugin in fresh}
        listeners = configuration.listeners
        new = [each for each in listeners if (each.address, each.port) not in self._open]
        stay = [each for each in listeners if (each.address, each.port) in self._open]
        sockets: list[Sockets] = []
        try:
            await asyncio.gather(*(plugin.started() for plugin in fresh))
            sockets = _all_sockets(new)
            await self._http.replace(_routes(configuration))
        except BaseException:
            for each in sockets:
                _close(each)
            await _end(feeds)
            raise
        self._configuration = configuration
        self._process.addresses = own_addresses(listener.address for listener in listeners)
        _announce(configuration)
        for listener in stay:
            self._open[listener.address, listener.port].responder.serve(listener.sites)
        self._listen(new, sockets)
        places = {(listener.address, listener.port) for listener in listeners}
        gone = [self._open.pop(place) for place in set(self._open) - places]
        old = {each: self._feeds.pop(each) for each in before.plugins if each not in configuration.plugins}
        self._feeds |= feeds
        task = asyncio.create_task(_retire(gone, old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def stop(self) -> None:
        """Say so to the probes, serve on as long as plugins ask for, then drain and close."""
        self._process.stopping = True
        await asyncio.gather(*(plugin.stopping() for plugin in self._configuration.plugins))
        await asyncio.gather(*(each.stop() for each in self._open.values()), *self._retiring)
        await self._close()

    def _listen(self, listeners: Sequence[Listener], sockets: Sequence[Sockets]) -> None:
        numbers = self._process.metrics
        for listener, (udp, tcp) in zip(listeners, sockets, strict=True):
            responder = Responder(listener.sites, self._process, numbers)
            opened = _Open(responder, [serve_udp(responder, sock) for sock in udp], TcpServer(responder, tcp))
            responder.idle_seconds = opened.tcp.told_idle_seconds
            self._open[listener.address, listener.port] = opened
            for server in opened.udp:
                server.start()
                numbers.read(metrics.PACKETS_DROPPED, _udp_drops(server))
                numbers.read(metrics.UDP_SEND_DROPS, _udp_send_drops(server))
                numbers.read(metrics.UDP_RECEIVE_DROPS, _udp_receive_drops(server))
            opened.tcp.start()
            numbers.read(metrics.TCP_CLOSED, _tcp_closed(opened.tcp))

    async def _close(self) -> None:
        await self._http.stop()
        await _end(self._feeds)


def _routes(configuration: Configuration) -> list[Route]:
    return [route for plugin in configuration.plugins for route in plugin.routes()]


async def _end(feeds: Mapping[Plugin, asyncio.Task[None]]) -> None:
    """End the background work of plugins, and let them go."""
    for task in feeds.values():
        task.cancel()
    await asyncio.gather(*feeds.values(), return_exceptions=True)
    for plugin in feeds:
        plugin.close()


async def _retire(gone: Sequence[_Open], old: Mapping[Plugin, asyncio.Task[None]]) -> None:
    """Let go of what a replaced configuration alone had, once the queries that wait for it had their time."""
    await asyncio.gather(*(each.stop() for each in gone))
    await asyncio.sleep(DRAIN_SECONDS)
    await _end(old)


def own_addresses(listening: Iterable[str]) -> list[bytes]:
    """The server's own addresses, packed: where it listens, loopback ones only if there are no others."""
    found: list[bytes] = []
    for address in dict.fromkeys(listening):
        texts = [address] if address else [text for _, text in interface_addresses() if "%" not in text]
        found += [packed for packed in map(pack_address, texts) if packed is not None]
    outside = [packed for packed in found if not ipaddress.ip_address(packed).is_loopback]
    return list(dict.fromkeys(outside or found))


async def _feed(plugin: Plugin) -> None:
    try:
        await plugin.feed()
    except asyncio.CancelledError:
        raise
    except Exception:
        # The names that it feeds stay as they are; the process has others to serve.
        log.exception("%s: the background work of this directive failed and has ended", plugin.name)


def _udp_drops(server: UdpServer) -> Callable[[], dict[tuple[str, ...], float]]:
    return lambda: {
        ("source_port",): server.dropped_ports,
        ("too_many_waiting",): server.dropped_pending,
        ("receive_error",): server.receive_errors,
    }


def _udp_send_drops(server: UdpServer) -> Callable[[], dict[tuple[str, ...], float]]:
    return lambda: {("would_block",): server.dropped_sends, ("error",): server.send_errors}


def _udp_receive_drops(server: UdpServer) -> Callable[[], dict[tuple[str, ...], float]]:
    return lambda: {(): server.receive_drops()}


def _tcp_closed(server: TcpServer) -> Callable[[], dict[tuple[str, ...], float]]:
    return lambda: {
        ("too_many",): server.refused_full,
        ("too_many_of_client",): server.refused_client,
        ("idle",): server.closed_idle,
        ("slow",): server.closed_slow,
        ("not_reading",): server.closed_stalled,
        ("malformed",): server.closed_malformed,
    }


Sockets = tuple[list[socket.socket], list[socket.socket]]


def _all_sockets(listeners: Sequence[Listener]) -> list[Sockets]:
    """The sockets of each listener. Raises ConfigError, and then none is left open.

    One address and all addresses of a port can both be served: the kernel gives a packet to the more exact socket. It
    takes SO_REUSEPORT, with which a port that another kdns has would no longer be refused; so that is tried first.
    """
    everywhere = {listener.port for listener in listeners if not listener.address}
    shared = [listener for listener in listeners if listener.port in everywhere]
    shared = [each for each in shared if sum(other.port == each.port for other in shared) > 1]
    for listener in shared:
        _close(_sockets(listener))
    opened: list[Sockets] = []
    with contextlib.ExitStack() as undo:
        for listener in listeners:
            sockets = _sockets(listener, listener in shared)
            undo.callback(_close, sockets)
            opened.append(sockets)
        undo.pop_all()
    return opened


def _close(sockets: Sockets) -> None:
    udp, tcp = sockets
    for sock in udp + tcp:
        sock.close()


def _sockets(listener: Listener, share: bool = False) -> Sockets:
    """UDP and TCP sockets of a listener: of both families where it has no address. Raises ConfigError."""
    udp: list[socket.socket] = []
    tcp: list[socket.socket] = []
    addresses = [listener.address] if listener.address else ["0.0.0.0", "::"]
    try:
        for address in addresses:
            try:
                udp.append(open_udp(address, listener.port, share))
                tcp.append(open_tcp(address, listener.port, share))
            except OSError as error:
                # A machine without IPv6 still has all of IPv4.
                if (
                    not listener.address
                    and address == "::"
                    and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                ):
                    continue
                raise
    except OSError as error:
        _close((udp, tcp))
        raise ConfigError([_cannot_listen(listener, error)]) from error
    return udp, tcp


def _cannot_listen(listener: Listener, error: OSError) -> Problem:
    where = f"{f'[{listener.address}]' if ':' in listener.address else listener.address}:{listener.port}"
    if error.errno == errno.EADDRINUSE:
        return Problem(f"{where} is taken; port {_free_port(listener.address)} is free")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Problem(f"not allowed to listen on {where}", hint="ports below 1024 need the right NET_BIND_SERVICE")
    return Problem(f"can't listen on {where}: {os.strerror(error.errno or 0)}")


def _free_port(address: str) -> int:
    """A port that is free for UDP and TCP at this moment."""
    for candidate in (1053, 2053, 5533, 8053, 10053, 0):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            tcp = stack.enter_context(open_tcp(address or "0.0.0.0", candidate))
            port = int(tcp.getsockname()[1])
            stack.enter_context(open_udp(address or "0.0.0.0", port))
            return port
    return 0
