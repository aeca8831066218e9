"""Replies as bytes: what others read out of them, how they are compressed, and what goes when there is no room.

dnspython and the reader of upstreams' replies, which share no code with the writer, read them back.
"""

import struct
from collections.abc import Iterable, Sequence

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.wire import message, names
from kdns.wire.names import from_text
from kdns.wire.query import RD, Query, Rejected
from kdns.wire.records import Rcode, Record, Type, address, soa, srv, txt
from kdns.wire.reply import TCP_PAYLOAD, UDP_PAYLOAD, encode, encode_rejected, limit_bytes

AA, TC = 0x0400, 0x0200
NAME = from_text("web.shop.svc.cluster.local.")
ZONE = from_text("cluster.local.")
QUESTION_END = 12 + len(NAME) + 4


def query(name: bytes = NAME, rtype: int = 1, size: int = 0, do: bool = False) -> Query:
    """A query; with OPT where it has a size."""
    made = Query(7, RD, name, names.labels_of(name.lower()), rtype, 1)
    made.edns, made.size, made.do = bool(size), size or 512, do
    return made


def reply(
    asked: Query,
    answer: Sequence[Record] = (),
    authority: Sequence[Record] = (),
    additional: Sequence[Record] = (),
    transport: str = "udp",
    error: tuple[int, str] | None = None,
) -> bytes:
    made = encode(asked, 0, AA, answer, authority, additional, limit_bytes(asked, transport), error)
    assert len(made) <= limit_bytes(asked, transport)
    # Both readers must take it, whatever was cut.
    dns.message.from_wire(made)
    return made


def read(data: bytes) -> message.Message:
    return message.decode(data)


def truncated(data: bytes) -> bool:
    return bool(data[2] & 0x02)


# The law of sizes


LIMITS = [
    ("a client without OPT takes 512 bytes", 0, "udp", 512),
    ("a client takes what it says", 700, "udp", 700),
    ("no more than the server sends", 4096, "udp", 1232),
    ("TCP has its own", 700, "tcp", TCP_PAYLOAD),
    ("TCP without OPT as well", 0, "tcp", TCP_PAYLOAD),
]


@pytest.mark.parametrize(("size", "transport", "limit"), [row[1:] for row in LIMITS], ids=[row[0] for row in LIMITS])
def test_a_reply_has_at_most(size: int, transport: str, limit: int) -> None:
    assert limit_bytes(query(size=size), transport) == limit


EXACT = [("512 bytes without OPT", 0, 512), ("1232 bytes with OPT", 1232, 1232), ("700 bytes with OPT", 700, 700)]


@pytest.mark.parametrize(("size", "limit"), [row[1:] for row in EXACT], ids=[row[0] for row in EXACT])
@pytest.mark.parametrize("section", ["answer", "authority", "additional"])
def test_a_record_that_fits_to_the_byte_is_sent_and_one_byte_more_is_not(size: int, limit: int, section: str) -> None:
    room = limit - QUESTION_END - (11 if size else 0) - 12
    fits = reply(query(size=size), **{section: [Record(NAME, Type.TXT, 5, bytes(room))]})
    assert len(fits) == limit
    assert not truncated(fits)
    over = reply(query(size=size), **{section: [Record(NAME, Type.TXT, 5, bytes(room + 1))]})
    assert len(over) == QUESTION_END + (11 if size else 0)
    assert truncated(over) is (section != "additional")


def test_an_answer_that_is_cut_holds_as_many_whole_records_as_fit() -> None:
    made = reply(query(), [address(NAME, 5, bytes([10, 0, 0, number])) for number in range(100)])
    assert truncated(made)
    sent = (512 - QUESTION_END) // 16
    assert [record.data[3] for record in read(made).answer] == list(range(sent))
    assert 512 - len(made) < 16


def test_where_the_answer_is_cut_nothing_follows_it() -> None:
    answer = [address(NAME, 5, bytes([10, 0, 0, number])) for number in range(100)]
    made = read(reply(query(size=1232), answer, [Record(NAME, Type.NS, 5, ZONE)], [address(ZONE, 5, b"1234")]))
    assert (len(made.authority), len(made.additional), made.edns) == (0, 0, True)


def test_where_the_authority_is_cut_tc_is_set_and_no_additional_follows() -> None:
    authority = [Record(ZONE, Type.NS, 5, from_text(f"ns{number}.example.")) for number in range(50)]
    made = reply(query(), [address(NAME, 5, b"1234")], authority, [address(ZONE, 5, b"1234")])
    assert truncated(made)
    found = read(made)
    assert (len(found.answer), len(found.additional)) == (1, 0)
    assert 0 < len(found.authority) < 50


def test_additional_records_go_by_whole_sets_and_nobody_is_told() -> None:
    targets = [from_text(f"db-{number}.db.shop.svc.Cluster.local.") for number in range(3)]
    # 4 sets of 8 addresses: two owners with both families, then one more.
    glue = [address(target, 5, bytes([number]) * size) for target in targets for size in (4, 16) for number in range(8)]
    found = read(reply(query(rtype=33), [srv(NAME, 5, 1, 80, target) for target in targets], (), glue))
    assert len(found.answer) == 3
    assert found.flags & TC == 0
    assert found.additional
    counts: dict[tuple[bytes, int], int] = {}
    for record in found.additional:
        counts[record.owner, record.rtype] = counts.get((record.owner, record.rtype), 0) + 1
    assert set(counts.values()) == {8}


def test_a_set_that_does_not_fit_as_a_whole_is_not_sent_at_all() -> None:
    glue = [address(NAME, 5, bytes([number]) * 16) for number in range(100)]
    found = read(reply(query(), [address(NAME, 5, b"1234")], (), glue))
    assert (len(found.answer), len(found.additional), found.flags & TC) == (1, 0, 0)


@given(st.integers(0, 60), st.integers(0, 30), st.integers(0, 60), st.sampled_from([0, 512, 700, 1232, 65535]))
def test_a_cut_reply_is_always_whole_records_from_the_front(
    answers: int, authorities: int, additionals: int, size: int
) -> None:
    answer = [address(NAME, 5, bytes([1, 0, 0, number])) for number in range(answers)]
    authority = [txt(ZONE, 5, bytes([number]) * 20) for number in range(authorities)]
    additional = [
        address(from_text(f"a{number // 3}.x."), 5, bytes([2, 0, 0, number])) for number in range(additionals)
    ]
    made = reply(query(size=size), answer, authority, additional)
    found = read(made)
    assert found.answer == answer[: len(found.answer)]
    assert found.authority == authority[: len(found.authority)]
    assert found.additional == additional[: len(found.additional)]
    cut = len(found.answer) < answers or len(found.authority) < authorities
    assert truncated(made) is cut
    assert not (len(found.answer) < answers and (found.authority or found.additional))
    assert not (cut and found.additional)
    assert len(found.additional) % 3 == 0 or len(found.additional) == additionals
    assert found.edns is bool(size)


# OPT and extended errors


def test_opt_is_the_servers_own() -> None:
    made = dns.message.from_wire(reply(query(size=4096, do=True)))
    assert (made.edns, made.payload, made.ednsflags, made.options) == (0, UDP_PAYLOAD, 0x8000, ())


def test_a_response_code_above_15_stands_in_opt() -> None:
    made = dns.message.from_wire(encode(query(size=1232), Rcode.BADVERS, 0, (), (), (), 512))
    assert made.rcode() == dns.rcode.BADVERS


def test_an_extended_error_is_sent() -> None:
    made = dns.message.from_wire(reply(query(size=1232), error=(14, "not synced yet")))
    (option,) = made.options
    assert isinstance(option, dns.edns.EDEOption)
    assert (option.code, option.text) == (14, "not synced yet")


def test_an_extended_error_needs_opt() -> None:
    assert reply(query(), error=(14, "not synced yet")) == reply(query())


ROOM = [
    ("the text goes first", 6 + 13, (14, None)),
    ("then the code", 5, None),
    ("where all fits, all is sent", 6 + 14, (14, "not synced yet")),
    ("the code alone fits to the byte", 6, (14, None)),
    ("nothing fits", 0, None),
]


@pytest.mark.parametrize(("room", "expected"), [row[1:] for row in ROOM], ids=[row[0] for row in ROOM])
def test_an_extended_error_gives_way_to_records(room: int, expected: tuple[int, str | None] | None) -> None:
    asked = query(size=700)
    data = bytes(700 - QUESTION_END - 11 - 12 - room)
    made = dns.message.from_wire(reply(asked, [Record(NAME, 65280, 5, data)], error=(14, "not synced yet")))
    assert len(made.answer) == 1
    assert not made.flags & dns.flags.TC
    assert [(option.code, option.text) for option in made.options] == ([expected] if expected else [])


def test_a_long_error_is_cut_between_characters() -> None:
    made = dns.message.from_wire(reply(query(size=1232), error=(0, "x" + "ä" * 300)))
    assert made.options[0].text == "x" + "ä" * 99


# Compression


def test_an_owner_that_was_asked_for_points_to_the_question() -> None:
    assert (
        reply(query(), [address(NAME, 5, b"1234")])[QUESTION_END:]
        == b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 5, 4) + b"1234"
    )


def test_names_of_the_zone_point_into_the_question() -> None:
    record = soa(ZONE, 5, b"\2ns\3dns" + ZONE, b"\x0ahostmaster" + ZONE, 1, 5)
    zone = b"\xc0" + bytes([12 + NAME.index(ZONE)])
    data = b"\2ns\3dns" + zone + b"\x0ahostmaster" + zone + struct.pack("!5I", 1, 7200, 1800, 86400, 5)
    made = reply(query(), (), [record])
    assert made[QUESTION_END:] == zone + struct.pack("!HHIH", 6, 1, 5, len(data)) + data


def test_another_spelling_is_another_name() -> None:
    folded = NAME.lower()
    made = reply(query(), [Record(NAME, Type.CNAME, 5, folded), address(folded, 5, b"1234")])
    found = read(made)
    assert found.answer[0].data == folded
    assert found.answer[1].owner == folded


@pytest.mark.parametrize(
    ("rtype", "before"),
    [(Type.CNAME, b""), (Type.NS, b""), (Type.PTR, b""), (Type.MX, b"\0\x0a")],
    ids=["CNAME", "NS", "PTR", "MX"],
)
def test_names_in_the_data_of_old_types_are_compressed(rtype: int, before: bytes) -> None:
    made = reply(query(), [Record(NAME, rtype, 5, before + b"\1a" + ZONE)])
    assert made.endswith(before + b"\1a\xc0" + bytes([12 + NAME.index(ZONE)]))


@pytest.mark.parametrize("rtype", [Type.SRV, Type.DNAME, Type.SVCB, 65280])
def test_the_data_of_newer_types_is_left_as_it_is(rtype: int) -> None:
    data = b"\0\1\0\1\0\x50" + b"\1a" + ZONE
    assert encode(query(), 0, AA, [Record(NAME, rtype, 5, data)], (), (), 512).endswith(data)


def test_the_address_of_a_target_points_at_the_target() -> None:
    target = b"\4db-0" + NAME
    made = reply(query(rtype=33), [srv(NAME, 5, 1, 80, target)], (), [address(target, 5, b"1234")])
    assert made[:-14].endswith(target + b"\xc0" + bytes([QUESTION_END + 12 + 6]))


def test_names_beyond_16_kib_are_never_pointed_at() -> None:
    owners = [from_text(f"{'x' * 40}{number}.{'y' * 40}{number}.example.") for number in range(400)]
    answer = [Record(owner, Type.CNAME, 5, b"\1t" + owner) for owner in owners]
    # Asked for again at the end: names before the limit may be pointed at, those behind it may not.
    answer += [address(owner, 5, b"1234") for owner in owners[::100]]
    glue = [srv(NAME, 5, 1, 80, b"\1s" + owners[-1]), address(b"\1s" + owners[-1], 5, b"1234")]
    made = reply(query(), answer, (), glue, transport="tcp")
    assert len(made) > 2 * 0x4000
    assert not truncated(made)
    found = read(made)
    assert found.answer == answer
    assert found.additional == glue
    assert len(dns.message.from_wire(made, one_rr_per_rrset=True).answer) == len(answer)


# Round trips

LABELS = st.sampled_from(
    [b"web", b"Web", b"shop", b"SHOP", b"svc", b"cluster", b"local", b"\0", b"a.b", b"x" * 63, b"\xc0\x0c"]
)
NAMES = st.lists(LABELS, max_size=3).map(lambda labels: names.from_labels([*labels]))
SHARED = st.tuples(NAMES, st.sampled_from([names.ROOT, ZONE, ZONE.lower(), NAME])).map(
    lambda parts: parts[0][:-1] + parts[1]
)
TTLS = st.integers(0, 2**31 - 1)
WORD = st.integers(0, 65535)
NUMBER = st.integers(0, 2**32 - 1)


def record_of(rtype: int, data: st.SearchStrategy[bytes]) -> st.SearchStrategy[Record]:
    return st.builds(Record, SHARED, st.just(rtype), TTLS, data)


RECORDS = st.one_of(
    record_of(Type.A, st.binary(min_size=4, max_size=4)),
    record_of(Type.AAAA, st.binary(min_size=16, max_size=16)),
    record_of(Type.CNAME, SHARED),
    record_of(Type.NS, SHARED),
    record_of(Type.PTR, SHARED),
    record_of(Type.MX, st.builds(lambda number, name: struct.pack("!H", number) + name, WORD, SHARED)),
    record_of(
        Type.TXT, st.lists(st.binary(max_size=40), min_size=1, max_size=3).map(lambda parts: txt(b"", 0, *parts).data)
    ),
    st.builds(srv, SHARED, TTLS, WORD, WORD, SHARED),
    st.builds(soa, SHARED, TTLS, SHARED, SHARED, NUMBER, NUMBER),
    record_of(65280, st.binary(max_size=60)),
)
SECTION = st.lists(RECORDS, max_size=8)


def folded(sections: Iterable[Iterable[Record]]) -> list[list[tuple[bytes, int, int, bytes]]]:
    return [[(each.owner.lower(), each.rtype, each.ttl, each.data.lower()) for each in section] for section in sections]


@settings(deadline=None)
@given(SHARED, SECTION, SECTION, SECTION, st.sampled_from([0, 1232]))
def test_what_is_written_is_read(
    asked: bytes, answer: list[Record], authority: list[Record], additional: list[Record], size: int
) -> None:
    made = encode(query(asked, size=size), 3, AA, answer, authority, additional, TCP_PAYLOAD)
    found = read(made)
    assert (found.id, found.qname, found.rcode, found.flags & TC) == (7, asked, 3, 0)
    # What points at the question is spelled as that is.
    assert folded([found.answer, found.authority, found.additional]) == folded([answer, authority, additional])
    by_dnspython = dns.message.from_wire(made, one_rr_per_rrset=True)
    assert folded(
        [
            Record(each.name.to_wire() or b"", int(each.rdtype), each.ttl, rdata.to_wire() or b"")
            for each in section
            for rdata in each
        ]
        for section in by_dnspython.sections[1:]
    ) == folded([answer, authority, additional])


@pytest.mark.parametrize(
    ("edns", "transport", "limit"),
    [(False, "udp", 512), (True, "udp", 1232), (False, "tcp", TCP_PAYLOAD)],
)
def test_a_tsig_that_does_not_fit_is_left_out_and_tc_says_so(edns: bool, transport: str, limit: int) -> None:
    question = query(names.from_text("a.example")).question_bytes
    room = limit - 12 - len(question) - (11 if edns else 0)
    replies = []
    for size in (room, room + 1):
        rejected = Rejected(7, 0, Rcode.NOTAUTH, question, edns)
        rejected.tsig = bytes(size)
        replies.append(encode_rejected(rejected, transport))
    whole, cut = replies
    assert len(whole) == limit
    assert not whole[2] & 0x02
    assert len(cut) == limit - room
    assert cut[2] & 0x02
