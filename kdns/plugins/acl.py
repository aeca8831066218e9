"""`acl`: which clients get an answer to which questions.

Law: docs/plugins/acl.md; the extended errors are those of RFC 8914 §4.16 and §4.18.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Coroutine, Iterable, Sequence
from typing import Annotated, Any, ClassVar

import msgspec

from kdns.chain import SILENCE, Answer, Block, Next, Plugin, Request, failure
from kdns.corefile import Directive, Token
from kdns.errors import Problem
from kdns.metrics import ACL_ALLOWED, ACL_BLOCKED, ACL_DROPPED, ACL_FILTERED
from kdns.options import Options, RefusalError, SeveralError, collected, lines, parse_each, zone_arguments
from kdns.wire import names
from kdns.wire.records import Rcode, type_from_text

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ACTIONS = ("allow", "block", "filter", "drop")
_BLOCKED, _FILTERED = (15, ""), (17, "")
_METRICS = {"block": ACL_BLOCKED, "filter": ACL_FILTERED, "drop": ACL_DROPPED}
_SYNTAX = "allow|block|filter|drop [type QTYPE...] [net SOURCE...]"


class Policy(msgspec.Struct, frozen=True):
    """One line: what is done with questions of these types from these networks; None is all of them."""

    action: str
    types: frozenset[int] | None = None
    networks: tuple[Network, ...] | None = None


def _read_policy(line: Directive) -> Policy:
    types: list[int] | None = None
    networks: list[Network] | None = None
    all_types = all_networks = False
    section = ""
    wrong: list[ValueError] = []
    if line.body is not None:
        raise RefusalError(line.name, f"`{_SYNTAX}`")
    for token in line.args:
        if token.text in ("type", "net"):
            section = token.text
            types = types or [] if section == "type" else types
            networks = networks or [] if section == "net" else networks
        elif section == "type":
            all_types = all_types or token.text == "*"
            with collected(wrong):
                types = [*(types or []), *_types(token)]
        elif section == "net":
            all_networks = all_networks or token.text == "*"
            with collected(wrong):
                networks = [*(networks or []), *_networks(token)]
        else:
            wrong.append(RefusalError(token, "`type` or `net`"))
    if wrong:
        raise SeveralError(wrong)
    if (types == [] and not all_types) or (networks == [] and not all_networks):
        raise RefusalError(line.args[-1], "words after `type` and `net`")
    return Policy(
        line.name.text,
        None if all_types or types is None else frozenset(types),
        None if all_networks or networks is None else tuple(networks),
    )


def _types(token: Token) -> list[int]:
    if token.text == "*":
        return []
    try:
        return [type_from_text(token.text)]
    except ValueError:
        raise RefusalError(token, "a record type such as `AAAA`, or `*`") from None


def _networks(token: Token) -> list[Network]:
    if token.text == "*":
        return []
    try:
        return [ipaddress.ip_network(token.text, strict=False)]
    except ValueError:
        raise RefusalError(token, "an address, a network such as `10.0.0.0/8`, or `*`") from None


class AclOptions(Options, directive="acl"):
    zones: Annotated[
        tuple[str, ...], zone_arguments(), "the names that the policies are for; those of the block unless given"
    ] = ()
    policies: Annotated[
        tuple[Policy, ...],
        lines(_read_policy, *ACTIONS, syntax=_SYNTAX),
        "what becomes of a question; the first line that fits counts",
    ] = ()


class Acl(Plugin):
    name = "acl"
    options: ClassVar[type[Options]] = AclOptions

    def __init__(self, options: list[AclOptions], block: Block) -> None:
        self._block = block
        self._metrics = block.process.metrics
        self._rules = [(_zones(each, block), each.policies) for each in options]

    @classmethod
    def read(cls, directives: Sequence[Directive], problems: list[Problem]) -> list[AclOptions] | None:
        """Each use is a rule of its own."""
        found = parse_each(AclOptions, directives, problems)
        return found if len(found) == len(directives) else None

    def notices(self) -> Iterable[str]:
        if any(policy.action in ("block", "filter") for _, policies in self._rules for policy in policies):
            yield "a query without EDNS gets no extended error"

    def handle(self, request: Request, next: Next) -> Coroutine[Any, Any, Answer]:
        """Decide before anything else is done for the client."""
        for zones, policies in self._rules:
            zone = _zone_of(request.query.labels, zones)
            if zone is None:
                continue
            action = _action(request, policies)
            if action == "allow":
                break
            if action:
                self._metrics.increase(_METRICS[action], self._block.server, zone, "")
                return _refuse(action)
        self._metrics.increase(ACL_ALLOWED, self._block.server, "")
        return next(request)


async def _refuse(action: str) -> Answer:
    if action == "block":
        return failure("", Acl.name, _BLOCKED, Rcode.REFUSED)
    if action == "filter":
        return failure("", Acl.name, _FILTERED, Rcode.NOERROR)
    return failure("", Acl.name, rcode=SILENCE)


def _zones(options: AclOptions, block: Block) -> list[tuple[list[bytes], str]]:
    """The labels and the text of each zone that a rule is for, the longest first."""
    zones = [names.from_text(zone) for zone in options.zones] or list(block.zones)
    return sorted(((names.labels_of(zone), names.to_text(zone)) for zone in zones), key=lambda pair: -len(pair[0]))


def _zone_of(labels: list[bytes], zones: Sequence[tuple[list[bytes], str]]) -> str | None:
    for zone, text in zones:
        if len(zone) <= len(labels) and labels[len(labels) - len(zone) :] == zone:
            return text
    return None


def _action(request: Request, policies: Sequence[Policy]) -> str:
    client: ipaddress.IPv4Address | ipaddress.IPv6Address | None = None
    for policy in policies:
        if policy.types is not None and request.query.rtype not in policy.types:
            continue
        if policy.networks is not None:
            # Only now does the answer depend on who asks.
            client = client or ipaddress.ip_address(request.client[0].partition("%")[0])
            if not any(client in network for network in policy.networks):
                continue
        return policy.action
    return ""
