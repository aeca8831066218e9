"""Log lines in CoreDNS's form on one stream: `[INFO] plugin/ready: …`, without a time.

Writing never raises and never holds the server up: a reader that doesn't read costs lines, which are counted.
What a stranger put into a line can't end it or paint the terminal: bytes that are not printable appear as `\\DDD`.
"""

from __future__ import annotations

import logging
import os
import select
import traceback
from typing import TextIO

# The logger `kdns.plugin.NAME` writes `plugin/NAME: ` before its text.
PLUGINS = "kdns.plugin"
# What this logger is given is a line as it stands, without a level before it: one for machines.
BARE = "kdns.bare"

_LEVELS = {logging.CRITICAL: ("FATAL", "31;1"), logging.WARNING: ("WARNING", "33;1")}
_LEVELS |= {logging.ERROR: ("ERROR", "31;1"), logging.INFO: ("INFO", "36"), logging.DEBUG: ("DEBUG", "2")}

# pipe(7), POSIX PIPE_BUF: a pipe that poll calls writable takes this much at once, so a write of no more can't block.
LONGEST_LINE_BYTES = 4096
# Once: as long as the reader doesn't come back, later lines are dropped without waiting.
PATIENCE_MS = 20


def configure(stream: TextIO | None, colour: bool = False, debug: bool = False) -> None:
    """Send all that is logged to `stream`, from INFO on (DEBUG with `debug`); libraries' from WARNING on.

    Calling it again replaces the stream.
    """
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, LineHandler)]:
        root.removeHandler(handler)
    root.addHandler(LineHandler(stream, colour))
    logging.getLogger("kdns").setLevel(logging.DEBUG if debug else logging.INFO)


def plugin_logger(name: str) -> logging.Logger:
    """The logger whose lines begin with `plugin/NAME: `."""
    return logging.getLogger(f"{PLUGINS}.{name}")


def escape(text: str) -> str:
    """The text with each byte of what is not printable as `\\DDD` (RFC 1035 §5.1)."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else "".join(f"\\{byte:03d}" for byte in character.encode("utf-8", "surrogatepass"))
        for character in text
    )


class LineHandler(logging.Handler):
    """Writes each record as one line; a traceback follows as lines of its own."""

    def __init__(self, stream: TextIO | None, colour: bool = False) -> None:
        super().__init__()
        self._stream = stream
        self._colour = colour
        self._descriptor = _descriptor_of(stream)
        self._poll = _poll_of(self._descriptor)
        self._stuck = False
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            for line in self._lines(record):
                self._write(line)
        except Exception:
            # A log call with arguments that don't fit its text, or a stream that is gone. Neither may cost an answer.
            self._lost += 1

    def _lines(self, record: logging.LogRecord) -> list[str]:
        if record.name == BARE:
            return [escape(record.getMessage())]
        level, paint = _LEVELS.get(record.levelno, (record.levelname, "0"))
        tag = f"\x1b[{paint}m[{level}]\x1b[0m" if self._colour else f"[{level}]"
        before, _, plugin = record.name.partition(f"{PLUGINS}.")
        prefix = f"plugin/{plugin}: " if plugin and not before else ""
        lines = [f"{tag} {prefix}{escape(record.getMessage())}"]
        if record.exc_info and record.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*record.exc_info))
            lines += [f"    {escape(line)}" for line in text.splitlines()]
        return lines

    def _write(self, line: str) -> None:
        if self._stream is None:
            return
        if self._descriptor < 0:
            self._stream.write(f"{line}\n")
            self._stream.flush()
            return
        if not self._writable():
            self._stuck = True
            self._lost += 1
            return
        self._stuck = False
        if self._lost:
            lost, self._lost = self._lost, 0
            self._write(f"[WARNING] {lost} log lines are lost: nobody read them in time")
            self._write(line)
            return
        data = line.encode("utf-8", "replace")[: LONGEST_LINE_BYTES - 1] + b"\n"
        os.write(self._descriptor, data)

    def _writable(self) -> bool:
        if self._poll is None:
            return True
        events = self._poll.poll(0) or self._poll.poll(0 if self._stuck else PATIENCE_MS)
        return any(event & select.POLLOUT and not event & select.POLLERR for _, event in events)


def _descriptor_of(stream: TextIO | None) -> int:
    try:
        return -1 if stream is None else stream.fileno()
    except (OSError, ValueError):
        return -1


def _poll_of(descriptor: int) -> select.poll | None:
    if descriptor < 0 or not hasattr(select, "poll"):
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll
