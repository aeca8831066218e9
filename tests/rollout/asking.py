"""One question or one page at a time, and waiting for what comes of it."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable

import dns.message
import dns.query

from tests.rollout.load import HOST

PATIENCE_SECONDS = 20.0
NAME = "web.shop.svc.cluster.local."


def ask(port: int, name: str = NAME, tcp: bool = False) -> dns.message.Message:
    """The reply to a question for addresses."""
    query = dns.message.make_query(name, "A", use_edns=0)
    send = dns.query.tcp if tcp else dns.query.udp
    return send(query, HOST, PATIENCE_SECONDS, port)


def addresses(reply: dns.message.Message) -> list[str]:
    """What its records say."""
    return [str(record) for group in reply.answer for record in group]


def page(http: int, path: str) -> tuple[int, str]:
    """Status and body; 0 where nobody listens."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{http}{path}", timeout=PATIENCE_SECONDS) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def wait(check: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Return once it is so."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)
