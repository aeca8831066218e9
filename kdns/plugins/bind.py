"""`bind`: at which addresses a server block listens, given as addresses or as interfaces.

Law: docs/plugins/bind.md. A wildcard, of either family, means every address, as it does in Go and so in CoreDNS.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import ipaddress
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

from kdns.chain import Block, Plugin
from kdns.corefile import Token
from kdns.errors import ConfigError, Problem
from kdns.options import Options, RefusalError, argument, custom, repeatable


def _read_targets(tokens: Sequence[Token]) -> tuple[str, ...]:
    interfaces = {name for name, _ in interface_addresses()}
    for token in tokens:
        if _normal(token.text) or token.text in interfaces:
            continue
        known = ", ".join(f"`{name}`" for name in sorted(interfaces))
        raise RefusalError(
            token, "an IP address or the name of an interface", f"the interfaces here are {known}" if known else ""
        )
    return tuple(token.text for token in tokens)


class BindOptions(Options, directive="bind"):
    targets: Annotated[
        tuple[str, ...],
        argument(custom(_read_targets, "ADDRESS|INTERFACE...", "addresses or interfaces", most=None)),
        repeatable,
        "where to listen; an interface stands for all its addresses",
    ]
    except_: Annotated[
        tuple[str, ...],
        custom(_read_targets, "ADDRESS|INTERFACE...", "addresses or interfaces", most=None),
        repeatable,
        "which of these to leave out",
    ] = ()


class Bind(Plugin):
    name = "bind"
    options = BindOptions

    def __init__(self, options: BindOptions, block: Block) -> None:
        self._targets = options.targets
        self._left_out = options.except_

    def configure(self, block: Block) -> None:
        interfaces = list(interface_addresses())
        left_out = set(resolve(self._left_out, interfaces))
        addresses = [address for address in resolve(self._targets, interfaces) if address not in left_out]
        if not addresses:
            raise ConfigError([Problem(f"`bind {' '.join(self._targets)}` leaves no address to listen on")])
        if any(ipaddress.ip_address(address).is_unspecified for address in addresses):
            # None is all of them.
            addresses = []
        block.addresses = addresses


def resolve(targets: Sequence[str], interfaces: Sequence[tuple[str, str]]) -> list[str]:
    """The addresses that addresses and interfaces stand for, each once."""
    found: dict[str, None] = {}
    for target in targets:
        address = _normal(target)
        if address:
            found[address] = None
        else:
            found |= dict.fromkeys(address for name, address in interfaces if name == target)
    return list(found)


def _normal(text: str) -> str:
    """An address in its shortest form; empty where the text is none."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


class _Address(ctypes.Structure):
    """The beginning of a `struct ifaddrs` (getifaddrs(3)), the same in Linux and the BSDs as far as it is read here."""


_Address._fields_ = [
    ("next", ctypes.POINTER(_Address)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
]


def interface_addresses() -> Iterator[tuple[str, str]]:
    """Each interface's name with each of its addresses. The standard library only knows the names."""
    library = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_Address)()
    if library.getifaddrs(ctypes.byref(first)) != 0:
        return
    try:
        entry = first
        # A null pointer is false.
        while entry:  # type: ignore[truthy-bool]
            name = entry.contents.name.decode(errors="replace")
            address = _read_address(entry.contents.address, name)
            if address:
                yield name, address
            entry = entry.contents.next
    finally:
        library.freeifaddrs(first)


def _read_address(pointer: int | None, interface: str) -> str:
    if not pointer:
        return ""
    # The BSDs have a byte of length before a byte of family.
    start = ctypes.string_at(pointer, 2)
    family = start[1] if sys.platform == "darwin" else int.from_bytes(start, sys.byteorder)
    if family == socket.AF_INET:
        return socket.inet_ntop(family, ctypes.string_at(pointer + 4, 4))
    if family == socket.AF_INET6:
        address = socket.inet_ntop(family, ctypes.string_at(pointer + 8, 16))
        # Without its interface nothing can listen at a link-local address.
        return f"{address}%{interface}" if ipaddress.ip_address(address).is_link_local else address
    return ""
