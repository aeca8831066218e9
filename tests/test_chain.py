"""Chains stepped by hand: answers at once, answers that wait, and the end of those that nobody waits for any more."""

import asyncio
import contextvars
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from kdns.chain import DEEPEST, Answer, ChainError, Next, Request, Waiter, failure, fold, start
from kdns.wire import names
from kdns.wire.query import Query
from kdns.wire.records import Rcode

Handler = Callable[[Request, Next], Coroutine[Any, Any, Answer]]
NAME = names.from_text("web.shop.svc.cluster.local.")
RUNNERS = [asyncio.run, uvloop.run]
on_both_loops = pytest.mark.parametrize("run", RUNNERS, ids=["asyncio", "uvloop"])


class Folded:
    """A server of one chain."""

    def __init__(self, *handlers: Handler) -> None:
        self.chain = fold(handlers)

    def resolve(self, request: Request) -> Coroutine[Any, Any, Answer]:
        return self.chain(request)


def request(*handlers: Handler) -> Request:
    return Request(Query(1, 0, NAME, names.labels_of(NAME), 1, 1), Folded(*handlers))


def never(outcome: object) -> None:
    raise AssertionError(f"told {outcome!r}")


def begin(*handlers: Handler, done: Callable[[Answer | BaseException], None] = never) -> Answer | Waiter:
    asked = request(*handlers)
    return start(asked.server.resolve(asked), done)


async def outcome_of(*handlers: Handler) -> object:
    """What a chain comes to, after it has waited at least once."""
    told: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    waiter = begin(*handlers, done=told.set_result)
    assert isinstance(waiter, Waiter)
    async with asyncio.timeout(5):
        return await told


async def two() -> int:
    await asyncio.sleep(0)
    return 2


# Answers at once


def test_an_answer_at_once_needs_no_loop_and_no_task() -> None:
    said = Answer(plugin="last")

    async def passing(request: Request, next: Next) -> Answer:
        return await next(request)

    async def last(request: Request, next: Next) -> Answer:
        return said

    assert begin(passing, passing, last) is said


def test_handlers_run_in_order_and_see_the_answer_on_the_way_back() -> None:
    steps: list[str] = []

    def noting(name: str) -> Handler:
        async def handle(request: Request, next: Next) -> Answer:
            steps.append(name)
            answer = await next(request)
            steps.append(name.upper())
            return answer

        return handle

    begin(noting("a"), noting("b"))
    assert steps == ["a", "b", "B", "A"]


def test_what_is_nobodys_is_refused() -> None:
    answer = begin()
    assert isinstance(answer, Answer)
    assert (answer.rcode, answer.flags, answer.unclaimed) == (Rcode.REFUSED, 0, True)


def test_an_error_at_once_reaches_who_started() -> None:
    async def broken(request: Request, next: Next) -> Answer:
        raise ValueError("oh")

    with pytest.raises(ValueError, match="oh"):
        begin(broken)


# Answers that wait


@on_both_loops
def test_what_waits_runs_in_a_task_of_its_own(run: Any) -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def slow() -> int:
        tasks.append(asyncio.current_task())
        return await two()

    async def handle(request: Request, next: Next) -> Answer:
        return Answer(rcode=await request.wait(slow()))

    async def main() -> None:
        answer = await outcome_of(handle)
        assert isinstance(answer, Answer)
        assert answer.rcode == 2
        assert tasks[0] not in (None, asyncio.current_task())

    run(main())


@on_both_loops
def test_a_chain_waits_as_often_as_it_likes(run: Any) -> None:
    async def outer(request: Request, next: Next) -> Answer:
        before = await request.wait(two())
        answer = await next(request)
        answer.rcode += before + await request.wait(two())
        return answer

    async def inner(request: Request, next: Next) -> Answer:
        return Answer(rcode=sum([await request.wait(two()) for _ in range(10)]))

    async def main() -> None:
        answer = await outcome_of(outer, inner)
        assert isinstance(answer, Answer)
        assert answer.rcode == 24

    run(main())


@on_both_loops
def test_an_error_of_what_was_waited_for_reaches_the_handler(run: Any) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise OSError("unreachable")

    async def handle(request: Request, next: Next) -> Answer:
        try:
            await request.wait(fails())
        except OSError as error:
            return failure(str(error))
        raise AssertionError

    async def main() -> None:
        answer = await outcome_of(handle)
        assert isinstance(answer, Answer)
        assert (answer.rcode, answer.cause) == (Rcode.SERVFAIL, "unreachable")

    run(main())


@on_both_loops
def test_an_error_that_no_handler_takes_is_told(run: Any) -> None:
    async def fails() -> None:
        raise OSError("unreachable")

    async def handle(request: Request, next: Next) -> Answer:
        await request.wait(fails())
        raise AssertionError

    async def main() -> None:
        assert isinstance(await outcome_of(handle), OSError)

    run(main())


@on_both_loops
def test_a_task_that_somebody_else_cancels_is_told(run: Any) -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def handle(request: Request, next: Next) -> Answer:
        await request.wait(cancelled())
        raise AssertionError

    async def main() -> None:
        assert isinstance(await outcome_of(handle), asyncio.CancelledError)

    run(main())


@on_both_loops
def test_time_outs_and_task_groups_work_inside_of_wait(run: Any) -> None:
    async def times_out() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timed out"
        return "not at all"

    async def grouped() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(two()) for _ in range(3)]
        return [task.result() for task in tasks]

    async def handle(request: Request, next: Next) -> Answer:
        cause = await request.wait(times_out())
        return Answer(rcode=sum(await request.wait(grouped())), cause=cause)

    async def main() -> None:
        answer = await outcome_of(handle)
        assert isinstance(answer, Answer)
        assert (answer.rcode, answer.cause) == (6, "timed out")

    run(main())


@on_both_loops
def test_context_variables_of_one_wait_are_its_own(run: Any) -> None:
    variable = contextvars.ContextVar("variable", default=0)

    async def sets() -> int:
        variable.set(variable.get() + 1)
        await asyncio.sleep(0)
        return variable.get()

    async def handle(request: Request, next: Next) -> Answer:
        return Answer(rcode=await request.wait(sets()) * 10 + await request.wait(sets()))

    async def main() -> None:
        answer = await outcome_of(handle)
        assert isinstance(answer, Answer)
        assert (answer.rcode, variable.get()) == (11, 0)

    run(main())


@on_both_loops
def test_many_chains_wait_side_by_side(run: Any) -> None:
    async def handle(request: Request, next: Next) -> Answer:
        return Answer(rcode=await request.wait(two()))

    async def main() -> None:
        answers = await asyncio.gather(*(outcome_of(handle) for _ in range(200)))
        assert {answer.rcode for answer in answers if isinstance(answer, Answer)} == {2}
        assert len(asyncio.all_tasks()) == 1

    run(main())


# Giving up


@on_both_loops
def test_cancel_cleans_up_in_the_handlers_and_in_what_they_wait_for(run: Any) -> None:
    cleaned: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("task")

    async def outer(request: Request, next: Next) -> Answer:
        try:
            return await next(request)
        finally:
            cleaned.append("outer")

    async def inner(request: Request, next: Next) -> Answer:
        try:
            await request.wait(endless())
        finally:
            cleaned.append("inner")
        raise AssertionError

    async def main() -> None:
        waiter = begin(outer, inner)
        assert isinstance(waiter, Waiter)
        await asyncio.sleep(0.01)
        waiter.cancel()
        assert cleaned == ["inner", "outer"]
        await asyncio.sleep(0.01)
        assert cleaned == ["inner", "outer", "task"]
        assert len(asyncio.all_tasks()) == 1

    run(main())


@on_both_loops
def test_cancel_before_the_task_has_begun_leaves_nothing(run: Any) -> None:
    async def handle(request: Request, next: Next) -> Answer:
        await request.wait(asyncio.sleep(100))
        raise AssertionError

    async def main() -> None:
        waiter = begin(handle)
        assert isinstance(waiter, Waiter)
        waiter.cancel()
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1

    run(main())


@on_both_loops
def test_cancel_in_the_turn_in_which_the_task_ended_tells_nobody(run: Any) -> None:
    async def handle(request: Request, next: Next) -> Answer:
        return Answer(rcode=await request.wait(two()))

    async def main() -> None:
        told: list[object] = []
        waiter = begin(handle, done=told.append)
        assert isinstance(waiter, Waiter)
        task = waiter._task
        assert task is not None
        # What the loop does for a task that has ended: it has the call in hand when the waiter is cancelled.
        waiter.cancel()
        waiter._step(task)
        await asyncio.sleep(0.01)
        assert told == []

    run(main())


@on_both_loops
def test_cancel_is_done_once_and_does_nothing_after_the_answer(run: Any) -> None:
    async def handle(request: Request, next: Next) -> Answer:
        return Answer(rcode=await request.wait(two()))

    async def main() -> None:
        told: list[object] = []
        waiter = begin(handle, done=told.append)
        assert isinstance(waiter, Waiter)
        await asyncio.sleep(0.01)
        assert len(told) == 1
        waiter.cancel()
        again = begin(handle)
        assert isinstance(again, Waiter)
        again.cancel()
        again.cancel()
        await asyncio.sleep(0.01)
        assert len(told) == 1

    run(main())


@on_both_loops
def test_cancel_at_a_later_wait_ends_that_one(run: Any) -> None:
    ended: list[bool] = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def handle(request: Request, next: Next) -> Answer:
        await request.wait(two())
        await request.wait(endless())
        raise AssertionError

    async def main() -> None:
        waiter = begin(handle)
        assert isinstance(waiter, Waiter)
        await asyncio.sleep(0.01)
        waiter.cancel()
        await asyncio.sleep(0.01)
        assert ended == [True]

    run(main())


# What a handler must not do


@on_both_loops
@pytest.mark.parametrize("foreign", [lambda: asyncio.sleep(0), lambda: asyncio.sleep(0.01)], ids=["a turn", "a future"])
def test_awaiting_anything_else_is_an_error(run: Any, foreign: Callable[[], Any]) -> None:
    cleaned: list[bool] = []

    async def at_once(request: Request, next: Next) -> Answer:
        try:
            await foreign()
        finally:
            cleaned.append(True)
        raise AssertionError

    async def later(request: Request, next: Next) -> Answer:
        await request.wait(two())
        return await at_once(request, next)

    async def main() -> None:
        with pytest.raises(ChainError, match=r"only through request\.wait"):
            begin(at_once)
        assert isinstance(await outcome_of(later), ChainError)
        assert cleaned == [True, True]

    run(main())
    gc.collect()


# Questions within questions


def test_ask_gathers_tags_and_what_may_not_be_kept() -> None:
    async def handle(request: Request, next: Next) -> Answer:
        request.tags.add(("depth", bytes([request.depth])))
        if request.depth == 1:
            assert request.client == ("127.0.0.1", 0)
            return Answer(plugin="inner")
        answer = await request.ask(names.from_text("Other.example."), 28)
        return Answer(plugin=f"outer of {answer.plugin}")

    asked = request(handle)
    answer = start(asked.server.resolve(asked), never)
    assert isinstance(answer, Answer)
    assert answer.plugin == "outer of inner"
    assert asked.tags == {("depth", b"\0"), ("depth", b"\1")}
    assert not asked.keep


def test_ask_keeps_what_may_be_kept_and_never_takes_that_back() -> None:
    async def handle(request: Request, next: Next) -> Answer:
        return Answer() if request.depth else await request.ask(NAME, 1)

    asked = request(handle)
    start(asked.server.resolve(asked), never)
    assert asked.keep
    asked = request(handle)
    asked.keep = False
    start(asked.server.resolve(asked), never)
    assert not asked.keep


def test_ask_is_the_same_client_with_another_question() -> None:
    seen: list[Query] = []

    async def handle(request: Request, next: Next) -> Answer:
        if request.depth:
            seen.append(request.query)
            return Answer()
        return await request.ask(names.from_text("Other.Example."), 28)

    begin(handle)
    (query,) = seen
    assert (query.id, query.rtype, query.rclass) == (1, 28, 1)
    assert (query.spelled, query.qname) == (names.from_text("Other.Example."), names.from_text("other.example."))
    assert query.labels == [b"other", b"example"]


def test_questions_within_questions_end() -> None:
    depths: list[int] = []

    async def handle(request: Request, next: Next) -> Answer:
        depths.append(request.depth)
        return await request.ask(NAME, 1)

    answer = begin(handle)
    assert isinstance(answer, Answer)
    assert answer.rcode == Rcode.SERVFAIL
    assert "too deep" in answer.cause
    assert depths == list(range(DEEPEST + 1))


@on_both_loops
def test_a_question_within_a_question_may_wait(run: Any) -> None:
    async def handle(request: Request, next: Next) -> Answer:
        if request.depth == 3:
            return Answer(rcode=await request.wait(two()))
        answer = await request.ask(NAME, 1)
        answer.rcode += await request.wait(two())
        return answer

    async def main() -> None:
        answer = await outcome_of(handle)
        assert isinstance(answer, Answer)
        assert answer.rcode == 8

    run(main())


# What a handler learns about the client, and asks to be told


def test_whoever_reads_the_client_is_not_kept() -> None:
    for read in (lambda asked: asked.client, lambda asked: asked.local):
        asked = request()
        assert asked.keep
        read(asked)
        assert not asked.keep


def test_the_reply_is_told_to_all_who_asked() -> None:
    told: list[bytes] = []
    asked = request()
    asked.after_reply(lambda reply, answer: told.append(reply))
    asked.after_reply(lambda reply, answer: told.append(reply))
    asked.replied(b"reply", Answer())
    assert told == [b"reply", b"reply"]
    assert not asked.keep


def test_a_reply_to_no_client_is_told_to_nobody() -> None:
    told: list[bytes] = []
    asked = request()
    asked.after_reply(lambda reply, answer: told.append(reply))
    asked.tell_nobody()
    asked.replied(b"reply", Answer())
    assert told == []
