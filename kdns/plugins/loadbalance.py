"""`loadbalance`: addresses and mail servers in another order each time.

Law: docs/plugins/loadbalance.md: aliases first, then all else, then addresses, then MX; addresses and MX are shuffled.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from random import Random
from typing import Annotated

from kdns.chain import Answer, Block, Next, Plugin, Request
from kdns.corefile import Token
from kdns.options import Options, RefusalError, argument, custom, duration, repeatable, without_effect
from kdns.wire.records import Rcode, Record, Type

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SHUFFLED = (Type.A, Type.AAAA, Type.MX)


def _read_policy(tokens: Sequence[Token]) -> str:
    policy = tokens[0].text
    if policy == "weighted":
        raise RefusalError(tokens[0], "`round_robin`", "`weighted` isn't in kdns yet")
    if policy != "round_robin":
        raise RefusalError(tokens[0], "`round_robin`")
    if len(tokens) > 1:
        raise RefusalError(tokens[1], "nothing after `round_robin`")
    return policy


def _read_networks(tokens: Sequence[Token]) -> tuple[Network, ...]:
    networks = []
    for token in tokens:
        try:
            networks.append(ipaddress.ip_network(token.text, strict=False))
        except ValueError:
            raise RefusalError(token, "a network such as `10.0.0.0/8`") from None
    return tuple(networks)


class LoadbalanceOptions(Options, directive="loadbalance"):
    policy: Annotated[
        str,
        argument(custom(_read_policy, "round_robin", "`round_robin`", most=2)),
        "how addresses are ordered: at random",
    ] = "round_robin"
    prefer: Annotated[
        tuple[Network, ...],
        custom(_read_networks, "CIDR...", "networks", most=None),
        repeatable,
        "addresses of these networks come first, in the order of the networks",
    ] = ()
    reload: Annotated[
        float, duration(), "how often the file of weights is read", without_effect("`weighted` isn't in kdns yet")
    ] = 30.0


class Loadbalance(Plugin):
    name = "loadbalance"
    options = LoadbalanceOptions
    heeds_names = False

    def __init__(self, options: LoadbalanceOptions, block: Block) -> None:
        self._prefer = options.prefer
        self._random = Random()

    async def handle(self, request: Request, next: Next) -> Answer:
        answer = await next(request)
        if answer.rcode != Rcode.NOERROR:
            return answer
        several = len(answer.answer) > 1 or len(answer.additional) > 1
        if several and (_has_orders(answer.answer) or _has_orders(answer.additional)):
            # The next one who asks is to have another order.
            request.varies = True
            request.any_order = not self._prefer
        if len(answer.answer) > 1:
            answer.answer = balance(answer.answer, self._random, self._prefer)
        if len(answer.authority) > 1:
            answer.authority = balance(answer.authority, self._random, self._prefer)
        if len(answer.additional) > 1:
            answer.additional = balance(answer.additional, self._random, self._prefer)
        return answer


def _has_orders(records: Sequence[Record]) -> bool:
    """Whether there is another order of them: an alias and its one address have none."""
    shuffled = (True for record in records if record.rtype in _SHUFFLED)
    # Two are enough, of however many.
    return any(shuffled) and any(shuffled)


def balance(records: Sequence[Record], random: Random, prefer: Sequence[Network] = ()) -> list[Record]:
    """The records of a section in a new order; records of one owner and type stay together."""
    aliases, others, addresses, mail = [], [], [], []
    for record in records:
        rtype = record.rtype
        if rtype in (Type.A, Type.AAAA):
            addresses.append(record)
        elif rtype == Type.CNAME:
            aliases.append(record)
        elif rtype == Type.MX:
            mail.append(record)
        else:
            others.append(record)
    addresses = _shuffled(addresses, random)
    if prefer:
        addresses.sort(key=lambda record: _rank(record, prefer))
    return aliases + others + addresses + _shuffled(mail, random)


def _shuffled(records: list[Record], random: Random) -> list[Record]:
    if len(records) < 2:
        return records
    sets: dict[tuple[bytes, int], list[Record]] = {}
    for record in records:
        sets.setdefault((record.owner, record.rtype), []).append(record)
    for each in sets.values():
        random.shuffle(each)
    if len(sets) == 1:
        return each
    # RFC 2181 §9: where a reply is cut, a set goes as a whole, which takes sets that stand together.
    order = list(sets.values())
    random.shuffle(order)
    return [record for each in order for record in each]


def _rank(record: Record, prefer: Sequence[Network]) -> int:
    address = ipaddress.ip_address(record.data)
    return next((place for place, network in enumerate(prefer) if address in network), len(prefer))
