"""Log lines: their form, that a stranger can't forge one, and that a reader who doesn't read holds nothing up."""

import io
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from kdns import logs


@contextmanager
def configured(stream: TextIO | None, **options: bool) -> Iterator[None]:
    try:
        logs.configure(stream, **options)
        yield
    finally:
        root = logging.getLogger()
        for handler in [each for each in root.handlers if isinstance(each, logs.LineHandler)]:
            root.removeHandler(handler)


@pytest.mark.parametrize(
    ("logger", "level", "text", "line"),
    [
        ("kdns.plugin.ready", logging.INFO, "Plugins not ready", "[INFO] plugin/ready: Plugins not ready"),
        ("kdns.plugin.reload", logging.WARNING, "x", "[WARNING] plugin/reload: x"),
        ("kdns.app", logging.ERROR, "SIGTERM stop", "[ERROR] SIGTERM stop"),
        ("kdns", logging.CRITICAL, "Loop", "[FATAL] Loop"),
        ("aiohttp.server", logging.WARNING, "from a library", "[WARNING] from a library"),
        (
            "kdns",
            logging.INFO,
            "two\nlines \x1b[2J \x7f \x00 \u2028 é",
            "[INFO] two\\010lines \\027[2J \\127 \\000 \\226\\128\\168 é",
        ),
        ("kdns", logging.INFO, "half a pair \ud800", "[INFO] half a pair \\237\\160\\128"),
    ],
)
def test_a_line_has_coredns_form_and_nothing_that_ends_it(logger: str, level: int, text: str, line: str) -> None:
    stream = io.StringIO()
    with configured(stream):
        logging.getLogger(logger).log(level, "%s", text)
    assert stream.getvalue() == f"{line}\n"


def test_debug_is_silent_until_it_is_asked_for() -> None:
    stream = io.StringIO()
    with configured(stream):
        logging.getLogger("kdns").debug("no")
    with configured(stream, debug=True):
        logging.getLogger("kdns").debug("yes")
    assert stream.getvalue() == "[DEBUG] yes\n"


def test_only_the_level_has_a_colour() -> None:
    stream = io.StringIO()
    with configured(stream, colour=True):
        logging.getLogger("kdns").warning("x")
    assert stream.getvalue() == "\x1b[33;1m[WARNING]\x1b[0m x\n"


def test_a_traceback_follows_indented() -> None:
    stream = io.StringIO()
    with configured(stream):
        try:
            raise ValueError("first\nsecond \x1b")
        except ValueError:
            logging.getLogger("kdns").exception("failed")
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["[ERROR] failed", "    Traceback (most recent call last):"]
    assert lines[-2:] == ["    ValueError: first", "    second \\027"]


def test_a_second_configuration_takes_the_place_of_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    with configured(first), configured(second):
        logging.getLogger("kdns").info("once")
    assert (first.getvalue(), second.getvalue()) == ("", "[INFO] once\n")


def closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


def broken_pipe() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


@pytest.mark.parametrize("stream", [lambda: None, closed, broken_pipe])
def test_a_stream_that_is_gone_costs_the_line_only(stream: object) -> None:
    gone = stream()  # type: ignore[operator]
    with configured(gone):
        logging.getLogger("kdns").info("nobody hears")
    if gone is not None:
        gone.close()


def test_arguments_that_do_not_fit_cost_the_line_only() -> None:
    stream = io.StringIO()
    logs.LineHandler(stream).emit(logging.LogRecord("kdns", logging.INFO, "", 0, "%d", ("no number",), None))
    assert stream.getvalue() == ""


def test_a_reader_that_does_not_read_holds_nothing_up_and_hears_later_how_much_is_lost() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, configured(stream):
        started = time.monotonic()
        for number in range(5000):
            logging.getLogger("kdns").info("%s %d", "x" * 100, number)
        assert time.monotonic() - started < 1.0
        kept = os.read(reading, 1 << 20).decode().splitlines()
        logging.getLogger("kdns").info("again")
        late = os.read(reading, 1 << 20).decode().splitlines()
    os.close(reading)
    assert all(line.startswith("[INFO] x") for line in kept), "whole lines only"
    assert late == [f"[WARNING] {5000 - len(kept)} log lines are lost: nobody read them in time", "[INFO] again"]


def test_a_line_is_as_long_as_a_pipe_takes_at_once() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, configured(stream):
        logging.getLogger("kdns").info("%s", "é" * 10_000)
        line = os.read(reading, 1 << 20)
    os.close(reading)
    assert len(line) <= logs.LONGEST_LINE_BYTES
    assert line.endswith(b"\n")
