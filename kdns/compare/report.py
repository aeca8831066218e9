"""A comparison as text for people and as JSON: differences grouped by their cause, what is unexplained first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from kdns.compare.comparison import Finding, Report

# Of each group so many questions are shown; JSON has all of them.
EXAMPLES = 3


class Group(msgspec.Struct, frozen=True):
    """The questions that one cause has in common."""

    cause: str
    row: str
    findings: list[Finding]

    @property
    def kinds(self) -> str:
        """The kinds of names that these questions have, each with their number."""
        counts: dict[str, int] = {}
        for each in self.findings:
            counts[each.kind] = counts.get(each.kind, 0) + 1
        return ", ".join(f"{count} × {kind}" for kind, count in counts.items())


def grouped(findings: Sequence[Finding]) -> list[Group]:
    """The findings by row of docs/coredns.md, or where there is none by cause; the largest group first."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for each in findings:
        key = ("", each.row) if each.row else (each.difference.cause, "")
        groups.setdefault(key, []).append(each)
    made = [Group(cause, row, found) for (cause, row), found in groups.items()]
    return sorted(made, key=lambda group: -len(group.findings))


def as_text(report: Report, there: str, here: str) -> Iterator[str]:
    """The lines for people. `there` and `here` are what the servers are called."""
    yield f"{_count(report.questions, 'question')} to {there} and to {here}, each over UDP, UDP with EDNS and TCP"
    if report.vanished:
        yield f"{_count(report.vanished, 'difference')} at first, not on a second look"
    for title, findings in (("unexplained", report.unexplained), ("explained", report.explained)):
        if findings:
            yield ""
            yield f"{title}: {_count(len(findings), 'difference')}"
            for group in grouped(findings):
                yield from _group(group)
    if not report.findings:
        yield "no difference"


def _group(group: Group) -> Iterator[str]:
    yield f"  {group.cause or group.row} ({group.kinds})"
    # The reason of an explained one stands in its row; its lines would be noise.
    for each in group.findings[:EXAMPLES] if not group.row else ():
        yield f"    {each.asked}" + ("" if len(each.ways) == 3 else f", {_ways(each)}")
        for where, lines in (("there", each.difference.there), ("here", each.difference.here)):
            for number, line in enumerate(lines or ("nothing",)):
                yield f"      {where if number == 0 else '':5}  {line}"
    if not group.row and len(group.findings) > EXAMPLES:
        yield f"    and {len(group.findings) - EXAMPLES} more"


def as_json(report: Report) -> str:
    """All of it as one JSON object."""
    document = {
        "questions": report.questions,
        "vanished": report.vanished,
        "unexplained": [_group_plain(each) for each in grouped(report.unexplained)],
        "explained": [_group_plain(each) for each in grouped(report.explained)],
    }
    return msgspec.json.format(msgspec.json.encode(document)).decode()


def _group_plain(group: Group) -> dict[str, object]:
    return {
        **({"row": group.row} if group.row else {"cause": group.cause}),
        "count": len(group.findings),
        "differences": [
            {
                "question": str(each.asked),
                "kind": each.kind,
                "over": [way.value for way in each.ways],
                "cause": each.difference.cause,
                "there": each.difference.there,
                "here": each.difference.here,
            }
            for each in group.findings
        ],
    }


def _ways(finding: Finding) -> str:
    return "over " + " and ".join(way.value for way in finding.ways)


def _count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"
