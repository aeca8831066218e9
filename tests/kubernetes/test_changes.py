"""What an API server's bytes say: what is nested without end, and lines put together of chunks."""

from __future__ import annotations

import json

import msgspec
import pytest

from kdns.kubernetes.changes import (
    DEEPEST,
    RAW_PAGE,
    UNKNOWN,
    Added,
    Lines,
    MalformedError,
    Named,
    Partial,
    Unknown,
    change_decoder,
    decode,
    shallow,
)
from kdns.kubernetes.objects import Service

LISTS = b"[" * 100_000 + b"]" * 100_000
OBJECTS = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


@pytest.mark.parametrize(
    ("text", "deepest", "kept"),
    [
        ('{"a":[1,{"b":2}]}', 3, '{"a":[1,{"b":2}]}'),
        ('{"a":[1,{"b":2}]}', 2, '{"a":[1,null]}'),
        ('{"a":[1,{"b":2}]}', 1, '{"a":null}'),
        ("[[[[]]],[[1]],2]", 1, "[null,null,2]"),
        ("[[[[]]],[[1]],2]", 2, "[[null],[null],2]"),
        ('["[[","\\"[",{"]":"}"}]', 1, '["[[","\\"[",null]'),
        ('["\\\\",[1]]', 1, '["\\\\",null]'),
        ("7", 1, "7"),
    ],
)
def test_what_lies_deeper_is_left_out(text: str, deepest: int, kept: str) -> None:
    assert shallow(text.encode(), deepest) == kept.encode()
    json.loads(kept)


@pytest.mark.parametrize("text", ["]]]", "[[[", '["', '"\\', "", "}{", '{"a":[[["]'])
def test_what_is_no_json_stays_none_and_is_told_in_the_same_way(text: str) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode(UNKNOWN, shallow(text.encode(), 1))


@pytest.mark.parametrize("deep", [LISTS, OBJECTS])
def test_an_object_is_read_whatever_is_nested_in_what_dns_does_not_read(deep: bytes) -> None:
    line = b'{"type":"ADDED","object":{"metadata":{"name":"web","managedFields":%s,"namespace":"shop"},"x":%s}}'
    change = decode(change_decoder(Service), line % (deep, deep))
    assert isinstance(change, Added)
    assert (change.object.metadata.name, change.object.metadata.namespace) == ("web", "shop")


@pytest.mark.parametrize("deep", [LISTS, OBJECTS])
def test_an_object_that_nests_where_dns_reads_has_still_its_name_and_version(deep: bytes) -> None:
    metadata = b'{"name":"web","namespace":"shop","resourceVersion":"7"}'
    line = b'{"type":"ADDED","object":{"spec":{"ports":%s},"metadata":%s}}' % (deep, metadata)
    with pytest.raises(msgspec.ValidationError):
        decode(change_decoder(Service), line)
    assert decode(UNKNOWN, line) == Unknown("ADDED", Partial(Named("web", "shop", "7")))
    page = decode(RAW_PAGE, b'{"metadata":{"resourceVersion":"9"},"items":[{"spec":%s},{"spec":1}]}' % deep)
    assert page.metadata.resource_version == "9"
    assert [len(item) for item in page.items or ()] == [len(b'{"spec":}') + len(shallow(deep, DEEPEST - 3)), 10]


def test_chunks_become_lines_and_a_line_without_end_is_malformed() -> None:
    lines = Lines(longest=10)
    assert [list(lines.take(chunk)) for chunk in (b"on", b"e\ntwo\n", b"\n \r\nth", b"ree", b"\n")] == [
        [],
        [b"one", b"two"],
        [],
        [],
        [b"three"],
    ]
    with pytest.raises(MalformedError):
        list(lines.take(b"x" * 11))
