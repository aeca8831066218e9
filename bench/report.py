"""Figures as tables and as a picture: medians with their spread, ratios within one run, and what was aimed at."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.servers import SEARCHING
from bench.works import Work

DOCS = Path(__file__).parent.parent / "docs"
# Whom the others are measured by, in this order, and whom a ratio is told of.
YARDSTICKS = ("floor", "Knot", "CoreDNS", "base")
# What short names are measured by, which none of the others knows.
IN_FULL = "the same in full"
COLOURS = {
    "floor": "#9aa0a6",
    "Knot": "#7aa874",
    "kdns": "#2b6cb0",
    SEARCHING: "#6b46c1",
    "base": "#90cdf4",
    "CoreDNS": "#d98c5f",
}


class Aim(NamedTuple):
    """What kdns is to take at most: so many times the CPU of a yardstick, which IN_FULL is too."""

    work: str
    yardstick: str
    times: float


AIMS = (
    Aim("names", "floor", 1.6),
    Aim("names", "Knot", 1.25),
    Aim("names", "CoreDNS", 1 / 5),
    Aim("mix", "Knot", 1.3),
    Aim("mix", "CoreDNS", 1 / 5),
    Aim("flood", "Knot", 2),
    Aim("flood", "CoreDNS", 1 / 3),
    Aim("headless", "Knot", 1.5),
    Aim("headless", "CoreDNS", 1 / 8),
    Aim("case", "Knot", 1.3),
    Aim("short", IN_FULL, 1.3),
    Aim("autopath", IN_FULL, 1.3),
    Aim("tcp", "CoreDNS", 1),
    Aim("slow", "CoreDNS", 1 / 2),
)


class Sample(NamedTuple):
    """One run of dnsperf against one server. `latencies` are in seconds, sorted, where there are any."""

    cpu_microseconds: float
    rate: float
    lost: float
    nxdomain: float
    latencies: list[float]


# By work and server, a sample for each round.
Figures = dict[str, dict[str, list[Sample]]]


def ratio(of_servers: dict[str, list[Sample]], server: str, yardstick: str) -> float | None:
    """The median of the ratios of each round: what was measured in the same moments."""
    if server not in of_servers or yardstick not in of_servers or server == yardstick:
        return None
    pairs = zip(of_servers[server], of_servers[yardstick], strict=True)
    return statistics.median(one.cpu_microseconds / other.cpu_microseconds for one, other in pairs)


def ratio_in_full(work: Work, figures: Figures) -> float | None:
    """The ratio of the medians, for two kinds of work have their rounds one after the other."""
    samples = figures.get(work.name, {}).get(SEARCHING)
    in_full = figures.get(work.in_full, {}).get(SEARCHING)
    return _median(samples) / _median(in_full) if samples and in_full else None


def line(work: Work, of_servers: dict[str, list[Sample]]) -> str:
    """One work in a line, for who waits."""
    medians = ", ".join(f"{name} {_median(samples):.1f}" for name, samples in of_servers.items())
    return f"{work.text}: {medians} µs of CPU a query"


def table(chosen: Sequence[Work], figures: Figures) -> str:
    """All of it in Markdown: CPU, rates and latencies, then the ratios of kdns."""
    names = _servers(figures)
    yardsticks = _yardsticks(figures)
    lines = [
        "CPU of the server for a query in µs: median (least–most), and thousands of queries a second",
        "",
        *rows(["work", *names], _cpu_rows(chosen, figures, names)),
        "",
        "How many times the CPU of each of these kdns takes",
        "",
        *rows(["work", *(f"of {name}" for name in yardsticks)], _ratio_rows(chosen, figures, yardsticks)),
    ]
    if any(work.rate for work in chosen):
        lines += [
            "",
            "Time until the reply in ms at a steady rate: half, 99 % and 99.9 % of the queries",
            "",
            *_latencies([work for work in chosen if work.rate], figures),
        ]
    return "\n".join(lines)


def aims(chosen: Sequence[Work], figures: Figures) -> str:
    """What was aimed at and what this run has reached, in Markdown."""
    works = {work.name: work for work in chosen}
    cells = []
    for aim in AIMS:
        if aim.work in works:
            found = _times(works[aim.work], figures, aim.yardstick)
            reached = "not measured" if found is None else f"{found:.2f}{', missed' if found > aim.times else ''}"
            cells.append([works[aim.work].text, f"{aim.times:.3g} × {aim.yardstick}", reached])
    return "\n".join(rows(["work", "CPU of a query, at most", "reached"], cells))


def write(chosen: Sequence[Work], figures: Figures, rounds: int) -> None:
    """Put the tables into docs/benchmarks.md, between their marks, and the picture beside it. `base` stays out."""
    figures = {
        work: {name: samples for name, samples in of_servers.items() if name != "base"}
        for work, of_servers in figures.items()
    }
    put("figures", f"{rounds} rounds, {machine()}.\n\n{table(chosen, figures)}")
    put("aims", aims(chosen, figures))
    (DOCS / "benchmarks.svg").write_text(picture(chosen, figures))


def put(what: str, text: str) -> None:
    """Write a text into docs/benchmarks.md, between the marks of that name."""
    page = DOCS / "benchmarks.md"
    begins, ends = f"<!-- {what}: begin -->\n", f"<!-- {what}: end -->\n"
    before, _, rest = page.read_text().partition(begins)
    after = rest.partition(ends)[2]
    page.write_text(f"{before}{begins}{text}\n{ends}{after}")


def machine() -> str:
    """Where and when it was measured, in a few words."""
    date, python = time.strftime("%Y-%m-%d"), platform.python_version()
    return f"{date}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {python}"


def picture(chosen: Sequence[Work], figures: Figures) -> str:
    """Bars of the CPU for a query: a group for each work, a bar for each server, a mark from least to most."""
    names = _servers(figures)
    bar, gap, left, width = 14, 16, 210, 520
    longest = max(_most(samples) for of_servers in figures.values() for samples in of_servers.values())
    parts: list[str] = []
    x = float(left)
    for name in names:
        parts.append(f'<rect x="{x:.0f}" y="12" width="12" height="12" fill="{COLOURS[name]}"/>')
        parts.append(f'<text x="{x + 17:.0f}" y="22">{name}</text>')
        x += 90
    y = 44
    for work in chosen:
        of_servers = figures.get(work.name, {})
        parts.append(f'<text x="{left - 10}" y="{y + len(of_servers) * bar / 2 + 4:.0f}" text-anchor="end">')
        parts.append(f"{work.text}</text>")
        for name, samples in of_servers.items():
            long, least, most = (
                value / longest * width for value in (_median(samples), _least(samples), _most(samples))
            )
            middle = y + bar / 2 - 1
            parts.append(
                f'<rect x="{left}" y="{y}" width="{long:.1f}" height="{bar - 2}" fill="{COLOURS[name]}"/>'
                f'<path d="M{left + least:.1f} {middle}H{left + most:.1f}" stroke="#333"/>'
                f'<text x="{left + most + 6:.1f}" y="{y + 10}" font-size="10">{_median(samples):.1f}</text>'
            )
            y += bar
        y += gap
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {y}" '
        'font-family="sans-serif" font-size="12">\n'
        "<title>CPU of the server for a query, in microseconds</title>\n"
        f'<rect width="{left + width + 60}" height="{y}" fill="#fff"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _servers(figures: Figures) -> list[str]:
    """Those that took part, in the order of their start."""
    return list(dict.fromkeys(name for of_servers in figures.values() for name in of_servers))


def _cpu_rows(chosen: Sequence[Work], figures: Figures, names: Sequence[str]) -> Iterator[list[str]]:
    for work in chosen:
        cells = [work.text]
        for name in names:
            samples = figures[work.name].get(name)
            cells.append("" if samples is None else _cpu_cell(work, samples))
        yield cells


def _cpu_cell(work: Work, samples: list[Sample]) -> str:
    text = f"{_median(samples):.1f} ({_least(samples):.1f}–{_most(samples):.1f})"
    if not work.rate:
        text += f", {statistics.median(sample.rate for sample in samples) / 1000:.0f}k/s"
    lost = sum(sample.lost for sample in samples)
    return f"{text}, {lost:.0f} lost" if lost else text


def _yardsticks(figures: Figures) -> list[str]:
    """Those of which this run has something to tell."""
    found = [name for name in YARDSTICKS if name in _servers(figures)]
    return [*found, IN_FULL] if SEARCHING in _servers(figures) else found


def _ratio_rows(chosen: Sequence[Work], figures: Figures, yardsticks: Sequence[str]) -> Iterator[list[str]]:
    """A row for each work that is compared with anything."""
    for work in chosen:
        ratios = [_times(work, figures, name) for name in yardsticks]
        if any(found is not None for found in ratios):
            yield [work.text, *("" if found is None else f"{found:.2f}" for found in ratios)]


def _times(work: Work, figures: Figures, yardstick: str) -> float | None:
    """How many times the CPU of a yardstick kdns takes."""
    if yardstick == IN_FULL:
        return ratio_in_full(work, figures)
    return ratio(figures.get(work.name, {}), "kdns", yardstick)


def _latencies(steady: Sequence[Work], figures: Figures) -> Iterator[str]:
    names = _servers({work.name: figures[work.name] for work in steady})
    return rows(["work", *names], _latency_rows(steady, figures, names))


def _latency_rows(steady: Sequence[Work], figures: Figures, names: Sequence[str]) -> Iterator[list[str]]:
    for work in steady:
        cells = [work.text]
        for name in names:
            samples = figures[work.name].get(name, [])
            all = sorted(each for sample in samples for each in sample.latencies)
            cells.append(" / ".join(f"{percentile(all, share) * 1000:.2f}" for share in (0.5, 0.99, 0.999)))
        yield cells


def rows(heads: Sequence[str], cells: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown, line by line."""
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for each in cells:
        yield f"| {' | '.join(each)} |"


def percentile(sorted_values: Sequence[float], share: float) -> float:
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))] if sorted_values else 0.0


def _median(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.cpu_microseconds for sample in samples)


def _least(samples: Sequence[Sample]) -> float:
    return min(sample.cpu_microseconds for sample in samples)


def _most(samples: Sequence[Sample]) -> float:
    return max(sample.cpu_microseconds for sample in samples)
