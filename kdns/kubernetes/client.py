"""The Kubernetes API over HTTPS: one request at a time, and the credentials that each needs.

Alone in talking to the API server; knows no watch and no model. In a cluster two variables and three files are the
whole configuration. A kubeconfig comes through `kubernetes.aio`, imported only then, since that costs half a second.
Law: the API concepts of Kubernetes (status codes, Retry-After, bearer tokens that rotate).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from kdns.errors import ConfigError, KdnsError, PeerError, Problem
from kdns.kubernetes.objects import UNREADABLE

log = logging.getLogger("kdns.plugin.kubernetes")

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
USER_AGENT = "kdns"

# A kubelet renews a token at 80 % of its life; files are looked at again after this long, and at once after a 401.
CREDENTIAL_SECONDS = 30.0
CONNECT_SECONDS = 5.0
# Until a reply begins; a list of everything takes the API server seconds when it is busy.
REPLY_SECONDS = 30.0
# An error's body is read no further: what matters stands in front.
MOST_ERROR_BYTES = 65536
# A connection whose other end has vanished: found after 5 + 3 x 4 s by the kernel alone.
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 4, "TCP_KEEPCNT": 3}
JSON = "application/json"
_TLS_ERRORS = (ssl.SSLError, aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)


class Cause(msgspec.Struct):
    """One cause of a `Status`."""

    reason: str = ""


class StatusDetails(msgspec.Struct):
    """What a `Status` says in detail."""

    causes: list[Cause] | None = None


class Status(msgspec.Struct):
    """The API's own form of an error (meta/v1), as the body of a reply or as an event of a watch."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: StatusDetails | None = None


class ApiError(PeerError):
    """The API server refused, or could not be reached: then `status` is 0. `retry_after` is in seconds."""

    def __init__(self, status: Status, retry_after: float | None = None) -> None:
        super().__init__(f"{status.code or ''} {status.reason}: {status.message}".strip())
        self.status = status.code
        self.message = status.message
        self.retry_after = retry_after
        causes = status.details.causes if status.details else None
        # Three generations of API servers say it in three ways.
        self.too_large = any(cause.reason == "ResourceVersionTooLarge" for cause in causes or ()) or (
            "Too large resource version" in status.message
        )
        self.expired = status.code == 410 or status.reason in ("Expired", "Gone")


def unreachable(error: BaseException) -> ApiError:
    """The error of a request that got no reply, or lost it half-way."""
    # Its number is OpenSSL's, not the system's.
    if isinstance(error, _TLS_ERRORS):
        return ApiError(Status(0, type(error).__name__, str(error)))
    if isinstance(error, aiohttp.ClientConnectorError) and error.errno is not None and error.errno > 0:
        message = f"{error.host}:{error.port}: {os.strerror(error.errno)}"
        return ApiError(Status(0, "not reached", message))
    return ApiError(Status(0, type(error).__name__, str(error) or "timed out"))


class Credentials(msgspec.Struct, frozen=True):
    """What a request shows of us, and how it knows the server. `stamps` tell a changed file of the same name."""

    server: str
    token: str = ""
    headers: dict[str, str] = {}
    ca: bytes = b""
    certificate: str = ""
    key: str = ""
    verify: bool = True
    server_name: str = ""
    stamps: tuple[tuple[int, int], ...] = ()

    @property
    def tls_identity(self) -> tuple[object, ...]:
        """Equal as long as the same TLS context does."""
        return (self.ca, self.certificate, self.key, self.verify, self.stamps)

    def tls(self) -> ssl.SSLContext | bool:
        """The TLS context; OSError or ssl.SSLError where a file is missing or none."""
        if not self.server.startswith("https:"):
            return False
        context = ssl.create_default_context(cadata=self.ca.decode() if self.ca else None)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key or None)
        return context


# Reads the credentials as they are now; the argument says that the last ones were refused.
Source = Callable[[bool], Awaitable[Credentials]]


def in_cluster(environment: Mapping[str, str] = os.environ, folder: str = SERVICE_ACCOUNT) -> Source:
    """The credentials of a pod's service account. Raises ConfigError outside of a cluster."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        message = "not in a cluster: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set"
        hint = "outside of a cluster give `kubeconfig FILE`, `endpoint URL` or `inventory PATH`"
        raise ConfigError([Problem(message, hint=hint)])
    server = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    token_file, ca_file = f"{folder}/token", f"{folder}/ca.crt"

    async def read(refused: bool) -> Credentials:
        # A few kilobytes of a tmpfs: quicker than a thread that would read them.
        return Credentials(server, token=_content(token_file).decode().strip(), ca=_content(ca_file))

    return read


def at_endpoint(url: str, certificate: str = "", key: str = "", ca: str = "") -> Source:
    """The credentials of `endpoint URL` and `tls CERT KEY CA`."""
    if "://" not in url:
        url = f"http://{url}"

    async def read(refused: bool) -> Credentials:
        authority = _content(ca) if ca else b""
        return Credentials(
            url.rstrip("/"), ca=authority, certificate=certificate, key=key, stamps=_stamps(certificate, key)
        )

    return read


def from_kubeconfig(path: str, context: str = "") -> Source:
    """The credentials of a kubeconfig, exec plugins and OIDC included; the source that it returns raises KdnsError."""

    held: list[tuple[object, Credentials]] = []

    async def read(refused: bool) -> Credentials:
        # A plugin that fetches tokens may take seconds and ask a person; it runs when the last token was refused.
        if held and not refused:
            stamp, credentials = held[0]
            if stamp == _stamps(path, credentials.certificate, credentials.key):
                return credentials
        credentials = await load()
        held[:] = [(_stamps(path, credentials.certificate, credentials.key), credentials)]
        return credentials

    async def load() -> Credentials:
        from kubernetes.aio import client as api
        from kubernetes.aio import config

        configuration = api.Configuration()
        try:
            await config.load_kube_config(
                config_file=path, context=context or None, client_configuration=configuration, persist_config=False
            )
        except Exception as error:
            # The library raises its own, YAML's, OSError and what an exec plugin brings; to us they are one.
            raise KdnsError(f"kubeconfig {path}: {error}") from error
        return _of_configuration(configuration)

    return read


def _of_configuration(configuration: Any) -> Credentials:
    token = str(configuration.api_key.get("BearerToken") or configuration.api_key.get("authorization") or "")
    headers = {}
    if configuration.username and configuration.password:
        headers["Authorization"] = aiohttp.BasicAuth(configuration.username, configuration.password).encode()
    certificate, key = configuration.cert_file or "", configuration.key_file or ""
    return Credentials(
        str(configuration.host).rstrip("/"),
        token=token.removeprefix("Bearer ").strip(),
        headers=headers,
        ca=_content(configuration.ssl_ca_cert) if configuration.ssl_ca_cert else b"",
        certificate=certificate,
        key=key,
        verify=bool(configuration.verify_ssl),
        server_name=getattr(configuration, "tls_server_name", None) or "",
        stamps=_stamps(certificate, key),
    )


def _content(path: str) -> bytes:
    return Path(path).read_bytes()


def _stamps(*paths: str) -> tuple[tuple[int, int], ...]:
    """When the files changed last, and their sizes; a missing one is told where it is read."""
    found = []
    for path in filter(None, paths):
        with contextlib.suppress(OSError):
            status = Path(path).stat()
            found.append((status.st_mtime_ns, status.st_size))
    return tuple(found)


class Client:
    """Requests to one API server. `source` reads the credentials; they are read again while they are used."""

    def __init__(self, source: Source, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._credentials: Credentials | None = None
        self._read_at = 0.0
        self._refused = False
        self._session: aiohttp.ClientSession | None = None
        self._retired: list[aiohttp.ClientSession] = []
        self._lock = asyncio.Lock()

    @property
    def server(self) -> str:
        """The API server's URL, empty before the first request."""
        return self._credentials.server if self._credentials else ""

    async def get(
        self, path: str, parameters: Mapping[str, str], accept: str = JSON, seconds: float = REPLY_SECONDS
    ) -> bytes:
        """The body of a reply that comes within `seconds`. Raises ApiError."""
        try:
            async with asyncio.timeout(seconds), self.stream(path, parameters, accept) as chunks:
                return b"".join([chunk async for chunk in chunks])
        except TimeoutError as error:
            raise unreachable(error) from error

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, parameters: Mapping[str, str], accept: str = JSON
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body of a reply as it comes, for as long as it comes. Raises ApiError."""
        response = await self._open(path, parameters, accept)
        try:
            yield _chunks(response)
        finally:
            # A watch that is left has more to come: its connection is of no use to another request.
            response.close()

    async def close(self) -> None:
        """Close every connection."""
        for session in [*self._retired, *([self._session] if self._session else [])]:
            await session.close()

    async def _open(self, path: str, parameters: Mapping[str, str], accept: str) -> aiohttp.ClientResponse:
        refusal: ApiError | None = None
        for _ in range(2):
            credentials, session = await self._ready()
            # Compressed, a list of 20 MB would cost both ends half a second to spare a fast network.
            headers = {"Accept": accept, "Accept-Encoding": "identity", **credentials.headers}
            if credentials.token:
                headers["Authorization"] = f"Bearer {credentials.token}"
            try:
                async with asyncio.timeout(REPLY_SECONDS):
                    response = await session.get(
                        credentials.server + path,
                        params=dict(parameters),
                        headers=headers,
                        # A token must not follow a redirect to another host; the API server sends none.
                        allow_redirects=False,
                        server_hostname=credentials.server_name or None,
                    )
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                # A CA or certificate may have been replaced since it was read.
                self._refused = isinstance(error, _TLS_ERRORS) or isinstance(error.__cause__, ssl.SSLError)
                raise unreachable(error) from error
            if response.status == 200 and response.content_type == JSON:
                return response
            refusal = await _refusal(response)
            if response.status != 401:
                break
            self._refused = True
        assert refusal is not None
        raise refusal

    async def _ready(self) -> tuple[Credentials, aiohttp.ClientSession]:
        async with self._lock:
            old = self._clock() - self._read_at >= CREDENTIAL_SECONDS
            if self._refused or old or self._credentials is None:
                await self._read_credentials()
            assert self._credentials is not None
            assert self._session is not None
            return self._credentials, self._session

    async def _read_credentials(self) -> None:
        try:
            credentials = await self._source(self._refused)
            if self._credentials is None or credentials.tls_identity != self._credentials.tls_identity:
                await self._renew_session(credentials)
        except (OSError, ValueError, KdnsError) as error:
            if self._credentials is None:
                raise unreachable(error) from error
            # A file that is being replaced, or broken: what we have may still be good.
            log.warning("the credentials for the API could not be read again: %s", error)
        else:
            self._credentials = credentials
        self._refused = False
        self._read_at = self._clock()

    async def _renew_session(self, credentials: Credentials) -> None:
        connector = aiohttp.TCPConnector(ssl=credentials.tls(), limit=0, keepalive_timeout=60, socket_factory=_socket)
        session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS),
            trust_env=False,
            headers={"User-Agent": USER_AGENT},
            read_bufsize=1 << 17,
        )
        # Streams of the last session go on until they end by themselves; the one before it has none left.
        for old in self._retired:
            await old.close()
        self._retired = [self._session] if self._session else []
        self._session = session


def _socket(info: tuple[Any, ...]) -> socket.socket:
    """A socket that finds out by itself when the other end has vanished."""
    family, kind, protocol = info[:3]
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        # macOS calls the first one otherwise, and is no place to run a cluster.
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    # As it comes, not by lines: a line may be an object of megabytes. Nor by HTTP's chunks: the API server makes one of
    # each event, and a list of 20,000 takes a third less time in larger pieces.
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except aiohttp.ClientPayloadError as error:
        raise ApiError(Status(0, "cut off", "the connection ended in the middle of a reply")) from error
    except (aiohttp.ClientError, OSError) as error:
        raise unreachable(error) from error


async def _refusal(response: aiohttp.ClientResponse) -> ApiError:
    """What an error reply says: the API's Status, or what a proxy in between wrote."""
    body = b""
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_SECONDS):
            body = await response.content.read(MOST_ERROR_BYTES)
    response.close()
    try:
        status = msgspec.json.decode(body, type=Status)
    except UNREADABLE:
        status = Status(message=f"{response.content_type}: {body[:200].decode(errors='replace')!r}")
    status.code = response.status
    status.reason = status.reason or response.reason or ""
    wait = response.headers.get("Retry-After", "")
    return ApiError(status, float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 6 else None)
