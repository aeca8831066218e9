"""The Kubernetes API over HTTPS: one request at a time, with credentials that are read again while they are used.

Alone in talking to the API server; knows no watch and no model.
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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from kdns import metrics
from kdns.errors import KdnsError, PeerError
from kdns.kubernetes.credentials import Credentials, Source
from kdns.kubernetes.objects import UNREADABLE
from kdns.metrics import Metrics

log = logging.getLogger("kdns.plugin.kubernetes")

USER_AGENT = "kdns"

# A kubelet renews a token at 80 % of its life; files are looked at again after this long, and at once after a 401.
CREDENTIAL_SECONDS = 30.0
# What fetches credentials, such as the plugin of a kubeconfig, may ask a person. A request that can't do without them
# fails after the first of these; the plugin may finish until the second, and only then another is started.
MOST_CREDENTIAL_WAIT_SECONDS = 60.0
MOST_CREDENTIAL_SECONDS = 600.0
CONNECT_SECONDS = 5.0
# Until a reply begins, and between two pieces of it. A busy API server lets a request queue for 15 s (API Priority and
# Fairness), and a silent one is to be noticed within 20.
REPLY_SECONDS = 18.0
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


# Of a server that says nothing, however that was found out.
SILENT = Status(0, "no answer", "the API server has fallen silent")


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


class SilentError(ApiError):
    """Nothing came for as long as something should have."""

    def __init__(self) -> None:
        super().__init__(SILENT)


def unreachable(error: BaseException) -> ApiError:
    """The error of a request that got no reply, or lost it half-way."""
    if isinstance(error, TimeoutError):
        return SilentError()
    # Its number is OpenSSL's, not the system's.
    if isinstance(error, _TLS_ERRORS):
        return ApiError(Status(0, type(error).__name__, str(error)))
    if isinstance(error, aiohttp.ClientConnectorError) and error.errno is not None and error.errno > 0:
        message = f"{error.host}:{error.port}: {os.strerror(error.errno)}"
        return ApiError(Status(0, "not reached", message))
    return ApiError(Status(0, type(error).__name__, str(error)))


class _Session:
    """Connections with one TLS context, for as long as somebody uses them."""

    def __init__(self, credentials: Credentials) -> None:
        self.users = 0
        self.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=credentials.tls(), limit=0, keepalive_timeout=60, socket_factory=_socket
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS),
            trust_env=False,
            headers={"User-Agent": USER_AGENT},
            read_bufsize=1 << 17,
        )

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Within it the session isn't closed, whatever becomes of the credentials."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1


class Client:
    """Requests to one API server. `source` reads the credentials; they are read again while they are used.

    They are read by a task of its own, so that a plugin that takes its time holds up only who has nothing to show.
    That isn't the server's silence either: all the times that a request may take begin when it is sent.
    """

    def __init__(
        self, source: Source, clock: Callable[[], float] = time.monotonic, numbers: Metrics | None = None
    ) -> None:
        self._source = source
        self._clock = clock
        self._numbers = numbers
        self._credentials: Credentials | None = None
        self._session: _Session | None = None
        # Their TLS context is no longer right, but streams go on until they end by themselves.
        self._retired: list[_Session] = []
        self._reading: asyncio.Task[ApiError | None] | None = None
        self._read_at = 0.0
        self._refused = False
        # Why they could not be read the last time, as the log has it.
        self._said = ""

    async def get(
        self, path: str, parameters: Mapping[str, str], accept: str = JSON, seconds: float = REPLY_SECONDS
    ) -> bytes:
        """The body of a reply, of which each piece comes within `seconds`. Raises ApiError."""
        async with self.stream(path, parameters, accept, seconds) as chunks:
            body = []
            try:
                async with asyncio.timeout(seconds) as silence:
                    async for chunk in chunks:
                        body.append(chunk)
                        silence.reschedule(asyncio.get_running_loop().time() + seconds)
            except TimeoutError as error:
                raise SilentError from error
        return b"".join(body)

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, parameters: Mapping[str, str], accept: str = JSON, seconds: float = REPLY_SECONDS
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body of a reply that begins within `seconds`, as it comes, for as long as it comes. Raises ApiError."""
        for last in (False, True):
            credentials, session = await self._ready()
            with session.used():
                try:
                    response = await self._ask(credentials, session, path, parameters, accept, seconds)
                except ApiError as refusal:
                    if refusal.status != 401 or last:
                        raise
                    continue
                try:
                    yield _chunks(response)
                    return
                finally:
                    # A watch that is left has more to come: its connection is of no use to another request.
                    response.close()

    async def is_silent(self, path: str, seconds: float) -> bool:
        """Whether a small request gets no answer within `seconds`. A refusal is an answer.

        It waits for no credentials; as long as there are none nobody was asked, and so nobody is silent.
        """
        await self._look_at_credentials()
        credentials, session = self._credentials, self._session
        if credentials is None or session is None:
            return False
        try:
            with session.used():
                async with asyncio.timeout(seconds):
                    response = await self._ask(credentials, session, path, {}, JSON, seconds)
                    # To its end, so that the connection can be used again.
                    await response.read()
        except ApiError as error:
            # Who shows a certificate that we don't trust isn't silent; and watches of before go on.
            return not error.status and not isinstance(error.__cause__, aiohttp.ClientConnectorCertificateError)
        except (aiohttp.ClientError, OSError):
            return True
        return False

    async def close(self) -> None:
        """Close every connection."""
        if self._reading is not None:
            self._reading.cancel()
        for session in [*self._retired, *([self._session] if self._session else [])]:
            await session.http.close()

    async def _ask(
        self,
        credentials: Credentials,
        session: _Session,
        path: str,
        parameters: Mapping[str, str],
        accept: str,
        seconds: float,
    ) -> aiohttp.ClientResponse:
        """Send a request, and count it. Returns the reply that was asked for, its body yet to come; raises ApiError."""
        # Compressed, a list of 20 MB would cost both ends half a second to spare a fast network.
        headers = {"Accept": accept, "Accept-Encoding": "identity", **credentials.headers}
        if credentials.token:
            headers["Authorization"] = f"Bearer {credentials.token}"
        started, code = time.perf_counter(), "<error>"
        try:
            async with asyncio.timeout(seconds):
                response = await session.http.get(
                    credentials.server + path,
                    params=dict(parameters),
                    headers=headers,
                    # A token must not follow a redirect to another host; the API server sends none.
                    allow_redirects=False,
                    server_hostname=credentials.server_name or None,
                    proxy=credentials.proxy or None,
                )
            code = str(response.status)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # A CA or certificate may have been replaced since it was read.
            if isinstance(error, _TLS_ERRORS) or isinstance(error.__cause__, ssl.SSLError):
                self._are_refused(credentials)
            raise unreachable(error) from error
        finally:
            if self._numbers is not None:
                host = urlsplit(credentials.server).netloc
                self._numbers.increase(metrics.REST_REQUESTS, code, "GET", host)
                self._numbers.observe(metrics.REST_SECONDS, time.perf_counter() - started, "GET", host)
        if response.status == 200 and response.content_type == JSON:
            return response
        if response.status == 401:
            self._are_refused(credentials)
        raise await _refusal(response)

    # Credentials

    async def _ready(self) -> tuple[Credentials, _Session]:
        """What a request needs; waits where there is none yet, or what there is was refused. Raises ApiError."""
        await self._look_at_credentials()
        if self._credentials is None or self._refused:
            await self._wait_for_credentials()
        assert self._credentials is not None
        assert self._session is not None
        return self._credentials, self._session

    async def _look_at_credentials(self) -> None:
        """Begin to read them, if it is time."""
        if self._reading is not None and not self._reading.done():
            return
        old = self._clock() - self._read_at >= CREDENTIAL_SECONDS
        if self._refused or old or self._credentials is None:
            self._reading = asyncio.create_task(self._read_credentials())
            # Files are read within a turn of the loop: what is new in them goes with this very request.
            await asyncio.sleep(0)

    async def _wait_for_credentials(self) -> None:
        assert self._reading is not None
        try:
            async with asyncio.timeout(MOST_CREDENTIAL_WAIT_SECONDS):
                # They are not for this request alone, which may be given up.
                trouble = await asyncio.shield(self._reading)
        except TimeoutError as error:
            text = f"the credentials could not be read within {MOST_CREDENTIAL_WAIT_SECONDS:g} s"
            raise ApiError(Status(0, "no credentials", text)) from error
        if trouble is not None and self._credentials is None:
            raise trouble

    async def _read_credentials(self) -> ApiError | None:
        """Read them, and get a session that fits. Returns why not; what there was stays in use then."""
        trouble, before, refused = None, self._credentials, self._refused
        try:
            async with asyncio.timeout(MOST_CREDENTIAL_SECONDS):
                credentials = await self._source(refused)
            if before is None or credentials.tls_identity != before.tls_identity:
                self._renew_session(credentials)
            self._credentials = credentials
        except (OSError, ValueError, KdnsError) as error:
            text = str(error) or f"they could not be read within {MOST_CREDENTIAL_SECONDS:g} s"
            trouble = ApiError(Status(0, "no credentials", text))
            if before is not None and text != self._said:
                # A file that is being replaced, or broken: what we have may still be good.
                log.warning("the credentials for the API could not be read again: %s", text)
            self._said = text
        else:
            self._said = ""
        # What was refused only while these were read is to be read once more.
        self._refused = self._refused and not refused and self._credentials is before
        self._read_at = self._clock()
        await self._close_unused()
        return trouble

    def _are_refused(self, credentials: Credentials) -> None:
        """These are to be read again; others may have been read since this request was sent."""
        self._refused = self._refused or credentials is self._credentials

    def _renew_session(self, credentials: Credentials) -> None:
        session = _Session(credentials)
        if self._session is not None:
            self._retired.append(self._session)
        self._session = session

    async def _close_unused(self) -> None:
        """Close the sessions of before that nobody uses any more."""
        unused = [session for session in self._retired if not session.users]
        self._retired = [session for session in self._retired if session.users]
        for session in unused:
            await session.http.close()


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
