"""Go templates, as much of them as Corefiles use: fields, pipelines, if, range, with, variables and functions.

A text is compiled once, and what isn't supported, or is no field of the data, is told then, with its place in the text.
Knows nothing of DNS. Law: Go's text/template; differences stand in docs/plugins/template.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kdns.errors import KdnsError, nearest

# What a text with no value prints, as Go does for a key that a map doesn't have.
NO_VALUE = "<no value>"
# A loop over what a client sent is short; this is against a template that a mistake made endless.
LONGEST_OUTPUT = 65_536
MOST_NESTED = 50

_UNSUPPORTED = ("define", "template", "block", "html", "js", "urlquery", "call")
_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)|(?P<char>'(?:\\.|[^'\\\n])')"""
    r"""|(?P<number>[+-]?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+|[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?))"""
    r"""|(?P<variable>\$\w*)|(?P<field>\.[^\W\d]\w*)|(?P<dot>\.)|(?P<word>[^\W\d]\w*)|(?P<mark>:=|[=|(),])"""
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>[0-9]+)?(?:\.(?P<precision>[0-9]*))?(?P<verb>.|$)", re.DOTALL)
_VERBS = "sdvqxXobctfeg%"


class TemplateError(ValueError):
    """A text that is no template, or one that isn't supported: where, and how long the wrong part is."""

    def __init__(self, message: str, offset: int, length: int = 1, hint: str = "") -> None:
        super().__init__(message)
        self.offset = offset
        self.length = max(1, length)
        self.hint = hint


class ExecutionError(KdnsError):
    """A template that can't be filled in with this data."""


class Fields:
    """A value with fields, each made when it is asked for."""

    __slots__ = ("_make",)

    def __init__(self, make: Mapping[str, Callable[[], Any]]) -> None:
        self._make = make

    def __getitem__(self, name: str) -> Any:
        try:
            make = self._make[name]
        except KeyError:
            raise ExecutionError(f"there is no field .{name}") from None
        return make()


class Method:
    """A field that takes arguments."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


# Which fields there are, and below each of them: None for what isn't known before.
Shape = Mapping[str, "Shape | None"]


class Template:
    """A compiled text. `is_fixed` tells that it prints the same whatever the data."""

    __slots__ = ("_body", "is_fixed", "text")

    def __init__(self, text: str, body: Sequence[_Node], is_fixed: bool) -> None:
        self.text = text
        self._body = body
        self.is_fixed = is_fixed

    def execute(self, data: Any) -> str:
        """The text with its actions filled in. Raises ExecutionError."""
        scope = _Scope(data)
        try:
            _run(self._body, scope)
        except (_BreakError, _ContinueError):
            raise ExecutionError("`break` or `continue` outside of `range`") from None
        except (RecursionError, OverflowError, MemoryError) as error:
            raise ExecutionError(f"the template can't be filled in: {error}") from None
        return "".join(scope.written)


def compile_template(text: str, shape: Shape) -> Template:
    """Read a template for data of that shape. Raises TemplateError."""
    parser = _Parser(text, shape)
    body = parser.template()
    return Template(text, body, all(isinstance(node, str) for node in body))


# --- Running ---


class _Scope:
    """What a template sees while it is filled in."""

    __slots__ = ("dot", "root", "size", "variables", "written")

    def __init__(self, data: Any) -> None:
        self.root = self.dot = data
        self.variables: list[list[Any]] = []
        self.written: list[str] = []
        self.size = 0

    def write(self, text: str) -> None:
        self.size += len(text)
        if self.size > LONGEST_OUTPUT:
            raise ExecutionError(f"the template makes more than {LONGEST_OUTPUT} characters")
        self.written.append(text)

    def variable(self, name: str) -> list[Any]:
        return next(pair for pair in reversed(self.variables) if pair[0] == name)


class _BreakError(Exception):
    pass


class _ContinueError(Exception):
    pass


_Value = Callable[[_Scope], Any]
# A piece of text, or an action.
_Node = str | Callable[[_Scope], None]


def _run(body: Sequence[_Node], scope: _Scope) -> None:
    """Run a body; what it declares is gone after it."""
    before = len(scope.variables)
    try:
        for node in body:
            if isinstance(node, str):
                scope.write(node)
            else:
                node(scope)
    finally:
        del scope.variables[before:]


def _is_true(value: Any) -> bool:
    return bool(value) or isinstance(value, (Fields, Method))


def show(value: Any) -> str:
    """A value as Go prints it."""
    if isinstance(value, str):
        return value
    if value is None:
        return NO_VALUE
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"[{' '.join(map(show, value))}]"
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{show(value[key])}' for key in sorted(value))}]"
    if isinstance(value, (Fields, Method)):
        raise ExecutionError("this value can't be printed; name one of its fields")
    return str(value)


# --- Functions ---


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, dict):
            if not isinstance(key, str):
                raise ExecutionError(f"index of a map: {show(key)} is no text")
            value = value.get(key, "")
        elif isinstance(value, (list, str)):
            found = _position(key, len(value) - 1)
            value = ord(value[found]) if isinstance(value, str) else value[found]
        else:
            raise ExecutionError("index of what is no list, map or text")
    return value


def _slice(value: Any, *ends: Any) -> Any:
    if not isinstance(value, (list, str)) or len(ends) > 2:
        raise ExecutionError("slice of what is no list or text")
    start = _position(ends[0], len(value)) if ends else 0
    end = _position(ends[1], len(value)) if len(ends) > 1 else len(value)
    if start > end:
        raise ExecutionError(f"slice from {start} to {end}")
    return value[start:end]


def _position(key: Any, most: int) -> int:
    if not isinstance(key, int) or isinstance(key, bool) or not 0 <= key <= most:
        raise ExecutionError(f"index out of range: {show(key)}")
    return key


def _len(value: Any) -> int:
    if not isinstance(value, (list, str, dict)):
        raise ExecutionError("len of what is no list, map or text")
    # Go counts the bytes of a text.
    return len(value.encode()) if isinstance(value, str) else len(value)


def _comparable(one: Any, two: Any) -> None:
    def kind(value: Any) -> type:
        return bool if isinstance(value, bool) else float if isinstance(value, (int, float)) else type(value)

    if kind(one) is not kind(two) or isinstance(one, (list, dict, Fields, Method)):
        raise ExecutionError(f"incompatible types for comparison: {_brief(one)} and {_brief(two)}")


def _brief(value: Any) -> str:
    return repr(value) if isinstance(value, (str, int, float)) else type(value).__name__


def _eq(first: Any, *others: Any) -> bool:
    for other in others:
        _comparable(first, other)
    return first in others


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def ordered(one: Any, two: Any) -> bool:
        _comparable(one, two)
        if one is None or isinstance(one, bool):
            raise ExecutionError("these have no order")
        return compare(one, two)

    return ordered


def _parse_int(text: Any, base: Any, bits: Any) -> int:
    """Go's ParseUint: digits alone, in a base of 2 to 36 or 0 for one by prefix, and no more than so many bits."""
    if not isinstance(text, str) or not isinstance(base, int) or not isinstance(bits, int):
        raise ExecutionError("parseInt takes a text, a base and a number of bits")
    value = -1
    if text.isascii() and text.isalnum() and (base == 0 or 2 <= base <= 36):
        try:
            value = int(text, base)
        except ValueError:
            # A prefix is one with base 0 alone, and Go takes 0777 for octal then.
            value = int(text, 8) if base == 0 and re.fullmatch("0[0-7]+", text) else -1
        if base and re.match("0[xXoObB]", text) and len(text) > 1 and text[1].lower() in "xob":
            value = _plain_digits(text, base)
    if not 0 <= value < 2 ** (bits or 64) or not 0 <= bits <= 64:
        raise ExecutionError(f"parseInt: {text!r} is no number of base {base} with {bits} bits")
    return value


def _plain_digits(text: str, base: int) -> int:
    """The value where a prefix such as `0b` is digits, as in base 16."""
    value = 0
    for character in text.lower():
        digit = "0123456789abcdefghijklmnopqrstuvwxyz".index(character)
        if digit >= base:
            return -1
        value = value * base + digit
    return value


def _printf(form: Any, *values: Any) -> str:
    if not isinstance(form, str):
        raise ExecutionError("printf takes a format")
    rest = list(values)

    def fill(found: re.Match[str]) -> str:
        if found["verb"] == "%":
            return "%"
        if not rest:
            return f"%!{found['verb']}(MISSING)"
        return _padded(_formatted(found, rest.pop(0)), found)

    text = _VERB.sub(fill, form)
    if rest:
        raise ExecutionError("printf has more values than its format takes")
    return text


def _formatted(found: re.Match[str], value: Any) -> str:
    verb, flags = found["verb"], found["flags"]
    precision = int(found["precision"] or 0) if found["precision"] is not None else None
    if precision is not None and precision > 1000:
        raise ExecutionError("printf: the precision is too large")
    if verb in "sv" and not (verb == "s" and not isinstance(value, str)):
        text = show(value)
        return text if precision is None or not isinstance(value, str) else text[:precision]
    if verb == "q" and isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if verb == "t" and isinstance(value, bool):
        return show(value)
    if isinstance(value, str) and verb in "xX":
        return value.encode().hex() if verb == "x" else value.encode().hex().upper()
    number = isinstance(value, int) and not isinstance(value, bool)
    if number and verb in "dxXobc":
        if verb == "c":
            return chr(value) if 0 <= value < 0x110000 else "\ufffd"
        text = format(abs(value), verb)
        text = text.rjust(precision or 0, "0")
        prefix = {"x": "0x", "X": "0X", "o": "0", "b": "0b"}.get(verb, "") if "#" in flags else ""
        sign = "-" if value < 0 else "+" if "+" in flags else " " if " " in flags else ""
        return sign + prefix + text
    if isinstance(value, float) and verb in "feg":
        return format(value, f".{6 if precision is None else precision}{verb}") if verb != "g" else f"{value:g}"
    raise ExecutionError(f"printf: %{verb} doesn't fit {_brief(value)}")


def _padded(text: str, found: re.Match[str]) -> str:
    width = int(found["width"] or 0)
    if width > 1000:
        raise ExecutionError("printf: the width is too large")
    flags = found["flags"]
    if "-" in flags:
        return text.ljust(width)
    if "0" in flags and found["verb"] in "dxXobfeg":
        sign = text[:1] if text[:1] in "+- " and text else ""
        return sign + text[len(sign) :].rjust(width - len(sign), "0")
    return text.rjust(width)


def _print(*values: Any) -> str:
    parts: list[str] = []
    for place, value in enumerate(values):
        # Go parts two values with a blank when neither is a text.
        if place and not isinstance(value, str) and not isinstance(values[place - 1], str):
            parts.append(" ")
        parts.append(show(value))
    return "".join(parts)


def _println(*values: Any) -> str:
    return " ".join(map(show, values)) + "\n"


class _Function(NamedTuple):
    """What a function is called with: at least and at most so many values."""

    call: Callable[..., Any]
    least: int = 1
    most: int | None = None


_FUNCTIONS = {
    "index": _Function(_index),
    "slice": _Function(_slice, 1, 3),
    "len": _Function(_len, 1, 1),
    "not": _Function(lambda value: not _is_true(value), 1, 1),
    "eq": _Function(_eq, 2),
    "ne": _Function(lambda one, two: not _eq(one, two), 2, 2),
    "lt": _Function(_ordered(lambda one, two: one < two), 2, 2),
    "le": _Function(_ordered(lambda one, two: one <= two), 2, 2),
    "gt": _Function(_ordered(lambda one, two: one > two), 2, 2),
    "ge": _Function(_ordered(lambda one, two: one >= two), 2, 2),
    "printf": _Function(_printf),
    "print": _Function(_print, 0),
    "println": _Function(_println, 0),
    "parseInt": _Function(_parse_int, 3, 3),
    # The two that don't look at all their values stand in `_call` as well.
    "and": _Function(lambda *values: values[-1]),
    "or": _Function(lambda *values: values[-1]),
}


def _call(name: str, function: _Function, values: Sequence[_Value]) -> _Value:
    if name in ("and", "or"):
        wanted = name == "or"

        def first(scope: _Scope) -> Any:
            value = None
            for each in values:
                value = each(scope)
                if _is_true(value) is wanted:
                    break
            return value

        return first
    return lambda scope: function.call(*[each(scope) for each in values])


# --- Reading ---


class _Token(NamedTuple):
    kind: str
    text: str
    offset: int

    @property
    def end(self) -> int:
        return self.offset + len(self.text)


class _Operand(NamedTuple):
    """A value, and its shape where that is known; `constant` is what a literal says."""

    value: _Value
    shape: Shape | None = None
    constant: Any = None
    is_method: bool = False


class _Parser:
    """Reads a text once, from left to right."""

    def __init__(self, text: str, shape: Shape) -> None:
        self.text = text
        self.shape = shape
        # What the dot is at this place of the text, where that is known.
        self.dot: Shape | None = shape
        self.variables: list[str] = []
        self.position = 0
        self.depth = 0
        self.loops = 0
        self.tokens: list[_Token] = []
        self.at = 0
        self.action = 0

    def template(self) -> list[_Node]:
        body, ended = self.body()
        if ended:
            raise TemplateError(f"`{ended}` has no beginning", self.action, 2)
        return body

    def body(self) -> tuple[list[_Node], str]:
        """Nodes up to an `else` or `end`, or to the end of the text; which of them it was."""
        nodes: list[_Node] = []
        declared = len(self.variables)
        self.depth += 1
        if self.depth > MOST_NESTED:
            raise TemplateError("the template is nested too deep", self.action, 2)
        while True:
            start = self.text.find("{{", self.position)
            text = self.text[self.position :] if start < 0 else self.text[self.position : start]
            trims = start >= 0 and re.match(r"-\s", self.text[start + 2 : start + 4]) is not None
            if trims:
                text = text.rstrip()
            if text:
                nodes.append(text)
            if start < 0:
                self.position = len(self.text)
                word = ""
                break
            self.read_action(start, 3 if trims else 2)
            word = self.peek_word()
            if word in ("else", "end"):
                break
            node = self.node(word)
            if node is not None:
                nodes.append(node)
        del self.variables[declared:]
        self.depth -= 1
        return nodes, word

    # An action: what stands between two pairs of braces.

    def read_action(self, start: int, opening: int) -> None:
        self.action = start
        position = start + opening
        self.tokens, self.at = [], 0
        comment = re.compile(r"\s*/\*.*?\*/(\s+-)?\}\}", re.DOTALL).match(self.text, position)
        if comment:
            self.close(comment.end(), comment[1] is not None)
            return
        while True:
            closing = re.compile(r"(\s-)?\}\}").match(self.text, position)
            if closing:
                self.close(closing.end(), closing[1] is not None)
                return
            found = _TOKEN.match(self.text, position)
            if found is None:
                raise self.broken(start, position)
            if found.lastgroup != "space":
                self.tokens.append(_Token(found.lastgroup or "", found[0], position))
                position = found.end()
            else:
                # The blank before `-}}` belongs to it.
                end = re.compile(r"\s+?(?=\s-\}\})").match(self.text, position)
                trimming = re.compile(r"\s+-\}\}").match(self.text, position)
                position = end.end() if end else position if trimming else found.end()
                if trimming and not end:
                    self.close(trimming.end(), True)
                    return

    def broken(self, start: int, position: int) -> TemplateError:
        if position >= len(self.text):
            return TemplateError("this action isn't closed with `}}`", start, 2)
        return TemplateError(f"`{self.text[position]}` isn't expected in an action", position)

    def close(self, end: int, trims: bool) -> None:
        self.position = end
        if trims:
            self.position += len(self.text[end:]) - len(self.text[end:].lstrip())

    def peek(self) -> _Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def peek_word(self) -> str:
        token = self.peek()
        return token.text if token is not None and token.kind == "word" else ""

    def take(self) -> _Token:
        token = self.tokens[self.at]
        self.at += 1
        return token

    def takes(self, text: str) -> bool:
        token = self.peek()
        if token is not None and token.text == text and token.kind in ("mark", "word"):
            self.at += 1
            return True
        return False

    def finish(self) -> None:
        token = self.peek()
        if token is not None:
            raise TemplateError(f"`{token.text}` isn't expected here", token.offset, len(token.text))

    # Nodes.

    def node(self, word: str) -> _Node | None:
        if not self.tokens:
            if self.text.startswith(("{{/*", "{{- /*"), self.action):
                return None
            raise TemplateError("this action is empty", self.action, 2)
        if word == "if":
            return self.conditional(with_dot=False)
        if word == "with":
            return self.conditional(with_dot=True)
        if word == "range":
            return self.loop()
        if word in ("break", "continue"):
            token = self.take()
            if not self.loops:
                raise TemplateError(f"`{word}` stands only in a `range`", token.offset, len(word))
            self.finish()
            return _break if word == "break" else _continue
        declared = self.declaration()
        if declared is not None:
            return declared
        value = self.pipeline().value
        self.finish()
        return lambda scope: scope.write(show(value(scope)))

    def declaration(self) -> _Node | None:
        """`$x := …` or `$x = …`, which print nothing."""
        token = self.peek()
        after = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else None
        if token is None or token.kind != "variable" or after is None or after.text not in (":=", "="):
            return None
        self.at += 2
        value = self.pipeline().value
        self.finish()
        name = token.text
        if after.text == ":=":
            self.variables.append(name)
            return lambda scope: scope.variables.append([name, value(scope)])
        self.known(token)

        def assign(scope: _Scope) -> None:
            scope.variable(name)[1] = value(scope)

        return assign

    def known(self, token: _Token) -> None:
        if token.text not in self.variables:
            meant = nearest(token.text, self.variables)
            hint = f"did you mean `{meant}`?" if meant else ""
            raise TemplateError(f"there is no variable `{token.text}`", token.offset, len(token.text), hint)

    def conditional(self, with_dot: bool) -> _Node:
        start = self.action
        self.take()
        declared = len(self.variables)
        name = self.declared_name()
        condition = self.pipeline()
        self.finish()
        if name:
            self.variables.append(name)
        dot = self.dot
        if with_dot:
            self.dot = condition.shape
        body, ended = self.body()
        self.dot = dot
        otherwise = self.otherwise(ended, start)
        del self.variables[declared:]

        def run(scope: _Scope) -> None:
            value = condition.value(scope)
            before, variables = scope.dot, len(scope.variables)
            if name:
                scope.variables.append([name, value])
            try:
                if _is_true(value):
                    scope.dot = value if with_dot else before
                    _run(body, scope)
                else:
                    _run(otherwise, scope)
            finally:
                scope.dot = before
                del scope.variables[variables:]

        return run

    def declared_name(self) -> str:
        """The variable of `if $x := …` and `with $x := …`."""
        token = self.peek()
        after = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else None
        if token is None or token.kind != "variable" or after is None or after.text != ":=":
            return ""
        self.at += 2
        return token.text

    def otherwise(self, ended: str, start: int) -> list[_Node]:
        """What stands behind `else`, up to `end`."""
        if not ended:
            raise TemplateError("this has no `{{ end }}`", start, 2)
        self.take()
        if ended == "end":
            self.finish()
            return []
        word = self.peek_word()
        if word in ("if", "with"):
            self.depth += 1
            node = self.conditional(with_dot=word == "with")
            self.depth -= 1
            return [node]
        self.finish()
        body, ended = self.body()
        if ended != "end":
            raise TemplateError("`else` stands twice" if ended else "this has no `{{ end }}`", start, 2)
        self.take()
        self.finish()
        return body

    def loop(self) -> _Node:
        start = self.action
        self.take()
        declared = len(self.variables)
        loop_names: list[str] = []
        mark = self.at
        while (token := self.peek()) is not None and token.kind == "variable":
            loop_names.append(self.take().text)
            if not self.takes(","):
                break
        if not loop_names or not self.takes(":="):
            self.at, loop_names = mark, []
        if len(loop_names) > 2:
            raise TemplateError("`range` has two variables at most", start, 2)
        over = self.pipeline().value
        self.finish()
        self.variables += loop_names
        dot, self.dot = self.dot, None
        self.loops += 1
        body, ended = self.body()
        self.loops -= 1
        self.dot = dot
        otherwise = self.otherwise(ended, start)
        del self.variables[declared:]

        def run(scope: _Scope) -> None:
            pairs = _pairs(over(scope))
            if not pairs:
                _run(otherwise, scope)
                return
            before, variables = scope.dot, len(scope.variables)
            try:
                for key, value in pairs:
                    scope.dot = value
                    values = [value] if len(loop_names) == 1 else [key, value]
                    scope.variables += [list(pair) for pair in zip(loop_names, values, strict=False)]
                    try:
                        _run(body, scope)
                    except _ContinueError:
                        pass
                    except _BreakError:
                        break
                    finally:
                        del scope.variables[variables:]
            finally:
                scope.dot = before

        return run

    # Pipelines.

    def pipeline(self) -> _Operand:
        value = self.command(None)
        while self.takes("|"):
            value = self.command(value)
        return value

    def command(self, piped: _Operand | None) -> _Operand:
        token = self.peek()
        if token is None:
            raise TemplateError("a value is missing", self.action, 2)
        if token.kind == "word" and token.text not in ("true", "false", "nil"):
            return self.function(self.take(), piped)
        first = self.operand()
        values = self.arguments()
        if piped is not None:
            values.append(piped)
        if not first.is_method:
            if values:
                raise TemplateError(f"`{token.text}` takes no values", token.offset, len(token.text))
            return first
        return _Operand(_method_call(first.value, [each.value for each in values]))

    def function(self, token: _Token, piped: _Operand | None) -> _Operand:
        name = token.text
        function = _FUNCTIONS.get(name)
        if function is None:
            if name in _UNSUPPORTED:
                raise TemplateError(f"`{name}` isn't supported", token.offset, len(name))
            meant = nearest(name, list(_FUNCTIONS))
            hint = f"did you mean `{meant}`?" if meant else ""
            raise TemplateError(f"there is no function `{name}`", token.offset, len(name), hint)
        values = self.arguments()
        if piped is not None:
            values.append(piped)
        if len(values) < function.least or (function.most is not None and len(values) > function.most):
            raise TemplateError(f"`{name}` takes {_amount(function)}", token.offset, len(name))
        if name == "printf" and isinstance(values[0].constant, str):
            _check_format(values[0].constant, len(values) - 1, token)
        return _Operand(_call(name, function, [each.value for each in values]))

    def arguments(self) -> list[_Operand]:
        values = []
        while (token := self.peek()) is not None and token.text not in ("|", ")", ",", ":=", "="):
            values.append(self.operand())
        return values

    def operand(self) -> _Operand:
        token = self.take()
        match token.kind:
            case "string":
                return self.chain(_literal(_unquoted(token.text)), token)
            case "char":
                return _literal(ord(_unescaped(token.text[1:-1])))
            case "number":
                return _literal(_number(token))
            case "word":
                return self.word(token)
            case "dot":
                return _Operand(lambda scope: scope.dot, self.dot)
            case "field":
                self.at -= 1
                return self.chain(_Operand(lambda scope: scope.dot, self.dot), None)
            case "variable":
                return self.chain(self.variable(token), token)
        if token.text == "(":
            inner = self.pipeline()
            if not self.takes(")"):
                raise TemplateError("this parenthesis isn't closed", token.offset)
            return self.chain(inner, self.tokens[self.at - 1])
        raise TemplateError(f"`{token.text}` isn't expected here", token.offset, len(token.text))

    def word(self, token: _Token) -> _Operand:
        constants = {"true": True, "false": False, "nil": None}
        if token.text in constants:
            return _literal(constants[token.text])
        # A function without values of its own, in the middle of a command.
        function = _FUNCTIONS.get(token.text)
        if function is not None and function.least == 0:
            return _Operand(_call(token.text, function, []))
        hint = "put a call within another into parentheses" if function else ""
        raise TemplateError(f"`{token.text}` isn't a value", token.offset, len(token.text), hint)

    def variable(self, token: _Token) -> _Operand:
        if token.text == "$":
            return _Operand(lambda scope: scope.root, self.shape)
        self.known(token)
        name = token.text
        return _Operand(lambda scope: scope.variable(name)[1])

    def chain(self, operand: _Operand, before: _Token | None) -> _Operand:
        """The fields that follow a value without a blank between them."""
        end = None if before is None else before.end
        while (token := self.peek()) is not None and token.kind == "field" and end in (None, token.offset):
            self.take()
            operand = self.field(operand, token)
            end = token.end
        return operand

    def field(self, operand: _Operand, token: _Token) -> _Operand:
        name = token.text[1:]
        shape: Shape | None = None
        if operand.shape is not None:
            if name not in operand.shape:
                meant = nearest(name, list(operand.shape))
                known = ", ".join(f".{each}" for each in operand.shape)
                hint = f"did you mean `.{meant}`?" if meant else f"there are {known}" if known else ""
                raise TemplateError(f"there is no field `.{name}` here", token.offset, len(token.text), hint)
            shape = operand.shape[name]
        value = operand.value
        is_method = operand.shape is self.shape and name == "Meta"
        return _Operand(lambda scope: _field_of(value(scope), name), shape, is_method=is_method)


def _break(scope: _Scope) -> None:
    raise _BreakError


def _continue(scope: _Scope) -> None:
    raise _ContinueError


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, list):
        return list(enumerate(value))
    if isinstance(value, dict):
        return sorted(value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        if value > LONGEST_OUTPUT:
            raise ExecutionError("range over too large a number")
        return [(number, number) for number in range(value)]
    if value is None:
        return []
    raise ExecutionError("range over what is no list, map or number")


def _field_of(value: Any, name: str) -> Any:
    if isinstance(value, Fields):
        return value[name]
    if isinstance(value, dict):
        # Go prints a key that isn't there as `<no value>`.
        return value.get(name)
    raise ExecutionError(f"there is no field .{name} of {_brief(value)}")


def _method_call(method: _Value, values: Sequence[_Value]) -> _Value:
    def call(scope: _Scope) -> Any:
        found = method(scope)
        if not isinstance(found, Method):
            raise ExecutionError("this takes no values")
        try:
            return found.call(*[each(scope) for each in values])
        except TypeError:
            raise ExecutionError("this takes another number of values") from None

    return call


def _amount(function: _Function) -> str:
    least, most = function.least, function.most
    if most is None:
        return f"{least} values at least" if least != 1 else "a value at least"
    if least == most:
        return f"{least} values" if least != 1 else "one value"
    return f"{least} to {most} values"


def _check_format(form: str, values: int, token: _Token) -> None:
    wanted = 0
    for found in _VERB.finditer(form):
        if found["verb"] not in _VERBS or not found["verb"]:
            raise TemplateError(f"`%{found['verb']}` of printf isn't supported", token.offset, len(token.text))
        wanted += found["verb"] != "%"
    if wanted != values:
        message = f"the format of printf takes {wanted} value{'' if wanted == 1 else 's'}, and there are {values}"
        raise TemplateError(message, token.offset, len(token.text))


def _literal(constant: Any) -> _Operand:
    return _Operand(lambda scope: constant, constant=constant)


def _number(token: _Token) -> int | float:
    text = token.text
    try:
        if re.fullmatch(r"[+-]?0[0-7]+", text):
            return int(text, 8)
        return int(text, 0) if re.fullmatch(r"[+-]?(0[xXbBoO]\w+|[0-9]{1,19})", text) else float(text)
    except ValueError:
        raise TemplateError(f"`{text}` is no number", token.offset, len(text)) from None


def _unquoted(text: str) -> str:
    return text[1:-1] if text[0] == "`" else _unescaped(text[1:-1])


def _unescaped(text: str) -> str:
    def plain(found: re.Match[str]) -> str:
        escape = found[1]
        if escape[0] in "xuU" and len(escape) > 1:
            return chr(min(int(escape[1:], 16), 0x10FFFF))
        if len(escape) == 3:
            return chr(int(escape, 8))
        return _ESCAPES.get(escape, escape)

    return _ESCAPE.sub(plain, text)
