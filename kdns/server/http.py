"""HTTP for probes and scrapes: the routes of plugins, one listener for each address and port.

Knows no plugin and no DNS. Who connects is a stranger: one request to a connection, and time, headers and the number of
connections are bounded. aiohttp is imported when the first listener starts, since most of its cost is the import.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kdns.addresses import host_and_port
from kdns.chain import Route
from kdns.errors import ConfigError, Problem

if TYPE_CHECKING:
    from aiohttp import web

_log = logging.getLogger("kdns.http")

# A probe takes milliseconds, a scrape of a large server tens of them.
CONNECTION_SECONDS = 10.0
# Beyond it the oldest connection makes room: a probe is over before it is the oldest.
MOST_CONNECTIONS = 256
MOST_HEADER_BYTES = 4096
MOST_HEADERS = 64
# A reply longer than this is compressed for who accepts it.
COMPRESS_BYTES = 2048
STOP_SECONDS = 1.0

Place = tuple[str, int]


class HttpServer:
    """Serves routes. The first of several with the same address, port and path holds.

    `shared` is whether other processes may listen at the same ports; which of them a client gets is by chance then.
    """

    def __init__(self, routes: Iterable[Route], shared: bool = False) -> None:
        self._routes = tuple(routes)
        self._shared = shared
        self._listeners: dict[Place, _Listener] = {}

    @property
    def addresses(self) -> list[Place]:
        """Where it listens; a port 0 appears as the one that the system chose."""
        return [address for listener in self._listeners.values() for address in listener.addresses]

    async def start(self) -> None:
        """Listen. Raises ConfigError with a problem for each address that can't be had, and then listens nowhere."""
        await self.replace(self._routes, self._shared)

    async def replace(self, routes: Iterable[Route], shared: bool = False) -> None:
        """Serve these routes from now on; a listener that stays isn't closed. On ConfigError all is as it was."""
        wanted: dict[Place, dict[str, Route]] = {}
        for route in routes:
            wanted.setdefault((route.address, route.port), {}).setdefault(route.path, route)
        opened: dict[Place, _Listener] = {}
        problems: list[Problem] = []
        for place, paths in wanted.items():
            if place in self._listeners:
                continue
            # One address of a port may take the place of all of them, or the other way round.
            ours = [listener for (_, port), listener in self._listeners.items() if port == place[1]]
            for each in ours:
                each.share(True)
            listener = _Listener(paths)
            try:
                await listener.open(place, shared or bool(ours))
            except OSError as error:
                problems.append(_problem(place, paths, error))
            else:
                opened[place] = listener
            for each in ours:
                each.share(self._shared)
        if problems:
            for listener in opened.values():
                await listener.close()
            raise ConfigError(problems)
        gone = [self._listeners.pop(place) for place in list(self._listeners) if place not in wanted]
        for place, listener in self._listeners.items():
            listener.paths = wanted[place]
        self._listeners |= opened
        self._shared = shared
        for listener in self._listeners.values():
            listener.share(shared)
        for listener in gone:
            await listener.close()

    async def stop(self) -> None:
        """Close every listener; requests in progress get a second."""
        await self.replace(())


class _Listener:
    """The sockets of one address and port, and their connections."""

    def __init__(self, paths: dict[str, Route]) -> None:
        self.paths = paths
        self.addresses: list[Place] = []
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._connections: web.Server | None = None
        self._since: dict[web.RequestHandler, float] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    async def open(self, place: Place, reuse_port: bool) -> None:
        from aiohttp import web

        silent = logging.getLogger("kdns.http.aiohttp")
        # A port scan would otherwise leave a traceback for each try.
        silent.disabled = True
        self._connections = web.Server(
            self._respond,
            access_log=None,
            logger=silent,
            tcp_keepalive=False,
            keepalive_timeout=0,
            lingering_time=0,
            max_line_size=MOST_HEADER_BYTES,
            max_field_size=MOST_HEADER_BYTES,
            max_headers=MOST_HEADERS,
        )
        loop = asyncio.get_running_loop()
        self._sockets = await _sockets(*place, reuse_port)
        for listening in self._sockets:
            self.addresses.append(listening.getsockname()[:2])
            self._servers.append(await loop.create_server(self._accept, sock=listening))
        self._sweep()

    def share(self, shared: bool) -> None:
        for listening in self._sockets:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        for server in self._servers:
            server.close()
        if self._connections is not None:
            await self._connections.shutdown(STOP_SECONDS)

    def _accept(self) -> asyncio.Protocol:
        assert self._connections is not None
        connections = self._connections.connections
        if len(connections) >= MOST_CONNECTIONS:
            _abort(connections[0])
        return self._connections()

    def _sweep(self) -> None:
        """End each connection that is older than its time, whatever it does: aiohttp has no limit for slow headers."""
        assert self._connections is not None
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._since = {each: self._since.get(each, now) for each in self._connections.connections}
        for connection, since in self._since.items():
            if now - since > CONNECTION_SECONDS:
                _abort(connection)
        self._sweeping = loop.call_later(CONNECTION_SECONDS / 10, self._sweep)

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        from aiohttp import web
        from multidict import istr

        route = self.paths.get(request.path)
        headers = {name.lower(): value for name, value in request.headers.items()}
        status, body, content_type = 404, b"404 page not found\n", "text/plain; charset=utf-8"
        if route is not None:
            try:
                status, body, content_type = route.respond(headers)
            except Exception:
                _log.exception("no reply for HTTP path %s", route.path)
                status, body = 500, b"internal error\n"
        response = web.Response(
            status=status, body=body, headers={istr("Content-Type"): content_type, "Server": "kdns"}
        )
        if len(body) > COMPRESS_BYTES and "gzip" in headers.get("accept-encoding", ""):
            response.enable_compression(web.ContentCoding.gzip)
        response.force_close()
        return response


def _abort(connection: web.RequestHandler) -> None:
    if connection.transport is not None:
        connection.transport.abort()  # type: ignore[attr-defined, unused-ignore]


async def _sockets(host: str, port: int, reuse_port: bool) -> list[socket.socket]:
    """A listening socket for each address that `host` means; every address of the machine for an empty one."""
    addresses = await _addresses_of(host)
    listening: list[socket.socket] = []
    try:
        for address in addresses:
            try:
                bound = _bind(address, port, reuse_port)
            except OSError as error:
                # Without IPv6 in the kernel or on the interface the other address serves.
                missing = error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
                if missing and len(addresses) > 1 and (listening or address != addresses[-1]):
                    continue
                raise
            listening.append(bound)
            port = bound.getsockname()[1]
    except BaseException:
        for each in listening:
            each.close()
        raise
    return listening


async def _addresses_of(host: str) -> list[str]:
    if not host:
        return ["0.0.0.0", "::"]
    if host == "localhost":
        # Asking a resolver for it may mean asking ourselves, who don't listen yet.
        return ["127.0.0.1", "::1"]
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _bind(address: str, port: int, reuse_port: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A connection of the process before in TIME_WAIT must not keep the next one from starting.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setblocking(False)
        bound.bind((address, port))
        bound.listen(MOST_CONNECTIONS)
    except BaseException:
        bound.close()
        raise
    return bound


def _problem(place: Place, paths: Iterable[str], error: OSError) -> Problem:
    host, port = place
    shown = host_and_port(host, port)
    hint = ""
    if error.errno == errno.EADDRINUSE:
        hint = f"`ss -ltnp 'sport = :{port}'` names the process that listens there; stop it or choose another port"
    elif error.errno == errno.EACCES:
        hint = "a port below 1024 takes the capability NET_BIND_SERVICE; choose a higher one"
    elif error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        hint = f"`{host}` is no address of this machine; `:{port}` listens on all of them"
    with contextlib.suppress(TypeError, ValueError):
        why = os.strerror(error.errno or 0).lower() if not isinstance(error, socket.gaierror) else str(error.strerror)
    return Problem(f"cannot listen on `{shown}` for {', '.join(sorted(paths))}: {why}", hint=hint)
