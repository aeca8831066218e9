"""loop: a question that comes back is a loop, said loudly; what would be forwarded is SERVFAIL until it is gone."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest
import uvloop

from kdns import corefile
from kdns.app import App, build
from kdns.chain import Process
from kdns.metrics import LOOP_DETECTED, Metrics
from kdns.plugins import loop as module
from kdns.plugins.loop import Loop
from kdns.upstream.exchange import exchange
from kdns.upstream.sockets import Upstream
from kdns.wire import names
from kdns.wire.message import Message
from kdns.wire.records import Rcode, Type, to_text
from tests import started
from tests.plugins import trial
from tests.upstream.fake import Step, says, silence, upstream

Run = Callable[[Coroutine[None, None, None]], None]
RIGHT = b"\x0a\x00\x00\x01"
HINFO = b"\x00\x0d"


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    return uvloop.run if request.param == "uvloop" else asyncio.run


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN_SECONDS", 0.05)


@asynccontextmanager
async def serving(text: str) -> AsyncIterator[Process]:
    """A running server of that Corefile."""
    process = Process(Metrics())
    app = App(build(corefile.parse(text, "Corefile"), process))
    await app.start()
    try:
        yield process
    finally:
        await app.stop()


async def ask(port: int, question: str) -> Message:
    name, rtype = question.split()
    return await exchange(names.from_text(name), getattr(Type, rtype), Upstream("127.0.0.1", port), 4)


def loop_of(process: Process) -> Loop:
    return next(plugin for plugin in process.plugins if isinstance(plugin, Loop))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(8):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def detected(process: Process) -> dict[tuple[str, ...], float]:
    return dict(process.metrics._values[LOOP_DETECTED])


# A loop


@pytest.mark.parametrize(
    ("forward", "detour"),
    [
        pytest.param("forward . 127.0.0.1:{port}", "", id="forwarded to itself"),
        pytest.param("forward . 127.0.0.1:{port} {{\n force_tcp\n}}", "", id="over TCP"),
        pytest.param(
            "forward . 127.0.0.1:{other}",
            ".:{other} {{\n bind 127.0.0.1\n forward . 127.0.0.1:{port}\n}}",
            id="by way of another server",
        ),
    ],
)
def test_a_loop_is_told_and_forwarded_names_are_servfail_while_others_are_answered(
    run: Run, forward: str, detour: str
) -> None:
    port, other = started.free_port(), started.free_port()
    block = "{zone}:{{port}} {{{{\n bind 127.0.0.1\n {lines}\n}}}}\n"
    text = block.format(zone=".", lines=f"loop\n {forward}") + block.format(zone="here", lines="whoami") + detour
    text = text.format(port=port, other=other)

    async def story() -> None:
        with trial.log_lines() as lines:
            async with serving(text) as process:
                await until(lambda: loop_of(process).looping)
                failed = await ask(port, "www.example.org. A")
                assert (failed.rcode, failed.errors) == (
                    Rcode.SERVFAIL,
                    ((0, "the server's upstream leads back to the server"),),
                )
                assert (await ask(port, "here. A")).rcode == Rcode.NOERROR
                assert detected(process) == {(f"dns://127.0.0.1:{port}", "."): 1}
            assert detected(process) == {(f"dns://127.0.0.1:{port}", "."): 0}
        told = [line for line in lines if "plugin/loop" in line]
        assert told
        for line in told:
            assert line.startswith("[ERROR] plugin/loop: Loop (127.0.0.1:")
            words = 'detected for zone ".", see https://coredns.io/plugins/loop#troubleshooting. Query: "HINFO '
            assert f" -> :{port}) {words}" in line

    run(story())


def test_the_zone_of_the_block_is_what_is_asked_for(run: Run) -> None:
    port = started.free_port()
    text = f"example.org:{port} {{\n bind 127.0.0.1\n loop\n forward . 127.0.0.1:{port}\n}}"

    async def story() -> None:
        with trial.log_lines() as lines:
            async with serving(text) as process:
                await until(lambda: loop_of(process).looping)
        assert 'detected for zone "example.org.", ' in lines[-1] or 'detected for zone "example.org.", ' in lines[0]

    run(story())


def test_a_loop_that_is_gone_is_told_and_names_are_forwarded_again(run: Run) -> None:
    async def story() -> None:
        port = started.free_port()
        looping = True

        # An upstream that leads back at first, and later answers by itself.
        class Detour(asyncio.DatagramProtocol):
            def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
                self.transport = transport

            def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
                if looping:
                    tasks.append(asyncio.get_running_loop().create_task(self.pass_on(data, address)))
                else:
                    for reply in says(RIGHT)(data):
                        assert isinstance(reply, bytes)
                        self.transport.sendto(reply, address)

            async def pass_on(self, data: bytes, address: tuple[str, int]) -> None:
                replies: asyncio.Queue[bytes] = asyncio.Queue()

                class Back(asyncio.DatagramProtocol):
                    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
                        replies.put_nowait(data)

                transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                    Back, remote_addr=("127.0.0.1", port)
                )
                transport.sendto(data)
                self.transport.sendto(await replies.get(), address)
                transport.close()

        tasks: list[asyncio.Task[None]] = []
        detour, _ = await asyncio.get_running_loop().create_datagram_endpoint(Detour, local_addr=("127.0.0.1", 0))
        upstream_port = detour.get_extra_info("sockname")[1]
        text = f".:{port} {{\n bind 127.0.0.1\n loop\n forward . 127.0.0.1:{upstream_port}\n}}"
        with trial.log_lines() as lines:
            async with serving(text) as process:
                await until(lambda: loop_of(process).looping)
                assert (await ask(port, "www.example.org. A")).rcode == Rcode.SERVFAIL
                looping = False
                await until(lambda: not loop_of(process).looping)
                answer = await ask(port, "www.example.org. A")
                assert [to_text(record) for record in answer.answer] == ["www.example.org. 30 IN A 10.0.0.1"]
                assert list(detected(process).values()) == [0]
        assert '[INFO] plugin/loop: the loop for zone "." is gone' in lines
        detour.close()
        await asyncio.gather(*tasks)

    run(story())


# None


@pytest.mark.parametrize(
    ("step", "questions"),
    [
        pytest.param(says(rcode=3), 1, id="NXDOMAIN settles it"),
        pytest.param(says(), 1, id="no data too"),
        pytest.param(says(rcode=5), 1, id="REFUSED too"),
        pytest.param(says(rcode=2), 3, id="SERVFAIL may be a server that can't reach us yet"),
    ],
)
def test_it_asks_until_somebody_answers_and_says_nothing(
    run: Run, step: Step, questions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)

    async def story() -> None:
        async with upstream(step, step, says(rcode=3)) as fake:
            port = started.free_port()
            with trial.log_lines() as lines:
                async with serving(f".:{port} {{\n bind 127.0.0.1\n loop\n forward . {fake.upstream}\n}}") as process:
                    await until(lambda: len(fake.udp) >= questions)
                    await asyncio.sleep(0.1)
                    assert len(fake.udp) == questions
                    assert len({packet[12:] for packet in fake.udp}) == questions
                    assert not loop_of(process).looping
            assert not [line for line in lines if "plugin/loop" in line]
            assert detected(process) == {}

    run(story())


def test_a_name_that_comes_after_its_question_is_answered_is_no_loop(run: Run) -> None:
    async def story() -> None:
        async with upstream(says(rcode=3)) as fake:
            port = started.free_port()
            async with serving(f".:{port} {{\n bind 127.0.0.1\n loop\n forward . {fake.upstream}\n}}") as process:
                await until(lambda: bool(fake.udp))
                await asyncio.sleep(0.05)
                end = fake.udp[0].index(b"\x00", 12) + 1
                again = await exchange(fake.udp[0][12:end], Type.HINFO, Upstream("127.0.0.1", port), 4)
                assert again.rcode == Rcode.NXDOMAIN
                assert not loop_of(process).looping

    run(story())


def test_where_nothing_is_forwarded_nothing_is_found(run: Run) -> None:
    async def story() -> None:
        port = started.free_port()
        async with serving(f".:{port} {{\n bind 127.0.0.1\n loop\n whoami\n}}") as process:
            await asyncio.sleep(0.05)
            assert not loop_of(process).looping
            assert (await ask(port, "www.example.org. A")).rcode == Rcode.NOERROR

    run(story())


def test_it_ends_with_a_question_under_way(run: Run) -> None:
    async def story() -> None:
        async with upstream(silence) as fake:
            port = started.free_port()
            async with serving(f".:{port} {{\n bind 127.0.0.1\n loop\n forward . {fake.upstream}\n}}"):
                await until(lambda: bool(fake.udp))

    run(story())


def test_it_takes_no_arguments() -> None:
    assert "`loop` takes no arguments" in trial.problems(Loop, "loop .")
    assert "can only be used once" in trial.problems(Loop, "loop\nloop")
