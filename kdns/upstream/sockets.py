"""An upstream's address, the sockets towards it, and what can go wrong with them.

The words of errors are Go's, since log tools search for them; whose fault an error is, stands beside them.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
import weakref
from collections.abc import Callable

import msgspec

from kdns.addresses import host_and_port
from kdns.errors import PeerError

# A quarter of the descriptors is for questions over UDP: the rest is for clients, the API and the probes. More than
# this many at once would only be a flood of questions to upstreams that are silent.
MOST_UDP_SOCKETS = 4096
# So many connections are open to one upstream; what is asked beyond that shares them.
MOST_CONNECTIONS = 100

# What a system call says when this machine is short of something, which no upstream can help. EADDRNOTAVAIL isn't
# there: it is also what an IPv6 address gives on a machine without IPv6, and such an upstream is best avoided.
_OWN_ERRORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EADDRINUSE))

_allowances: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


class Upstream(msgspec.Struct, frozen=True):
    """A server to ask, by its numeric address; over TLS with the name that its certificate must have.

    Without such a name the certificate must be for the address. With a `path` it is asked over HTTPS.
    """

    host: str
    port: int = 53
    tls: bool = False
    server_name: str = ""
    path: str = ""

    def __str__(self) -> str:
        return host_and_port(self.host, self.port)

    @property
    def protocol(self) -> str:
        """How it is asked over connections, as metrics name it."""
        return "https" if self.path else "tcp-tls" if self.tls else "tcp"

    @property
    def family(self) -> socket.AddressFamily:
        """IPv4's or IPv6's."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


class Keeping(msgspec.Struct, frozen=True, kw_only=True):
    """For how long a connection without a question is kept, for how long any (0: no limit), and how many (0: all)."""

    idle_seconds: float = 10.0
    age_seconds: float = 0.0
    most_idle: int = 0


def _count_nothing(kept: bool) -> None:
    pass


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """The way to an upstream.

    `source` is the address of this machine to ask from, empty for any; `context` is what TLS needs; `method` is that of
    HTTPS, `GET` or `POST`. `count` is told of each question over a connection whether there was one for it already.
    """

    source: str = ""
    keeping: Keeping = Keeping()
    context: ssl.SSLContext | None = None
    method: str = "POST"
    count: Callable[[bool], None] = _count_nothing


class UpstreamError(PeerError):
    """An upstream gave no usable reply.

    `silent` is whether nothing came at all, as against an error of the network; `own` is whether it is this machine
    that is short of something, so that the upstream isn't to blame.
    """

    def __init__(self, text: str, silent: bool = False, own: bool = False) -> None:
        super().__init__(text)
        self.silent = silent
        self.own = own


def network_error(step: str, error: OSError) -> UpstreamError:
    """An error of a system call as ours; `step` is what was being done, such as `read udp A->B: read`."""
    return UpstreamError(f"{step}: {reason(error)}", own=error.errno in _OWN_ERRORS)


def open_udp(upstream: Upstream, source: str = "") -> socket.socket:
    """A UDP socket that doesn't block, connected to the upstream. Raises UpstreamError.

    It is bound to an address of this machine where one is given.
    """
    step = "socket"
    sock = None
    try:
        sock = socket.socket(upstream.family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        if source:
            step = "bind"
            sock.bind((source, 0))
        step = "connect"
        # A UDP socket is connected at once: the kernel then drops what others send to it.
        sock.connect((upstream.host, upstream.port))
    except OSError as error:
        if sock is not None:
            sock.close()
        raise network_error(f"dial udp {upstream}: {step}", error) from error
    return sock


def udp_allowance() -> asyncio.Semaphore:
    """How many UDP sockets may still be opened in this process; who comes when there are none waits in line."""
    loop = asyncio.get_running_loop()
    allowance = _allowances.get(loop)
    if allowance is None:
        allowance = _allowances[loop] = asyncio.Semaphore(max(16, min(MOST_UDP_SOCKETS, descriptors() // 4)))
    return allowance


def most_connections() -> int:
    """How many connections one upstream may have."""
    return max(2, min(MOST_CONNECTIONS, descriptors() // 64))


def descriptors() -> int:
    """How many descriptors this process may have."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


def path_of(sock: socket.socket, upstream: Upstream) -> str:
    """`10.244.0.5:41012->10.0.0.10:53`."""
    name = sock.getsockname()
    return f"{host_and_port(name[0], name[1])}->{upstream}"


def reason(error: OSError) -> str:
    """What went wrong, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"failed to verify certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    # Names that can't be resolved (a zone of an IPv6 address is one) have numbers of their own, below zero.
    if error.errno is None or error.errno <= 0:
        return (error.strerror or str(error)).lower()
    return os.strerror(error.errno).lower()
