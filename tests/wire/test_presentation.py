"""A record as text, read: the bytes are those that dnspython makes, and what is none is told in a sentence."""

import re

import dns.rdata
import dns.rdataclass
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.wire import names
from kdns.wire.presentation import parse_record
from kdns.wire.records import Record, Type, to_text


@pytest.mark.parametrize(
    ("rtype", "data"),
    [
        ("A", "10.0.0.1"),
        ("AAAA", "fd00::1"),
        ("NS", "ns.example.org."),
        ("CNAME", "a\\.b.example.org."),
        ("PTR", "web.example.org."),
        ("DNAME", "example.net."),
        ("MX", "10 mail.example.org."),
        ("SRV", "1 2 80 web.example.org."),
        ("TXT", "plain"),
        ("TXT", '"with blanks; and (more)" "" two'),
        ("TXT", '"a \\"quote\\" and \\255\\\\"'),
        ("HINFO", 'INTEL "Linux 6"'),
        ("SOA", "ns.example.org. root.example.org. 1 60 120 86400 3600"),
        ("SOA", "ns.example.org. root.example.org. (1 1m 2m 1d\n 1h)"),
        ("CAA", '0 issue "ca.example.org"'),
        ("NAPTR", '10 20 "s" "SIP+D2U" "" _sip._udp.example.org.'),
        ("HTTPS", "1 . alpn=h2,h3 ipv4hint=10.0.0.1,10.0.0.2"),
        ("HTTPS", '1 . alpn="h2,h3" port=8443 ipv6hint=fd00::1'),
        ("SVCB", "0 web.example.org."),
        ("SVCB", "16 web.example.org. mandatory=port,alpn alpn=h2 no-default-alpn port=53 key667=hello"),
        ("TYPE65280", "\\# 3 ab cdef"),
        ("TYPE65280", "\\# 0"),
        ("A", "\\# 4 0a000001"),
    ],
)
def test_the_data_of_a_record(rtype: str, data: str) -> None:
    expected = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.from_text(rtype), data.replace("\n", " "))
    record = parse_record(f"Example.org. 60 IN {rtype} {data}")
    assert record is not None
    assert record.data == expected.to_wire()
    assert record.rtype == expected.rdtype


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("a.org. 60 IN A 10.0.0.1", "a.org. 60 IN A 10.0.0.1"),
        ("a.org 60 A 10.0.0.1", "a.org. 60 IN A 10.0.0.1"),
        ("a.org IN 60 A 10.0.0.1", "a.org. 60 IN A 10.0.0.1"),
        ("a.org IN A 10.0.0.1", "a.org. 3600 IN A 10.0.0.1"),
        ("a.org A 10.0.0.1", "a.org. 3600 IN A 10.0.0.1"),
        ("  a.org\tin\ta\t10.0.0.1 ; a comment", "a.org. 3600 IN A 10.0.0.1"),
        ("a.org 1h30m A 10.0.0.1", "a.org. 5400 IN A 10.0.0.1"),
        ("a.org. 60 CH TXT x", 'a.org. 60 IN TXT "x"'),
        (". 60 NS a.org", ". 60 IN NS a.org."),
        ("\n\na.org 60 A 10.0.0.1\nb.org 60 A 10.0.0.2", "a.org. 60 IN A 10.0.0.1"),
        ("a.org 60 MX 5 (\n b.org ; x\n )", "a.org. 60 IN MX 5 b.org."),
    ],
)
def test_owner_ttl_and_class(line: str, read: str) -> None:
    record = parse_record(line)
    assert record is not None
    assert to_text(record) == read


@pytest.mark.parametrize("line", ["", "  \n ", "; a comment"])
def test_a_line_without_a_record_is_none(line: str) -> None:
    assert parse_record(line) is None


def test_a_long_string_becomes_several() -> None:
    record = parse_record(f'a.org TXT "{"x" * 300}"')
    assert record == Record(names.from_text("a.org"), Type.TXT, 3600, b"\xff" + b"x" * 255 + b"\x2d" + b"x" * 45)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a.org", "a record has a type"),
        ("a.org 60 IN", "a record has a type"),
        ("a.org 60 IN B 1", "`B` is no record type"),
        ("a..org 60 IN A 10.0.0.1", "a label has 1 to 63 bytes"),
        ("a.org 60 IN A 10.0.0.256", "`10.0.0.256` doesn't fit the type"),
        ("a.org 60 IN A <no value>", "a record of this type has 1 values, not 2"),
        ("a.org 60 IN A", "a record of this type has 1 values, not 0"),
        ("a.org 60 IN A 10.0.0.1 10.0.0.2", "a record of this type has 1 values, not 2"),
        ("a.org 60 IN MX x b.org", "`x` is no number from 0 to 65535"),
        ("a.org 60 IN SRV 1 2 70000 b.org", "`70000` is no number from 0 to 65535"),
        ("a.org 60 IN TXT", "a text has a string at least"),
        ('a.org 60 IN TXT "x', "can't be read: a quote isn't closed"),
        ("a.org 60 IN SOA a b 1 2 3 4 x", "`x` is no time"),
        ("a.org 60 IN SOA (a b 1 2 3 4 5", "a parenthesis isn't closed"),
        ("a.org 60 IN A ) 10.0.0.1", "a parenthesis isn't opened"),
        ("a.org 4294967295 IN A 10.0.0.1", "a TTL has at most 2147483647 seconds"),
        ("a.org 60 IN DNSKEY 257 3 8 AwEA", "can only be written as in RFC 3597"),
        ("a.org 60 IN TYPE65280 \\# 3 abcd", "the length of the data"),
        ("a.org 60 IN TYPE65280 \\# 3 xy", "hexadecimal"),
        ("a.org 60 IN TYPE65280 \\#", "doesn't fit the type"),
        ("a.org 60 IN TXT \\999", "is no byte"),
        ("a.org 60 IN HTTPS 1", "doesn't fit the type"),
        ("a.org 60 IN HTTPS 1 . what=1", "`what` is no parameter"),
        ("a.org 60 IN HTTPS 1 . port=1 port=2", "or there twice"),
        ("a.org 60 IN HTTPS 1 . ipv4hint=x", "doesn't fit the type"),
    ],
)
def test_what_is_no_record_is_told(line: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        parse_record(line)


@given(st.text(max_size=40), st.sampled_from(["A", "TXT", "SOA", "HTTPS", "NAPTR", "CAA", "TYPE65280"]))
def test_whatever_stands_there_is_read_or_told(text: str, rtype: str) -> None:
    for line in (text, f"a.org. 60 IN {rtype} {text}"):
        try:
            record = parse_record(line)
        except ValueError:
            continue
        assert record is None or isinstance(record.data, bytes)
