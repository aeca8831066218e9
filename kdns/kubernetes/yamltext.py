"""YAML text as kubectl reads it: values, and where in the text they stand.

Knows no Kubernetes objects and no files. Values are built from the parser's events; only a text in which something is
wrong is composed a second time, with marks, to find the place.
Law: YAML 1.1 with the scalars of sigs.k8s.io/yaml (goyaml.v2): `yes` is true, `010` is 8, `12:30` a string.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import yaml
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

# libyaml where it was built in: 10 times as fast.
LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# A CustomResourceDefinition of the Gateway API nests 40 deep.
DEPTH_LIMIT = 200
# What aliases may add to a document when written out; the classic bomb stands for 10^9 nodes.
ALIASED_NODES_LIMIT = 200_000
# Each is searched for in the text, and nobody reads more.
DUPLICATES_LIMIT = 20
# Of a longer line only a part is drawn: it may be minified, and the caret would stand screens away.
DRAWN_LIMIT = 160
# So much of it stands before the column, and as much behind.
DRAWN_AROUND = 60

WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
# A plain scalar that begins otherwise is a string, whatever follows.
SUSPICIOUS = frozenset("yYnNtTfFoO~+-.0123456789")
INTEGER = re.compile(r"([-+]?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)", re.ASCII)
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
STRING_TAGS = frozenset(("!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:binary"))

DOCUMENT_MARK = re.compile(r"^(---|\.\.\.)(?=\s|\Z)", re.MULTILINE)
DIRECTIVES_ONLY = re.compile(r"(?:[ \t]*(?:#.*)?\n|%.*\n)*", re.ASCII)
LIST_HEAD = re.compile(r"^items:[ \t]*(?:#.*)?\n(?=- )", re.MULTILINE)
LIST_END = re.compile(r"^[^-\s#]", re.MULTILINE)
LIST_ITEM = re.compile(r"^- ", re.MULTILINE)
# Of a text that is JSON: its keys, each with the colon, and what opens and closes a mapping.
JSON_TOKEN = re.compile(r'("(?:[^"\\]|\\.)*+")(\s*:)?|[{}]')
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Spot(NamedTuple):
    """A place in a text; line and column count from 1, `raw` is the scalar as written.

    `text` is the line, or of a long one a part that begins `cut` characters into it.
    """

    line: int
    column: int
    length: int
    text: str
    raw: str = ""
    cut: int = 0


class YamlError(Exception):
    """The text is not YAML, or YAML that no manifest needs: too deep, too many aliases, keys that are lists."""

    def __init__(self, message: str, spot: Spot, expected: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.spot = spot
        self.expected = expected
        self.hint = hint


class Document(NamedTuple):
    """One document, the keys that stand in one mapping twice, and those that YAML takes for a boolean or a number."""

    value: Any
    duplicates: list[tuple[str, Spot]]
    misread: list[tuple[str, Spot]]


class Piece(NamedTuple):
    """A part of a file that can be read alone, the lines above it, and the characters left of it in its first line."""

    text: str
    above: int
    left: int = 0


def split(text: str) -> Iterator[Piece]:
    """The documents of a file, cut at `---` and `...` in the first column, which end a document wherever they stand."""
    start = above = 0
    for mark in DOCUMENT_MARK.finditer(text):
        line_end = text.find("\n", mark.end()) + 1 or len(text)
        cut = mark.start() if mark[1] == "---" else line_end
        before = text[start:cut]
        # `%YAML 1.2` belongs to the document that follows it.
        if mark[1] == "---" and DIRECTIVES_ONLY.fullmatch(before):
            continue
        yield Piece(before, above)
        above += before.count("\n")
        start = cut
    if start < len(text):
        yield Piece(text[start:], above)


def split_list(piece: Piece) -> tuple[Piece, list[Piece]] | None:
    """A `kind: List` as kubectl writes it, cut into what surrounds its items and the items, so that each is kept alone.

    A guess by the look of the lines: whoever reads the parts has to fall back on the whole when one of them is no YAML.
    """
    head = LIST_HEAD.search(piece.text)
    if head is None:
        return None
    tail = LIST_END.search(piece.text, head.end())
    end = tail.start() if tail else len(piece.text)
    starts = [item.start() for item in LIST_ITEM.finditer(piece.text, head.end(), end)]
    items = []
    above = piece.above + piece.text.count("\n", 0, head.end())
    for start, stop in zip(starts, [*starts[1:], end], strict=True):
        items.append(Piece(piece.text[start:stop], above))
        above += piece.text.count("\n", start, stop)
    return Piece(piece.text[: head.end()] + piece.text[end:], piece.above), items


def json_duplicates(text: str, value: object) -> list[tuple[str, Spot]]:
    """The keys that stand in one mapping twice, in a JSON text that has this value."""
    # Written anew, the value has a colon less for each key that was lost, unless the text spells some in another way.
    same = text.count(":") == msgspec.json.encode(value).count(b":")
    if same and "\\u003a" not in text and "\\u003A" not in text:
        return []
    lines = text.split("\n")
    found: list[tuple[str, Spot]] = []
    mappings: list[set[str]] = []
    line = counted = 0
    for token in JSON_TOKEN.finditer(text):
        if token[0] == "{":
            mappings.append(set())
        elif token[0] == "}":
            mappings.pop()
        elif token[2] is not None:
            key = msgspec.json.decode(token[1], type=str)
            if key in mappings[-1] and len(found) < DUPLICATES_LIMIT:
                line += text.count("\n", counted, token.start())
                counted = token.start()
                column = token.start() - (text.rfind("\n", 0, token.start()) + 1)
                found.append((key, _drawn(lines, line, column, len(token[1]))))
            mappings[-1].add(key)
    return found


class _Frame:
    """A mapping or sequence that is not closed yet."""

    __slots__ = ("anchor", "key", "merges", "start", "value", "weight")

    def __init__(self, value: dict[str, Any] | list[Any], start: Event) -> None:
        self.value: Any = value
        self.start = start
        self.anchor: str | None = start.anchor  # type: ignore[attr-defined]
        self.key: str | None = None
        self.merges: list[Any] = []
        self.weight = 0


def read(text: str) -> list[Document]:
    """The documents of a text as plain values, keys as strings; raises YamlError."""
    parser = LOADER(text) if not UNPRINTABLE.search(text) else _refuse_unprintable(text)
    try:
        return list(_documents(parser, text))
    except yaml.MarkedYAMLError as error:
        raise _explained(error, text) from None
    finally:
        parser.dispose()


def _documents(parser: Any, text: str) -> Iterator[Document]:
    next_event = parser.get_event
    while not isinstance(next_event(), StreamEndEvent | StreamStartEvent):
        pass
    while isinstance(event := next_event(), DocumentStartEvent):
        yield _document(next_event, text)
    if not isinstance(event, StreamEndEvent):
        raise YamlError("more than one document without `---` between them", _spot(text, event))


def _document(next_event: Any, text: str) -> Document:
    duplicates: list[tuple[str, Spot]] = []
    misread: list[tuple[str, Spot]] = []
    stack: list[_Frame] = []
    anchors: dict[str, tuple[Any, int] | _Frame] = {}
    aliased = 0
    frame: _Frame | None = None
    root: Any = None
    while True:
        event = next_event()
        kind = type(event)
        weight = 0
        if kind is ScalarEvent:
            value = event.value
            plain, quoted = event.implicit
            if plain:
                if not value or value[0] in SUSPICIOUS:
                    value = resolve(value)
            elif not quoted and event.tag not in STRING_TAGS:
                value = resolve(value)
            if event.anchor:
                anchors[event.anchor] = (value, 0)
        elif kind is MappingStartEvent or kind is SequenceStartEvent:
            if len(stack) >= DEPTH_LIMIT:
                raise YamlError(f"nested more than {DEPTH_LIMIT} deep", _spot(text, event))
            frame = _Frame({} if kind is MappingStartEvent else [], event)
            stack.append(frame)
            if event.anchor:
                anchors[event.anchor] = frame
            continue
        elif kind is MappingEndEvent or kind is SequenceEndEvent:
            assert frame is not None
            value = frame.value
            for merged in frame.merges:
                for key, each in merged.items():
                    value.setdefault(key, each)
            weight = frame.weight + len(value)
            if frame.anchor:
                anchors[frame.anchor] = (value, weight)
            # From here on it is shown by where it began.
            event = stack.pop().start
            frame = stack[-1] if stack else None
        elif kind is AliasEvent:
            value, weight = _aliased(anchors.get(event.anchor), event, text)
            aliased += weight
            if aliased > ALIASED_NODES_LIMIT:
                raise YamlError(
                    f"aliases that stand for more than {ALIASED_NODES_LIMIT} values",
                    _spot(text, event),
                    hint="write the values out; a manifest as large as that is a mistake or an attack",
                )
        elif kind is DocumentEndEvent:
            return Document(root, duplicates, misread)
        else:  # pragma: no cover
            raise AssertionError(f"{event} inside a document")

        if frame is None:
            root = value
            continue
        frame.weight += weight
        if frame.value.__class__ is list:
            frame.value.append(value)
        elif frame.key is None:
            if value.__class__ is not str:
                value = _key(value, event, text)
                if kind is ScalarEvent and value != event.value and len(misread) < DUPLICATES_LIMIT:
                    misread.append((value, _spot(text, event)))
            if value in frame.value and len(duplicates) < DUPLICATES_LIMIT:
                duplicates.append((value, _spot(text, event)))
            frame.key = value
        elif frame.key == "<<" and _is_merge(value):
            frame.merges += value if isinstance(value, list) else [value]
            frame.key = None
        else:
            frame.value[frame.key] = value
            frame.key = None


def _aliased(target: tuple[Any, int] | _Frame | None, event: Event, text: str) -> tuple[Any, int]:
    name = event.anchor  # type: ignore[attr-defined]
    if target is None:
        raise YamlError(f"the alias `*{name}` has no anchor", _spot(text, event), hint=f'quote it: "*{name}"')
    if isinstance(target, _Frame):
        raise YamlError(f"the alias `*{name}` stands inside of what it stands for", _spot(text, event))
    return target


def _key(value: Any, event: Event, text: str) -> str:
    """A key as a string."""
    if isinstance(value, bool | int | float):
        return _key_text(value)
    if value is None:
        raise YamlError("a key that is null", _spot(text, event), hint='quote it: "null"')
    raise YamlError(
        f"a {'list' if isinstance(value, list) else 'mapping'} as a key",
        _spot(text, event),
        hint="quote a value that begins with `{` or `[`; `{{ … }}` is a template that has to be rendered first",
    )


def _key_text(value: object) -> str:
    """What sigs.k8s.io/yaml makes of a key."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_merge(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and all(isinstance(each, dict) for each in value))


def resolve(plain: str) -> Any:
    """The value of a scalar without quotes."""
    if plain in WORDS:
        return WORDS[plain]
    if plain[0] not in "+-.0123456789":
        return plain
    digits = plain.replace("_", "") if plain[0] != "." else plain
    if (match := INTEGER.fullmatch(digits)) and len(digits) < 100:
        number = int(match[2], 8 if match[2][0] == "0" and match[2].isdigit() else 0)
        return -number if match[1] == "-" else number
    if FLOAT.fullmatch(digits):
        # On its way through JSON, as the API gets it, 8080.0 becomes 8080.
        fraction = float(digits)
        return int(fraction) if fraction.is_integer() and abs(fraction) < 1e21 else fraction
    return plain


class Marks:
    """A text composed with marks, to be asked where a field stands."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        try:
            # First without: it refuses what is too deep for a composer that recurses.
            read(text)
            parser = LOADER(text)
            try:
                self.root: Node | None = parser.get_single_node()
            finally:
                parser.dispose()
        except (YamlError, yaml.YAMLError):
            self.root = None

    def find(self, path: tuple[str | int, ...], named: bool = False) -> Spot | None:
        """Where the value of a field stands, or its key if `named`.

        For one that is missing it is the key of the nearest that is there.
        """
        if self.root is None:
            return None
        node, name = self.root, self.root
        for step in path:
            found = _step(node, step)
            if found is None:
                break
            node, name = found
        # A mapping or list is shown by its key: it may go on for pages.
        written = isinstance(node, ScalarNode) and node.start_mark.index < node.end_mark.index
        shown = node if written and not named else name
        start, end = shown.start_mark, shown.end_mark
        one_line = start.line == end.line and isinstance(shown, ScalarNode)
        raw = node.value if isinstance(node, ScalarNode) else ""
        return _drawn(self.lines, start.line, start.column, end.column - start.column if one_line else 1, raw)


def _step(node: Node, step: str | int) -> tuple[Node, Node] | None:
    """The value at one step of a path, and the node that names it."""
    if isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if isinstance(key, ScalarNode) and step in (key.value, _as_key(key)):
                return value, key
    return None


def _as_key(node: ScalarNode) -> str:
    """The key that is read where a scalar without quotes stands for one: `true` for `y`."""
    return node.value if node.style or not node.value else _key_text(resolve(node.value))


def _spot(text: str, event: Event) -> Spot:
    start, end = event.start_mark, event.end_mark
    assert start is not None
    assert end is not None
    inline = start.line == end.line and isinstance(event, ScalarEvent | AliasEvent)
    length = end.column - start.column if inline else 1
    return _drawn(text.split("\n"), start.line, start.column, length)


def _drawn(lines: list[str], line: int, column: int, length: int, raw: str = "") -> Spot:
    # A mistake noticed at the end of the text is drawn on the last line that has any.
    while line > 0 and (line >= len(lines) or (line == len(lines) - 1 and not lines[line].strip())):
        line -= 1
        column = len(lines[line]) if line < len(lines) else 0
    return spot_in(lines[line] if line < len(lines) else "", line + 1, column + 1, length, raw)


def spot_in(text: str, line: int, column: int, length: int, raw: str = "") -> Spot:
    """A place in a line of which this is the text, drawn whole or around the column."""
    if len(text) <= DRAWN_LIMIT:
        return Spot(line, column, max(1, length), text, raw)
    cut = max(0, column - 1 - DRAWN_AROUND)
    end = cut + 2 * DRAWN_AROUND
    window = ("…" + text[cut + 1 : end] if cut else text[:end]) + ("…" if end < len(text) else "")
    return Spot(line, column, max(1, min(length, end - column + 1)), window, raw, cut)


def _refuse_unprintable(text: str) -> Any:
    found = UNPRINTABLE.search(text)
    assert found is not None
    line = text.count("\n", 0, found.start())
    column = found.start() - (text.rfind("\n", 0, found.start()) + 1)
    spot = _drawn(text.split("\n"), line, column, 1)
    # The line holds what a terminal might obey.
    spot = spot._replace(text=UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", spot.text))
    raise YamlError(
        f"the character U+{ord(found[0]):04X}, which YAML does not allow", spot, hint="is this a text file?"
    )


def _explained(error: yaml.MarkedYAMLError, text: str) -> YamlError:
    """The parser's complaint in words that name the usual cause."""
    mark = error.problem_mark or error.context_mark
    began = error.context_mark
    lines = text.split("\n")
    problem, context = error.problem or "not YAML", error.context or ""
    expected = hint = ""
    character = lines[mark.line][mark.column : mark.column + 1] if mark and mark.line < len(lines) else ""
    if "tab" in problem or character == "\t":
        message, hint = "a tab where YAML takes spaces", "indent with spaces"
    elif "quoted scalar" in context and began:
        message, mark = "a quote that is never closed", began
    elif "flow sequence" in context and began:
        message, mark = "a `[` that is never closed", began
        hint = "quote a value that begins with `[`"
    elif "flow mapping" in context and began:
        message, mark = "a `{` that is never closed", began
        hint = "quote a value that begins with `{`"
    elif problem == "mapping values are not allowed in this context":
        message = "a `:` where no mapping can begin"
        hint = "quote a value that contains `: `, and put the keys of one mapping into one column"
    elif problem.startswith("did not find expected") and "block" in context:
        message = "the indentation does not fit the lines above"
        expected = "the keys of one mapping, and the dashes of one list, in one column"
    elif problem == "could not find expected ':'":
        message, expected = "a line that is neither a key with `:` nor part of the value above", "`key: value`"
    else:
        message = f"not YAML: {problem}" + (f" {context}" if context else "")
    if mark is None:
        return YamlError(message, Spot(1, 1, 1, lines[0]), expected, hint)
    spot = _drawn(lines, mark.line, mark.column, 1)
    if "{{" in spot.text:
        hint = "a template is no manifest yet: render it, e.g. with `helm template`"
    return YamlError(message, spot, expected, hint)
