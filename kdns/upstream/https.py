"""Questions to one upstream over HTTPS, on connections that are kept for the next one.

The connections are aiohttp's: HTTP/1.1, one question on each at a time. It is imported with this module, since that
costs a third of a second, and only who has such an upstream needs it.
Law: RFC 8484 (DNS over HTTPS), RFC 9111 §5.1 (the Age of a reply).
"""

from __future__ import annotations

import asyncio
import base64
import functools
import socket
from typing import Any

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from kdns.addresses import bracketed, host_and_port
from kdns.upstream.question import Question
from kdns.upstream.sockets import Upstream, UpstreamError, Way, most_connections, network_error
from kdns.wire.message import Message, decode
from kdns.wire.records import Record

# RFC 8484 §6
MEDIA_TYPE = "application/dns-message"
# §4.1: with it the same question is the same request, which those who cache HTTP can make use of.
ID = 0

LARGEST = 65_535
# The words of a library about what a stranger sent are cut here: they go into a log line.
LONGEST_REASON = 200
# aiohttp takes in all that comes, and RFC 9110 §15.2 lets any number of interim responses come before the one that
# counts. An upstream that sent nothing else cost 100 MB and a second without a turn for anybody (2026-11-21). So what
# comes is read in parts, and whoever says so much that nobody has read yet isn't listened to any longer.
MOST_UNREAD_RESPONSES = 8
_PART_BYTES = 4096


class _Trace:
    """What became of one request: whether its connection was there before."""

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept = False


class _Connection(ResponseHandler):
    """aiohttp's end of a connection, with a bound to the responses that nobody has read yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._unread = 0

    def feed_data(self, *response: Any) -> None:
        self._unread += 1
        super().feed_data(*response)

    async def read(self) -> Any:
        response = await super().read()
        self._unread -= 1
        return response

    def data_received(self, data: bytes) -> None:
        # Without any data it is a call that aiohttp makes itself.
        for start in range(0, max(1, len(data)), _PART_BYTES):
            super().data_received(data[start : start + _PART_BYTES])
            if self._unread > MOST_UNREAD_RESPONSES:
                self.abort()
                self.set_exception(HttpProcessingError(message="more responses than questions"))
            if not self.is_connected():
                return


class HttpsConnections:
    """Asks one upstream over HTTPS."""

    def __init__(self, upstream: Upstream, way: Way) -> None:
        self._upstream = upstream
        self._way = way
        self._session: aiohttp.ClientSession | None = None
        self._closing: asyncio.Task[None] | None = None
        name = upstream.server_name
        port = "" if upstream.port == 443 else f":{upstream.port}"
        # The address is what is connected to; the name is for the certificate and for a host of many.
        self._url = URL(f"https://{host_and_port(upstream.host, upstream.port)}{upstream.path}")
        self._headers = {"Accept": MEDIA_TYPE, "Host": f"{name or bracketed(upstream.host)}{port}"}
        self._step = f'{way.method.capitalize()} "{self._url}"'

    async def ask(self, question: Question, deadline: float) -> Message:
        """The reply, by `deadline` of the loop's clock. Raises UpstreamError."""
        query = question.packet(ID)
        body, age = None, 0
        try:
            async with asyncio.timeout_at(deadline):
                # A connection that was kept may have been closed at the other end while the question was on its way.
                while body is None:
                    body, age = await self._ask(query)
        except TimeoutError as error:
            raise UpstreamError(f"{self._step}: i/o timeout", silent=True) from error
        # A reply comes on the connection of its question, and the case is for guessers, of whom here are none.
        if not question.is_answered_in_other_case(body, query):
            raise UpstreamError(f"{self._step}: the reply is to another question")
        try:
            return _aged(decode(body), age)
        except ValueError as error:
            raise UpstreamError(f"{self._step}: {error}") from error

    def close(self) -> None:
        """End all connections; who waits for a reply gets an error."""
        if self._session is not None:
            self._closing = asyncio.get_running_loop().create_task(self._session.close())
            self._session = None

    async def _ask(self, query: bytes) -> tuple[bytes | None, int]:
        """The body of the reply and its age in seconds; no body where a connection that was kept had been closed."""
        trace = _Trace()
        try:
            async with self._request(query, trace) as response:
                return await self._read(response)
        except aiohttp.ClientConnectorCertificateError as error:
            cause = error.certificate_error
            assert isinstance(cause, OSError)
            raise network_error(f"dial tcp {self._upstream}: tls", cause) from error
        except aiohttp.ClientConnectorError as error:
            step = "tls" if isinstance(error, aiohttp.ClientSSLError) else "connect"
            raise network_error(f"dial tcp {self._upstream}: {step}", error.os_error) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError) as error:
            if trace.kept:
                return None, 0
            raise UpstreamError(f"{self._step}: EOF") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise UpstreamError(f"{self._step}: {_words(error)}") from error

    def _request(self, query: bytes, trace: _Trace) -> Any:
        if self._session is None:
            self._session = self._make_session()
        name = self._upstream.server_name or None
        wanted: dict[str, Any] = {"allow_redirects": False, "server_hostname": name, "trace_request_ctx": trace}
        if self._way.method == "GET":
            # §4.1.1: base64url without its padding.
            text = base64.urlsafe_b64encode(query).decode().rstrip("=")
            return self._session.get(self._url.with_query(dns=text), headers=self._headers, **wanted)
        headers = {**self._headers, "Content-Type": MEDIA_TYPE}
        return self._session.post(self._url, data=query, headers=headers, **wanted)

    async def _read(self, response: aiohttp.ClientResponse) -> tuple[bytes, int]:
        if response.status != 200:
            raise UpstreamError(f"{self._step}: HTTP status {response.status}")
        if response.content_type != MEDIA_TYPE:
            raise UpstreamError(f"{self._step}: the reply is no DNS message")
        parts: list[bytes] = []
        size = 0
        async for part in response.content.iter_any():
            size += len(part)
            if size > LARGEST:
                # The connection is closed: what is still to come on it is nothing that anybody wants.
                response.close()
                raise UpstreamError(f"{self._step}: the reply is longer than a DNS message can be")
            parts.append(part)
        age = response.headers.get("Age", "")
        return b"".join(parts), int(age) if age.isascii() and age.isdecimal() and len(age) < 10 else 0

    def _make_session(self) -> aiohttp.ClientSession:
        way = self._way
        traces = aiohttp.TraceConfig()
        traces.on_connection_reuseconn.append(self._reused)
        traces.on_connection_create_start.append(self._made)
        idle_seconds = way.keeping.idle_seconds
        assert way.context is not None
        connector = aiohttp.TCPConnector(
            ssl=way.context,
            limit=most_connections(),
            force_close=not idle_seconds,
            keepalive_timeout=idle_seconds or None,
            local_addr=(way.source, 0) if way.source else None,
            use_dns_cache=False,
            family=socket.AF_UNSPEC,
        )
        # aiohttp has no public place for it; should that be another one some day, the endless upstream of a test tells.
        connector._factory = functools.partial(_Connection, asyncio.get_running_loop())  # type: ignore[assignment]
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
            trust_env=False,
            trace_configs=[traces],
        )

    async def _reused(self, session: aiohttp.ClientSession, context: Any, parameters: Any) -> None:
        context.trace_request_ctx.kept = True
        self._way.count(True)

    async def _made(self, session: aiohttp.ClientSession, context: Any, parameters: Any) -> None:
        self._way.count(False)


def _aged(message: Message, age: int) -> Message:
    """The message with the TTLs that are left of it: what a cache of HTTP gave may be old (RFC 8484 §5.1)."""
    if not age:
        return message

    def left(records: list[Record]) -> list[Record]:
        return [Record(each.owner, each.rtype, max(0, each.ttl - age), each.data) for each in records]

    return msgspec.structs.replace(
        message,
        answer=left(message.answer),
        authority=left(message.authority),
        additional=left(message.additional),
    )


def _words(error: Exception) -> str:
    # Its whole text has the URL once more, and in that the question, which with GET is another for each.
    text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    return (text or type(error).__name__)[:LONGEST_REASON]
