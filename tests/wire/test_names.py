"""Names: their text, their bytes, and the bytes that pretend to be one."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.wire import names

TEXTS = [
    ("the root is a dot", ".", b"\0"),
    ("nothing is the root as well", "", b"\0"),
    ("labels are counted", "web.shop.", b"\3web\4shop\0"),
    ("the last dot may be missing", "web.shop", b"\3web\4shop\0"),
    ("case stays as it is written", "WeB.", b"\3WeB\0"),
    ("an escaped dot belongs to its label", r"a\.b.c.", b"\3a.b\1c\0"),
    ("three digits are a byte", r"a\000\255.", b"\3a\x00\xff\0"),
    ("an escaped backslash is one", r"a\\.b.", b"\2a\\\1b\0"),
    ("an escaped letter is itself", r"\a.", b"\1a\0"),
    ("a label of 63 bytes is the longest", "x" * 63 + ".", b"\x3f" + b"x" * 63 + b"\0"),
    ("other scripts are their UTF-8", "ä.", b"\2\xc3\xa4\0"),
]

NO_NAMES = [
    ("an empty label in the middle", "a..b"),
    ("an empty label at the front", ".a"),
    ("two dots", ".."),
    ("an empty label behind an escape", r"\097..b"),
    ("a backslash at the end", "a\\"),
    ("a byte of two digits", r"a\12"),
    ("a byte above 255", r"a\256"),
    ("a label of 64 bytes", "x" * 64),
    ("a name of 256 bytes", ".".join(["x" * 63] * 3 + ["y" * 62])),
    ("half a character", "\udc80"),
]


@pytest.mark.parametrize(("text", "wire"), [row[1:] for row in TEXTS], ids=[row[0] for row in TEXTS])
def test_a_text_is_a_name(text: str, wire: bytes) -> None:
    assert names.from_text(text) == wire
    assert names.from_text(names.to_text(wire)) == wire


@pytest.mark.parametrize("text", [row[1] for row in NO_NAMES], ids=[row[0] for row in NO_NAMES])
def test_a_text_that_is_no_name_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        names.from_text(text)


def test_the_longest_name_has_255_bytes() -> None:
    text = ".".join(["x" * 63] * 3 + ["y" * 61])
    assert len(names.from_text(text)) == names.LONGEST_NAME


def test_what_would_confuse_a_reader_is_escaped() -> None:
    assert names.to_text(b'\x0aa.b\\c"d e\x00\0') == r"a\.b\\c\"d\032e\000."


label = st.binary(min_size=1, max_size=63)


@given(st.lists(label, max_size=3))
def test_every_name_survives_its_text(labels: list[bytes]) -> None:
    wire = names.from_labels(labels)
    assert names.from_text(names.to_text(wire)) == wire
    assert names.labels_of(wire) == labels


@given(st.lists(label, max_size=3))
def test_folding_a_name_folds_its_letters_and_nothing_else(labels: list[bytes]) -> None:
    assert names.labels_of(names.from_labels(labels).lower()) == [each.lower() for each in labels]


@given(st.text())
def test_any_text_is_a_name_or_a_value_error(text: str) -> None:
    try:
        wire = names.from_text(text)
    except ValueError:
        return
    assert len(wire) <= names.LONGEST_NAME
    assert names.from_text(names.to_text(wire)) == wire


HEADER = bytes(12)
COMPRESSED = [
    ("a whole name", b"\3web\0", 12, b"\3web\0", 17),
    ("a pointer to a whole name", b"\3web\0\xc0\x0c", 17, b"\3web\0", 19),
    ("a label before a pointer", b"\3web\0\1a\xc0\x0c", 17, b"\1a\3web\0", 21),
    ("a pointer to a pointer", b"\3web\0\xc0\x0c\1a\xc0\x11", 19, b"\1a\3web\0", 23),
    ("a pointer into the middle of a name", b"\1a\3web\0\xc0\x0e", 19, b"\3web\0", 21),
]
BROKEN = [
    ("nothing at all", b"", 12),
    ("a label that is cut", b"\3we", 12),
    ("no end", b"\3web", 12),
    ("a pointer to itself", b"\xc0\x0c", 12),
    ("two pointers to one another", b"\xc0\x0e\xc0\x0c", 12),
    ("the second of two pointers to one another", b"\xc0\x0e\xc0\x0c", 14),
    ("a pointer forward", b"\xc0\x0e\1a\0", 12),
    ("a pointer into the header", b"\xc0\x0b", 12),
    ("a pointer past the end", b"\xff\xff", 12),
    ("half a pointer", b"\xc0", 12),
    ("a label that leads back to itself", b"\1a\xc0\x0c", 12),
    ("a reserved label type, 01", b"\x41a\0", 12),
    ("a reserved label type, 10", b"\x81a\0", 12),
    (
        "pieces of legal length whose sum is 256",
        (b"\x3f" + b"x" * 63) * 2 + b"\0" + (b"\x3f" + b"y" * 63) * 2 + b"\xc0\x0c",
        141,
    ),
]


@pytest.mark.parametrize(
    ("message", "at", "name", "after"), [row[1:] for row in COMPRESSED], ids=[row[0] for row in COMPRESSED]
)
def test_a_name_is_read_out_of_a_message(message: bytes, at: int, name: bytes, after: int) -> None:
    assert names.read_name(HEADER + message, at) == (name, after)
    assert names.read_name(HEADER + message + b"\xff" * 9, at) == (name, after)


@pytest.mark.parametrize(("message", "at"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_broken_name_is_a_value_error(message: bytes, at: int) -> None:
    with pytest.raises(ValueError, match=r"name|label"):
        names.read_name(HEADER + message, at)


def test_a_chain_of_pointers_through_64_kib_takes_no_time() -> None:
    # Each pointer leads to the one before: the longest way that pointers, which must go back, can take.
    chain = b"\0\0" + b"".join((0xC000 | 12 + 2 * number).to_bytes(2, "big") for number in range(8180))
    message = HEADER + chain
    started = time.perf_counter()
    assert names.read_name(message, len(message) - 2) == (b"\0", len(message))
    assert time.perf_counter() - started < 0.05
