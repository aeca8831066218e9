"""An explanation for people: what came of the name, the walk, the reply, the object, and what to try.

Short first: who reads on wants to know more.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby

from kdns.addresses import pack_address
from kdns.explain import report
from kdns.explain.knowledge import CLUSTER_IP, EXTERNAL_NAME

WIDTH = 100
MOST_SHOWN = 8


def draw(told: report.Explanation, colour: bool = False) -> Iterator[str]:
    """The lines of it."""
    painted = {True: "32;1", None: "33;1", False: "31;1"}[told.resolves]
    yield f"{_paint(told.name, painted, colour)} {_plain(told.summary)}"
    for hint in told.hints:
        first, *rest = _wrapped(_plain(hint.text))
        yield f"{_paint('hint', '36', colour)}: {first}"
        yield from (f"      {line}" for line in rest)
    yield ""
    yield from _client(told)
    yield from _walk(told)
    for answer in told.answers:
        yield ""
        yield from _answer(answer, told)
    for each in told.objects:
        yield ""
        yield from _object(each)


def _client(told: report.Explanation) -> Iterator[str]:
    client = told.client
    if client.pod:
        who = f"pod {client.namespace}/{client.pod}"
    elif client.namespace:
        who = f"a pod of namespace {client.namespace}"
    else:
        who = "a client"
    at = f" at {client.address}" if client.address else ""
    assumed = " (unless --from says otherwise)" if client.assumed else ""
    yield f"asked by {who}{at}{assumed}"
    for note in client.notes:
        yield f"  {_plain(note)}"
    # A reverse name was made of an address, and is whole.
    searched = not told.name.endswith(".") and pack_address(told.name) is None
    if client.search and searched:
        yield f"  search {' '.join(client.search)}, ndots:{client.ndots}"
    elif client.dns_policy and not client.search:
        yield f"  dnsPolicy {client.dns_policy}: no search list is known, ndots:{client.ndots}"


def _walk(told: report.Explanation) -> Iterator[str]:
    rows: list[tuple[str, str, str, str]] = []
    for name, verdicts in groupby(told.walk, key=lambda each: each.name):
        rows += [(name if not number else "", each.type, *_verdict(each)) for number, each in enumerate(verdicts)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, [*widths, 0], strict=True)).rstrip()
    yield f"  {_count(told.queries, 'query', 'queries')}, {told.packets} packets"


def _verdict(verdict: report.Verdict) -> tuple[str, str]:
    """What came of a query, and who said so."""
    who = verdict.directive + _as_asked(verdict)
    if not verdict.zone:
        who = "no server block has this name"
    elif not verdict.directive and verdict.rcode == "REFUSED":
        who = "no directive has this name"
    if verdict.outcome == report.ANSWER:
        found = [data for rtype, data in map(report.parts_of, verdict.records) if verdict.type in (rtype, "ANY")]
        others = len(found) - 1 + verdict.count - len(verdict.records)
        more = f" and {others} more" if others > 0 else ""
        return f"{found[0] if found else 'truncated'}{more}", who
    if verdict.outcome == report.ELSEWHERE:
        return "forwarded", f"{who} to {' or '.join(verdict.to)}"
    if verdict.outcome == report.NO_NAME:
        return "NXDOMAIN", who
    if verdict.outcome == report.NO_DATA:
        alias = any(report.parts_of(each)[0] == "CNAME" for each in verdict.records)
        return "alias, no data" if alias else "no data", who
    if verdict.outcome == report.SILENCE:
        return "no reply", who
    return verdict.rcode, f"{who}: {_plain(verdict.error)}" if verdict.error else who


def _as_asked(verdict: report.Verdict) -> str:
    """The question as the directive found it that answered, where another one had rewritten it."""
    asked = [step.question for step in verdict.steps if step.directive == verdict.directive and not step.depth]
    return f" (asked for {_plain(asked[-1])})" if asked and asked[-1] else ""


def _answer(answer: report.Answer, told: report.Explanation) -> Iterator[str]:
    verdict = next(each for each in told.walk if (each.name, each.type) == (answer.name, answer.type))
    yield f"answered by {verdict.directive} in the server block of {verdict.zone}"
    for record in answer.records[:MOST_SHOWN]:
        yield f"  {_plain(record)}"
    if answer.count > MOST_SHOWN:
        yield f"  and {answer.count - MOST_SHOWN} more"
    met = [step for step in verdict.steps if step.directive != verdict.directive and step.does != "passes on"]
    for step in met:
        asked = f" (asked for {_plain(step.question)})" if step.question else ""
        yield f"  {step.directive} {step.does}{asked}"
    yield f"  {'; '.join(_properties(answer))}"


def _properties(answer: report.Answer) -> Iterator[str]:
    yield f"TTL {answer.ttl} s"
    at = [size for size, truncated in answer.truncated.items() if truncated]
    if not at:
        yield f"{answer.size_bytes} bytes, fits into any packet"
    elif len(at) == len(answer.truncated):
        yield f"{answer.size_bytes} bytes, doesn't fit over UDP: the client asks again over TCP"
    else:
        yield f"{answer.size_bytes} bytes, doesn't fit into {at[0]} bytes: without EDNS the client asks again over TCP"
    if answer.kept:
        yield "kept until its TTL is over" if answer.ages else "kept until what it says changes"
    elif answer.kept_out_by:
        yield f"not kept: made anew for each query, because of {answer.kept_out_by}"
    elif answer.kept is False:
        yield "not kept yet"


def _object(object: report.Object) -> Iterator[str]:
    full = f"{object.namespace}/{object.name}" if object.namespace else object.name
    if not object.exists:
        yield f"{object.kind} {full} doesn't exist"
        return
    version = f", resourceVersion {object.resource_version}" if object.resource_version else ""
    hidden = ", not shown by DNS" if object.hidden_by else ""
    if object.kind != "Service":
        at = f" at {', '.join(object.addresses)}" if object.addresses else ""
        yield f"{object.kind} {full}{at}{version}{hidden}"
        return
    kind = object.kind_for_dns
    if object.type not in ("", CLUSTER_IP, EXTERNAL_NAME):
        kind = f"{object.type}, for DNS as good as ClusterIP" if kind == CLUSTER_IP else f"{object.type}, {kind}"
    what = f" {', '.join(object.addresses)}" if object.addresses else ""
    what = f" for {object.external_name}" if kind == EXTERNAL_NAME else what
    yield f"Service {full}: {kind}{what}{version}{hidden}"
    if object.ports:
        yield "  ports " + ", ".join(
            f"{port.name or 'without name'} {port.port}/{port.protocol}" for port in object.ports
        )
    if object.endpoints is not None:
        yield from _indented(_endpoints(object.endpoints, object.selector))


def _endpoints(endpoints: report.Endpoints, selector: str) -> Iterator[str]:
    of = f" of selector {selector}" if selector and endpoints.counted == "pods" else ""
    if not endpoints.total:
        yield "no endpoint" + (f" for selector {selector}" if selector else "")
        return
    yield f"{endpoints.ready} of {endpoints.total} {endpoints.counted} ready{of}"
    for each in endpoints.not_ready:
        at = f" ({each.address})" if each.address and each.address != each.name else ""
        yield f"  {_plain(each.name)}{at}: {_plain(each.why)}"
    for condition, count in endpoints.conditions.items():
        yield f"  {count} {_plain(condition)}"
    left = endpoints.total - endpoints.ready - len(endpoints.not_ready)
    if left and endpoints.not_ready:
        yield f"  and {left} more"
    elif left:
        yield "  which ones, and what their pods say, a running server doesn't know: --kubeconfig asks the API"


def _wrapped(text: str) -> list[str]:
    """The text in lines; what is to be typed stays in one."""
    whole = re.sub("`[^`]*`", lambda found: found[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(whole, WIDTH, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _plain(text: str) -> str:
    """The text without what a terminal would obey: it came from objects and peers."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _paint(text: str, code: str, colour: bool) -> str:
    text = _plain(text)
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text
