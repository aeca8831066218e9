"""What can go wrong, by culprit, and how a user's mistake is drawn.

Three culprits, three kinds: the user (`ConfigError`, with every mistake of one run), the peer (`PeerError`,
handled at the edge and counted), and us (any other exception: it costs one query and is logged once).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import msgspec

# More than that nobody reads at once.
MOST_DRAWN = 100
_PAINTS = {"error": "31;1", "warning": "33;1", "note": "36;1"}


class KdnsError(Exception):
    """The parent of every error that kdns raises on purpose."""


class PeerError(KdnsError):
    """A client, an upstream or the API server sent what it should not have."""


class Place(msgspec.Struct, frozen=True):
    """Where in a file a user's mistake stands; lines and columns count from 1, length in characters.

    `text` is the line, or of a long one the part around the column, `cut` characters from its beginning.
    """

    file: str
    line: int = 0
    column: int = 0
    length: int = 1
    text: str = ""
    cut: int = 0


class Problem(msgspec.Struct, frozen=True):
    """One mistake, warning or note, with what is needed to draw it.

    A `warning` is of what is hardly meant so, and prevents nothing. A `note` is a warning that blames nobody: what
    stands there is right, and means something else than in CoreDNS. `subject` names the object and field (`Service
    shop/web: spec.ports[0].port`) where there is one; `expected` is the sentence after the drawing, `hint` the advice
    after that.
    """

    message: str
    place: Place | None = None
    subject: str = ""
    expected: str = ""
    hint: str = ""
    warning: bool = False
    note: bool = False

    @property
    def kind(self) -> str:
        """`error`, `warning` or `note`."""
        return "note" if self.note else "warning" if self.warning else "error"


def note(message: str, place: Place | None, hint: str = "") -> Problem:
    """A note: what stands at a place means something else than in CoreDNS."""
    return Problem(message, place, hint=hint, warning=True, note=True)


class ConfigError(KdnsError):
    """The user's mistakes: all that one run found, in the order in which they stand in the files."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(draw(problem) for problem in self.problems))


def draw(problem: Problem, colour: bool = False) -> str:
    """The small page that tells one problem: what, where with a caret, what was expected, a hint."""
    paint = _PAINTS[problem.kind]
    lines = [f"{_paint(problem.kind, paint, colour)}: {problem.message}"]
    place = problem.place
    if place is not None:
        lines.append(f"  {place.file}" + (f":{place.line}:{place.column}" if place.line else ""))
    if problem.subject:
        lines.append(f"  in {problem.subject}")
    if place is not None and place.text and place.line:
        number = str(place.line)
        # A tab would put the caret elsewhere in each terminal.
        shown = place.text.replace("\t", " ")
        lines.append(f"    {number} | {shown}")
        if place.column:
            carets = _paint("^" * max(1, place.length), paint, colour)
            lines.append(f"    {' ' * len(number)} | {' ' * (place.column - place.cut - 1)}{carets}")
    if problem.expected:
        lines.append(f"  expected {problem.expected}")
    if problem.hint:
        lines.append(f"{_paint('hint', '36', colour)}: {problem.hint}")
    return "\n".join(lines)


def draw_all(problems: Sequence[Problem], colour: bool = False) -> str:
    """The problems drawn one below the other, `MOST_DRAWN` at most; how many more there are stands at the end."""
    drawn = [draw(problem, colour) for problem in problems[:MOST_DRAWN]]
    if len(problems) > MOST_DRAWN:
        drawn.append(f"and {len(problems) - MOST_DRAWN} more")
    return "\n\n".join(drawn)


def nearest(word: str, known: Sequence[str]) -> str:
    """The known word that `word` was probably meant to be, in whatever case, or an empty string."""
    folded = {each.lower(): each for each in known}
    matches = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else ""


def _paint(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text
