"""Hosts and ports as text, and text as hosts: one spelling for logs, metrics, errors and Corefiles."""

from __future__ import annotations

import ipaddress
import socket

import msgspec

# RFC 4291 §2.5.5.2: what an IPv4 address begins with on a socket of both families.
_MAPPED = b"\x00" * 10 + b"\xff\xff"


class Address(msgspec.Struct, frozen=True):
    """Where something listens; an empty host is all addresses."""

    host: str
    port: int

    def __str__(self) -> str:
        return host_and_port(self.host, self.port)


def host_and_port(host: str, port: int | str) -> str:
    """`10.0.0.10:53`, `[fd00::10]:53`; `:53` where the host is empty, which stands for all addresses."""
    return f"{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """The host as it stands before a port or in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def is_address(text: str) -> bool:
    """Whether the text is a numeric IP address, with or without a zone."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def pack_client(host: str) -> bytes:
    """The packed address of a client as a socket names it, where an IPv6 address may have its link behind it."""
    return pack_address(host.partition("%")[0]) or b""


def pack_address(text: str) -> bytes | None:
    """The packed address that a text spells, IPv4-mapped ones as IPv4; None for what is no address."""
    try:
        if ":" not in text:
            return socket.inet_pton(socket.AF_INET, text)
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return None
    return packed[12:] if packed.startswith(_MAPPED) else packed
