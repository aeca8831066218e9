"""log: whose queries get a line, what stands in it, and which replies may still be kept."""

import json
import re
from pathlib import Path

import pytest

from kdns.chain import Answer, Request, failure
from kdns.logs import LONGEST_LINE_BYTES
from kdns.plugins.log import Log
from kdns.wire import names
from kdns.wire.records import address, soa
from tests.plugins import trial

WEB = names.from_text("web.shop.svc.cluster.local")
ZONE = names.from_text("cluster.local")
FOUND = Answer(answer=[address(WEB, 5, bytes((10, 1, 0, 7)))])
NODATA = Answer(authority=[soa(ZONE, 5, ZONE, ZONE, 1, 5)])
NXDOMAIN = Answer(3, authority=[soa(ZONE, 5, ZONE, ZONE, 1, 5)])


def line_of(corefile: str, request: Request, behind: Answer = FOUND) -> list[str]:
    clock = trial.Clock()
    log = trial.plugin(Log, corefile, trial.block(clock))
    clock.now += 0.000112
    with trial.log_lines() as logged:
        trial.answer(log, request, behind)
    return logged


def test_the_common_line_is_coredns_own() -> None:
    (logged,) = line_of("log", trial.request())
    question = '"A IN web.shop.svc.cluster.local. udp 44 false 512"'
    assert logged == f"[INFO] 10.244.0.7:41234 - 4711 {question} NOERROR qr,aa,rd 60 0.000112s"


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("{common}", 'udp 44 false 512" NOERROR qr,aa,rd 60 0.000112s'),
        ("{combined}", 'NOERROR qr,aa,rd 60 0.000112s "0"'),
        ("{type} {class} {name} {proto}", "A IN web.shop.svc.cluster.local. udp"),
        ("{name}", "web.shop.svc.cluster.local."),
        ("{remote} {port} {local}", "10.244.0.7 41234 10.96.0.10"),
        ("{size}/{rsize} {>id} {>opcode}", "44/60 4711 0"),
        ("{>do} {>bufsize} {rcode} {>rflags}", "false 512 NOERROR qr,aa,rd"),
        ("{/kubernetes/namespace} {nothing} { {}", "- {nothing} { {}"),
    ],
)
def test_a_format_has_its_placeholders_filled_in(form: str, line: str) -> None:
    (logged,) = line_of(f'log . "{form}"', trial.request())
    assert logged.startswith("[INFO] ")
    assert logged.endswith(line)


def test_an_address_of_ipv6_stands_in_brackets_and_edns_is_told() -> None:
    request = trial.request(transport="tcp", client=("2001:db8::7", 5), local=("2001:db8::53", 53))
    request.query.edns, request.query.do, request.query.size = True, True, 1232
    (logged,) = line_of('log . "{remote}:{port} {local} {proto} {size} {>do} {>bufsize}"', request)
    assert logged == "[INFO] [2001:db8::7]:5 [2001:db8::53] tcp 55 true 1232"


def test_what_a_client_asks_for_cannot_make_a_line_of_its_own() -> None:
    (logged,) = line_of('log . "{name}"', trial.request("a\\010\\027\\[INFO]\\255.cluster.local. A"))
    assert logged == "[INFO] a\\010\\027[info]\\255.cluster.local."


@pytest.mark.parametrize(
    ("corefile", "behind", "told"),
    [
        ("log", FOUND, True),
        ("log {\n class all\n}", failure(""), True),
        ("log {\n class success\n}", FOUND, True),
        ("log {\n class success\n}", NODATA, False),
        ("log {\n class success\n}", Answer(), True),
        ("log {\n class denial\n}", NODATA, True),
        ("log {\n class denial\n}", NXDOMAIN, True),
        ("log {\n class denial\n}", FOUND, False),
        ("log {\n class error\n}", failure("", rcode=5), True),
        ("log {\n class error\n}", NXDOMAIN, False),
        ("log {\n class error\n class denial\n}", NXDOMAIN, True),
        ("log {\n class success error\n}", NXDOMAIN, False),
        ("log cluster.local", FOUND, True),
        ("log Shop.SVC.cluster.local.", FOUND, True),
        ("log hop.svc.cluster.local", FOUND, False),
        ("log example.org", FOUND, False),
        ("log example.org cluster.local", FOUND, True),
        ("log {name}", FOUND, False),
        ("log cluster.local {\n class error\n}\nlog", FOUND, False),
        ("log example.org {\n class error\n}\nlog", FOUND, True),
    ],
)
def test_names_and_classes_choose_and_what_has_no_line_may_be_kept(corefile: str, behind: Answer, told: bool) -> None:
    request = trial.request()
    assert bool(line_of(corefile, request, behind)) is told
    assert request.keep is not told


def test_a_line_of_json_has_nothing_before_it_and_the_fields_of_the_page() -> None:
    (logged,) = line_of("log {\n format json\n}", trial.request())
    fields = {
        "time": "2023-11-14T22:13:20Z",
        "remote": "10.244.0.7",
        "port": 41234,
        "local": "10.96.0.10",
        "proto": "udp",
        "id": 4711,
        "opcode": 0,
        "type": "A",
        "class": "IN",
        "name": "web.shop.svc.cluster.local.",
        "size": 44,
        "do": False,
        "bufsize": 512,
        "rcode": "NOERROR",
        "rflags": ["qr", "aa", "rd"],
        "rsize": 60,
        "duration": 0.000112,
        "zone": ".",
        "plugin": "",
        "error": "",
    }
    assert list(json.loads(logged).items()) == list(fields.items())
    page = (Path(__file__).parents[2] / "docs" / "plugins" / "log.md").read_text()
    told = page.partition("| Field |")[2].partition("\n\n")[0]
    assert re.findall(r"`([a-z]+)`", "".join(line.split("|")[1] for line in told.splitlines()[2:])) == list(fields)


def test_what_a_client_asks_for_is_text_within_the_line_of_json() -> None:
    labels = "\\010\\027\\034},{\\255\\092"
    request = trial.request(f"{labels}.cluster.local. A")
    (logged,) = line_of(
        "log {\n format json\n}", request, failure('a "cause"\n\x1b[31m of éver\x7f' + 2000 * "x", "forward")
    )
    found = json.loads(logged)
    assert logged.isprintable()
    assert found["name"] == '\\010\\027\\"},{\\255\\\\.cluster.local.'
    assert found["error"].startswith('a "cause"\\010\\027[31m of éver\\127xxx')
    assert (found["rcode"], found["plugin"], len(found["error"])) == ("SERVFAIL", "forward", 512)


def test_the_longest_line_of_json_is_written_whole() -> None:
    request = trial.request(".".join(["\\255" * 63, "\\255" * 63, "\\255" * 63, "\\255" * 61]) + ". A")
    (logged,) = line_of("log {\n format json\n}", request, failure("\x07" * 2000, "forward"))
    assert len(logged) < LONGEST_LINE_BYTES


def test_each_use_has_a_format_of_its_own() -> None:
    lines = 'log example.org "{name}"\nlog cluster.local "{type}"'
    assert line_of(lines, trial.request()) == ["[INFO] A"]
    assert line_of(lines, trial.request("example.org. A")) == ["[INFO] example.org."]


def test_a_question_of_the_servers_own_has_no_line() -> None:
    request = trial.request()
    request.depth = 1
    assert line_of("log", request) == []


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("log {\n class some\n}", "`class` takes `all`, `success`, `denial` or `error`"),
        ("log {\n class\n}", "found nothing"),
        ("log {\n format text\n}", "`format` takes `json`"),
        ('log . "{name}" {\n format json\n}', "`format json` takes the place of a FORMAT with placeholders"),
        ('log "{combined}"', "warning: `{combined}` is taken for a name"),
        ('log "{combined}"', 'hint: a format stands behind one: `log . "{combined}"`'),
        ('log . "{nam}"', "warning: `{nam}` is no placeholder"),
        ('log . "{nam}"', "hint: did you mean `{name}`?"),
        ('log . "{x-y-z-0}"', "hint: it stays as it is in each line"),
        ("log a..b", "a name (a label has 1 to 63 bytes), found `a..b`"),
    ],
)
def test_what_it_does_not_take_is_told(line: str, part: str) -> None:
    assert part in trial.problems(Log, line)


@pytest.mark.parametrize(
    "line", ["log", "log .", 'log . "{common} {>do} {/label}"', 'log . "{combined}"', 'log . "{{name}"']
)
def test_of_what_it_takes_nothing_is_told(line: str) -> None:
    assert trial.problems(Log, line) == ""
