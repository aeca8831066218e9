"""Words that are near to another one: what was probably meant by a name that isn't there.

Pure. Where there are many to compare with, the rest of the process has its turn in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

# As like as that is probably a slip of the pen: `gameservice` for `game-service`. Of short words a letter is much.
LIKENESS = 0.75
LIKENESS_OF_SHORT = 0.65
SHORT = 5
# Comparing so many names takes less than a millisecond.
NAMES_A_TURN = 20
MOST_SUGGESTED = 3


def nearest_of(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or an empty string."""
    found = sorted((likeness(word, each), each) for each in known)
    return found[-1][1] if found and found[-1][0] else ""


async def near(word: str, known: Sequence[str]) -> list[str]:
    """The known words that were probably meant, the likeliest first."""
    found: list[tuple[float, str]] = []
    for position, each in enumerate(known):
        if ratio := likeness(word, each):
            found.append((-ratio, each))
        if position % NAMES_A_TURN == NAMES_A_TURN - 1:
            await asyncio.sleep(0)
    return [each for _, each in sorted(found)[:MOST_SUGGESTED]]


def likeness(word: str, other: str) -> float:
    """How alike two words are, up to 1; 0 where one wasn't meant to be the other."""
    # `redis` for `redis-master`, and the other way round.
    if word and (other.startswith(f"{word}-") or word.startswith(f"{other}-")):
        return LIKENESS
    least = LIKENESS_OF_SHORT if min(len(word), len(other)) <= SHORT else LIKENESS
    # Most are too long or too short; the library's own quick look at that costs ten times as much.
    if 2 * min(len(word), len(other)) < least * (len(word) + len(other)):
        return 0.0
    matcher = SequenceMatcher(None, word, other)
    return ratio if matcher.quick_ratio() >= least and (ratio := matcher.ratio()) >= least else 0.0
