"""`pprof`: accepted for CoreDNS's Corefiles; kdns has no Go runtime to be profiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from kdns.chain import Plugin
from kdns.corefile import Token
from kdns.options import Address, Options, address, argument, custom, number


def _read_rate(tokens: Sequence[Token]) -> int:
    return number(0).read(tokens) if tokens else 1


class PprofOptions(Options, directive="pprof", once=True):
    address: Annotated[Address, argument(address()), "where CoreDNS serves `/debug/pprof`; nothing listens there"] = (
        Address("localhost", 6053)
    )
    block: Annotated[int, custom(_read_rate, "RATE", "a number", least=0), "how often CoreDNS looks at what blocks"] = 0


class Pprof(Plugin):
    name = "pprof"
    options: ClassVar[type[Options]] = PprofOptions

    def notices(self) -> tuple[str, ...]:
        """The directive is accepted and does nothing."""
        return ("no effect: there is no Go runtime to be profiled, and nothing listens at its address",)
