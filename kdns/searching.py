"""Names that mean another one, as a search list makes it of them: which they could be, and the answer as an alias.

Pure. Knows no cluster and no client.
Law: docs/plugins/search.md, docs/plugins/autopath.md; RFC 1034 §3.6.2 (aliases), RFC 2308 §2.1 (denials behind them).
"""

from __future__ import annotations

import contextlib

from kdns.chain import Answer
from kdns.wire import names
from kdns.wire.query import Query
from kdns.wire.records import Rcode, Record, Type

# In labels, as `_http._tcp.web.shop.svc` has them.
LONGEST_SHORT_NAME = 5


def in_own_namespace(labels: list[bytes]) -> bool:
    """Whether it is the name of a service that leaves out the namespace: `web`, `_http._tcp.web`."""
    if len(labels) == 1:
        return True
    return len(labels) == 3 and labels[0][:1] == labels[1][:1] == b"_" != labels[2][:1]


def below_zone(labels: list[bytes], namespaces: frozenset[bytes] = frozenset()) -> list[bytes] | None:
    """The labels left of the zone that a name of a service with its namespace stands for, or None for any other name.

    Such are `web.shop`, `web-0.web.shop` and `_http._tcp.web.shop`, all of them perhaps with `svc` behind. Without
    `namespaces` any may stand there.
    """
    short = labels[:-1] if labels[-1] == b"svc" else labels
    if not 2 <= len(short) < LONGEST_SHORT_NAME or (namespaces and short[-1] not in namespaces):
        return None
    # An underscore begins a port or a protocol, and both have to be there.
    if sum(label[:1] == b"_" for label in short) != (2 if len(short) == 4 else 0):
        return None
    return [*short, b"svc"]


def search_domains(text: str) -> list[bytes]:
    """The search list of a file in the form of /etc/resolv.conf, in wire form; what is no name is left out.

    The last line counts (resolv.conf(5)), and a lone dot is no domain.
    """
    domains: list[bytes] = []
    for line in text.splitlines():
        match line.split():
            case ["search", *words]:
                domains = []
                for word in words:
                    with contextlib.suppress(ValueError):
                        domains.append(names.from_text(word).lower())
    return [domain for domain in dict.fromkeys(domains) if domain != names.ROOT]


def aliased(query: Query, target: bytes, answer: Answer, longest_ttl: int, plugin: str) -> Answer:
    """The answer to a question for a name that stands for another one, out of that one's.

    The alias has the TTL of what it leads to; `longest_ttl`, in seconds, where it leads to nothing. What is no answer
    (a failure, a refusal, silence) stays what it is.
    """
    if answer.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
        return answer
    ttl = min([record.ttl for record in answer.answer], default=longest_ttl)
    if query.rtype in (Type.CNAME, Type.ANY) and answer.rcode == Rcode.NOERROR:
        # What was asked for is the alias; of ANY one set of records is enough (RFC 8482 §4.1).
        return Answer(answer=[Record(query.qname, Type.CNAME, ttl, target)], plugin=plugin, error=answer.error)
    made = Answer(
        answer.rcode,
        [Record(query.qname, Type.CNAME, ttl, target), *answer.answer],
        answer.authority,
        answer.additional,
        answer.flags,
        plugin,
        answer.error,
        answer.cause,
    )
    made.lifetime = answer.lifetime
    return made
