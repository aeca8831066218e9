"""rewrite: what is asked behind it, what the client gets, and that exact invalidation holds for rewritten names."""

import asyncio
import re
import struct
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns import corefile
from kdns.app import build
from kdns.chain import Answer, Next, Process, Request, failure, start
from kdns.kubernetes.objects import Event, Synced
from kdns.metrics import Metrics
from kdns.plugins.rewrite import Rewrite
from kdns.responder import Responder
from kdns.upstream.question import Question
from kdns.wire import names
from kdns.wire.message import Message, decode
from kdns.wire.query import Query, parse
from kdns.wire.records import Rcode, Record, Type, address, soa, srv, to_text, type_from_text, type_to_text
from tests.kubernetes.test_cluster import QUESTIONS, START, histories, namespace, service
from tests.plugins import trial
from tests.test_kept import Kept, packet, without_serial
from tests.upstream.fake import says, upstream

IP = bytes((10, 1, 0, 7))


def name(text: str) -> bytes:
    return names.from_text(text)


def rewrite(*lines: str) -> Rewrite:
    return trial.plugin(Rewrite, "\n".join(lines))


class Behind:
    """The rest of the chain: notes what it is asked, and says what a function makes of that name."""

    def __init__(self, says: Answer | None = None) -> None:
        self.asked: list[str] = []
        self.says = says

    async def __call__(self, request: Request) -> Answer:
        query = request.query
        assert query.labels == names.labels_of(query.qname)
        self.asked.append(f"{names.to_text(query.qname)} {type_to_text(query.rtype)}")
        return self.says or Answer(answer=[address(query.qname, 30, IP)])


def run(plugin: Rewrite, request: Request, behind: Next) -> Answer:
    said = start(plugin.handle(request, behind), lambda outcome: None)
    assert type(said) is Answer
    return said


def text(answer: Answer) -> list[str]:
    sections = (answer.answer, answer.authority, answer.additional)
    return [to_text(record) for records in sections for record in records]


# Questions


@pytest.mark.parametrize(
    ("rule", "question", "asked"),
    [
        ("name a.org b.org", "a.org. A", "b.org. A"),
        ("name a.org b.org", "A.ORG. A", "b.org. A"),
        ("name A.org. B.org.", "a.org. A", "b.org. A"),
        ("name exact a.org b.org", "a.org. A", "b.org. A"),
        ("name a.org b.org", "x.a.org. A", "x.a.org. A"),
        ("stop name a.org b.org", "a.org. MX", "b.org. MX"),
        ("name prefix api- web.", "api-eu.org. A", "web.eu.org. A"),
        ("name prefix API- web.", "Api-eu.org. A", "web.eu.org. A"),
        ("name prefix a.b. c.", "a.b.org. A", "c.org. A"),
        ("name prefix a.b. c.", "a.bb.org. A", "a.bb.org. A"),
        ("name prefix a.b. c.", "aa.b.org. A", "aa.b.org. A"),
        ("name suffix .a.org .b.org", "x.a.org. A", "x.b.org. A"),
        ("name suffix .a.org. .b.org.", "X.Y.a.org. A", "x.y.b.org. A"),
        ("name suffix .a.org .b.org", "a.org. A", "a.org. A"),
        ("name suffix .a.org .b.org", "xa.org. A", "xa.org. A"),
        ("name suffix a.org b.org", "xa.org. A", "xb.org. A"),
        ("name suffix a.org b.org", "a.org. A", "b.org. A"),
        ("name suffix .a. .b.", "x.a. A", "x.b. A"),
        ("name suffix . .org.", "x. A", "x.org. A"),
        # A label that begins with a length byte of another is no label of that length.
        ("name suffix .a. .b.", "x\\001a. A", "x\\001a. A"),
        ("name substring prod dev", "x.prod.prod-2.org. A", "x.dev.dev-2.org. A"),
        (
            "name substring service.us-west-1.example.org service.us-west-1.consul",
            "ftp.service.us-west-1.example.org. A",
            "ftp.service.us-west-1.consul. A",
        ),
        ("name substring a.b c", "x.a.b.org. A", "x.c.org. A"),
        ("name substring a.b c", "xa.by.org. A", "xcy.org. A"),
        (
            r"name regex (.*)-(us-west-1)\.example\.org {1}.service.{2}.consul",
            "ftp-us-west-1.example.org. A",
            "ftp.service.us-west-1.consul. A",
        ),
        (r"name regex ^x\. y.org", "x.anything. A", "y.org. A"),
        (r"name regex ^(x)?y\. {1}.{0}org", "y.net. A", "SERVFAIL"),
        (r"name regex b b.org", "a.B.c. A", "b.org. A"),
        ("type ANY HINFO", "a.org. ANY", "a.org. HINFO"),
        ("type ANY HINFO", "a.org. A", "a.org. A"),
        ("type type65280 A", "a.org. TYPE65280", "a.org. A"),
        ("ttl a.org 5", "a.org. A", "a.org. A"),
        # Three words after `name`, of which two are names: the first is how they are matched; of two it isn't.
        ("name suffix prefix", "suffix. A", "prefix. A"),
    ],
)
def test_what_is_asked_behind_a_rule(rule: str, question: str, asked: str) -> None:
    request = trial.request(question)
    query = request.query
    behind = Behind()
    answer = run(rewrite(f"rewrite {rule}"), request, behind)
    if asked == "SERVFAIL":
        assert (answer.rcode, answer.plugin, answer.cause) == (2, "rewrite", "invalid name after rewrite: .y.org")
        assert behind.asked == []
    else:
        assert behind.asked == [asked]
    # The reply has the client's question.
    assert request.query is query
    assert request.keep


@pytest.mark.parametrize(
    ("lines", "question", "asked"),
    [
        (["name a.org b.org", "name b.org c.org"], "a.org. A", "b.org. A"),
        (["continue name a.org b.org", "name b.org c.org"], "a.org. A", "c.org. A"),
        (["continue name a.org b.org", "name b.org c.org", "name c.org d.org"], "a.org. A", "c.org. A"),
        (["name x.org b.org", "name a.org c.org"], "a.org. A", "c.org. A"),
        (["continue name a.org b.org", "type A AAAA"], "a.org. A", "b.org. AAAA"),
        (["ttl a.org 5", "name a.org b.org"], "a.org. A", "a.org. A"),
        (["continue ttl a.org 5", "name a.org b.org"], "a.org. A", "b.org. A"),
        (["cname x.org y.org", "name a.org b.org"], "a.org. A", "a.org. A"),
        (["edns0 nsid set", "name a.org b.org"], "a.org. A", "a.org. A"),
        (["continue edns0 nsid set", "name a.org b.org"], "a.org. A", "b.org. A"),
        (["edns0 nsid replace", "name a.org b.org"], "a.org. A", "b.org. A"),
    ],
)
def test_rules_are_tried_in_their_order_until_one_stops(lines: list[str], question: str, asked: str) -> None:
    behind = Behind()
    run(rewrite(*(f"rewrite {line}" for line in lines)), trial.request(question), behind)
    assert behind.asked == [asked]


def test_what_the_client_can_take_stays_with_the_question() -> None:
    request = trial.request("a.org. A")
    request.query.edns, request.query.do, request.query.size = True, True, 1400

    async def behind(request: Request) -> Answer:
        query = request.query
        assert (query.edns, query.do, query.size, query.id, query.flags) == (True, True, 1400, 4711, 0x0100)
        return Answer()

    run(rewrite("rewrite name a.org b.org"), request, behind)


def test_an_error_behind_it_leaves_the_clients_question() -> None:
    request = trial.request("a.org. A")

    async def behind(request: Request) -> Answer:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError):
        run(rewrite("rewrite name a.org b.org"), request, behind)
    assert names.to_text(request.query.qname) == "a.org."


def test_a_class_gets_here_only_for_a_rule_that_wants_it() -> None:
    plugin = rewrite("rewrite class CH IN")
    assert set(plugin.classes) == {1, 3}
    assert rewrite("rewrite name a b").classes == (1,)
    request = trial.request("a.org. A")
    request.query.rclass = 3

    async def behind(request: Request) -> Answer:
        assert request.query.rclass == 1
        return Answer()

    assert run(plugin, request, behind).rcode == 0
    assert request.query.rclass == 3
    # One of another class isn't for those who answer for class IN.
    assert run(rewrite("rewrite class HS IN"), request, behind).rcode == Rcode.REFUSED


# Answers


def answers(rule: str, question: str, says: Answer) -> list[str]:
    return text(run(rewrite(f"rewrite {rule}"), trial.request(question), Behind(says)))


@pytest.mark.parametrize(
    ("rule", "question", "shown"),
    [
        ("name a.org b.org", "a.org. A", "a.org."),
        ("name a.org b.org answer auto", "A.org. A", "a.org."),
        ("name suffix .a.org .b.org answer auto", "x.a.org. A", "x.a.org."),
        ("name suffix .a.org .b.org", "x.a.org. A", "x.b.org."),
        ("name prefix a- b- answer auto", "a-x.org. A", "a-x.org."),
        ("name prefix a- b-", "a-x.org. A", "b-x.org."),
        ("name substring a b answer auto", "a-a.org. A", "a-a.org."),
        (r"name regex (.*)\.a\.org {1}.b.org answer auto", "x.a.org. A", "x.a.org."),
        (r"name regex (.*)\.a\.org {1}.b.org", "x.a.org. A", "x.b.org."),
        (r"name regex (.*)\.a\.org {1}.b.org answer name (.*)\.b\.org {1}.a.org", "x.a.org. A", "x.a.org."),
        (r"name regex (.*)\.a\.org {1}.b.org answer name (.*)\.c\.org {1}.a.org", "x.a.org. A", "x.b.org."),
        ("{\n name regex (.*)\\.a\\.org {1}.b.org\n answer name (.*)\\.b\\.org {1}.a.org\n}", "x.a.org. A", "x.a.org."),
        ("continue {\n name suffix .a.org .b.org answer auto\n}", "x.a.org. A", "x.a.org."),
    ],
)
def test_the_names_of_an_answers_records(rule: str, question: str, shown: str) -> None:
    answer = run(rewrite(f"rewrite {rule}"), trial.request(question), Behind())
    assert text(answer) == [f"{shown} 30 IN A 10.1.0.7"]


def test_several_rules_are_turned_back_from_the_last_to_the_first() -> None:
    plugin = rewrite("rewrite continue name a.org b.org", "rewrite name suffix .org .net answer auto")
    behind = Behind()
    answer = run(plugin, trial.request("a.org. A"), behind)
    assert behind.asked == ["b.net. A"]
    assert text(answer) == ["a.org. 30 IN A 10.1.0.7"]


VALUES = r"name suffix .a.org .b.org answer name (.*)\.b\.org {1}.a.org "
VALUES += r"value (.*)\.b\.org\. {1}.a.org answer value ^x\. y.org"
PLAIN, OTHER = name("x.b.org"), name("z.net")
NAPTR = struct.pack("!HH", 1, 2) + b"\1s\3sip\0" + PLAIN
SOA = soa(PLAIN, 30, PLAIN, name("x.b.org"), 1, 30)


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        (Record(PLAIN, Type.CNAME, 30, name("W.b.org")), "x.a.org. 30 IN CNAME w.a.org."),
        (Record(PLAIN, Type.CNAME, 30, OTHER), "x.a.org. 30 IN CNAME z.net."),
        (Record(PLAIN, Type.CNAME, 30, name("x.net")), "x.a.org. 30 IN CNAME y.org."),
        (Record(OTHER, Type.DNAME, 30, name("w.b.org")), "z.net. 30 IN DNAME w.a.org."),
        (Record(OTHER, Type.NS, 30, name("w.b.org")), "z.net. 30 IN NS w.a.org."),
        (Record(OTHER, Type.PTR, 30, name("w.b.org")), "z.net. 30 IN PTR w.a.org."),
        (Record(OTHER, Type.MX, 30, b"\0\5" + name("w.b.org")), "z.net. 30 IN MX 5 w.a.org."),
        (srv(OTHER, 30, 1, 80, name("w.b.org")), "z.net. 30 IN SRV 0 1 80 w.a.org."),
        (
            soa(OTHER, 30, name("w.b.org"), name("v.b.org"), 1, 30),
            "z.net. 30 IN SOA w.a.org. v.b.org. 1 7200 1800 86400 30",
        ),
        (Record(OTHER, Type.TXT, 30, b"\7x.b.org"), 'z.net. 30 IN TXT "x.b.org"'),
        (Record(OTHER, Type.NAPTR, 30, struct.pack("!HH", 1, 2) + b"\1s\3sip\0" + name("w.b.org")), "NAPTR"),
    ],
)
def test_names_in_the_data_of_records(record: Record, shown: str) -> None:
    for section in ("answer", "authority", "additional"):
        found = answers(VALUES, "x.a.org. A", Answer(**{section: [record]}))
        if shown == "NAPTR":
            data = struct.pack("!HH", 1, 2) + b"\1s\3sip\0" + name("w.a.org")
            shown = to_text(Record(OTHER, Type.NAPTR, 30, data))
        assert found == [shown]


def test_exact_turns_back_its_own_name_alone() -> None:
    said = Answer(
        answer=[
            Record(name("b.org"), Type.CNAME, 9, name("w.b.org")),
            Record(name("w.b.org"), Type.CNAME, 9, name("b.org")),
        ]
    )
    assert answers("name a.org b.org", "a.org. A", said) == ["a.org. 9 IN CNAME w.b.org.", "w.b.org. 9 IN CNAME a.org."]


def test_what_is_no_name_in_an_answer_is_a_failure() -> None:
    answer = run(
        rewrite(r"rewrite name suffix .a.org .b.org answer name (.*)\.b\.org .{1}"),
        trial.request("x.a.org. A"),
        Behind(),
    )
    assert (answer.rcode, answer.plugin, answer.cause) == (2, "rewrite", "invalid name after rewrite: .x")


def test_what_was_said_behind_is_left_as_it_was() -> None:
    said = Answer(
        3, answer=[address(PLAIN, 30, IP)], authority=[SOA], flags=0x80, plugin="forward", error=(15, "no"), cause="why"
    )
    found = run(rewrite("rewrite name suffix .a.org .b.org answer auto"), trial.request("x.a.org. A"), Behind(said))
    assert (found.rcode, found.flags, found.plugin, found.error, found.cause) == (3, 0x80, "forward", (15, "no"), "why")
    assert said.answer == [address(PLAIN, 30, IP)]
    assert found.answer != said.answer


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("ttl x.b.org 15", 30, 15),
        ("ttl exact x.b.org 15", 30, 15),
        ("ttl prefix x. 15", 30, 15),
        ("ttl suffix .org 15", 30, 15),
        ("ttl substring .b. 15", 30, 15),
        (r"ttl regex (.*)\.b\.org 15", 30, 15),
        ("ttl y.b.org 15", 30, 30),
        ("ttl x.b.org 10-20", 30, 20),
        ("ttl x.b.org 10-20", 5, 10),
        ("ttl x.b.org 10-20", 15, 15),
        ("ttl x.b.org -20", 30, 20),
        ("ttl x.b.org -20", 5, 5),
        ("ttl x.b.org 40-", 30, 40),
        ("ttl x.b.org 40-", 50, 50),
        ("ttl x.b.org 0", 30, 0),
        ("{\n ttl x.b.org 15\n}", 30, 15),
    ],
)
def test_ttls_of_all_sections(rule: str, before: int, after: int) -> None:
    record = address(OTHER, before, IP)
    found = answers(rule, "x.b.org. A", Answer(answer=[record], authority=[record], additional=[record]))
    assert found == [f"z.net. {after} IN A 10.1.0.7"] * 3


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("rcode x.b.org SERVFAIL NXDOMAIN", 2, 3),
        ("rcode suffix .org. 2 3", 2, 3),
        ("rcode x.b.org SERVFAIL NXDOMAIN", 0, 0),
        ("rcode regex ^x servfail NOERROR", 2, 0),
        ("rcode y.b.org SERVFAIL NXDOMAIN", 2, 2),
    ],
)
def test_response_codes(rule: str, before: int, after: int) -> None:
    answer = run(rewrite(f"rewrite {rule}"), trial.request("x.b.org. A"), Behind(failure("why", rcode=before)))
    assert (answer.rcode, answer.cause) == (after, "why")


class Server:
    """The whole server as an alias's target sees it."""

    def __init__(self, says: Answer) -> None:
        self.asked: list[str] = []
        self.says = says

    async def resolve(self, request: Request) -> Answer:
        self.asked.append(f"{names.to_text(request.query.qname)} {type_to_text(request.query.rtype)}")
        request.tags.add(("target",))
        return self.says


CHAIN = Answer(
    answer=[
        Record(name("x.org"), Type.CNAME, 9, name("y.org")),
        Record(name("y.org"), Type.CNAME, 8, name("Z.cdn.net")),
        address(name("z.cdn.net"), 7, IP),
    ]
)
FOUND = Answer(answer=[address(name("z.my.net"), 5, bytes(4))])


@pytest.mark.parametrize(
    ("says", "shown"),
    [
        (FOUND, ["x.org. 9 IN CNAME y.org.", "y.org. 8 IN CNAME z.my.net.", "z.my.net. 5 IN A 0.0.0.0"]),
        (Answer(3, authority=[SOA]), ["x.org. 9 IN CNAME y.org.", "y.org. 8 IN CNAME z.my.net."]),
        (failure("", rcode=5), ["x.org. 9 IN CNAME y.org.", "y.org. 8 IN CNAME z.my.net."]),
        (failure("", "forward"), ["SERVFAIL z.my.net., where the alias leads: SERVFAIL of `forward`"]),
        (failure("timeout", "forward"), ["SERVFAIL timeout"]),
    ],
)
def test_an_alias_leads_elsewhere(says: Answer, shown: list[str]) -> None:
    request = trial.request("x.org. A")
    request.server = server = Server(says)
    answer = run(rewrite(r"rewrite cname regex (.*)\.cdn\.net {1}.my.net"), request, Behind(CHAIN))
    assert server.asked == ["z.my.net. A"]
    assert (text(answer) if not answer.rcode else [f"SERVFAIL {answer.cause}"]) == shown
    # What the target depends on, the answer depends on.
    assert request.tags == {("target",)}


def test_an_alias_that_is_asked_for_itself_is_not_followed() -> None:
    found = answers("cname suffix .cdn.net .my.net", "x.org. CNAME", CHAIN)
    assert found == ["x.org. 9 IN CNAME y.org.", "y.org. 8 IN CNAME z.my.net."]


def test_an_answer_without_such_an_alias_stays_as_it_is() -> None:
    request = trial.request("x.org. A")
    assert run(rewrite("rewrite cname cdn.net my.net"), request, Behind(CHAIN)) is CHAIN


# Through the whole server


REWRITTEN = r"""
rewrite name front.example.org x.a.svc.cluster.local
rewrite name suffix .cluster.example.org .cluster.local answer auto
"""


def test_an_answer_to_a_rewritten_name_is_kept_and_forgotten_with_the_name_it_comes_from() -> None:
    kept = Kept("pods insecure", REWRITTEN)
    kept.plugin.apply(
        [namespace("a"), service("10.3.0.1", name="x", where="a"), service("10.3.0.2", name="y", where="a"), Synced()]
    )
    front, x, y, none = (
        packet(name(each), Type.A)
        for each in (
            "front.example.org",
            "x.a.svc.cluster.example.org",
            "y.a.svc.cluster.example.org",
            "z.a.svc.cluster.example.org",
        )
    )

    def said(query: bytes) -> list[str]:
        return list(map(to_text, decode(kept.ask(query)).answer))

    assert said(front) == ["front.example.org. 5 IN A 10.3.0.1"]
    assert said(x) == ["x.a.svc.cluster.example.org. 5 IN A 10.3.0.1"]
    assert said(y) == ["y.a.svc.cluster.example.org. 5 IN A 10.3.0.2"]
    # What has no records is kept from the second question on.
    assert decode(kept.ask(none)).rcode == decode(kept.ask(none)).rcode == Rcode.NXDOMAIN
    assert all(map(kept.found, (front, x, y, none)))
    # Another spelling gets the same, and its own back.
    assert kept.ask(front.replace(b"front", b"FRONT")) == kept.ask(front).replace(b"front", b"FRONT")

    kept.plugin.apply([service("10.3.0.9", name="x", where="a")])
    assert [kept.found(each) for each in (front, x, y, none)] == [False, False, True, True]
    assert said(front) == ["front.example.org. 5 IN A 10.3.0.9"]
    assert said(x) == ["x.a.svc.cluster.example.org. 5 IN A 10.3.0.9"]

    kept.plugin.apply([service("10.3.0.8", name="z", where="a")])
    assert [kept.found(each) for each in (front, x, y, none)] == [True, True, True, False]
    assert said(none) == ["z.a.svc.cluster.example.org. 5 IN A 10.3.0.8"]


@settings(max_examples=10, deadline=None)
@given(histories(10), st.integers(0, 2**32))
def test_whatever_happens_a_kept_reply_to_a_rewritten_name_is_never_old(happened: list[Event], seed: int) -> None:
    random = Random(seed)
    kept = Kept("pods verified", REWRITTEN)
    kept.plugin.apply([*START, Synced()])
    rewritten = [(each.replace(b"\x05local", b"\x07example\x03org"), rtype) for each, rtype in QUESTIONS]
    for event in [*happened, *happened[::-1]]:
        asked = [packet(each, rtype) for each, rtype in random.sample(rewritten, 20)]
        for query in asked:
            kept.ask(query)
        kept.plugin.apply([event])
        for query in asked:
            assert without_serial(kept.ask(query)) == without_serial(kept.ask(query, fresh=True))


def test_srv_records_of_a_rewritten_suffix_lead_to_names_of_the_clients_domain() -> None:
    kept = Kept("pods insecure", REWRITTEN)
    kept.plugin.apply([namespace("a"), service("10.3.0.1", name="x", where="a"), Synced()])
    message = decode(kept.ask(packet(name("_http._tcp.x.a.svc.cluster.example.org"), Type.SRV)))
    (record,) = map(to_text, message.answer)
    assert re.fullmatch(
        r"_http\._tcp\.x\.a\.svc\.cluster\.example\.org\. 5 IN SRV 0 100 \d+ x\.a\.svc\.cluster\.example\.org\.", record
    )
    assert list(map(to_text, message.additional)) == ["x.a.svc.cluster.example.org. 5 IN A 10.3.0.1"]


# EDNS options

SET, SUBNET4 = "fffe0002abcd", "0008000700011800" + "0af400"


def to_upstreams(rules: list[str], request: Request) -> str:
    """The EDNS options for upstreams behind some rules, in hex."""
    behind = Behind()
    run(rewrite(*(f"rewrite {rule}" for rule in rules)), request, behind)
    return request.upstream_options.hex()


@pytest.mark.parametrize(
    ("rules", "client", "sent"),
    [
        (["edns0 local set 0xfffe 0xabcd"], "", SET),
        (["edns0 local set 65534 0xABCD revert"], "", SET),
        (["edns0 local set 0xfffe 0xabcd"], "fffe000101", SET),
        (["edns0 local set 0xfffe text"], "", "fffe0004" + b"text".hex()),
        (["edns0 local set 0xfffe 0x"], "", "fffe0000"),
        (["edns0 local append 0xfffe 0xabcd"], "", SET),
        (["edns0 local append 0xfffe 0xabcd"], "fffe000101", ""),
        (["edns0 local replace 0xfffe 0xabcd"], "", ""),
        (["edns0 local replace 0xfffe 0xabcd"], "00030000fffe000101", SET),
        (["continue edns0 local set 0xfffe 1", "edns0 local replace 0xfffe 0xabcd"], "", SET),
        (["continue edns0 local set 0xfffe 0xabcd", "edns0 local append 0xfffe 1"], "", SET),
        (["continue edns0 local set 0xfffe 0xabcd", "edns0 local unset 0xfffe"], "", ""),
        (["continue edns0 local unset 0xfffe", "edns0 local replace 0xfffe 1"], "fffe000101", ""),
        (["continue edns0 local unset 0xfffe", "edns0 local append 0xfffe 0xabcd"], "fffe000101", SET),
        (["continue edns0 nsid set", "edns0 local set 0xfffe 0xabcd"], "", "00030000" + SET),
        (["edns0 nsid set", "edns0 local set 0xfffe 0xabcd"], "", "00030000"),
        (["edns0 subnet set 24 56"], "", SUBNET4),
        (["edns0 subnet set 24 56"], "0008000400010000", SUBNET4),
        (["edns0 subnet set 0 0"], "", "0008000400010000"),
        (["edns0 subnet set 20 56"], "", "0008000700011400" + "0af400"),
        (["edns0 subnet set 32 56"], "", "0008000800012000" + "0af400" + "07"),
        (["edns0 local set 0xfffe {qname}"], "", "fffe001b" + b"Web.shop.svc.cluster.local.".hex()),
        (["edns0 local set 0xfffe {qtype}"], "", "fffe0002001c"),
        (["edns0 local set 0xfffe {client_ip}"], "", "fffe00040af40007"),
        (["edns0 local set 0xfffe {client_port}"], "", "fffe0002a112"),
        (["edns0 local set 0xfffe {protocol}"], "", "fffe0003" + b"udp".hex()),
        (["edns0 local set 0xfffe {server_ip}"], "", "fffe00040a60000a"),
        (["edns0 local set 0xfffe {server_port}"], "", "fffe00020035"),
    ],
)
def test_what_upstreams_are_sent_is_what_rules_set_and_nothing_of_the_client(
    rules: list[str], client: str, sent: str
) -> None:
    request = trial.request("Web.shop.svc.cluster.local. AAAA")
    request.query.edns, request.query.options = True, bytes.fromhex(client)
    assert to_upstreams(rules, request) == sent
    assert request.query.options == bytes.fromhex(client)


@pytest.mark.parametrize(
    ("rule", "sent"),
    [
        ("edns0 subnet set 24 56", "0008000b00023800" + "20010db8000000"),
        ("edns0 subnet set 24 128", "0008001400028000" + "20010db8000000000000000000000007"),
        ("edns0 local set 1 {client_ip}", "00010010" + "20010db8000000000000000000000007"),
    ],
)
def test_a_client_of_ipv6_has_a_subnet_of_ipv6(rule: str, sent: str) -> None:
    assert to_upstreams([rule], trial.request(client=("2001:db8::7%eth0", 5))) == sent


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("edns0 local set 1 a", True),
        ("edns0 local set 1 {qname}", True),
        ("edns0 nsid set", True),
        ("edns0 subnet set 24 56", False),
        ("edns0 local set 1 {client_port}", False),
        ("edns0 local set 1 {server_ip}", False),
    ],
)
def test_an_answer_to_what_was_asked_for_one_client_alone_is_not_kept_for_others(rule: str, kept: bool) -> None:
    request = trial.request()
    to_upstreams([rule], request)
    assert request.keep is kept


def test_the_upstream_gets_the_option_the_client_none_and_each_subnet_an_answer_of_its_own() -> None:
    async def story() -> None:
        async with upstream(says(IP)) as fake:
            server = Whole(
                ". {\n"
                "rewrite continue edns0 local set 0xfffe 0xabcd\n"
                "rewrite edns0 subnet set 24 56\n"
                f"cache\nforward . {fake.upstream}\n"
                "}"
            )
            for client in ("10.244.0.7", "10.244.0.8", "10.244.1.9", "10.244.0.7"):
                reply = await server.wait("www.example.org. A", (client, 5), "0003 0000 0008 0004 0001 0000")
                assert (reply.rcode, [record.data for record in reply.answer], reply.edns) == (0, [IP], True)
                assert server.options == b""
            queries = [parse(packet) for packet in fake.udp]
            assert [query.options.hex() for query in queries if isinstance(query, Query)] == [
                SET + SUBNET4,
                SET + "0008000700011800" + "0af401",
            ]

    asyncio.run(story())


class Whole:
    """What a Corefile makes, asked at its first listener by clients of their own."""

    def __init__(self, text: str) -> None:
        process = Process(Metrics())
        made = build(corefile.parse(text, "Corefile"), process)
        self._responder = Responder(made.listeners[0].sites, process, process.metrics)
        self.options = b""

    async def wait(self, question: str, client: tuple[str, int], options: str) -> Message:
        name_, rtype = question.split()
        packed = bytes.fromhex(options)
        query = Question(names.from_text(name_), type_from_text(rtype), options=packed).packet(77)
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        said = self._responder.respond(query, "udp", client, ("127.0.0.1", 53), done.set_result)
        packet_ = said if isinstance(said, bytes) else await asyncio.wait_for(done, 10)
        # OPT stands last in a reply.
        opt = packet_.rindex(b"\x00\x00\x29")
        self.options = packet_[opt + 11 :]
        return decode(packet_)


# Mistakes

REVERT = "with `revert` it is the same in CoreDNS"
FIELDS = "`name`, `type`, `class`, `ttl`, `cname`, `rcode` or `edns0`"
KINDS = "[exact|prefix|suffix|substring|regex]"
ANSWER = "`answer`, or nothing after TO"
SECONDS = "seconds, or a range of them: `30`, `30-300`, `30-` or `-300`"
LARGEST = "seconds from 0 to 2147483647, the smaller number first"
REFUSED = "answers have the rewritten name, and clients may refuse them | name | `answer auto` at the end turns it back"


@pytest.mark.parametrize(
    ("line", "drawn"),
    [
        ("rewrite", "`rewrite` needs [continue|stop] FIELD"),
        ("rewrite stop", "`rewrite`: `stop` stands before a rule | stop"),
        (
            "rewrite nam a b",
            f"`rewrite` takes a rule | nam | {FIELDS}, found `nam` | did you mean `name`?",
        ),
        (
            "rewrite a.org b.org",
            f"`rewrite` takes a rule | a.org | {FIELDS}, found `a.org`",
        ),
        ("rewrite answer auto", "`rewrite`: a rule for the answer stands behind a rule of a `name` | answer"),
        (
            "rewrite name a.org",
            f"`rewrite`: this rule has too few words: it is `name {KINDS} FROM TO [answer ...]` | a.org",
        ),
        (
            "rewrite name a.org b.org c.org",
            "`rewrite` takes a rule | c.org | `answer`, or nothing after TO, found `c.org`",
        ),
        (
            "rewrite {\n name a b\n name c d\n}",
            f"`rewrite` takes a rule | name | {ANSWER}, found `name` | each rule has a `rewrite` of its own",
        ),
        ("rewrite name a..b c", "`rewrite`: `a..b` is no name: a label has 1 to 63 bytes | a..b"),
        ("rewrite name a b answer", "`rewrite`: `answer` stands before `auto`, `name` or `value` | answer"),
        ("rewrite name a b answer all", "`rewrite` takes a rule | all | `auto`, `name` or `value`, found `all`"),
        ("rewrite name a b answer name c", "`rewrite`: `answer name` takes a pattern and what takes its place | name"),
        (
            "rewrite name a b answer auto answer name c d",
            "`rewrite`: `answer auto` and `answer name` cannot both be set | name",
        ),
        ("rewrite name regex ( b", "`rewrite` takes a rule | ( | a regular expression (missing ): (), found `(`"),
        (
            "rewrite name regex (a)(b) {3}",
            "`rewrite` takes a rule | {3} | no more than the 2 groups of `(a)(b)`, found `{3}`",
        ),
        (
            "rewrite name regex a{1}b{2} {1}",
            "`rewrite` takes a rule | {1} | no more than the 0 groups of `a{1}b{2}`, found `{1}`",
        ),
        ("rewrite type A", "`rewrite`: this rule has too few words: it is `type FROM TO` | A"),
        ("rewrite type A AAAA MX", "`rewrite` takes a rule | MX | `type FROM TO`, found `MX`"),
        (
            "rewrite type A QUAD",
            "`rewrite` takes a rule | QUAD | a type of records, such as `A` or `AAAA`, found `QUAD`",
        ),
        ("rewrite class IN XX", "`rewrite` takes a rule | XX | `IN`, `CH` or `HS`, found `XX`"),
        (
            "rewrite ttl a.org five",
            f"`rewrite` takes a rule | five | {SECONDS}, found `five`",
        ),
        (
            "rewrite ttl a.org -",
            f"`rewrite` takes a rule | - | {SECONDS}, found `-`",
        ),
        (
            "rewrite ttl a.org 9-5",
            f"`rewrite` takes a rule | 9-5 | {LARGEST}, found `9-5`",
        ),
        (
            "rewrite ttl a.org 4294967295",
            f"`rewrite` takes a rule | 4294967295 | {LARGEST}, found `4294967295`",
        ),
        (
            "rewrite rcode a.org NOPE 3",
            "`rewrite` takes a rule | NOPE | a response code, such as `NXDOMAIN` or `3`, found `NOPE`",
        ),
        (
            "rewrite rcode a.org 3 9999",
            "`rewrite` takes a rule | 9999 | a response code, such as `NXDOMAIN` or `3`, found `9999`",
        ),
        (
            "rewrite edns0 cookie set",
            "`rewrite` takes a rule | cookie | `edns0 local`, `edns0 nsid` or `edns0 subnet`, found `cookie`",
        ),
        (
            "rewrite edns0 local put",
            "`rewrite` takes a rule | put | `edns0 local set`, `append`, `replace` or `unset`, found `put`",
        ),
        (
            "rewrite edns0 local set 0xffee",
            "`rewrite`: this rule has too few words: it is `edns0 local set CODE DATA [revert]` | 0xffee",
        ),
        (
            "rewrite edns0 local set 0x10000 a",
            "`rewrite` takes a rule | 0x10000 | a number from 0 to 65535, found `0x10000`",
        ),
        (
            "rewrite edns0 local set 7 0xabc",
            "`rewrite` takes a rule | 0xabc | whole bytes in hex, such as `0x61626364`, found `0xabc`",
        ),
        (
            "rewrite edns0 local set 7 {clientip}",
            "`rewrite` takes a rule | {clientip} | a variable, found `{clientip}` | did you mean `{client_ip}`?",
        ),
        (
            "rewrite edns0 local set 7 {a/label}",
            "`rewrite` takes a rule | {a/label} | a variable, found `{a/label}` | kdns gathers no metadata",
        ),
        (
            f"rewrite edns0 local set 7 {'a' * 901}",
            f"`rewrite`: an option has 900 bytes at most, and this one 901 | {'a' * 901}",
        ),
        (
            f"rewrite edns0 local set 7 0x{'61' * 901}",
            f"`rewrite`: an option has 900 bytes at most, and this one 901 | 0x{'61' * 901}",
        ),
        ("rewrite edns0 subnet set 33 56", "`rewrite` takes a rule | 33 | a number from 0 to 32, found `33`"),
        ("rewrite stop {\n name a b {\n c d\n }\n}", "`name` takes no block | name"),
    ],
)
def test_what_it_does_not_take_is_told(line: str, drawn: str) -> None:
    assert brief(trial.problems(Rewrite, line)) == drawn


def brief(drawing: str) -> str:
    """A drawing in one line: what is wrong, the words above the carets, what was expected, the hint."""
    found = re.fullmatch(
        r"(?:error|warning|note): (.*)\n  Corefile:.*"
        r"\n +\d+ \|(.*)\n +\|( *)(\^+)(?:\n  expected (.*))?(?:\nhint: (.*))?",
        drawing,
    )
    assert found, drawing
    word = found[2][len(found[3]) : len(found[3]) + len(found[4])]
    parts = [found[1], word if word != "rewrite" else "", found[5] or "", found[6] or ""]
    return " | ".join(part for part in parts if part).removesuffix(" | `rewrite [continue|stop] FIELD...`")


@pytest.mark.parametrize(
    ("line", "drawn"),
    [
        (
            "rewrite name suffix .a .b",
            REFUSED,
        ),
        (
            "rewrite name regex a b answer value b a",
            REFUSED,
        ),
        (
            "rewrite continue edns0 subnet set 24 56",
            f"`edns0`: upstreams are sent the option, and the reply doesn't have it | edns0 | {REVERT}",
        ),
        (
            "rewrite rcode a.org NXDOMAIN NOERROR",
            "`rcode`: the code is replaced in answers without records, too | rcode",
        ),
        ("rewrite edns0 local unset 0xffee", "`edns0`: upstreams are sent no option of a client anyway | unset"),
        (
            "rewrite continue edns0 nsid append revert",
            "`append`: an option that is there already isn't added again | append",
        ),
        (
            "rewrite cname exact a.example. b.example.",
            "`cname`: where the target of the alias fails, the answer is SERVFAIL, and not the alias alone | cname",
        ),
    ],
)
def test_what_can_hardly_be_meant_is_told(line: str, drawn: str) -> None:
    assert brief(trial.problems(Rewrite, line)) == drawn


@pytest.mark.parametrize(
    ("first", "warned"),
    [
        ("cname a b", True),
        ("stop edns0 nsid set revert", True),
        ("edns0 local unset 7", True),
        ("continue edns0 nsid set revert", False),
        ("edns0 nsid append revert", False),
        ("type A MX", False),
    ],
)
def test_a_rule_behind_which_none_is_reached_is_told(first: str, warned: bool) -> None:
    told = "warning: this rule concerns every question and is the last for it: those behind are never reached\n"
    assert (told in trial.problems(Rewrite, f"rewrite {first}\nrewrite type AAAA MX")) is warned
    assert told not in trial.problems(Rewrite, f"rewrite type AAAA MX\nrewrite {first}")


@pytest.mark.parametrize(
    "line",
    [
        "rewrite name a b",
        "rewrite edns0 nsid set revert",
        "rewrite name regex a b answer name b a",
        "rewrite type A MX",
    ],
)
def test_what_is_right_is_told_nothing_of(line: str) -> None:
    assert trial.problems(Rewrite, line) == ""


@pytest.mark.parametrize(
    ("rule", "behind", "told"),
    [
        ("edns0 local set 7 {client_ip}", "cache", True),
        ("edns0 subnet set 24 56", "cache", True),
        ("edns0 local set 7 {client_ip}", "whoami", False),
        ("edns0 local set 7 {qname}", "cache", False),
        ("edns0 local set 7 text", "cache", False),
        ("edns0 subnet unset", "cache", False),
        ("type A MX", "cache", False),
    ],
)
def test_that_a_reply_is_kept_for_one_subnet_is_told_where_it_may_be(rule: str, behind: str, told: bool) -> None:
    parsed = corefile.parse(f". {{\n rewrite {rule}\n {behind}\n forward . 192.0.2.1\n}}", "Corefile")
    (rewrite,) = (each for each in build(parsed, Process(Metrics())).plugins if isinstance(each, Rewrite))
    assert list(rewrite.notices()) == ["`cache` keeps a reply for questions with the same EDNS options only"] * told
