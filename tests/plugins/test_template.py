"""template: which questions a rule answers, what its templates make, and what is told of those that make nothing."""

from collections.abc import Coroutine
from typing import Any

import pytest

from kdns.chain import Answer, Block, Process, Request, failure
from kdns.metrics import TEMPLATE_FAILURES, TEMPLATE_MATCHES, TEMPLATE_RR_FAILURES, Metrics
from kdns.plugins.template import Template
from kdns.wire import names
from kdns.wire.records import Rcode, address, to_text, type_to_text
from tests.plugins import trial

BEHIND = Answer(Rcode.YXDOMAIN)

IP = """
template IN A example {
    match (^|[.])ip-(?P<a>[0-9]*)-(?P<b>[0-9]*)-(?P<c>[0-9]*)-(?P<d>[0-9]*)[.]example[.]$
    answer "{{ .Name }} 60 IN A {{ .Group.a }}.{{ .Group.b }}.{{ .Group.c }}.{{ .Group.d }}"
    fallthrough
}
template IN PTR in-addr.arpa {
    match ^(?P<d>[0-9]*)[.](?P<c>[0-9]*)[.](?P<b>[0-9]*)[.](?P<a>[0-9]*)[.]in-addr[.]arpa[.]$
    answer "{{ .Name }} 60 IN PTR ip-{{ .Group.a }}-{{ .Group.b }}-{{ .Group.c }}-{{ .Group.d }}.example."
}
"""
AZURE = """
template ANY ANY internal.cloudapp.net {
    match "^(?:[^.]+\\.){4,}internal\\.cloudapp\\.net\\.$"
    rcode NXDOMAIN
    fallthrough
}
template ANY ANY reddog.microsoft.com {
    rcode NXDOMAIN
}
"""
HEX = """
template IN A example {
    match "^ip0a(?P<b>[a-f0-9]{2})(?P<c>[a-f0-9]{2})(?P<d>[a-f0-9]{2})[.]example[.]$"
    answer "{{ .Name }} A 10{{ with .Group }}.{{parseInt .b 16 8}}.{{parseInt .c 16 8}}.{{parseInt .d 16 8}}{{ end }}"
    fallthrough
}
"""
MAIL = """
template IN MX example {
    match ^ip-10-(?P<b>[0-9]*)-(?P<c>[0-9]*)-(?P<d>[0-9]*)[.]example[.]$
    answer "{{ .Name }} 60 IN MX 10 {{ .Name }}"
    additional "{{ .Name }} 60 IN A 10.{{ .Group.b }}.{{ .Group.c }}.{{ .Group.d }}"
    authority "example. 60 IN NS ns0.example." "example. 60 IN NS ns1.example."
}
"""
GROUPS = "{{ .Name }} TXT '{{ index .Match 1 }}' {{ index .Group `2` }}{{ .Group.y }}"
NUMBER = "{{ .Name }} A 10.0.0.{{ parseInt (index .Match 1) 10 8 }}"
SERVERS = "example. 60 IN NS ns0.example., example. 60 IN NS ns1.example."
SOA = """
template ANY ANY invalid {
    rcode NXDOMAIN
    authority "invalid. 60 {{ .Class }} SOA ns.invalid. hostmaster.invalid. (1 60 60 60 60)"
    ederror 21 "Blocked according to RFC2606"
}
"""


def template(text: str, zones: str = ".", metrics: Metrics | None = None) -> Template:
    block = Block(
        Process(metrics or Metrics(), trial.Clock()), [names.from_text(zone).lower() for zone in zones.split()], 53
    )
    return trial.plugin(Template, text, block)


def said(plugin: Template, asked: str) -> str:
    """The answer in dig's notation, sections with a `;` between them; what goes on is `next`."""
    request = trial.request(asked)
    answer = trial.answer(plugin, request, BEHIND)
    if answer is BEHIND:
        return "next"
    assert answer.plugin == "template"
    assert request.keep is (not answer.cause)
    if answer.cause:
        return answer.cause
    assert answer.flags == (0 if answer.rcode == Rcode.SERVFAIL else 0x0400)
    sections = (answer.answer, answer.authority, answer.additional)
    shown = "; ".join(", ".join(map(to_text, section)) for section in sections if section)
    return " ".join(part for part in (Rcode(answer.rcode).name, shown) if part)


@pytest.mark.parametrize(
    ("text", "asked", "answer"),
    [
        (IP, "ip-10-1-2-3.example. A", "NOERROR ip-10-1-2-3.example. 60 IN A 10.1.2.3"),
        (IP, "A.IP-10-1-2-3.Example. A", "NOERROR a.ip-10-1-2-3.example. 60 IN A 10.1.2.3"),
        (IP, "ip-10-1-2.example. A", "next"),
        (IP, "ip-10-1-2-3.example. AAAA", "next"),
        (IP, "ip-10-1-2-3.example. ANY", "NOERROR ip-10-1-2-3.example. 60 IN A 10.1.2.3"),
        (IP, "ip-10-1-2-3.example.org. A", "next"),
        (IP, "3.2.1.10.in-addr.arpa. PTR", "NOERROR 3.2.1.10.in-addr.arpa. 60 IN PTR ip-10-1-2-3.example."),
        (IP, "2.1.10.in-addr.arpa. PTR", "SERVFAIL"),
        (AZURE, "a.b.c.d.internal.cloudapp.net. A", "NXDOMAIN"),
        (AZURE, "a.b.c.internal.cloudapp.net. A", "next"),
        (AZURE, "reddog.microsoft.com. TXT", "NXDOMAIN"),
        (HEX, "ip0a7b0102.example. A", "NOERROR ip0a7b0102.example. 3600 IN A 10.123.1.2"),
        (
            MAIL,
            "ip-10-1-2-3.example. MX",
            "NOERROR ip-10-1-2-3.example. 60 IN MX 10 ip-10-1-2-3.example.; "
            + SERVERS
            + "; ip-10-1-2-3.example. 60 IN A 10.1.2.3",
        ),
        (SOA, "a.invalid. A", "NXDOMAIN invalid. 60 IN SOA ns.invalid. hostmaster.invalid. 1 60 60 60 60"),
        ("template IN A", "a.org. A", "NOERROR"),
        ('template IN A {\n rcode SERVFAIL\n answer "a A 10.0.0.1"\n}', "a.org. A", "SERVFAIL"),
        ("template in any {\n rcode refused\n}", "a.org. A", "REFUSED"),
        # The first rule that fits answers, and each has zones of its own.
        ("template IN A {\n match ^a\n fallthrough\n}\ntemplate IN A {\n rcode NXDOMAIN\n}", "b.org. A", "NXDOMAIN"),
        ("template IN A {\n match ^a\n}\ntemplate IN A {\n rcode NXDOMAIN\n}", "b.org. A", "SERVFAIL"),
        ("template IN A {\n match ^a\n fallthrough net\n}", "b.org. A", "SERVFAIL"),
        ("template IN A {\n match ^a\n fallthrough net Org\n}", "b.org. A", "next"),
        ('template IN A net org {\n answer "{{ .Zone }} TXT z"\n}', "a.b.ORG. A", 'NOERROR org. 3600 IN TXT "z"'),
        ('template IN A org b.org {\n answer "{{ .Zone }} TXT z"\n}', "a.b.org. A", 'NOERROR b.org. 3600 IN TXT "z"'),
        (
            'template IN A {\n answer "{{ .Zone }} TXT {{ .Type }}{{ .Class }}"\n}',
            "a.org. A",
            'NOERROR . 3600 IN TXT "AIN"',
        ),
        (
            'template IN A {\n match ^a ^b\n match ^c(x)?\n answer "{{ .Name }} TXT {{ index .Match 0 }}"\n}',
            "c.org. A",
            'NOERROR c.org. 3600 IN TXT "c"',
        ),
        (
            f'template IN A {{\n match ^c(x)?(?P<y>.)\n answer "{GROUPS}"\n}}',
            "c.org. A",
            'NOERROR c.org. 3600 IN TXT "\'\'" ".."',
        ),
        (
            'template IN A {\n answer "{{ .Name }} TXT {{ .Meta `a/b` }}x{{ .Question.Qtype }}"\n}',
            "c.org. A",
            'NOERROR c.org. 3600 IN TXT "x1"',
        ),
        ('template IN A {\n answer "{{ if eq .Type `AAAA` }}{{ .Name }} AAAA ::1{{ end }}"\n}', "c.org. A", "NOERROR"),
        # What can't be filled in, or is no record
        (
            'template IN A {\n match ^(.)\n answer "{{ .Name }} A 10.0.0.{{ parseInt (index .Match 1) 10 8 }}"\n}',
            "x.org. A",
            f"answer `{NUMBER}`: parseInt: 'x' is no number of base 10 with 8 bits",
        ),
        (
            'template IN A {\n match (.)\n authority "{{ .Name }} A {{ .Group.zz }}"\n}',
            "x.org. A",
            "authority `{{ .Name }} A {{ .Group.zz }}`: a record of this type has 1 values, not 2",
        ),
    ],
)
def test_what_is_said_of_a_name(text: str, asked: str, answer: str) -> None:
    assert said(template(text), asked) == answer


def test_zones_are_those_of_the_block_unless_given() -> None:
    plugin = template("template IN A {\n rcode NXDOMAIN\n}", "Example.org")
    assert said(plugin, "a.example.org. A") == "NXDOMAIN"
    assert said(plugin, "example.net. A") == "next"


def test_an_extended_error_goes_with_the_answer() -> None:
    answer = trial.answer(template(SOA), trial.request("a.invalid. A"))
    assert answer.error == (21, "Blocked according to RFC2606")
    assert trial.answer(template("template IN A {\n ederror 15\n}"), trial.request("a. A")).error == (15, "")


@pytest.mark.parametrize(
    ("field", "asked", "shown", "keep"),
    [
        (".Remote", "a.org. A", "10.244.0.7", False),
        (".Message.Id", "a.org. A", "4711", False),
        (".Message.RecursionDesired", "a.org. A", "true", False),
        ("(index .Message.Question 0).Qtype", "a.org. A", "1", False),
        (".Question.Name", "a.org. A", "a.org.", True),
        (".Question.Name", "A.org. A", "A.org.", False),
        (".Question.Qclass", "A.org. A", "1", True),
        (".Name", "A.org. A", "a.org.", True),
    ],
)
def test_an_answer_is_kept_unless_it_says_more_than_the_question(
    field: str, asked: str, shown: str, keep: bool
) -> None:
    request = trial.request(asked)
    answer = trial.answer(template(f'template IN A {{\n answer "a.org TXT {{{{ {field} }}}}"\n}}'), request)
    assert list(map(to_text, answer.answer)) == [f'a.org. 3600 IN TXT "{shown}"']
    assert request.keep is keep


# Aliases

ALIAS = 'template IN ANY foogle.com {\n answer "foogle.com 60 IN CNAME google.com"\n}'


class Server:
    """The whole server as an alias's target sees it."""

    def __init__(self, says: Answer) -> None:
        self.says = says
        self.asked: list[str] = []

    def resolve(self, request: Request) -> Coroutine[Any, Any, Answer]:
        async def answer() -> Answer:
            self.asked.append(f"{names.to_text(request.query.qname)} {type_to_text(request.query.rtype)}")
            request.tags.add(("target",))
            return self.says

        return answer()


@pytest.mark.parametrize(
    ("says", "shown"),
    [
        (Answer(answer=[address(names.from_text("google.com"), 5, bytes(4))]), ["google.com. 5 IN A 0.0.0.0"]),
        (Answer(3), []),
        (failure("", rcode=5), []),
        (failure("i/o timeout", "forward"), "i/o timeout"),
        (failure("", "forward"), "google.com., where the alias leads: SERVFAIL of `forward`"),
    ],
)
def test_an_alias_is_followed(says: Answer, shown: list[str] | str) -> None:
    request = trial.request("foogle.com. A")
    request.server = server = Server(says)
    answer = trial.answer(template(ALIAS), request)
    assert server.asked == ["google.com. A"]
    assert request.tags == {("target",)}
    if isinstance(shown, str):
        assert (answer.rcode, answer.cause, answer.plugin) == (2, shown, "template")
    else:
        assert list(map(to_text, answer.answer)) == ["foogle.com. 60 IN CNAME google.com.", *shown]
        assert answer.rcode == 0


def test_only_the_first_alias_is_followed() -> None:
    request = trial.request("a.org. A")
    request.server = server = Server(Answer())
    trial.answer(template('template IN A {\n answer "a.org CNAME b.org" "a.org CNAME c.org"\n}'), request)
    assert server.asked == ["b.org. A"]


def test_other_types_are_not_followed() -> None:
    assert said(template(ALIAS), "foogle.com. CNAME") == "NOERROR foogle.com. 60 IN CNAME google.com."


# Classes


def test_questions_of_other_classes_end_here() -> None:
    plugin = template(
        'template CH TXT {\n answer "version.bind CH TXT kdns"\n match version\n fallthrough\n}\ntemplate ANY A'
    )
    assert set(plugin.classes) == {1, 3}
    assert template("template ANY ANY").classes == (1,)
    for name, rcode, count in (("version.bind", 0, 1), ("other.bind", 5, 0)):
        request = trial.request(f"{name}. TXT")
        request.query.rclass = 3
        answer = trial.answer(plugin, request)
        assert (answer.rcode, len(answer.answer)) == (rcode, count)


# Metrics


def test_what_was_answered_and_what_failed_is_counted() -> None:
    metrics = Metrics()
    text = """template IN ANY org {
    answer "{{ .Name }} TXT {{ if eq .Type `A` }}{{ index .Match 5 }}{{ end }} {{ if eq .Type `TXT` }}x{{ end }}"
}"""
    plugin = template(text, metrics=metrics)
    for rtype in ("A", "A", "TXT", "MX", "TYPE65280", "TYPE65281"):
        trial.answer(plugin, trial.request(f"a.org. {rtype}"))
    place = ("dns://:53", "org.", "", "IN")
    written = text.split('"')[1]
    values = metrics._values
    assert values[TEMPLATE_MATCHES] == {(*place, "A"): 2, (*place, "TXT"): 1, (*place, "MX"): 1, (*place, "other"): 2}
    assert values[TEMPLATE_FAILURES] == {(*place, "A", "answer", written): 2}
    assert values[TEMPLATE_RR_FAILURES] == {
        (*place, "MX", "answer", written): 1,
        (*place, "other", "answer", written): 2,
    }


# Mistakes


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        (
            "template",
            """error: `template` needs CLASS
  Corefile:2:1
    2 | template
      | ^^^^^^^^
  expected `template CLASS TYPE [ZONES...]`
error: `template` needs TYPE
  Corefile:2:1
    2 | template
      | ^^^^^^^^
  expected `template CLASS TYPE [ZONES...]`""",
        ),
        (
            "template XX QUAD",
            """error: CLASS of `template` takes a class
  Corefile:2:10
    2 | template XX QUAD
      |          ^^
  expected `IN`, `CH`, `HS` or `ANY`, found `XX`
error: TYPE of `template` takes a type
  Corefile:2:13
    2 | template XX QUAD
      |             ^^^^
  expected a type of records, such as `A`, or `ANY`, found `QUAD`""",
        ),
        (
            'template IN A {\n answer "{{ .Name }} \\"x\\" {{ .Nam }}" "a.org 60 IN A x"\n}',
            """error: `answer`: there is no field `.Nam` here; did you mean `.Name`?
  Corefile:3:31
    3 |  answer "{{ .Name }} \\"x\\" {{ .Nam }}" "a.org 60 IN A x"
      |                               ^^^^
error: `answer`: this is no record: `x` doesn't fit the type
  Corefile:3:40
    3 |  answer "{{ .Name }} \\"x\\" {{ .Nam }}" "a.org 60 IN A x"
      |                                        ^^^^^^^^^^^^^^^^^""",
        ),
        (
            'template IN A {\n additional "{{ template `x` }}"\n}',
            """error: `additional`: `template` isn't supported
  Corefile:3:17
    3 |  additional "{{ template `x` }}"
      |                 ^^^^^^^^""",
        ),
        (
            "template IN A {\n match ( [a\n}",
            """error: `match` takes regular expressions
  Corefile:3:8
    3 |  match ( [a
      |        ^
  expected a regular expression (missing ): (), found `(`
error: `match` takes regular expressions
  Corefile:3:10
    3 |  match ( [a
      |          ^^
  expected a regular expression (missing ]: [a), found `[a`""",
        ),
        (
            "template IN A {\n rcode NXDOMAN\n ederror x\n}",
            """error: `rcode` takes a response code
  Corefile:3:8
    3 |  rcode NXDOMAN
      |        ^^^^^^^
  expected a response code, such as `NXDOMAIN`, found `NXDOMAN`
hint: did you mean `NXDOMAIN`?
error: `ederror` takes a number and perhaps a reason
  Corefile:4:10
    4 |  ederror x
      |          ^
  expected a number of RFC 8914, 0 to 65535, found `x`""",
        ),
        (
            "template IN A {\n upstream\n}",
            """warning: `upstream` has no effect
  Corefile:3:2
    3 |  upstream
      |  ^^^^^^^^
hint: kdns resolves such names through itself: delete the line""",
        ),
    ],
)
def test_what_it_does_not_take_is_told(text: str, drawn: str) -> None:
    assert trial.problems(Template, text) == drawn


def test_a_pattern_of_great_length_is_refused() -> None:
    drawn = trial.problems(Template, f"template IN A {{\n match {'a' * 10_001}\n}}")
    assert "expected a regular expression of at most 10000 characters" in drawn


ALIAS_FAILS = (
    "note: `answer`: where the target of the alias fails, the answer is SERVFAIL, and not the alias alone\n"
    "  Corefile:3:2\n"
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('template IN A {\n answer "{{ .Name }} 60 IN CNAME www.example.org."\n}', True),
        ('template ANY ANY {\n answer "a.example.org. cname {{ .Name }}"\n}', True),
        ('template IN AAAA {\n answer "{{ if .Name }}a. {{ .Class }} CNAME b.{{ end }}"\n}', True),
        # Nothing but A and AAAA is asked of the target.
        ('template IN CNAME {\n answer "{{ .Name }} 60 IN CNAME www.example.org."\n}', False),
        ('template IN A {\n answer "{{ .Name }} 60 IN CNAME www.example.org."\n rcode SERVFAIL\n}', False),
        ('template IN A {\n additional "{{ .Name }} 60 IN CNAME www.example.org."\n}', False),
        ('template IN ANY {\n answer "cname. 60 IN TXT CNAME"\n}', False),
        ('template IN A {\n answer "{{ .Name }} 60 IN A 192.0.2.1"\n}', False),
    ],
)
def test_that_an_alias_may_fail_is_told_where_the_answer_is_one(text: str, told: bool) -> None:
    drawn = trial.problems(Template, text)
    assert drawn.startswith(ALIAS_FAILS) if told else drawn == ""
