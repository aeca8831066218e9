"""Records and their text: as dig writes them, which dnspython reads back."""

import dns.rdata
import dns.rdataclass
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.wire import records
from kdns.wire.names import from_text
from kdns.wire.records import Record, Type, address, data_to_text, soa, srv, to_text, txt

NAME = from_text("web.shop.svc.cluster.local.")

ROWS = [
    ("an IPv4 address", address(NAME, 5, b"\x0a\0\0\1"), "5 IN A 10.0.0.1"),
    ("an IPv6 address", address(NAME, 5, bytes(15) + b"\1"), "5 IN AAAA ::1"),
    ("an alias", Record(NAME, Type.CNAME, 0, from_text("example.org.")), "0 IN CNAME example.org."),
    ("a pointer to the root", Record(NAME, Type.PTR, 5, b"\0"), "5 IN PTR ."),
    ("a service", srv(NAME, 5, 33, 80, NAME), "5 IN SRV 0 33 80 web.shop.svc.cluster.local."),
    ("a mail server", Record(NAME, Type.MX, 5, b"\0\x0a" + NAME), "5 IN MX 10 web.shop.svc.cluster.local."),
    ("text", txt(NAME, 5, b"1.1.0", b'"\\\x00'), r'5 IN TXT "1.1.0" "\"\\\000"'),
    (
        "the start of a zone",
        soa(NAME, 5, b"\2ns" + NAME, b"\1h" + NAME, 7, 5),
        "5 IN SOA ns.web.shop.svc.cluster.local. h.web.shop.svc.cluster.local. 7 7200 1800 86400 5",
    ),
    ("an unknown type", Record(NAME, 65280, 5, b"\1\2"), r"5 IN TYPE65280 \# 2 0102"),
    ("an unknown type without data", Record(NAME, 65280, 5, b""), r"5 IN TYPE65280 \# 0"),
    ("an address of three bytes", Record(NAME, Type.A, 5, b"123"), r"5 IN A \# 3 313233"),
    ("an alias that is cut", Record(NAME, Type.CNAME, 5, b"\3ab"), r"5 IN CNAME \# 3 036162"),
    ("an SOA that is cut", Record(NAME, Type.SOA, 5, b"\0\0\1"), r"5 IN SOA \# 3 000001"),
]


@pytest.mark.parametrize(("record", "text"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_record_is_written_as_dig_does(record: Record, text: str) -> None:
    assert to_text(record) == f"web.shop.svc.cluster.local. {text}"


@pytest.mark.parametrize("record", [row[1] for row in ROWS[:8]], ids=[row[0] for row in ROWS[:8]])
def test_dnspython_reads_what_is_written(record: Record) -> None:
    text = data_to_text(record.rtype, record.data)
    assert dns.rdata.from_text(dns.rdataclass.IN, record.rtype, text).to_wire() == record.data


@given(st.integers(0, 65535), st.binary(max_size=80))
def test_any_data_has_a_text(rtype: int, data: bytes) -> None:
    assert isinstance(data_to_text(rtype, data), str)


@given(st.integers(0, 65535))
def test_every_type_is_known_by_its_own_name(number: int) -> None:
    assert records.type_from_text(records.type_to_text(number).lower()) == number


@pytest.mark.parametrize("text", ["", "B", "TYPE", "TYPE65536", "TYPE-1", "__name__", "IntEnum"])
def test_what_is_no_type_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="no record type"):
        records.type_from_text(text)


def test_numbers_without_a_name_are_written_as_numbers() -> None:
    assert [records.type_to_text(number) for number in (1, 33, 65280)] == ["A", "SRV", "TYPE65280"]
    assert [records.class_to_text(number) for number in (1, 3, 255, 9)] == ["IN", "CH", "ANY", "CLASS9"]
    assert [records.rcode_to_text(number) for number in (0, 3, 16, 23)] == ["NOERROR", "NXDOMAIN", "BADVERS", "RCODE23"]
