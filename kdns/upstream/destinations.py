"""Whom `forward` asks: words of a Corefile to upstreams, and names to addresses when the server starts.

Law: docs/plugins/forward.md; the forms are CoreDNS 1.14.7's, `parse.HostPortOrFile` and plugin/forward/resolve.go.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence

import msgspec

from kdns.addresses import is_address
from kdns.corefile import Token, read_regular
from kdns.errors import ConfigError, Problem
from kdns.upstream.exchange import exchange
from kdns.upstream.sockets import Upstream, UpstreamError
from kdns.values import RefusalError, WordError
from kdns.wire import names
from kdns.wire.records import Type

MOST_UPSTREAMS = 15
# Of one name: a reply may hold thousands, and each question puts all upstreams of its line in order.
MOST_ADDRESSES = 30

_SCHEMES_TO_COME = ("grpc", "quic")
ADDRESS = "an address, `IP[:PORT]` or `[IPv6]:PORT`, a name, or a file like resolv.conf"
_TLS_ADDRESS = "an address, `{0}://IP[:PORT]` or `{0}://[IPv6]:PORT`, perhaps with `%NAME` after the IP, or a name"
_RESOLVER = "addresses, `IP[:PORT]` or `[IPv6]:PORT`"
# RFC 1123 §2.1: what ends in digits alone is an address that was misspelt.
_HOST_NAME = re.compile(r"([A-Za-z0-9_-]+\.)*[0-9_-]*[A-Za-z][A-Za-z0-9_-]*\.?")
# CoreDNS has no other; RFC 8484 leaves it to the server.
DEFAULT_PATH = "/dns-query"
_PATH = re.compile(r"/[A-Za-z0-9._~/-]*")
# How long one server has to tell the addresses of an upstream's name, and how long the system has.
RESOLVER_SECONDS = 2.0
SYSTEM_SECONDS = 10.0


def read_upstreams(tokens: Sequence[Token]) -> tuple[Upstream, ...]:
    """The upstreams that words name, their hosts addresses or names. Raises a ValueError of `values.py`'s."""
    # One that is named twice, as in two files, is one: it has one budget and one health.
    found = tuple(dict.fromkeys(upstream for token in tokens for upstream in _upstreams_of(token)))
    if len(found) > MOST_UPSTREAMS:
        raise ValueError(f"more than {MOST_UPSTREAMS} upstreams are configured: {len(found)}")
    return found


def _upstreams_of(token: Token) -> list[Upstream]:
    text = token.text
    scheme, separator, rest = text.partition("://")
    if separator and scheme in _SCHEMES_TO_COME:
        raise WordError(token, ValueError(f"an upstream with `{scheme}://` isn't in kdns yet"))
    if separator and scheme == "tls":
        return [_tls_upstream(token, scheme, rest, "853")]
    if separator and scheme == "https":
        return [_https_upstream(token, rest)]
    if separator and scheme != "dns":
        raise RefusalError(token, ADDRESS)
    upstream = upstream_at(rest if separator else text)
    if upstream is not None:
        return [upstream]
    if separator:
        return [_named(token, rest, "53")]
    try:
        servers = resolv_conf(read_regular(text))
    except OSError as error:
        # What looks like no path was hardly meant as one.
        if "/" not in text:
            return [_named(token, text, "53")]
        reason = error.strerror or str(error)
        raise WordError(token, ValueError(f"`{text}` can't be read: {reason.lower()}")) from error
    if not servers:
        raise WordError(token, ValueError(f"`{text}` names no server: it has no line `nameserver IP`"))
    return servers


def _https_upstream(token: Token, text: str) -> Upstream:
    """As over TLS, and perhaps with a path behind it, which only kdns takes."""
    address, slash, path = text.partition("/")
    if slash and not _PATH.fullmatch(f"/{path}"):
        raise RefusalError(token, "a path of letters, digits and `-._~/`")
    upstream = _tls_upstream(token, "https", address, "443")
    return msgspec.structs.replace(upstream, path=f"/{path}" if slash else DEFAULT_PATH)


def _tls_upstream(token: Token, scheme: str, text: str, default_port: str) -> Upstream:
    """`IP`, `IP:PORT`, `IP%NAME`, `IP%NAME:PORT`, `[IP%NAME]:PORT` or `[IP]:PORT%NAME`, as CoreDNS has them."""
    address, _, name = text.rpartition("%") if "%" in text else (text, "", "")
    port = ""
    if ":" in name:
        name, _, port = name.rpartition(":")
    if name.endswith("]"):
        name, address = name[:-1], f"{address}]"
    if port:
        address = f"{address}:{port}" if address.startswith("[") or ":" not in address else f"[{address}]:{port}"
    if "%" in text and not name:
        raise RefusalError(token, _TLS_ADDRESS.format(scheme))
    upstream = upstream_at(address, default_port) or _named(token, address, default_port, _TLS_ADDRESS.format(scheme))
    if not is_address(upstream.host):
        # Whoever can tell a lie about the name's address still has no certificate for the name.
        name = name or upstream.host.removesuffix(".")
    return Upstream(upstream.host, upstream.port, tls=True, server_name=name)


def _named(token: Token, text: str, default_port: str, expected: str = ADDRESS) -> Upstream:
    """`NAME` or `NAME:PORT`."""
    host, colon, port = text.partition(":")
    number = int(port) if re.fullmatch("[0-9]{1,5}", port) else 0 if colon else int(default_port)
    if not _HOST_NAME.fullmatch(host) or not 0 < number < 65536:
        raise RefusalError(token, expected)
    try:
        names.from_text(host)
    except ValueError as error:
        raise WordError(token, f"`{host}` is no name: {error}") from None
    return Upstream(host, number)


def read_resolvers(tokens: Sequence[Token]) -> tuple[Upstream, ...]:
    """The servers that know the addresses of upstreams with a name."""
    found = []
    for token in tokens:
        upstream = upstream_at(token.text)
        if upstream is None and is_address(token.text):
            upstream = Upstream(token.text)
        if upstream is None:
            raise RefusalError(token, _RESOLVER)
        found.append(upstream)
    return tuple(found)


def resolv_conf(text: str) -> list[Upstream]:
    """The servers of a file in the form of /etc/resolv.conf; everything else in it is left alone."""
    fields = [line.split() for line in text.splitlines()]
    hosts = [field[1] for field in fields if len(field) > 1 and field[0] == "nameserver"]
    return [Upstream(host) for host in hosts if is_address(host)]


def upstream_at(text: str, port: str = "53") -> Upstream | None:
    """The server that `IP`, `IP:PORT` or `[IPv6]:PORT` means; None for any other text."""
    host = text
    if text.startswith("["):
        host, bracket, after = text[1:].partition("]")
        if not bracket or ":" not in host or (after and after[0] != ":"):
            return None
        port = after[1:] if after else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not is_address(host) or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        return None
    return Upstream(host, int(port))


async def resolved(
    upstreams: Sequence[Upstream], resolvers: Sequence[Upstream], words: Sequence[Token] = ()
) -> list[Upstream]:
    """The upstreams with an address for each name, several where it has several; the first of equals stays.

    Without resolvers the system is asked. Raises ConfigError with every name that has no address, at the one of `words`
    that names it.
    """
    outcomes = await asyncio.gather(*(_resolve(each, resolvers) for each in upstreams), return_exceptions=True)
    found: list[Upstream] = []
    problems: list[Problem] = []
    for upstream, outcome in zip(upstreams, outcomes, strict=True):
        if isinstance(outcome, UpstreamError | OSError | TimeoutError):
            reason = str(outcome) if isinstance(outcome, UpstreamError) else str(outcome.strerror or outcome)
            message = f"`forward`: the upstream `{upstream.host}` has no address: {reason.lower() or 'i/o timeout'}"
            word = next((each for each in words if _host_of(each) == upstream.host), None)
            hint = "`resolver IP` says which server knows it" if not resolvers else ""
            problems.append(Problem(message, word.place() if word else None, hint=hint))
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            found += outcome
    if problems:
        raise ConfigError(problems)
    return list(dict.fromkeys(found))


def _host_of(word: Token) -> str:
    """The name in one of the forms that an upstream with a name has."""
    return re.split("[:/%]", word.text.rpartition("://")[2])[0]


async def _resolve(upstream: Upstream, resolvers: Sequence[Upstream]) -> list[Upstream]:
    if is_address(upstream.host):
        return [upstream]
    hosts = await (_ask(upstream.host, resolvers) if resolvers else _ask_system(upstream.host))
    return [msgspec.structs.replace(upstream, host=host) for host in hosts[:MOST_ADDRESSES]]


async def _ask_system(name: str) -> list[str]:
    async with asyncio.timeout(SYSTEM_SECONDS):
        found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def _ask(name: str, resolvers: Sequence[Upstream]) -> list[str]:
    """The addresses that the first resolver tells that tells any; those of IPv4 come first."""
    qname = names.from_text(name).lower()
    problem = UpstreamError("no resolver was asked")
    for resolver in resolvers:
        hosts: list[str] = []
        problem = UpstreamError(f"{resolver} knows none")
        for rtype, family in ((Type.A, socket.AF_INET), (Type.AAAA, socket.AF_INET6)):
            try:
                message = await exchange(qname, rtype, resolver, RESOLVER_SECONDS)
            except UpstreamError as error:
                problem = error
                break
            hosts += [socket.inet_ntop(family, each.data) for each in message.answer if each.rtype == rtype]
        if hosts:
            return hosts
    raise problem
