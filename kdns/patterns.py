"""Regular expressions as Corefiles have them: RE2's, whose time is linear in the text, for names come from strangers.

Law: RE2's syntax, which is Go's too.
"""

from __future__ import annotations

import re
from typing import Any

import re2

from kdns.corefile import Token
from kdns.options import RefusalError

# CoreDNS's bound, too.
LONGEST_PATTERN = 10_000
_PLACEHOLDER = re.compile(r"\{([0-9]+)\}")


def compile_pattern(token: Token) -> Any:
    """The pattern that a word is, with `search`, `groups` and `groupindex`. Raises RefusalError."""
    if len(token.text) > LONGEST_PATTERN:
        raise RefusalError(token, f"a regular expression of at most {LONGEST_PATTERN} characters")
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(token.text, options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise RefusalError(token, f"a regular expression ({reason})") from None


class Substitution:
    """A pattern and a text for what it matches, the whole of it; `{1}` stands for the first group, `{0}` for all."""

    __slots__ = ("_parts", "_search")

    def __init__(self, pattern: Any, replacement: str) -> None:
        self._search = pattern.search
        self._parts: list[str | int] = [
            int(part) if place % 2 else part for place, part in enumerate(_PLACEHOLDER.split(replacement))
        ]

    def fits(self, text: str) -> bool:
        """Whether the pattern is in a text."""
        return self._search(text) is not None

    def __call__(self, text: str) -> str | None:
        """The replacement of a text; None where the pattern is not in it."""
        found = self._search(text)
        if found is None:
            return None
        return "".join([part if isinstance(part, str) else found.group(part) or "" for part in self._parts])


def read_substitution(pattern: Token, replacement: Token) -> Substitution:
    """The substitution that two words are. Raises RefusalError."""
    compiled = compile_pattern(pattern)
    most = compiled.groups
    numbers = [int(each) for each in _PLACEHOLDER.findall(replacement.text)]
    wrong = next((each for each in numbers if each > most), None)
    if wrong is not None:
        groups = "1 group" if most == 1 else f"{most} groups"
        raise RefusalError(replacement, f"no more than the {groups} of `{pattern.text}`")
    return Substitution(compiled, replacement.text)
