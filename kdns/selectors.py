"""Label selectors of Kubernetes: text to conditions, and whether labels meet them.

Pure. Law: the Kubernetes label selector, equality-based and set-based.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import msgspec


class Requirement(msgspec.Struct, frozen=True):
    """One condition on one label; without values it asks whether the label is there."""

    key: str
    wanted: bool
    values: frozenset[str] | None = None

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet it; a missing label meets every negative condition, as in Kubernetes."""
        if self.values is None:
            return (self.key in labels) is self.wanted
        return (self.key in labels and labels[self.key] in self.values) is self.wanted


class Selector(msgspec.Struct, frozen=True):
    """A label selector: its text as Kubernetes takes it, and what it asks for. Without conditions it matches all."""

    text: str = ""
    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet all conditions."""
        return all(requirement.holds(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return self.text


_SELECTOR_WORD = re.compile(r"\s*(==|!=|[=!,()<>]|[^\s=!,()<>]+)")
_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_LABEL_PREFIX = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")


def parse_selector(text: str) -> Selector:
    """A selector such as `app=dns,tier in (web, db),!legacy`. Raises ValueError with a sentence.

    Law: the Kubernetes label selector, equality-based and set-based; `<` and `>` belong to node selectors.
    """
    found = _SELECTOR_WORD.findall(text.rstrip())
    if not found:
        return Selector()
    rest = iter([*found, ""])
    requirements: list[Requirement] = []
    separator = ","
    while separator == ",":
        requirement, separator = _requirement(rest)
        requirements.append(requirement)
    if separator:
        raise ValueError(f"a label selector has a comma between two conditions, not `{separator}`")
    return Selector(" ".join(text.split()), tuple(requirements))


def _requirement(rest: Iterator[str]) -> tuple[Requirement, str]:
    """The next condition, and the word after it."""
    key = next(rest)
    wanted = key != "!"
    key = _label_key(key if wanted else next(rest, ""))
    operator = next(rest, "")
    if operator in ("", ",") or not wanted:
        return Requirement(key, wanted), operator
    if operator in ("=", "==", "!="):
        value = next(rest, "")
        absent = value in ("", ",")
        requirement = Requirement(key, operator != "!=", frozenset({"" if absent else _label_value(value)}))
        return requirement, value if absent else next(rest, "")
    if operator in ("in", "notin"):
        return Requirement(key, operator == "in", _label_set(operator, rest)), next(rest, "")
    raise ValueError(f"`{operator}` isn't an operator of label selectors: they are =, ==, !=, in and notin")


def _label_set(operator: str, rest: Iterator[str]) -> frozenset[str]:
    if next(rest, "") != "(":
        raise ValueError(f"`{operator}` in a label selector is followed by values in parentheses")
    values: list[str] = []
    value = ""
    commas = 0
    for part in rest:
        if part == ")" and (value or commas):
            return frozenset([*values, value])
        if part == ",":
            values.append(value)
            value = ""
            commas += 1
        elif value or not part or part in "()=!<>" or part in ("==", "!="):
            break
        else:
            value = _label_value(part)
    raise ValueError(f"`{operator}` in a label selector takes values with commas between them, in parentheses")


def _label_key(text: str) -> str:
    prefix, slash, name = text.rpartition("/")
    good_prefix = not slash or (len(prefix) <= 253 and _LABEL_PREFIX.fullmatch(prefix))
    if not name or not _LABEL_VALUE.fullmatch(name) or not good_prefix:
        raise ValueError(f"`{text}` isn't the name of a label")
    return text


def _label_value(text: str) -> str:
    if not _LABEL_VALUE.fullmatch(text):
        raise ValueError(f"`{text}` isn't the value of a label")
    return text
