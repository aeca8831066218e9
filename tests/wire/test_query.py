"""Packets of clients: what is read out of a good one, and the verdicts on the others.

What a client is told after all stands in tests/test_responder.py.
"""

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.wire.names import from_text
from kdns.wire.query import MOST_OPTIONS, Query, Rejected, option, option_codes, parse, without_option
from kdns.wire.records import Rcode, Type

NAME = from_text("Web.Shop.svc.cluster.local.")


def packet(
    *, flags: int = 0x0100, name: bytes = NAME, rtype: int = 1, rclass: int = 1, rest: bytes = b"", more: int = 0
) -> bytes:
    return struct.pack("!HHHHHH", 7, flags, 1, 0, 0, more) + name + struct.pack("!HH", rtype, rclass) + rest


def opt(options: bytes = b"", size: int = 1232, ttl: int = 0) -> bytes:
    return b"\0" + struct.pack("!HHIH", 41, size, ttl, len(options)) + options


def read(data: bytes) -> Query:
    query = parse(data)
    assert isinstance(query, Query)
    return query


def test_a_question_keeps_its_spelling_and_is_looked_up_in_lower_case() -> None:
    query = read(packet(rtype=33, rclass=3))
    assert (query.id, query.flags, query.rtype, query.rclass) == (7, 0x0100, 33, 3)
    assert query.spelled == NAME
    assert query.qname == NAME.lower()
    assert query.labels == [b"web", b"shop", b"svc", b"cluster", b"local"]
    assert query.question_bytes == NAME + b"\0\x21\0\3"


def test_only_ascii_letters_are_folded() -> None:
    assert read(packet(name=b"\4\xc4A\x00[\0")).labels == [b"\xc4a\x00["]


def test_the_root_has_no_labels() -> None:
    assert read(packet(name=b"\0")).labels == []


def test_without_opt_a_client_takes_512_bytes() -> None:
    query = read(packet())
    assert (query.edns, query.size, query.version, query.do, query.options) == (False, 512, 0, False, b"")


OPTS = [
    ("its size", opt(size=1400), (1400, 0, False, b"")),
    ("a size of 0 as 512", opt(size=0), (512, 0, False, b"")),
    ("a size of 511 as 512", opt(size=511), (512, 0, False, b"")),
    ("DO", opt(ttl=0x8000), (1232, 0, True, b"")),
    ("flags that nobody has defined, as nothing", opt(ttl=0x7FFF), (1232, 0, False, b"")),
    ("a later version", opt(ttl=0x10000), (1232, 1, False, b"")),
    ("options", opt(b"\0\x0a\0\1x"), (1232, 0, False, b"\0\x0a\0\1x")),
    ("broken options of a later version", opt(b"\0", ttl=0x10000), (1232, 1, False, b"\0")),
    ("the most options", opt(b"\0\x64\0\0" * MOST_OPTIONS), (1232, 0, False, b"\0\x64\0\0" * MOST_OPTIONS)),
]


@pytest.mark.parametrize(("rest", "expected"), [row[1:] for row in OPTS], ids=[row[0] for row in OPTS])
def test_opt_tells(rest: bytes, expected: tuple[int, int, bool, bytes]) -> None:
    query = read(packet(rest=rest, more=1))
    assert query.edns
    assert (query.size, query.version, query.do, query.options) == expected


@pytest.mark.parametrize("rest", [b"", b"\0", opt(), b"\xff" * 500], ids=["none", "one", "an OPT not counted", "500"])
def test_bytes_behind_the_question_are_counted(rest: bytes) -> None:
    query = read(packet(rest=rest))
    assert (query.trailing, query.edns) == (len(rest), False)


def test_bytes_behind_opt_are_counted() -> None:
    assert read(packet(rest=opt() + b"??", more=1)).trailing == 2


def test_a_transfer_request_brings_its_soa() -> None:
    data = bytearray(packet(rtype=Type.IXFR, rest=b"\xc0\x0c" + bytes(40)))
    data[9] = 1
    assert read(bytes(data)).rtype == Type.IXFR


KEY, ALGORITHM = b"\3key\0", b"\x0bhmac-sha256\0"
SIGNED = bytes(6) + b"\x01\x2c"


def tsig(rdata: bytes, owner: bytes = KEY) -> bytes:
    return owner + struct.pack("!HHIH", Type.TSIG, 255, 0, len(rdata)) + rdata


GOOD_TSIG = ALGORITHM + SIGNED + b"\0\x04MACS" + b"\0\7\0\0\0\0"


def test_a_key_that_nobody_knows_is_bad_and_its_mac_is_not_repeated() -> None:
    rejected = parse(packet(rest=tsig(GOOD_TSIG), more=1))
    assert isinstance(rejected, Rejected)
    assert rejected.rcode == Rcode.NOTAUTH
    assert rejected.tsig == tsig(ALGORITHM + SIGNED + b"\0\0" + b"\0\7\0\x11\0\0")


def test_a_compressed_key_stays_a_pointer_so_that_the_reply_is_no_longer_than_the_query() -> None:
    rejected = parse(packet(rest=tsig(GOOD_TSIG, b"\xc0\x0c"), more=1))
    assert isinstance(rejected, Rejected)
    assert rejected.rcode == Rcode.NOTAUTH
    assert rejected.tsig == tsig(ALGORITHM + SIGNED + b"\0\0" + b"\0\7\0\x11\0\0", b"\xc0\x0c")


BAD_TSIGS = [
    ("no data", b""),
    ("cut in the MAC", GOOD_TSIG[:-8]),
    ("cut in the last field", GOOD_TSIG[:-1]),
    ("longer than its fields", GOOD_TSIG + b"\0"),
    ("a compressed algorithm", b"\xc0\x0c" + GOOD_TSIG[len(ALGORITHM) :]),
]


@pytest.mark.parametrize("rdata", [row[1] for row in BAD_TSIGS], ids=[row[0] for row in BAD_TSIGS])
def test_a_broken_signature_is_a_format_error(rdata: bytes) -> None:
    rejected = parse(packet(rest=tsig(rdata), more=1))
    assert isinstance(rejected, Rejected)
    assert (rejected.rcode, rejected.tsig) == (Rcode.FORMERR, b"")


@given(st.binary(max_size=600))
def test_any_bytes_are_a_query_a_verdict_or_nothing(data: bytes) -> None:
    _check(data)


@given(st.binary(max_size=80), st.binary(max_size=60), st.integers(0, 3))
def test_any_bytes_behind_a_good_header_are_a_query_or_a_verdict(name: bytes, rest: bytes, more: int) -> None:
    _check(struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, more) + name + rest)
    _check(packet(rest=rest, more=more))


def _check(data: bytes) -> None:
    found = parse(data)
    if len(data) < 12 or data[2] & 0x80:
        assert found is None
    elif isinstance(found, Query):
        assert found.question_bytes == data[12 : 12 + len(found.question_bytes)]
        assert len(found.qname) <= 255
    else:
        assert isinstance(found, Rejected)
        assert found.question == data[12 : 12 + len(found.question)]


# Each is 64 KiB of what a name can be made of, behind a header that promises records.
HEAVY = [
    (
        "4600 pointers to a long name",
        (from_text("x" * 63 + "." + "y" * 63) + b"\0\1\0\1" + b"\xc0\x0c\0\1\0\1\0\0\0\0\0\0" * 5400)[:65000],
    ),
    ("labels without an end", b"\x3f" + b"x" * 65000),
    ("labels of one byte", b"\1x" * 32000),
    ("a million zeros or so", bytes(65000)),
    ("options of no length", NAME + b"\0\1\0\1" + opt(b"\0\x64\0\0" * 16000)),
    ("an OPT owner at the end of a chain of pointers", NAME + b"\0\1\0\1" + b"\xc0\x0c" * 32000),
]


@pytest.mark.parametrize("body", [row[1] for row in HEAVY], ids=[row[0] for row in HEAVY])
@pytest.mark.parametrize("counts", [(0, 0, 1), (0, 0, 2), (0, 0, 4600), (0, 0, 65535), (65535, 65535, 65535)])
def test_a_packet_made_to_cost_time_costs_none(body: bytes, counts: tuple[int, int, int]) -> None:
    data = struct.pack("!HHHHHH", 7, 0x0100, 1, *counts) + body
    best = 1.0
    for _ in range(3):
        started = time.perf_counter()
        assert isinstance(parse(data), Rejected | Query)
        best = min(best, time.perf_counter() - started)
    assert best < 0.002


def test_options_are_put_together_and_taken_out_by_their_code() -> None:
    options = option(3, b"") + option(8, b"\x00\x01") + option(3, b"ns1")
    assert options.hex() == "00030000" + "000800020001" + "000300036e7331"
    assert list(option_codes(options)) == [3, 8, 3]
    assert without_option(options, 3) == option(8, b"\x00\x01")
    assert without_option(options, 8) == option(3, b"") + option(3, b"ns1")
    assert without_option(options, 9) == options
    assert without_option(b"", 3) == b""
