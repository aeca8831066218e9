"""Everything at once (W30): a cluster that changes fifty times a second, faults by chance, and what must always hold.

A seed is a life: the world, the faults, their order. It runs for some seconds, or for KDNS_FAULT_SECONDS in all; with
KDNS_FAULT_SEED=n only that life is lived. A failure names the seed and the last faults.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable

import msgspec
import pytest

from tests.faults import faults, statuses
from tests.faults.api import error, expired
from tests.faults.fake import Fault
from tests.faults.trial import AUDITING, Trial, run_on_some_loop, trial
from tests.faults.wire import End, Request

# The seeds are 1, 2, 3 and so on, as many as there is time for.
SECONDS = float(os.environ.get("KDNS_FAULT_SECONDS", "32"))
# One life; then the world has to be in step.
LIFE_SECONDS = 8.0
CHANGES_A_SECOND = 50.0
# A request on a connection that has died may take half a minute to be given up.
PATIENCE_SECONDS = 35.0
# Watches that end by themselves after a second or three, as others do after minutes.
TIMING = msgspec.structs.replace(AUDITING, watch=(1, 3))

RESOURCES = ("services", "endpointslices", "namespaces")


class Chaos:
    """Faults by chance. `done` has the last of them."""

    def __init__(self, it: Trial) -> None:
        self.it = it
        self.fake = it.fake
        self.random = it.random
        self.done: deque[str] = deque(maxlen=15)
        self.behind = self.fake.add_replica("behind")

    async def live(self, seconds: float) -> None:
        """Let things go wrong for so long, and come right now and then."""
        clock = asyncio.get_running_loop().time
        ends = clock() + seconds
        while clock() < ends:
            await self._strike()
            await asyncio.sleep(self.random.expovariate(5.0))
            if self.random.random() < 0.1:
                await self.heal()
                await self.it.in_step(PATIENCE_SECONDS)

    async def heal(self) -> None:
        """Nothing goes wrong any more."""
        self.done.append("heal")
        self.fake.heal()
        await self.fake.accept()

    async def _strike(self) -> None:
        name, step = self.random.choice(self._steps())
        self.done.append(name)
        made = step()
        if asyncio.iscoroutine(made):
            await made

    def _steps(self) -> list[tuple[str, Callable[[], object]]]:
        """What may happen now; everything of it ends by itself or by `heal`."""
        fake, random, store = self.fake, self.random, self.fake.store
        resource = random.choice(["", *RESOURCES])
        how = random.choice([End.FIN, End.RESET])
        return [
            ("410 in the stream", lambda: fake.say(resource, expired())),
            ("compaction", store.compact),
            ("504 in the stream", lambda: fake.say(resource, error(statuses.too_large("999999", store.number)))),
            ("rubbish in the stream", lambda: fake.say(resource, b'{"type":"ADDED","object":\n')),
            ("streams end", lambda: fake.say(resource, how)),
            ("connections end", lambda: fake.cut(how)),
            ("connections die", fake.vanish),
            ("a fault of watches", lambda: fake.on("watch", resource, random.choice(self._watch_faults()))),
            ("a fault of lists", lambda: fake.on("", resource, random.choice(self._list_faults()), where=_begins)),
            ("refusals", lambda: fake.on("", resource, random.choice(self._refusals()), times=random.randint(1, 4))),
            ("lost events", lambda: fake.tamper(resource, faults.lose(count=random.randint(1, 3)))),
            ("events twice", lambda: fake.tamper(resource, faults.twice())),
            ("old events again", lambda: fake.tamper(resource, faults.replayed(2))),
            ("late events", lambda: fake.tamper(resource, faults.delayed(0.005))),
            ("a burst", self._burst),
            ("away", self._away),
            ("stalled", self._stalled),
            ("one is behind", self._behind),
            ("no rights", self._no_rights),
            ("other chunks", lambda: fake.on("watch", resource, faults.recut(random.choice([1, 7, 100])), times=2)),
        ]

    def _watch_faults(self) -> list[Fault]:
        count = self.random.randint(0, 4)
        how = self.random.choice([End.FIN, End.RESET])
        return [
            faults.gone_after(count),
            faults.ends_after(count),
            faults.ends_after(count, how),
            faults.torn_after(count, how),
            faults.without_end_bookmark,
            faults.unmarked_end_bookmark,
            faults.end_bookmark_twice,
            faults.joined(count + 1),
            faults.only_headers,
        ]

    def _list_faults(self) -> list[Fault]:
        return [
            faults.no_watch_list(),
            faults.expired_pages(),
            faults.says(statuses.expired_list()),
            faults.says(statuses.too_large("999999", self.fake.store.number)),
            faults.slow(200_000),
            faults.ends_after(self.random.randint(1, 10), End.RESET),
        ]

    def _refusals(self) -> list[Fault]:
        return [
            faults.status(429, retry_after=0),
            faults.status(500),
            faults.status(503),
            faults.html(),
            faults.protobuf(),
            faults.gzipped(declared=False),
            faults.empty(),
            faults.status(401),
        ]

    def _burst(self) -> None:
        for _ in range(200):
            self.it.world.churn()

    async def _away(self) -> None:
        self.fake.refuse()
        await asyncio.sleep(self.random.uniform(0.05, 1.0))
        await self.fake.accept()

    async def _stalled(self) -> None:
        self.fake.stall()
        await asyncio.sleep(self.random.uniform(0.05, 1.0))
        self.fake.go_on()

    async def _behind(self) -> None:
        self.behind.hold()
        self.fake.route = lambda request: self.random.choice(["", "behind"])
        self.fake.cut()
        await asyncio.sleep(self.random.uniform(0.05, 0.6))
        self.behind.go_on()
        self.fake.route = lambda request: ""

    async def _no_rights(self) -> None:
        resource = self.random.choice(RESOURCES)
        for verb in ("list", "watch"):
            self.fake.forbid(verb, resource)
        self.fake.say(resource, End.FIN)
        await asyncio.sleep(self.random.uniform(0.05, 0.6))
        for verb in ("list", "watch"):
            self.fake.allow(verb, resource)


def _begins(request: Request) -> bool:
    return request.verb == "list" or "sendInitialEvents" in request.parameters


async def life(seed: int, seconds: float) -> None:
    """One life, from a start to the end of all faults."""
    async with trial(seed, TIMING) as it:
        chaos = Chaos(it)
        changing = asyncio.create_task(it.churn(1_000_000, CHANGES_A_SECOND))
        try:
            await chaos.live(seconds)
            await chaos.heal()
        except AssertionError as broken:
            pytest.fail(f"KDNS_FAULT_SEED={seed}: {broken}\nafter: {', '.join(chaos.done)}", pytrace=False)
        finally:
            changing.cancel()
        try:
            await it.in_step(PATIENCE_SECONDS)
        except AssertionError as broken:
            pytest.fail(f"KDNS_FAULT_SEED={seed}: {broken}\nafter: {', '.join(chaos.done)}", pytrace=False)


def _seeds() -> list[int]:
    if "KDNS_FAULT_SEED" in os.environ:
        return [int(os.environ["KDNS_FAULT_SEED"])]
    return list(range(1, max(1, round(SECONDS / LIFE_SECONDS)) + 1))


@pytest.mark.timeout(10 * (LIFE_SECONDS + PATIENCE_SECONDS))
@pytest.mark.parametrize("seed", _seeds())
def test_w30_whatever_happens(seed: int) -> None:
    run_on_some_loop(life(seed, LIFE_SECONDS), seed)
