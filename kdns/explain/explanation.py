"""An explanation: the walk of a client's resolver, the replies that end it, the objects behind them, and hints.

The work is bounded: a search list has an end, questions are asked one after the other, and between any two of them
whoever else uses the loop has a turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import groupby, islice

import msgspec

from kdns.addresses import pack_client
from kdns.answers import AnswerCache, PlacedAnswers
from kdns.chain import Process
from kdns.explain import hints, report
from kdns.explain.asking import LOOPBACK, Ask, client_of, question_of
from kdns.explain.case import Case, Meant
from kdns.explain.knowledge import Source
from kdns.explain.meaning import Meaning, meaning_of, meaning_of_reverse
from kdns.explain.stub import Candidate, Resolver, candidates
from kdns.explain.trace import Run, Tracer, does, question_text
from kdns.listening import Listener
from kdns.plugins.kubernetes import Kubernetes
from kdns.wire import names
from kdns.wire.query import AD
from kdns.wire.records import Rcode, Record, Type, data_to_text, rcode_to_text, to_text, type_to_text

# RFC 8914 §5.2: those that a directive says without words.
_ERRORS = {13: "a failure that was kept", 15: "blocked", 16: "censored", 17: "filtered", 18: "prohibited"}
# More records than that nobody reads at once.
MOST_RECORDS = 50
MOST_IN_SUMMARY = 3


class World(msgspec.Struct, frozen=True):
    """Whom to ask: a listener with its chains, and what is known behind them.

    `network` is whether upstreams may be asked. `kept` are the replies that a running server keeps, None without one.
    """

    source: str
    listener: Listener
    process: Process
    sources: list[Source]
    network: bool = False
    kept: list[AnswerCache] | None = None


async def explain(ask: Ask, world: World) -> report.Explanation:
    """Ask as the client would, and tell all of it. Raises AskError."""
    text, types = question_of(ask)
    client, resolver = await client_of(ask, world.sources)
    address = client.address or LOOPBACK
    tracer = Tracer(world.listener, world.process, world.network)
    walk = await _walk(tracer, _names(text, resolver), types, address)
    told = report.Explanation(
        name=ask.name,
        types=[type_to_text(rtype) for rtype in types],
        source=world.source,
        zones=[zone for source in world.sources for zone in source.zones],
        client=client,
        resolves=_resolves(walk),
        summary="",
        walk=[_verdict(each) for each in walk],
        queries=len(walk),
        packets=2 * len(walk),
    )
    told.answers = [await _answer(tracer, each, address, world) for each in walk if each.outcome == report.ANSWER]
    meant = _meanings(walk, world.sources)
    case = Case(text, types, client, resolver, told, world.sources, meant, running=world.kept is not None)
    await case.settle()
    told.objects = case.objects
    told.summary = _summary(case, walk)
    told.hints = hints.find(case)
    return told


# The walk


class _Asked(msgspec.Struct):
    """A query of the walk."""

    candidate: Candidate
    rtype: int
    run: Run
    outcome: str


def _names(text: str, resolver: Resolver) -> list[Candidate]:
    # Whoever asks for the name of an address makes the whole name of it.
    whole = text.endswith((".in-addr.arpa.", ".ip6.arpa."))
    return [Candidate(names.from_text(text))] if whole else candidates(text, resolver)


async def _walk(tracer: Tracer, found: Sequence[Candidate], types: Sequence[int], client: str) -> list[_Asked]:
    """Ask for one name after the other until one has an answer, as glibc does.

    No data is a reason to go on, and so is SERVFAIL; after any other failure nothing but the name as it stands is left.
    An alias that leads to no data is an answer to it.
    """
    asked: list[_Asked] = []
    failed = False
    for candidate in found:
        if failed and candidate.domain is not None:
            continue
        for rtype in types:
            run = await tracer.ask(candidate.name, rtype, client)
            asked.append(_Asked(candidate, rtype, run, _outcome(run, rtype)))
            # Whoever is served by the same loop has a turn.
            await asyncio.sleep(0)
        both = asked[-len(types) :]
        if any(each.outcome in (report.ANSWER, report.ELSEWHERE) or each.run.records for each in both):
            break
        failed = failed or (candidate.domain is not None and any(map(_ends_search, both)))
    return asked


def _ends_search(asked: _Asked) -> bool:
    return asked.outcome == report.SILENCE or (asked.outcome == report.FAILURE and asked.run.rcode != Rcode.SERVFAIL)


def _outcome(run: Run, rtype: int) -> str:
    if not run.reply:
        return report.SILENCE
    if run.elsewhere:
        return report.ELSEWHERE
    if run.rcode == Rcode.NXDOMAIN:
        return report.NO_NAME
    if run.rcode != Rcode.NOERROR:
        return report.FAILURE
    # An answer too long for its packet is one all the same.
    found = run.truncated or any(record.rtype == rtype or rtype == Type.ANY for record in run.records)
    return report.ANSWER if found else report.NO_DATA


def _resolves(walk: Sequence[_Asked]) -> bool | None:
    if any(each.outcome == report.ANSWER for each in walk):
        return True
    elsewhere = [each for each in walk if each.outcome == report.ELSEWHERE]
    # But for a few (RFC 7085), no name without a dot has an address anywhere in the world.
    dotless = all(len(names.labels_of(each.candidate.name)) == 1 for each in elsewhere)
    return False if dotless else None


def _verdict(asked: _Asked) -> report.Verdict:
    run = asked.run
    answer = run.answer
    question = (asked.candidate.name.lower(), asked.rtype)
    steps = [
        report.Step(
            met.directive, does(met), "" if met.question == question else question_text(met.question), met.depth
        )
        for met in run.met
    ]
    code, error = answer.error if answer is not None and answer.error else (0, "")
    return report.Verdict(
        name=names.to_text(asked.candidate.name),
        type=type_to_text(asked.rtype),
        outcome=asked.outcome,
        rcode=rcode_to_text(run.rcode) if run.reply else "",
        zone=names.to_text(run.zone) if run.zone is not None else "",
        directive=answer.plugin if answer is not None else "",
        records=_texts(asked.run.records),
        count=len(asked.run.records),
        to=run.elsewhere,
        error=(answer.cause if answer is not None else "") or error or _ERRORS.get(code, ""),
        steps=steps,
    )


def _texts(records: Sequence[Record]) -> list[str]:
    """The first records as text. The order of those of one name and type is chance, so here they are in their own."""
    sets = groupby(records, key=lambda record: (record.owner, record.rtype))
    ordered = (record for _, found in sets for record in sorted(found, key=lambda record: record.data))
    return [to_text(record) for record in islice(ordered, MOST_RECORDS)]


# The replies


async def _answer(tracer: Tracer, asked: _Asked, client: str, world: World) -> report.Answer:
    name, rtype, run = asked.candidate.name, asked.rtype, asked.run
    # What the walk has asked is what a resolver without EDNS asks.
    with_edns = await tracer.ask(name, rtype, client, edns=True)
    await asyncio.sleep(0)
    whole = await tracer.ask(name, rtype, client, transport="tcp")
    await asyncio.sleep(0)
    answer = whole.answer or run.answer
    assert answer is not None
    # The last is what the next client gets: what others were asked for at first, `cache` has by now.
    kept = whole.keeps
    if world.kept is not None:
        packets = [form for packet in (run.packet, with_edns.packet) for form in _forms(packet)]
        found = (_is_kept(answers, packet, client) for answers in world.kept for packet in packets)
        kept = whole.from_cache or any(found)
    return report.Answer(
        name=names.to_text(name),
        type=type_to_text(rtype),
        records=_texts(answer.answer),
        count=len(answer.answer),
        additional=_texts(answer.additional),
        ttl=min((record.ttl for record in answer.answer), default=0),
        size_bytes=len(whole.reply),
        truncated={"512": run.truncated, "1232": with_edns.truncated},
        kept=kept,
        ages=whole.ages or whole.from_cache,
        kept_out_by="" if kept or whole.keeps else whole.kept_out_by,
    )


def _forms(packet: bytes) -> tuple[bytes, bytes]:
    """The query as glibc and Go send it, and as musl and dig do, who ask whether the data is authentic (AD)."""
    return packet, packet[:3] + bytes((packet[3] | AD,)) + packet[4:]


def _is_kept(answers: AnswerCache, packet: bytes, client: str) -> bool:
    place = answers.place(pack_client(client)) if isinstance(answers, PlacedAnswers) else b""
    found = answers.find(packet, place)
    if found is None:
        return False
    # Nobody was sent it.
    found[1].uses -= 1
    return True


# What it means


def _meanings(walk: Sequence[_Asked], sources: Sequence[Source]) -> list[Meant]:
    """What each name of the walk means to the cluster in whose zone it lies; from outside of all, where it leads."""
    answered: dict[bytes, bool] = {}
    for each in walk:
        for name in _found_as(each):
            answered[name] = answered.get(name, False) or each.outcome == report.ANSWER
    if not any(found and _source_of(name, sources) for name, found in answered.items()):
        for each in walk:
            targets = [record.data for record in each.run.records if record.rtype == Type.CNAME]
            answered.update(dict.fromkeys(targets if each.outcome == report.ANSWER else (), True))
    meant = [(name, source) for name in answered if (source := _source_of(name, sources)) is not None]
    return [Meant(names.to_text(name), source, _meaning(name, source), answered[name]) for name, source in meant]


def _found_as(asked: _Asked) -> list[bytes]:
    """The name as `kubernetes` found it: another directive may have rewritten it."""
    found = [met.question[0] for met in asked.run.met if met.directive == Kubernetes.name and not met.depth]
    return list(dict.fromkeys(found)) or [asked.candidate.name]


def _source_of(name: bytes, sources: Sequence[Source]) -> Source | None:
    labels = names.labels_of(name.lower())
    return next((source for source in sources if source.left_of_zone(labels) is not None), None)


def _meaning(name: bytes, source: Source) -> Meaning:
    labels = names.labels_of(name.lower())
    if labels[-2:] in ([b"in-addr", b"arpa"], [b"ip6", b"arpa"]):
        return meaning_of_reverse(labels)
    return meaning_of(source.left_of_zone(labels) or ())


# The summary


def _summary(case: Case, walk: Sequence[_Asked]) -> str:
    """What came of it: what follows the name in a sentence without an end."""
    told = case.told
    if told.resolves:
        return _resolved(told, walk)
    elsewhere = next((each for each in walk if each.outcome == report.ELSEWHERE), None)
    if told.resolves is None and elsewhere is not None:
        where = " or ".join(elsewhere.run.elsewhere)
        aliases = _aliases(elsewhere.run.records)
        if aliases:
            return f"stands for {aliases[-1]}, for {where} to answer"
        return f"is no name of the cluster, but for {where} to answer" if case.best else f"is for {where} to answer"
    outcomes = {each.outcome for each in told.walk}
    if report.NO_DATA in outcomes:
        if case.alias is not None:
            return f"stands for {case.alias.external_name}, which has no answer here"
        return f"exists, and has no {'address' if told.types == ['A', 'AAAA'] else ' or '.join(told.types)}"
    failed = next((each for each in told.walk if each.outcome == report.FAILURE and each.directive), None)
    if failed is not None:
        return f"is {failed.rcode} by {failed.directive}" + (f": {failed.error}" if failed.error else "")
    if report.SILENCE in outcomes:
        return "gets no reply"
    if case.outside or outcomes == {report.FAILURE}:
        return "is REFUSED, for it is none of the names that are answered here"
    return "has no name" if told.types == ["PTR"] else "doesn't exist"


def _aliases(records: Sequence[Record]) -> list[str]:
    """Where the CNAMEs of a reply lead, one after the other."""
    return [data_to_text(record.rtype, record.data) for record in records if record.rtype == Type.CNAME]


def _resolved(told: report.Explanation, walk: Sequence[_Asked]) -> str:
    data = [
        data
        for answer in told.answers
        for rtype, data in map(report.parts_of, answer.records)
        if answer.type in (rtype, "ANY")
    ]
    left = len(data) + sum(answer.count - len(answer.records) for answer in told.answers) - MOST_IN_SUMMARY
    shown = ", ".join(data[:MOST_IN_SUMMARY]) + (f" and {left} more" if left > 0 else "")
    aliases = next((found for each in walk if (found := _aliases(each.run.records))), [])
    if told.types in (["PTR"], ["CNAME"]):
        return f"stands for {shown}"
    alias = f", by its alias {aliases[-1]}" if aliases else ""
    if not {"A", "AAAA", "SRV", "ANY"} & set(told.types):
        return f"has {' and '.join(told.types)} {shown}{alias}"
    return f"resolves to {shown or 'an answer'}{alias}"
