"""A Corefile's text as a tree of directives, every token with its position.

Knows the grammar and nothing of what a directive means: an unknown directive or option is `options.py`'s business.
Law: CoreDNS's lexer and parser as docs/corefile.md tells them; where kdns takes more or less, the line says so.
"""

from __future__ import annotations

import glob as globbing
import hashlib
import ipaddress
import json
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from kdns.errors import ConfigError, Place, Problem

# Unicode White_Space, as Go's unicode.IsSpace has it: unlike str.isspace() without U+001C to U+001F.
# U+000D is apart: it ends no token, it is dropped.
_BLANK = "\t\n\v\f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_SKIPPED = re.compile(rf"[{_BLANK}\r]+|#[^\n]*")
_QUOTED = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_BARE = re.compile(rf"[^{_BLANK}#]+")
# A comment glued to a token reaches to the next blank only: `foo#bar baz` is `foo` and `baz`.
_GLUED_COMMENT = re.compile(rf"#[^{_BLANK}]*")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_TO_ESCAPE = re.compile(r'\\[^"]|"', re.DOTALL)
# A name may have a slash in it (RFC 2317), but no four numbers and no colon before it.
_LIKE_NETWORK = re.compile(r"(?:[0-9]+\.){3}[0-9]+/[0-9]+|[0-9A-Fa-f.]*:[0-9A-Fa-f.:]*/[0-9]+")
_GLUED_BRACE = re.compile(r"[^{}]+\{")
# Not inside `{{…}}`: CoreDNS also empties a Go template's `{{$x}}`, so no working Corefile holds one.
_ENVIRONMENT = re.compile(r"\{%([^{}%\s]+)%\}|(?<!\{)\{\$([^{}\s]+)\}(?!\})")

SCHEMES_TO_COME = ("tls", "quic", "grpc", "https", "https3")
_PREFIXES_TO_COME = tuple(f"{scheme}://" for scheme in SCHEMES_TO_COME)
_IN_FRONT = "clients are served over UDP and TCP; a proxy in front can speak to them in another way"
MOST_SNIPPET_IMPORTS = 10_000
MOST_FILE_IMPORTS = 100_000
# CoreDNS has no such limits and fails on the two above; ours keep the stack and the memory small before that.
MOST_NESTED = 64
MOST_IMPORTED_TOKENS = 1_000_000


class Token(msgspec.Struct, frozen=True):
    """A word of a Corefile: its text, after environment and quotes, and where it stands.

    Lines and columns count from 1; `length` and `source` are of the first line it stands on, for drawing it.
    """

    text: str
    file: str = ""
    line: int = 0
    column: int = 0
    quoted: bool = False
    length: int = 1
    end_line: int = 0
    source: str = ""

    def place(self) -> Place:
        """Where it stands, ready to be drawn."""
        return Place(self.file, self.line, self.column, self.length, self.source)


class Directive(msgspec.Struct, frozen=True):
    """A line of a block with its arguments and the lines of its own block; options are directives too.

    `body` is None where no braces follow.
    """

    name: Token
    args: list[Token] = []
    body: list[Directive] | None = None


class Key(msgspec.Struct, frozen=True):
    """One zone of a server block: a lower-case name with its final dot, and a port.

    A CIDR that needs several reverse zones gives several keys with the same token.
    """

    token: Token
    zone: str
    port: int


class ServerBlock(msgspec.Struct, frozen=True):
    """Keys and the directives that hold for them, in the order of the file."""

    keys: list[Key]
    directives: list[Directive]

    def named(self, name: str) -> list[Directive]:
        """Every use of one directive in this block."""
        return [directive for directive in self.directives if directive.name.text == name]


class Corefile(msgspec.Struct, frozen=True):
    """What a Corefile says, imports and environment resolved.

    `files` are all that were read, the main one first; `text` holds their contents. No block at all is legal.
    `default` is whether the block is CoreDNS's, for want of one in the file.
    """

    blocks: list[ServerBlock]
    warnings: list[Problem] = []
    files: list[str] = []
    text: dict[str, str] = {}
    default: bool = False


class CorefileError(ConfigError):
    """The mistakes and warnings of a text, and its blocks as far as they can be read on for more mistakes.

    There are none where braces, quotes or imports are wrong: what follows those would be told for nothing.
    """

    def __init__(self, problems: Iterable[Problem], blocks: list[ServerBlock]) -> None:
        super().__init__(problems)
        self.blocks = blocks


def load(
    path: str,
    *,
    default_port: int = 53,
    environment: Mapping[str, str] | None = None,
) -> Corefile:
    """Read and parse a file; `environment` is the process's own unless given. Raises ConfigError."""
    try:
        text = read_text(path)
    except OSError as error:
        raise ConfigError([Problem(f"open {path}: {_why(error)}")]) from None
    environment = os.environ if environment is None else environment
    return parse(text, path, default_port=default_port, environment=environment)


def parse(
    text: str,
    file: str,
    *,
    default_port: int = 53,
    environment: Mapping[str, str] | None = None,
    read: Callable[[str], str] | None = None,
    glob: Callable[[str], list[str]] | None = None,
) -> Corefile:
    """Parse a Corefile's text; raises CorefileError with every mistake found.

    Without an `environment` references such as `{$NAME}` stay as they are. `read` gives the text of an imported
    path and raises OSError; `glob` gives the sorted paths that match a pattern.
    """
    parser = _Parser(default_port, environment, read or read_regular, glob or matching_files)
    blocks = parser.parse(text, file)
    if mistakes := parser.problems + parser.wrong_zones:
        found = parser.in_order(mistakes + parser.warnings)
        raise CorefileError(found, [] if parser.problems else blocks)
    return Corefile(blocks, parser.in_order(parser.warnings), list(parser.text), parser.text)


# --- Zones ---


def normalize_zone(text: str) -> list[str]:
    """A zone as lower-case names with a final dot; a CIDR gives its reverse zones, several off a label's boundary.

    Raises ValueError with a sentence.
    """
    network = _network(text)
    if network is not None:
        return _reverse_zones(network)
    if _LIKE_NETWORK.fullmatch(text):
        raise ValueError(f"`{text}` is no network: an address has at most 32 bits, or 128 of IPv6")
    if not text:
        raise ValueError("a zone has a name, `.` is the root")
    if not text.isascii():
        raise ValueError(f"`{text}` isn't a valid domain name: letters beyond ASCII are written as `xn--…`")
    if re.search(r"[\s:\"\x00-\x1f\x7f]", text):
        raise ValueError(
            f"`{text}` isn't a valid domain name: it holds a blank, a colon, a quote or a control character"
        )
    if text == ".":
        return ["."]
    # A backslash escapes one character or three digits; a label's length counts what it stands for.
    plain = re.sub(r"\\(?:[0-9]{3}|.)", "x", text)
    if "\\" in plain:
        raise ValueError(f"`{text}` isn't a valid domain name: the backslash at its end escapes nothing")
    zone = text.lower() if plain.endswith(".") else text.lower() + "."
    plain = plain.removesuffix(".")
    labels = plain.split(".")
    if not all(labels):
        raise ValueError(f"`{text}` isn't a valid domain name: it has an empty label")
    if max(map(len, labels)) > 63:
        raise ValueError(f"`{text}` isn't a valid domain name: a label has more than 63 characters")
    if len(plain) + 2 > 255:
        raise ValueError(f"`{text}` isn't a valid domain name: it has more than 255 bytes on the wire")
    return [zone]


def split_port(text: str) -> tuple[str, int | None]:
    """A zone and the port after its last colon, None where none is written. Raises ValueError with a sentence."""
    zone, colon, port = text.rpartition(":")
    if not colon:
        return text, None
    if not port:
        raise ValueError(f"expecting data after last colon: `{text}`")
    if "/" in port:
        # The colon is one of an IPv6 network.
        return text, None
    if not re.fullmatch(r"[0-9]{1,9}", port):
        raise ValueError(f"`{port}` is no port")
    if int(port) > 65535:
        raise ValueError(f"`{port}` isn't a port: the last is 65535")
    return zone, int(port)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    if not re.fullmatch(r"[0-9A-Fa-f.:]+/[0-9]{1,3}", text):
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _reverse_zones(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> list[str]:
    bits = 8 if network.version == 4 else 4
    labels = -(-network.prefixlen // bits)
    subnets = network.subnets(new_prefix=labels * bits)
    most = network.max_prefixlen // bits
    # `reverse_pointer` has one label per `bits` of the address, the last one first.
    return [subnet.network_address.reverse_pointer.split(".", most - labels)[-1] + "." for subnet in subnets]


# --- The canonical text ---


def render(corefile: Corefile) -> str:
    """The canonical text: parsed again without an environment it gives the same tree.

    One exception: a value from the environment with a blank and an unpaired backslash before a quote or its end.
    """
    return format_blocks(corefile.blocks)


def format_blocks(blocks: Iterable[ServerBlock]) -> str:
    """Server blocks as text, four spaces a level, a blank line between two."""
    return "\n".join(_format_block(block) for block in blocks)


def fingerprint(corefile: Corefile) -> str:
    """SHA-512 in hexadecimal of what the Corefile says; comments, blanks and file names don't matter."""
    plain = [
        [[[key.zone, key.port] for key in block.keys], [_plain(directive) for directive in block.directives]]
        for block in corefile.blocks
    ]
    return hashlib.sha512(json.dumps(plain, separators=(",", ":")).encode()).hexdigest()


def _format_block(block: ServerBlock) -> str:
    keys = " ".join(spell(f"{_short(key.zone)}:{key.port}") for key in block.keys)
    return "\n".join([f"{keys} {{", *_format_lines(block.directives, 1), "}", ""])


def _short(zone: str) -> str:
    """Without the final dot, where that means the same: `10.0.0.0/24.` is a name, `10.0.0.0/24` a network."""
    return zone if zone == "." or _network(zone[:-1]) else zone[:-1]


def _format_lines(directives: Iterable[Directive], depth: int) -> list[str]:
    indent = "    " * depth
    lines = []
    for directive in directives:
        texts = [directive.name.text, *(arg.text for arg in directive.args)]
        words = [spell(text) for text in texts]
        if texts[0] == "import":
            words[0] = quote(texts[0])
        if directive.body is None and _GLUED_BRACE.fullmatch(words[-1]):
            words[-1] = quote(texts[-1])
        line = indent + " ".join(words)
        if directive.body is None:
            lines.append(line)
        else:
            lines += [f"{line} {{", *_format_lines(directive.body, depth + 1), f"{indent}}}"]
    return lines


def spell(text: str) -> str:
    """The word as it stands in a Corefile, in quotes where it has to be."""
    bare = text not in ("", "{", "}") and not text.startswith('"') and "\r" not in text and _BARE.fullmatch(text)
    return text if bare else quote(text)


def quote(text: str) -> str:
    return '"' + _TO_ESCAPE.sub(lambda found: '\\"' if found[0] == '"' else found[0], text) + '"'


def _plain(directive: Directive) -> list[object]:
    body = None if directive.body is None else [_plain(inner) for inner in directive.body]
    return [directive.name.text, [arg.text for arg in directive.args], body]


# --- Reading files ---


def read_text(path: str) -> str:
    """The text of a file; bytes that aren't UTF-8 are replaced, as Go does it. Raises OSError."""
    # Not read_text(): that would change the line ends.
    return Path(path).read_bytes().decode(errors="replace")


def read_regular(path: str) -> str:
    """The same for what must be a regular file, or a link to one: a pipe would be waited for."""
    Path(path).stat()
    if not Path(path).is_file():
        raise OSError(0, "not a regular file")
    return read_text(path)


def matching_files(pattern: str) -> list[str]:
    """The sorted paths that match; unlike the shell's, `*` matches a leading dot too, as in CoreDNS."""
    return sorted(globbing.glob(pattern, include_hidden=True))  # noqa: PTH207


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


# --- Tokens ---


def tokens_of(text: str, file: str) -> tuple[list[Token], Problem | None]:
    """The tokens of a text, and the problem that ended them early, if any."""
    text = text.removeprefix("\ufeff")
    starts = [0, *(found.end() for found in re.finditer("\n", text))]
    lines = text.split("\n")

    def token(word: str, start: int, end: int, quoted: bool) -> Token:
        first = bisect_right(starts, start) - 1
        last = bisect_right(starts, end - 1) - 1
        source = lines[first].rstrip("\r")
        column = start - starts[first]
        length = max(1, min(end - start, len(source) - column))
        return Token(word, file, first + 1, column + 1, quoted, length, last + 1, source)

    tokens: list[Token] = []
    position = 0
    while True:
        while found := _SKIPPED.match(text, position):
            position = found.end()
        if position == len(text):
            return tokens, None
        if text[position] == '"':
            found = _QUOTED.match(text, position)
            if found is None:
                # CoreDNS takes the rest of the file for the token.
                place = token("", position, position + 1, True).place()
                return tokens, Problem("this quote isn't closed", place, expected='another `"` before the file ends')
            tokens.append(token(_ESCAPED.sub(_unescape, found[1]), position, found.end(), True))
        else:
            found = _BARE.match(text, position)
            assert found is not None
            tokens.append(token(found[0].replace("\r", ""), position, found.end(), False))
        position = found.end()
        if not tokens[-1].quoted and (found := _GLUED_COMMENT.match(text, position)):
            position = found.end()


def _unescape(found: re.Match[str]) -> str:
    return '"' if found[1] == '"' else found[0]


class _Cursor:
    """A place in a list of tokens."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.position = 0

    def peek(self) -> Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self) -> Token:
        token = self.tokens[self.position]
        self.position += 1
        return token

    def rest_of_line(self) -> list[Token]:
        """Takes what is left of the line of the token taken last, up to a brace."""
        taken = []
        while (token := self.peek()) is not None and self.on_same_line() and not _is_brace(token, "{}"):
            taken.append(self.take())
        return taken

    def on_same_line(self) -> bool:
        return self.tokens[self.position].line == self.tokens[self.position - 1].end_line


def _is_brace(token: Token, braces: str) -> bool:
    # In CoreDNS a quoted brace is a brace too.
    return not token.quoted and len(token.text) == 1 and token.text in braces


def _is_import(token: Token) -> bool:
    return token.text == "import" and not token.quoted


# --- The parser ---

T = TypeVar("T")


class _StopError(Exception):
    """A limit is exceeded; the problem is noted and nothing more is read."""


class _Parser:
    def __init__(
        self,
        default_port: int,
        environment: Mapping[str, str] | None,
        read: Callable[[str], str],
        glob: Callable[[str], list[str]],
    ) -> None:
        self.default_port = default_port
        self.environment = environment
        self.read = read
        self.glob = glob
        self.problems: list[Problem] = []
        # Mistakes in zones, which leave what their blocks say as it is.
        self.wrong_zones: list[Problem] = []
        self.warnings: list[Problem] = []
        self.text: dict[str, str] = {}
        self.file_tokens: dict[str, list[Token]] = {}
        self.snippets: dict[str, list[Token]] = {}
        # Files with a quote that isn't closed, so that of course their blocks aren't either.
        self.cut_short: set[str] = set()
        self.snippet_imports = 0
        self.file_imports = 0
        self.imported_tokens = 0
        # What is being imported now, from the outside in.
        self.importing: list[str] = []

    def parse(self, text: str, file: str) -> list[ServerBlock]:
        tokens = self._keep(text, file)
        self.importing.append(f"file {file}")
        try:
            return self._top_level(_Cursor(tokens))
        except _StopError:
            return []

    def in_order(self, problems: Iterable[Problem]) -> list[Problem]:
        """Once each (a snippet's mistake is found at every import), by file and line."""
        order = {file: number for number, file in enumerate(self.text)}

        def standing(problem: Problem) -> tuple[int, int, int]:
            place = problem.place or Place("")
            return order.get(place.file, -1), place.line, place.column

        return sorted(dict.fromkeys(problems), key=standing)

    def _keep(self, text: str, file: str) -> list[Token]:
        tokens, problem = tokens_of(text, file)
        if problem is not None:
            self.problems.append(problem)
            self.cut_short.add(file)
        self.text[file] = text
        self.file_tokens[file] = tokens
        return tokens

    # Server blocks.

    def _top_level(self, cursor: _Cursor) -> list[ServerBlock]:
        blocks: list[ServerBlock] = []
        while (token := cursor.peek()) is not None:
            if _is_import(token):
                blocks += self._import(cursor, self._top_level)
            elif _is_brace(token, "}"):
                self._stray_brace(cursor.take())
            else:
                blocks += self._block(cursor)
        return blocks

    def _block(self, cursor: _Cursor) -> list[ServerBlock]:
        first = cursor.peek()
        assert first is not None
        names = self._key_tokens(cursor)
        if names and names[0].text.startswith("(") and names[0].text.endswith(")"):
            self._snippet(cursor, names)
            return []
        keys = self._keys(names)
        # Without a brace the file is one block up to its end.
        directives = self._lines(cursor, self._opening(cursor, names), 1)
        if not names:
            self._warn(first, "a block without a zone is ignored", hint="`.` is the zone of all names")
        return [ServerBlock(keys, directives)] if names else []

    def _key_tokens(self, cursor: _Cursor) -> list[Token]:
        names: list[Token] = []
        another = False
        while (token := cursor.peek()) is not None:
            if _is_brace(token, "{"):
                if another:
                    message = "expected another address but had `{`"
                    self._fault(token, message, hint="check for an extra comma before it")
                return names
            if names and not another and not cursor.on_same_line():
                return names
            cursor.take()
            if _is_brace(token, "}") or (names and _is_import(token) and not self._continues(cursor)):
                self._fault(token, f"`{token.text}` can't stand among zones", expected="zones, then `{`")
                return names
            token = self._resolved(token)
            another = token.text.endswith(",")
            if another:
                token = msgspec.structs.replace(token, text=token.text[:-1])
            # An empty token comes from `""` or from the environment.
            if token.text or another:
                names.append(token)
            elif not names and cursor.peek() is not None and not cursor.on_same_line():
                return names
        if another:
            self._fault(names[-1], "the file ends after a comma", expected="another zone")
        return names

    @staticmethod
    def _continues(cursor: _Cursor) -> bool:
        """Whether the token taken last stands on the line of the one before it."""
        return cursor.tokens[cursor.position - 1].line == cursor.tokens[cursor.position - 2].end_line

    def _opening(self, cursor: _Cursor, names: Sequence[Token]) -> Token | None:
        token = cursor.peek()
        if token is not None and _is_brace(token, "{"):
            return cursor.take()
        # `.:53{` is told by _keys; what follows is read as the block that was meant.
        return names[-1] if names and _GLUED_BRACE.fullmatch(names[-1].text) and not names[-1].quoted else None

    def _keys(self, names: Iterable[Token]) -> list[Key]:
        keys: list[Key] = []
        for token in names:
            try:
                for key in self._keys_of(token):
                    if any(other.zone == key.zone and other.port == key.port for other in keys):
                        message = f"`{token.text}` is already one of this block's zones"
                        self.wrong_zones.append(Problem(message, token.place()))
                    keys.append(key)
            except ValueError as error:
                glued = token.text.endswith("{") and not token.quoted
                hint = f"write `{token.text[:-1]} {{`, with a space" if glued else ""
                hint = "`.:53` is the zone of all names" if token.text.startswith(":") else hint
                hint = _IN_FRONT if token.text.startswith(_PREFIXES_TO_COME) else hint
                problem = Problem(str(error), token.place(), expected="ZONE or ZONE:PORT", hint=hint)
                (self.problems if glued else self.wrong_zones).append(problem)
        return keys

    def _keys_of(self, token: Token) -> list[Key]:
        text = token.text
        scheme, found, rest = text.partition("://")
        if found and scheme in SCHEMES_TO_COME:
            raise ValueError(f"`{scheme}://` isn't in kdns yet")
        if found and scheme == "dns":
            text = rest
        if text.endswith("{") and not token.quoted:
            raise ValueError("`{` must stand alone")
        zone, port = split_port(text)
        if "," in zone:
            self._warn(token, f"`{zone}` is one zone", hint="a blank after a comma makes it two")
        return [Key(token, name, self.default_port if port is None else port) for name in normalize_zone(zone)]

    def _snippet(self, cursor: _Cursor, names: Sequence[Token]) -> None:
        name = names[0].text[1:-1]
        opened = cursor.peek()
        for token in names[1:]:
            self._fault(token, "a snippet has one name", expected=f"`{names[0].text} {{`")
        if opened is None or not _is_brace(opened, "{"):
            self._fault(names[0], "a snippet needs a block", expected=f"`{names[0].text} {{`")
            cursor.rest_of_line()
            return
        cursor.take()
        body: list[Token] = []
        depth = 1
        while (token_or_end := cursor.peek()) is not None:
            cursor.take()
            depth += _is_brace(token_or_end, "{") - _is_brace(token_or_end, "}")
            if depth == 0:
                break
            body.append(token_or_end)
        else:
            self._unclosed(opened, body)
        if name in self.snippets:
            self._fault(names[0], f"redeclaration of previously declared snippet `{name}`")
        else:
            self.snippets[name] = body

    # Directives, and the options in their blocks.

    def _lines(self, cursor: _Cursor, opened: Token | None, depth: int) -> list[Directive]:
        found: list[Directive] = []
        start = cursor.position
        if depth > MOST_NESTED:
            assert opened is not None
            self._fault(opened, f"blocks are nested more than {MOST_NESTED} deep")
            raise _StopError
        while (token := cursor.peek()) is not None:
            if _is_brace(token, "}"):
                cursor.take()
                if opened is not None:
                    return found
                self._stray_brace(token)
            elif _is_brace(token, "{"):
                self._fault(token, "this `{` follows no directive", expected="the name of a directive or option")
                self._lines(cursor, cursor.take(), depth + 1)
            elif _is_import(token):
                found += self._import(cursor, lambda imported: self._lines(imported, None, depth))
            else:
                found.append(self._directive(cursor, depth))
        if opened is not None:
            self._unclosed(opened, cursor.tokens[start:])
        return found

    def _directive(self, cursor: _Cursor, depth: int) -> Directive:
        name = self._resolved(cursor.take())
        args = [self._resolved(token) for token in cursor.rest_of_line()]
        last, token = [name, *args][-1], cursor.peek()
        # As in CoreDNS the brace may stand on the next line.
        if token is not None and _is_brace(token, "{"):
            opened = cursor.take()
        elif _GLUED_BRACE.fullmatch(last.text) and not last.quoted:
            # What follows is read as the block that was meant, or every line after it would be a mistake.
            self._fault(last, "`{` must stand alone", hint=f"write `{last.text[:-1]} {{`, with a space")
            opened = last
        else:
            return Directive(name, args)
        body = self._lines(cursor, opened, depth + 1)
        if surplus := cursor.rest_of_line():
            self._fault(surplus[0], "nothing can follow `}` on its line", expected="the end of the line")
        return Directive(name, args, body)

    # Imports.

    def _import(self, cursor: _Cursor, parse_into: Callable[[_Cursor], list[T]]) -> list[T]:
        """The parsed content of what the import statement at the cursor names."""
        statement = cursor.take()
        args = [self._resolved(token) for token in cursor.rest_of_line()]
        if not args or not args[0].text:
            self._fault(args[0] if args else statement, "`import` requires a non-empty filepath")
            return []
        if len(args) > 1:
            message = "`import` takes only one argument"
            self._fault(args[1], message, expected="a snippet, a file or a glob pattern")
            return []
        target = args[0]
        if target.text in self.snippets:
            self.snippet_imports += 1
            if self.snippet_imports > MOST_SNIPPET_IMPORTS:
                self._fault(target, f"maximum snippet import depth ({MOST_SNIPPET_IMPORTS}) exceeded")
                raise _StopError
            return self._inside(target, f"snippet {target.text}", self.snippets[target.text], parse_into)
        found: list[T] = []
        for path in self._paths(target):
            tokens = self._file(target, path)
            found += self._inside(target, f"file {path}", tokens, parse_into)
        return found

    def _inside(
        self, target: Token, what: str, tokens: Sequence[Token], parse_into: Callable[[_Cursor], list[T]]
    ) -> list[T]:
        if what in self.importing:
            self._fault(target, f"`{target.text}` imports itself", hint=" → ".join([*self.importing[1:], what]))
            return []
        self.imported_tokens += len(tokens)
        if len(self.importing) > MOST_NESTED:
            self._fault(target, f"imports are nested more than {MOST_NESTED} deep")
            raise _StopError
        if self.imported_tokens > MOST_IMPORTED_TOKENS:
            self._fault(target, f"imports make more than {MOST_IMPORTED_TOKENS} words")
            raise _StopError
        self.importing.append(what)
        try:
            return parse_into(_Cursor(tokens))
        finally:
            self.importing.pop()

    def _paths(self, target: Token) -> list[str]:
        pattern = target.text
        if "\0" in pattern:
            self._fault(target, "a path holds no null character")
            return []
        directory = Path(target.file).parent
        if not re.search(r"[*?\[\]]", pattern):
            return [str(directory / pattern)]
        if pattern.count("*") > 1 or pattern.count("?") > 1 or "[" in pattern or "]" in pattern:
            self._fault(target, f"glob pattern may only contain one wildcard, but has others: `{pattern}`")
            return []
        paths = self.glob(str(Path(globbing.escape(str(directory))) / pattern))
        if not paths:
            self._warn(target, f"no files matching import glob pattern: `{pattern}`")
        return paths

    def _file(self, target: Token, path: str) -> list[Token]:
        self.file_imports += 1
        if self.file_imports > MOST_FILE_IMPORTS:
            self._fault(target, f"more than {MOST_FILE_IMPORTS} files are imported")
            raise _StopError
        if path in self.file_tokens:
            return self.file_tokens[path]
        try:
            return self._keep(self.read(path), path)
        except FileNotFoundError:
            known = ", ".join(f"`{name}`" for name in sorted(self.snippets))
            hint = f"snippets defined before this line: {known}" if known else ""
            self._fault(target, f"file to import not found: `{target.text}`", hint=hint)
        except OSError as error:
            self._fault(target, f"could not import `{path}`: {_why(error)}")
        return []

    # Words and mistakes.

    def _resolved(self, token: Token) -> Token:
        """The token with its references to the environment replaced."""
        environment = self.environment
        if environment is None or "{" not in token.text:
            return token

        def value(found: re.Match[str]) -> str:
            name = found[1] or found[2]
            if name not in environment:
                self._warn(token, f"`{name}` isn't set in the environment, so `{found[0]}` is empty")
            return environment.get(name, "")

        text = _ENVIRONMENT.sub(value, token.text)
        return token if text == token.text else msgspec.structs.replace(token, text=text)

    def _unclosed(self, opened: Token, inside: Iterable[Token]) -> None:
        if opened.file in self.cut_short:
            return
        glued = next((t for t in inside if not t.quoted and re.fullmatch(r"[^{}]+[{}]", t.text)), None)
        hint = f"`{glued.text}` in line {glued.line} ends with a brace: braces stand alone" if glued else ""
        self._fault(opened, "this block isn't closed", expected="`}` before the file ends", hint=hint)

    def _stray_brace(self, token: Token) -> None:
        self._fault(token, "`}` has no matching opening brace")

    def _fault(self, token: Token, message: str, *, expected: str = "", hint: str = "") -> None:
        self.problems.append(Problem(message, token.place(), expected=expected, hint=hint))

    def _warn(self, token: Token, message: str, *, hint: str = "") -> None:
        self.warnings.append(Problem(message, token.place(), hint=hint, warning=True))
