"""A configuration's life: load, listen, sync, serve, give way to the next, stop. The only file that knows everyone.

`build` makes plugins, chains and listeners of a Corefile without touching the network, so that `kdns check` can use it;
`App` brings what was built to life.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import msgspec

from kdns import metrics
from kdns.addresses import pack_address
from kdns.chain import Block, Plugin, Process, Route, fold, server_label
from kdns.corefile import Corefile, Key, ServerBlock, Token, fingerprint
from kdns.errors import ConfigError, KdnsError, Problem
from kdns.listening import DRAIN_SECONDS, Listener, Listening, Sockets, close_sockets, is_taken, open_sockets
from kdns.options import unknown_directive
from kdns.plugins import PLUGINS
from kdns.plugins.bind import interface_addresses
from kdns.responder import Site
from kdns.server.http import HttpServer
from kdns.wire import names
from kdns.wire.records import CLASS_IN

log = logging.getLogger("kdns")

_NAMES = [plugin.name for plugin in PLUGINS]

# For so long a reload waits for what it brings to know as much as what it replaces. The largest clusters are read in
# less (bench/scale.py), and a Corefile that is mended meanwhile has to wait for its turn.
READY_SECONDS = 60.0
_LOOK_SECONDS = 0.05


class Configuration(msgspec.Struct, frozen=True):
    """What a Corefile amounts to, ready to be started."""

    process: Process
    blocks: tuple[Block, ...]
    listeners: tuple[Listener, ...]
    warnings: tuple[Problem, ...]
    fingerprint: str = ""

    @property
    def plugins(self) -> list[Plugin]:
        """The plugins of all blocks, each once, in the order of their blocks and of the chain."""
        return list(dict.fromkeys(plugin for block in self.blocks for plugin in block.plugins))

    @property
    def shared(self) -> bool:
        """Whether other processes may listen where this one does."""
        return any(listener.shared for listener in self.listeners)


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
    problems += _written_twice(blocks)
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
                if not plugin.shared:
                    living.remove(same)
                block.plugins.append(same)
                continue
            try:
                block.plugins.append(plugin(options, block))
                block.plugins[-1].configure(block)
                if plugin.shared:
                    living.append(block.plugins[-1])
            except ConfigError as error:
                problems += _placed(error, server_block, plugin.name)
    if all(problem.warning for problem in problems[before:]):
        for each in block.plugins:
            try:
                each.join(block)
            except ConfigError as error:
                problems += _placed(error, server_block, each.name)
    return block


def _placed(error: ConfigError, server_block: ServerBlock, name: str) -> list[Problem]:
    """The problems of a directive, at the directive where they know no better place."""
    place = server_block.named(name)[0].name.place()
    return [msgspec.structs.replace(each, place=each.place or place) for each in error.problems]


def _written_twice(blocks: Iterable[tuple[ServerBlock, Block]]) -> Iterable[Problem]:
    """The mistakes of plugins that would write the same file: each would find there what another one knew."""
    first: dict[str, tuple[Plugin, Token]] = {}
    for server_block, block in blocks:
        for plugin in block.plugins:
            for file in plugin.writes():
                lines = [line for directive in server_block.named(plugin.name) for line in directive.body or ()]
                named = next(word for line in lines for word in line.args if word.text == file)
                other, before = first.setdefault(str(Path(file).absolute()), (plugin, named))
                if other is not plugin:
                    yield Problem(
                        f"`{file}` is written by another `{other.name}`",
                        named.place(),
                        hint=f"that one is in line {before.line} of {before.file}; each needs a file of its own",
                    )


def _listeners(blocks: Iterable[tuple[ServerBlock, Block]], problems: list[Problem]) -> list[Listener]:
    sites: dict[tuple[str, int], dict[bytes, Site]] = {}
    first: dict[tuple[str, int, bytes], Key] = {}
    shared: set[tuple[str, int]] = set()
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
                if block.shares_port:
                    shared.add(place)
                label = server_label(address, key.port)
                directives = tuple(plugin.name for plugin in block.plugins)
                sites.setdefault(place, {})[zone] = Site(
                    zone, chain, label, classes, directives, deniers, tuple(handling)
                )
    return [Listener(*place, tuple(found.values()), place in shared) for place, found in sites.items()]


class App:
    """Runs a configuration: `start`, `replace` as often as there is another, then `stop`. All of it in one loop."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._process = configuration.process
        self._feeds: dict[Plugin, asyncio.Task[None]] = {}
        self._open: dict[tuple[str, int], Listening] = {}
        self._http = HttpServer(_routes(configuration), configuration.shared)
        self._leaving: set[Listening] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._drained = asyncio.Event()

    @property
    def configuration(self) -> Configuration:
        """What is served."""
        return self._configuration

    async def start(self) -> None:
        """Open the probes, wait until the plugins can answer, then listen.

        Raises KdnsError where that can't be, and then holds nothing.
        """
        self._process.starting = True
        try:
            await self._http.start()
            self._process.addresses = own_addresses(listener.address for listener in self._configuration.listeners)
            plugins = self._configuration.plugins
            self._feeds = {plugin: asyncio.create_task(_feed(plugin)) for plugin in plugins}
            await asyncio.gather(*(plugin.started() for plugin in plugins))
            listeners = self._configuration.listeners
            await _until_needed(plugins, listeners)
            self._listen(listeners, open_sockets(listeners))
            self._process.starting = False
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
        new = [each for each in listeners if each.place not in self._open]
        stay = [each for each in listeners if each.place in self._open]
        sockets: list[Sockets] = []
        try:
            await asyncio.gather(*(plugin.started() for plugin in fresh))
            await _until_ready(fresh, before.plugins)
            sockets = open_sockets(new, [*self._open.values(), *self._leaving])
            await self._http.replace(_routes(configuration), configuration.shared)
        except BaseException:
            for each in sockets:
                close_sockets(each)
            await _end(feeds)
            raise
        self._configuration = configuration
        self._process.addresses = own_addresses(listener.address for listener in listeners)
        _announce(configuration)
        for listener in stay:
            self._open[listener.place].serve(listener)
        self._listen(new, sockets)
        places = {listener.place for listener in listeners}
        gone = [self._open.pop(place) for place in set(self._open) - places]
        self._leaving.update(gone)
        old = {each: self._feeds.pop(each) for each in before.plugins if each not in configuration.plugins}
        self._feeds |= feeds
        task = asyncio.create_task(self._retire(gone, old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def stop(self) -> None:
        """Say so to the probes, serve on as long as plugins ask for, then drain and close."""
        self._process.stopping = True
        await asyncio.gather(*(plugin.stopping() for plugin in self._configuration.plugins))
        await asyncio.gather(*(each.stop() for each in self._open.values()))
        # No query is left that could wait for what an earlier configuration had.
        self._drained.set()
        await asyncio.gather(*self._retiring)
        await self._close()

    def _listen(self, listeners: Sequence[Listener], sockets: Sequence[Sockets]) -> None:
        for listener, opened in zip(listeners, sockets, strict=True):
            listening = self._open[listener.place] = Listening(listener, opened, self._process)
            listening.start()

    async def _retire(self, gone: Sequence[Listening], old: Mapping[Plugin, asyncio.Task[None]]) -> None:
        """Let go of what a replaced configuration alone had, once the queries that wait for it had their time."""
        await asyncio.gather(*(each.stop() for each in gone))
        self._leaving.difference_update(gone)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drained.wait(), DRAIN_SECONDS)
        await _end(old)
        # Its parts refer to one another, and what was frozen (serve.py, kubernetes/inventory.py) no collection looks
        # at: all of it would stay. To look at everything once takes 10 ms, with 10,000 services 40 to 130 (2026-11-21).
        gone, old = (), {}
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    async def _close(self) -> None:
        await self._http.stop()
        await _end(self._feeds)


async def _until_needed(plugins: Iterable[Plugin], listeners: Iterable[Listener]) -> None:
    """Leave a shared port to the process that serves it until the answers here are as good, or that one has gone."""
    said = False
    while not all(plugin.ready() for plugin in plugins):
        shared = next((each for each in listeners if each.shared and is_taken(each)), None)
        if shared is None:
            return
        if not said:
            log.info("port %d is served by another process; this one joins when it is ready", shared.port)
            said = True
        await asyncio.sleep(_LOOK_SECONDS)


async def _until_ready(fresh: Iterable[Plugin], before: Iterable[Plugin]) -> None:
    """Wait for those that would take the place of one that is ready. Raises KdnsError where they aren't in time."""
    able = {plugin.name for plugin in before if plugin.ready()}
    deadline = asyncio.get_running_loop().time() + READY_SECONDS
    while waiting := [plugin for plugin in fresh if plugin.name in able and not plugin.ready()]:
        if asyncio.get_running_loop().time() > deadline:
            causes = dict.fromkeys(f"`{plugin.name}` isn't ready: {plugin.missing()}" for plugin in waiting)
            raise KdnsError("; ".join(causes))
        await asyncio.sleep(_LOOK_SECONDS)


def _routes(configuration: Configuration) -> list[Route]:
    return [route for plugin in configuration.plugins for route in plugin.routes()]


async def _end(feeds: Mapping[Plugin, asyncio.Task[None]]) -> None:
    """End the background work of plugins, and let them go."""
    for task in feeds.values():
        task.cancel()
    await asyncio.gather(*feeds.values(), return_exceptions=True)
    for plugin in feeds:
        plugin.close()
    # Connections that are ended are gone in the next turn.
    await asyncio.sleep(0)


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
