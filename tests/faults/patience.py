"""Waiting for what comes about by itself, in another task or at the other end of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def eventually(condition: Callable[[], object], seconds: float = 5.0, what: str = "") -> float:
    """Wait until a condition holds. Returns how long it took; fails after so many seconds."""
    clock = asyncio.get_running_loop().time
    began = clock()
    while not condition():
        assert clock() - began < seconds, f"not within {seconds:g} s: {what or 'the condition'}"
        await asyncio.sleep(0.005)
    return clock() - began


async def always(condition: Callable[[], object], seconds: float, what: str = "") -> None:
    """Look at a condition for so many seconds, in which it has to hold."""
    clock = asyncio.get_running_loop().time
    ends = clock() + seconds
    while clock() < ends:
        assert condition(), f"no longer: {what or 'the condition'}"
        await asyncio.sleep(0.005)
