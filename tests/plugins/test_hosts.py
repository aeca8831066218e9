"""hosts: whose names it has, what it says of them, whom it leaves to the next one, and the file's life."""

import asyncio
import os
from pathlib import Path

import pytest

from kdns.chain import Answer, Block, Process, fold
from kdns.metrics import HOSTS_ENTRIES, HOSTS_RELOADED, Metrics
from kdns.plugins.hosts import LINES_A_TURN, Hosts
from kdns.responder import Responder, Site
from kdns.wire import names
from kdns.wire.message import decode
from kdns.wire.records import Rcode, to_text
from tests.plugins import trial

PTR = "5.0.0.10.in-addr.arpa. 3600 IN PTR example.net."
BEHIND = Answer(Rcode.YXDOMAIN)
LINES = """
10.0.0.1 example.org www.example.org
10.0.0.2 WWW.example.org
fd00::1 www.example.org
10.0.0.3 *.apps.example.org
10.0.0.4 a.apps.example.org
10.0.0.5 example.net
"""


def hosts(text: str, zones: str = ".") -> Hosts:
    block = Block(Process(Metrics(), trial.Clock()), [names.from_text(zone) for zone in zones.split()], 53)
    return trial.plugin(Hosts, text, block)


def said(plugin: Hosts, question: str) -> str:
    """The answer in one word or its records; what it leaves to the next one is `next`."""
    answer = trial.answer(plugin, trial.request(question), BEHIND)
    if answer is BEHIND:
        return "next"
    assert answer.plugin == "hosts"
    assert not answer.authority
    if answer.rcode:
        return Rcode(answer.rcode).name
    assert answer.flags == 0x0400
    return "; ".join(map(to_text, answer.answer)) or "no data"


@pytest.mark.parametrize(
    ("options", "asked", "answer"),
    [
        ("", "example.org. A", "example.org. 3600 IN A 10.0.0.1"),
        ("", "EXAMPLE.org. A", "example.org. 3600 IN A 10.0.0.1"),
        ("", "www.example.org. A", "www.example.org. 3600 IN A 10.0.0.1; www.example.org. 3600 IN A 10.0.0.2"),
        ("", "www.example.org. AAAA", "www.example.org. 3600 IN AAAA fd00::1"),
        ("", "example.org. AAAA", "no data"),
        ("", "example.org. TXT", "no data"),
        ("", "example.org. ANY", "no data"),
        ("", "nobody.example.org. A", "SERVFAIL"),
        ("", "nobody.example.org. TXT", "SERVFAIL"),
        ("", ". A", "SERVFAIL"),
        ("", "1.0.0.10.in-addr.arpa. PTR", "PTR example.org; PTR www.example.org"),
        ("", "9.0.0.10.in-addr.arpa. PTR", "next"),
        ("", "1.0.0.10.in-addr.arpa. A", "SERVFAIL"),
        ("", "example.org. PTR", "next"),
        ("", "b.apps.example.org. A", "b.apps.example.org. 3600 IN A 10.0.0.3"),
        ("", "a.apps.example.org. A", "a.apps.example.org. 3600 IN A 10.0.0.4"),
        ("", "a.apps.example.org. AAAA", "no data"),
        ("", "apps.example.org. A", "SERVFAIL"),
        ("", "b.c.apps.example.org. A", "SERVFAIL"),
        ("", "3.0.0.10.in-addr.arpa. PTR", "next"),
        ("ttl 60", "example.org. A", "example.org. 60 IN A 10.0.0.1"),
        ("no_reverse", "1.0.0.10.in-addr.arpa. PTR", "next"),
        ("fallthrough", "nobody.example.org. A", "next"),
        ("fallthrough", "example.org. TXT", "no data"),
        ("fallthrough", "example.org. AAAA", "no data"),
        ("fallthrough example.com Example.ORG", "nobody.example.org. A", "next"),
        ("fallthrough example.com", "nobody.example.org. A", "SERVFAIL"),
        ("fallthrough example.com\nfallthrough example.org", "nobody.example.org. A", "next"),
        ("fallthrough\nfallthrough_unsupported", "example.org. TXT", "next"),
        ("fallthrough\nfallthrough_unsupported", "example.org. AAAA", "no data"),
        ("fallthrough example.com\nfallthrough_unsupported", "example.org. TXT", "no data"),
    ],
)
def test_what_is_said_of_a_name(options: str, asked: str, answer: str) -> None:
    plugin = hosts(f"hosts {{\n{LINES}\n{options}\n}}")
    found = said(plugin, asked)
    if answer.startswith("PTR"):
        answer = answer.replace("PTR ", "1.0.0.10.in-addr.arpa. 3600 IN PTR ").replace(";", ".;") + "."
    assert found == answer


@pytest.mark.parametrize(
    ("line", "zones", "asked", "answer"),
    [
        ("hosts FILE example.net", ".", "example.net. A", "example.net. 3600 IN A 10.0.0.5"),
        ("hosts FILE example.net", ".", "example.org. A", "next"),
        ("hosts FILE example.net", ".", "nobody.example.org. A", "next"),
        ("hosts FILE example.net", ".", "nobody.example.net. A", "SERVFAIL"),
        ("hosts FILE example.net", ".", "1.0.0.10.in-addr.arpa. PTR", "next"),
        ("hosts FILE example.net", ".", "5.0.0.10.in-addr.arpa. PTR", PTR),
        ("hosts FILE", "example.net", "example.net. A", "example.net. 3600 IN A 10.0.0.5"),
        ("hosts FILE", "example.net 10.in-addr.arpa", "nobody.example.net. A", "SERVFAIL"),
        ("hosts FILE", "example.net 10.in-addr.arpa", "5.0.0.10.in-addr.arpa. PTR", PTR),
        ("hosts FILE example.net", ".", "notexample.net. A", "next"),
    ],
)
def test_only_the_names_of_its_zones_are_its_own(line: str, zones: str, asked: str, answer: str) -> None:
    assert said(hosts(f"{line} {{\n{LINES}\n}}", zones), asked) == answer


# The file


def read(plugin: Hosts) -> list[str]:
    """Look at the file once; the lines that are logged."""
    with trial.log_lines() as logged:
        asyncio.run(plugin._look())
    return logged


def test_lines_of_the_corefile_come_after_those_of_the_file_and_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("10.0.0.9\texample.org  # the first\n\n# nothing\n10.0.0.1 example.org\n")
    plugin = hosts(f"hosts {path} {{\n{LINES}\n}}")
    assert read(plugin) == []
    assert said(plugin, "example.org. A") == "example.org. 3600 IN A 10.0.0.9; example.org. 3600 IN A 10.0.0.1"


def test_what_is_no_address_or_no_name_is_skipped_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    lines = ["10.0.0.256 a.org", "10.0.0.1", "b.org 10.0.0.1", "10.0.0.1 a..b c.org"]
    lines += ["fe80::1%eth0 d.org", "::ffff:10.0.0.7 e.org"]
    path.write_bytes("\r\n".join(lines).encode() + b"\n10.0.0.8 \xff\xfe.org f.org")
    plugin = hosts(f"hosts {path}")
    read(plugin)
    assert said(plugin, "a.org. A") == said(plugin, "b.org. A") == "SERVFAIL"
    assert said(plugin, "c.org. A") == "c.org. 3600 IN A 10.0.0.1"
    assert said(plugin, "d.org. AAAA") == "d.org. 3600 IN AAAA fe80::1"
    assert said(plugin, "e.org. A") == "e.org. 3600 IN A 10.0.0.7"
    assert said(plugin, "f.org. A") == "f.org. 3600 IN A 10.0.0.8"


def test_a_file_that_is_not_there_costs_one_line_and_may_come(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    plugin = hosts(f"hosts {path} {{\n10.0.0.1 example.org\n}}")
    assert read(plugin) == [f"[WARNING] plugin/hosts: File does not exist: {path}"]
    assert read(plugin) == []
    assert said(plugin, "example.org. A") == "example.org. 3600 IN A 10.0.0.1"
    path.write_text("10.0.0.2 example.net\n")
    assert read(plugin) == []
    assert said(plugin, "example.net. A") == "example.net. 3600 IN A 10.0.0.2"
    path.unlink()
    assert read(plugin) == [f"[WARNING] plugin/hosts: File does not exist: {path}"]
    assert said(plugin, "example.net. A") == "example.net. 3600 IN A 10.0.0.2"


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    os.mkfifo(path)
    assert read(hosts(f"hosts {path}")) == [f"[WARNING] plugin/hosts: {path} can't be read: not a regular file"]


def test_a_long_file_leaves_the_loop_its_turns(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("".join(f"10.0.{number >> 8}.{number & 255} h{number}.org\n" for number in range(3 * LINES_A_TURN)))
    plugin = hosts(f"hosts {path}")
    turns = 0

    async def story() -> None:
        nonlocal turns
        looking = asyncio.create_task(plugin._look())
        while not looking.done():
            # The old table holds until the new one is whole.
            assert said(plugin, "h0.org. A") == "SERVFAIL"
            turns += 1
            await asyncio.sleep(0)

    asyncio.run(story())
    assert turns >= 3
    assert said(plugin, "h1499.org. A") == "h1499.org. 3600 IN A 10.0.5.219"


def test_it_starts_when_the_file_has_been_read_and_looks_again(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("10.0.0.1 example.org\n")
    plugin = hosts(f"hosts {path} {{\nreload 10ms\n}}")

    async def story() -> None:
        feed = asyncio.create_task(plugin.feed())
        await plugin.started()
        assert said(plugin, "example.org. A") == "example.org. 3600 IN A 10.0.0.1"
        path.write_text("10.0.0.20 example.org\n")
        await asyncio.sleep(0.2)
        assert said(plugin, "example.org. A") == "example.org. 3600 IN A 10.0.0.20"
        feed.cancel()

    asyncio.run(asyncio.wait_for(story(), 10))


def test_a_file_that_is_read_once_ends_the_work(tmp_path: Path) -> None:
    asyncio.run(asyncio.wait_for(hosts(f"hosts {tmp_path}/none {{\nreload 0s\n}}").feed(), 10))


def test_metrics_tell_entries_and_the_time_of_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("10.0.0.1 example.org www.example.org\n")
    block = trial.block()
    block.zones = (names.ROOT,)
    plugin = trial.plugin(Hosts, f"hosts {path} {{\n10.0.0.2 example.org *.example.org\n}}", block)
    read(plugin)
    values = block.process.metrics._values
    # Three names of addresses and one with an asterisk; the addresses lead back to three.
    assert values[HOSTS_ENTRIES] == {(str(path),): 4 + 3}
    assert values[HOSTS_RELOADED] == {(): trial.NOON}


# Kept answers


def test_kept_answers_are_forgotten_with_a_change_of_the_file_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("10.0.0.1 example.org\n")
    process = Process(Metrics(), trial.Clock())
    block = Block(process, [names.ROOT], 53)
    plugin = trial.plugin(Hosts, f"hosts {path} {{\n fallthrough\n}}", block)
    read(plugin)

    async def behind(request: object, next: object) -> Answer:
        return Answer(Rcode.YXDOMAIN)

    responder = Responder([Site(names.ROOT, fold([plugin.handle, behind]), "dns://:53")], process, process.metrics)

    def question(name: str) -> bytes:
        return b"\0\7\1\0\0\1\0\0\0\0\0\0" + names.from_text(name) + b"\0\1\0\1"

    def ask(name: str) -> tuple[int, list[str]]:
        reply = responder.respond(question(name), "udp", ("192.0.2.7", 4711), ("192.0.2.1", 53), lambda data: None)
        assert isinstance(reply, bytes)
        return decode(reply).rcode, list(map(to_text, decode(reply).answer))

    def kept(name: str) -> bool:
        return responder.answers("udp", False).find(question(name)) is not None

    assert ask("example.org") == (0, ["example.org. 3600 IN A 10.0.0.1"])
    # What has no records is kept from the second question on.
    assert ask("new.org") == ask("new.org") == (Rcode.YXDOMAIN, [])
    assert ask("1.0.0.10.in-addr.arpa")[0] == Rcode.YXDOMAIN
    read(plugin)
    assert kept("example.org")
    assert kept("new.org")
    path.write_text("10.0.0.2 example.org\n10.0.0.3 new.org\n")
    read(plugin)
    assert not kept("example.org")
    assert not kept("new.org")
    assert ask("example.org") == (0, ["example.org. 3600 IN A 10.0.0.2"])
    assert ask("new.org") == (0, ["new.org. 3600 IN A 10.0.0.3"])


def test_a_name_of_another_zone_depends_on_no_file() -> None:
    plugin = hosts("hosts /dev/null example.org")
    request = trial.request("example.net. A")
    trial.answer(plugin, request, BEHIND)
    assert request.tags == set()
    assert request.keep


# Mistakes


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        (
            "hosts {\n tll 5\n}",
            """error: `tll` can't be read
  Corefile:3:2
    3 |  tll 5
      |  ^^^
  expected an option, or an address and its names, found `tll`
hint: did you mean `ttl`?""",
        ),
        (
            "hosts {\n 10.0.0.1\n}",
            """error: `10.0.0.1` can't be read
  Corefile:3:2
    3 |  10.0.0.1
      |  ^^^^^^^^
  expected an address and its names, found `10.0.0.1`""",
        ),
        (
            "hosts {\n 10.0.0.1 a..b c " + "d" * 64 + "\n}",
            "error: `a..b` is no name: a label has 1 to 63 bytes\n"
            "  Corefile:3:11\n"
            "    3 |  10.0.0.1 a..b c " + "d" * 64 + "\n"
            "      |           ^^^^\n"
            "error: `" + "d" * 64 + "` is no name: a label has 1 to 63 bytes\n"
            "  Corefile:3:18\n"
            "    3 |  10.0.0.1 a..b c " + "d" * 64 + "\n"
            "      |                  " + "^" * 64,
        ),
        (
            "hosts {\n ttl 0\n}",
            """error: `ttl` takes a number of seconds
  Corefile:3:6
    3 |  ttl 0
      |      ^
  expected 1 to 65535, found `0`
hint: the default is `ttl 3600`""",
        ),
        (
            "hosts {\n reload -5s\n}",
            """error: `reload` takes a duration
  Corefile:3:9
    3 |  reload -5s
      |         ^^^
  expected 0s or more, found `-5s`
hint: the default is `reload 5s`""",
        ),
        (
            "hosts {\n fallthrough_unsupported\n}",
            """error: `fallthrough_unsupported` needs `fallthrough`
  Corefile:3:2
    3 |  fallthrough_unsupported
      |  ^^^^^^^^^^^^^^^^^^^^^^^""",
        ),
        (
            "hosts {\n fallthrough\n 10.0.0.1 a\n}",
            """warning: CoreDNS takes no entries behind `fallthrough`
  Corefile:4:2
    4 |  10.0.0.1 a
      |  ^^^^^^^^
hint: move `fallthrough` to the end""",
        ),
        (
            "hosts\nhosts",
            """error: `hosts` can only be used once in a server block
  Corefile:3:1
    3 | hosts
      | ^^^^^
hint: the first is in line 2 of Corefile""",
        ),
        (
            "hosts a b..c",
            """error: ZONES of `hosts`: `b..c` isn't a valid domain name: it has an empty label
  Corefile:2:9
    2 | hosts a b..c
      |         ^^^^""",
        ),
    ],
)
def test_what_it_does_not_take_is_told(text: str, drawn: str) -> None:
    assert trial.problems(Hosts, text) == drawn
