"""A fake API server in a process of its own, for measuring: what it does must not look like kdns's doing.

    async with remote() as server:
        await server.call("bulk", 50_000)

Orders are lines of JSON on its stdin, `[function, argument, ...]`; each is answered with a line. What it can do is in
`ORDERS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tests.faults import faults
from tests.faults.api import expired
from tests.faults.fake import Fake, api_server
from tests.faults.store import namespace, service

ROOT = Path(__file__).parent.parent.parent


def bulk(fake: Fake, count: int) -> int:
    """Make so many services in the namespace `bulk`. Returns the number of the store."""
    fake.store.put("namespaces", namespace("bulk"))
    for number in range(count):
        address = f"10.{100 + number // 62500}.{number // 250 % 250}.{1 + number % 250}"
        fake.store.put("services", service("bulk", f"bulk{number}", address))
    return fake.store.number


def put(fake: Fake, name: str, address: str) -> int:
    """Make or change one service."""
    return fake.store.put("services", service("bulk", name, address)).number


def no_watch_list(fake: Fake) -> None:
    """Be a server without streaming lists."""
    fake.on("watch", "", faults.no_watch_list(), times=None)


def forget(fake: Fake) -> int:
    """410 to the watches of services, and nothing left to resume from. Returns how many heard it."""
    heard = fake.say("services", expired())
    fake.store.compact()
    return heard


ORDERS: dict[str, Callable[..., Any]] = {each.__name__: each for each in (bulk, put, no_watch_list, forget)}


class Remote:
    """The other end."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process = process
        self.url = url

    async def call(self, order: str, *arguments: object) -> Any:
        """Have a function of `ORDERS` run there. Returns what it returned."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([order, *arguments]).encode() + b"\n")
        return json.loads(await self._process.stdout.readline())


@contextlib.asynccontextmanager
async def remote() -> AsyncIterator[Remote]:
    """A fake that runs as long as the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        yield Remote(process, json.loads(await process.stdout.readline()))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def main() -> None:
    """The child's life: it ends with its stdin."""
    async with api_server() as fake:
        print(json.dumps(fake.url), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order, *arguments = json.loads(line)
            print(json.dumps(ORDERS[order](fake, *arguments)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
