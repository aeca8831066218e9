"""The same questions to both servers, twice where the answers differ, and what is left of the differences.

Knows no files and no command: two servers to ask in, a report out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import msgspec

from kdns.compare.asking import Server
from kdns.compare.differences import Aspect, Difference, NoReply, Pair, Way, differences, verdict
from kdns.compare.known import Truth, explanation
from kdns.compare.questions import Asked, shape_of
from kdns.errors import KdnsError
from kdns.wire import names
from kdns.wire.records import Type

# Whatever ages has another TTL after that many seconds, and what a cluster changed, both know by then.
SECOND_LOOK_SECONDS = 1.5
KEPT = "`cache` in the chain"

# Of what is to be done its name and how many steps it has, in return what to call after each.
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


def _unseen(label: str, steps: int) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)


class Finding(msgspec.Struct, frozen=True):
    """A question on which the servers differ, in these ways; `row` of docs/coredns.md says why, where it is known."""

    asked: Asked
    kind: str
    ways: tuple[Way, ...]
    difference: Difference
    row: str = ""


class Report(msgspec.Struct, frozen=True):
    """What came of a comparison: how many questions, how many differed at first only, and what still does."""

    questions: int
    vanished: int
    findings: list[Finding]

    @property
    def unexplained(self) -> list[Finding]:
        """The differences for which nothing says that they are meant."""
        return [each for each in self.findings if not each.row]

    @property
    def explained(self) -> list[Finding]:
        """Those of which a row of docs/coredns.md says why."""
        return [each for each in self.findings if each.row]


class Comparison(msgspec.Struct, frozen=True):
    """Two servers, what is known of the cluster whose names they are asked for, and its domain in wire form."""

    there: Server
    here: Server
    truth: Truth
    zone: bytes
    at_once: int = 16
    second_look_seconds: float = SECOND_LOOK_SECONDS

    async def run(self, asked: Sequence[Asked], progress: Progress = _unseen) -> Report:
        """Ask all of it in each way, and once more where the answers differ. Raises KdnsError if a server is gone."""
        await self._greet()
        with progress("asking", len(asked) * len(Way)) as tick:
            first = await self._look([(each, way) for each in asked for way in Way], tick)
        if not first:
            return Report(len(asked), 0, [])
        await asyncio.sleep(self.second_look_seconds)
        with progress("asking again", len(first)) as tick:
            second = await self._look(list(first), tick)
        still = {key: list(self._still(pair, first[key])) for key, pair in second.items()}
        vanished = {key[0] for key in first} - {key[0] for key, found in still.items() if found}
        return Report(len(asked), len(vanished), _merged(still.values()))

    async def _greet(self) -> None:
        """One question to each, so that nothing is sent to who isn't there.

        Nor the names of a cluster to who hasn't its zone: that would be much to forward, and the same denial of all.
        """
        apex = Asked(self.zone, Type.SOA)
        for name, server in (("the other server", self.there), ("kdns", self.here)):
            reply = await server.ask(apex, Way.UDP)
            if isinstance(reply, NoReply):
                raise KdnsError(f"no answer to {apex}: {reply.reason}")
            if self.truth.cluster.namespaces and verdict(reply) != "NOERROR":
                raise KdnsError(f"{name} answers {verdict(reply)} to {apex}; `--zone` says which zone to compare")

    async def _look(self, questions: Sequence[tuple[Asked, Way]], tick: Callable[[], None]) -> _Looked:
        """The pairs of replies that differ."""
        found: _Looked = {}
        left = iter(questions)

        async def work() -> None:
            for asked, way in left:
                there, here = await asyncio.gather(self.there.ask(asked, way), self.here.ask(asked, way))
                pair = Pair(asked, shape_of(asked.name, self.zone), way, there, here)
                if differences(pair):
                    found[asked, way] = pair
                tick()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.at_once):
                    group.create_task(work())
        except* KdnsError as errors:
            raise errors.exceptions[0] from None
        return found

    def _still(self, pair: Pair, before: Pair) -> Iterator[Finding]:
        """What differs in both looks."""
        first = differences(before)
        for each in differences(pair):
            causes = [earlier.cause for earlier in first if earlier.aspect is each.aspect]
            if not causes:
                continue
            if each.aspect is Aspect.TTL and each.cause not in causes:
                each, row = _aging(pair, each)
            else:
                known = explanation(pair, each, self.truth)
                row = known.row if known else ""
            yield Finding(pair.asked, pair.shape.kind, (pair.way,), each, row)


_Looked = dict[tuple[Asked, Way], Pair]


def _aging(pair: Pair, difference: Difference) -> tuple[Difference, str]:
    """A TTL that goes down is that of an answer which is kept; one that is longer all the same was set otherwise."""
    there, here = difference.ttls
    if there < here or pair.shape.kind == "name outside":
        return msgspec.structs.replace(difference, cause="TTL goes down"), KEPT
    return msgspec.structs.replace(difference, cause="TTL goes down there, and is longer than here"), ""


def _merged(found: Iterable[Iterable[Finding]]) -> list[Finding]:
    """The same difference in several ways is one finding."""
    merged: dict[tuple[Asked, Aspect, str, str], Finding] = {}
    for findings in found:
        for each in findings:
            key = each.asked, each.difference.aspect, each.difference.cause, each.row
            ways = merged[key].ways if key in merged else ()
            merged[key] = msgspec.structs.replace(each, ways=(*ways, *each.ways))
    return sorted(merged.values(), key=lambda each: _place(each.asked))


def _place(asked: Asked) -> tuple[list[bytes], bool]:
    """Where it stands among others: by its labels from the right, and spelled as usual before spelled otherwise."""
    folded = asked.name.lower()
    return names.labels_of(folded)[::-1], asked.name != folded
