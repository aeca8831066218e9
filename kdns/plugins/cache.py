"""`cache`: CoreDNS's options are read and checked; replies of upstreams are not kept yet.

Names of the cluster never need it: they are answered from memory as it is at that moment.
Law of the options: docs/plugins/cache.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec

from kdns.chain import Plugin
from kdns.corefile import Token
from kdns.options import (
    Fault,
    Options,
    RefusalError,
    argument,
    choice,
    custom,
    duration,
    flag,
    is_number,
    number,
    parse_duration,
    repeatable,
    several,
    zone_arguments,
    zones,
)

# CoreDNS: "caching SERVFAIL responses over 5 minutes is not permitted".
LONGEST_SERVFAIL_SECONDS = 300.0


class Stale(msgspec.Struct, frozen=True):
    """`serve_stale`: for how long an expired reply is still given, and whether the upstream is asked first."""

    seconds: float = 3600.0
    mode: str = "immediate"
    verify_seconds: float = 0.0
    reply_ttl_seconds: float = 0.0
    recheck_seconds: float = 0.0


def _read_stale(tokens: Sequence[Token]) -> Stale:
    if not tokens:
        return Stale()
    seconds = _positive(tokens[0])
    mode = tokens[1].text if len(tokens) > 1 else "immediate"
    if mode not in ("immediate", "verify"):
        raise RefusalError(tokens[1], "`immediate` or `verify`")
    times = [parse_duration(token) for token in tokens[2:]]
    if mode == "verify":
        verify, *times = times or [0.0]
        return Stale(seconds, mode, verify, *times)
    if len(times) > 2:
        raise RefusalError(tokens[4], "nothing more after `immediate RTTL RECHECK`")
    return Stale(seconds, mode, 0.0, *times)


def _positive(token: Token) -> float:
    seconds = parse_duration(token)
    if seconds < 0:
        raise RefusalError(token, "0s or more")
    return seconds


def _read_percent(tokens: Sequence[Token]) -> int:
    text = tokens[0].text
    digits = text.removesuffix("%")
    if digits == text or not digits.isdecimal() or not 10 <= int(digits[:4]) <= 90:
        raise RefusalError(tokens[0], "10% to 90%")
    return int(digits)


def _read_disable(tokens: Sequence[Token]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    kind = choice("success", "denial").read(tokens[:1])
    return ((kind, zones().read(tokens[1:])),)


_TTL = number(1, unit="seconds").called("TTL")
_CAPACITY = several(number(0).called("CAPACITY"), _TTL, number(0, unit="seconds").called("MINTTL"))
_PERCENT = custom(_read_percent, "PERCENT", "a share such as `10%`")


class CacheOptions(Options, directive="cache", once=True):
    ttl: Annotated[int, argument(_TTL, is_number), "no reply is kept for longer, in seconds"] = 3600
    zones: Annotated[
        tuple[str, ...], zone_arguments(), "zones whose replies are kept; those of the block unless given"
    ] = ()
    success: Annotated[tuple[int, ...], _CAPACITY, "how many replies with data are kept, and for how long"] = (
        9984,
        3600,
        5,
    )
    denial: Annotated[tuple[int, ...], _CAPACITY, "how many replies without data are kept, and for how long"] = (
        9984,
        1800,
        5,
    )
    prefetch: Annotated[
        tuple[Any, ...],
        several(number(0).called("AMOUNT"), duration(), _PERCENT),
        "a reply asked for so often is fetched anew before it ends",
    ] = ()
    serve_stale: Annotated[
        Stale | None,
        custom(
            _read_stale, "DURATION [immediate|verify ...]", "a duration, then `immediate` or `verify`", least=0, most=5
        ),
        "a reply that has ended is given for so long when the upstream doesn't answer",
    ] = None
    serve_stale_policy: Annotated[str, choice("prefer_positive"), "which stale replies are preferred"] = ""
    servfail: Annotated[float, duration(0.0, LONGEST_SERVFAIL_SECONDS), "how long a SERVFAIL is kept"] = 5.0
    disable: Annotated[
        tuple[tuple[str, tuple[str, ...]], ...],
        custom(_read_disable, "success|denial [ZONES...]", "`success` or `denial`, then perhaps zones", most=None),
        repeatable,
        "what is not kept",
    ] = ()
    keepttl: Annotated[bool, flag(), "a kept reply has the TTL that it came with"] = False

    def faults(self) -> Iterable[Fault]:
        if self.serve_stale_policy and self.serve_stale is None:
            sentence = "`serve_stale_policy` needs `serve_stale`"
            yield Fault("serve_stale_policy", sentence, besides=("serve_stale",))


class Cache(Plugin):
    name = "cache"
    options = CacheOptions

    def notices(self) -> tuple[str, ...]:
        """The directive is accepted and does nothing."""
        return ("no effect yet: replies of upstreams are not kept; names of the cluster never need it",)
