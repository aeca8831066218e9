"""`rewrite`: another question is asked than the client's, and the answer is turned back.

What a rule does stands in `rewriting.py`; here its words are read, and a query is led through the rules of a block.
Law: docs/plugins/rewrite.md, which is CoreDNS's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, ClassVar

import msgspec

from kdns.chain import Answer, Block, Next, Plugin, Request, failure
from kdns.corefile import Directive, Token
from kdns.errors import Problem, nearest, note
from kdns.options import Options, RefusalError, WordError, argument, custom, parse_each
from kdns.patterns import read_substitution
from kdns.rewriting import (
    VARIABLES,
    AliasRule,
    AnswerRule,
    ClassRule,
    Code,
    EdnsRule,
    Exact,
    InvalidNameError,
    Match,
    NameRule,
    Owners,
    Prefix,
    Regex,
    Revert,
    Rule,
    Substring,
    Suffix,
    Ttls,
    TypeRule,
    Values,
    subnet,
    turn_back,
)
from kdns.wire import names
from kdns.wire.query import Query
from kdns.wire.records import CLASS_CH, CLASS_IN, Rcode, type_from_text

MATCHES = ("exact", "prefix", "suffix", "substring", "regex")
_CLASSES = {"IN": CLASS_IN, "CH": CLASS_CH, "HS": 4}
# RFC 2181 §8
LARGEST_TTL = 2**31 - 1
# What an upstream takes over UDP (RFC 9715 §3: 1232 bytes), less the longest question.
LARGEST_OPTION_BYTES = 900
_TTL = re.compile(r"([0-9]{1,10})|([0-9]{1,10})?-([0-9]{1,10})?")


class Written(msgspec.Struct, frozen=True):
    """A rule as it was written: whether it is the last one for a query that it concerns, and what it does."""

    stop: bool
    rule: Rule


# --- Reading ---


def _read_rule(tokens: Sequence[Token]) -> Written:
    first, *rest = tokens
    mode = first.text if first.text in ("continue", "stop") else ""
    field = first
    if mode:
        if not rest:
            raise WordError(first, f"`{mode}` stands before a rule")
        field, *rest = rest
    if field.text == "answer":
        raise WordError(field, "a rule for the answer stands behind a rule of a `name`")
    reader = _FIELDS.get(field.text)
    if reader is None:
        meant = nearest(field.text, list(_FIELDS))
        raise RefusalError(
            field,
            "`name`, `type`, `class`, `ttl`, `cname`, `rcode` or `edns0`",
            f"did you mean `{meant}`?" if meant else "",
        )
    return Written(mode != "continue", reader(field, rest))


def _read_name_rule(field: Token, words: Sequence[Token]) -> Rule:
    syntax = "name [exact|prefix|suffix|substring|regex] FROM TO [answer ...]"
    kind, words = _split_match(field, words, 2, syntax)
    source, to, *rest = words
    match = _read_renaming(kind, source, to)
    if rest and rest[0].text != "answer":
        hint = "each rule has a `rewrite` of its own" if rest[0].text in _FIELDS else ""
        raise RefusalError(rest[0], "`answer`, or nothing after TO", hint)
    auto, reverts = _read_answers(rest)
    # An exact rule knows the way back by itself.
    return NameRule(match, auto or kind == "exact", reverts)


def _read_answers(words: Sequence[Token]) -> tuple[bool, tuple[Revert, ...]]:
    """What stands from the first `answer` on: `answer auto`, `answer name FROM TO`, `answer value FROM TO`."""
    auto: Token | None = None
    owners: Token | None = None
    reverts: list[Revert] = []
    position = 0
    while position < len(words):
        word = words[position]
        # Only the first rule needs the word.
        if word.text == "answer":
            position += 1
            if position == len(words):
                raise WordError(word, "`answer` stands before `auto`, `name` or `value`")
            word = words[position]
        if word.text == "auto":
            auto = word
            position += 1
            continue
        if word.text not in ("name", "value"):
            raise RefusalError(word, "`auto`, `name` or `value`")
        if position + 2 >= len(words):
            raise WordError(word, f"`answer {word.text}` takes a pattern and what takes its place")
        match = Regex(read_substitution(words[position + 1], words[position + 2]))
        if word.text == "name":
            owners = word
        reverts.append(Owners(match) if word.text == "name" else Values(match))
        position += 3
    if auto is not None and owners is not None:
        raise WordError(owners, "`answer auto` and `answer name` cannot both be set")
    return auto is not None, tuple(reverts)


def _read_type_rule(field: Token, words: Sequence[Token]) -> Rule:
    before, after = _exactly(field, words, 2, "type FROM TO")
    return TypeRule(_read_type(before), _read_type(after))


def _read_class_rule(field: Token, words: Sequence[Token]) -> Rule:
    before, after = _exactly(field, words, 2, "class FROM TO")
    return ClassRule(_read_class(before), _read_class(after))


def _read_ttl_rule(field: Token, words: Sequence[Token]) -> Rule:
    syntax = "ttl [exact|prefix|suffix|substring|regex] NAME SECONDS|MIN-MAX"
    kind, words = _split_match(field, words, 2, syntax)
    source, ttl = _exactly(field, words, 2, syntax)
    return AnswerRule(_read_match(kind, source), _read_ttls(ttl))


def _read_rcode_rule(field: Token, words: Sequence[Token]) -> Rule:
    syntax = "rcode [exact|prefix|suffix|substring|regex] NAME FROM TO"
    kind, words = _split_match(field, words, 3, syntax)
    source, before, after = _exactly(field, words, 3, syntax)
    return AnswerRule(_read_match(kind, source), Code(_read_rcode(before), _read_rcode(after)))


def _read_alias_rule(field: Token, words: Sequence[Token]) -> Rule:
    syntax = "cname [exact|prefix|suffix|substring|regex] FROM TO"
    kind, words = _split_match(field, words, 2, syntax)
    source, to = _exactly(field, words, 2, syntax)
    return AliasRule(_read_renaming(kind, source, to))


def _read_edns_rule(field: Token, words: Sequence[Token]) -> Rule:
    if not words or words[0].text not in _EDNS:
        raise RefusalError(words[0] if words else field, "`edns0 local`, `edns0 nsid` or `edns0 subnet`")
    kind, *rest = words
    if not rest or rest[0].text not in ("set", "append", "replace", "unset"):
        raise RefusalError(rest[0] if rest else kind, f"`edns0 {kind.text} set`, `append`, `replace` or `unset`")
    action, *values = rest
    # Replies have no option of an upstream or of a rule, so there is nothing to be taken back.
    if values and values[-1].text == "revert":
        values = values[:-1]
    wanted = _EDNS[kind.text]
    if action.text == "unset":
        wanted = wanted[:1] if kind.text == "local" else ()
    words_ = _exactly(action, values, len(wanted), " ".join(["edns0", kind.text, action.text, *wanted, "[revert]"]))
    if kind.text == "local":
        return EdnsRule(action.text, _read_number(words_[0], 0xFFFF), _read_data(words_[1]) if words_[1:] else _no_data)
    if kind.text == "nsid":
        return EdnsRule(action.text, NSID, _no_data)
    if not words_:
        return EdnsRule(action.text, SUBNET, _no_data)
    bits = {4: _read_number(words_[0], 32), 6: _read_number(words_[1], 128)}
    return EdnsRule(action.text, SUBNET, functools.partial(subnet, bits=bits))


def _read_data(token: Token) -> Callable[[Query, Request], bytes]:
    """What an option holds: bytes in hex, a variable, or the text itself."""
    text = token.text
    if text.startswith("{") and text.endswith("}"):
        if text not in VARIABLES:
            meant = nearest(text, list(VARIABLES))
            hint = f"did you mean `{meant}`?" if meant else "the variables are " + ", ".join(VARIABLES)
            raise RefusalError(token, "a variable", "kdns gathers no metadata" if "/" in text else hint)
        return VARIABLES[text]
    if text.startswith("0x") and not re.fullmatch("0x([0-9a-fA-F]{2})*", text):
        raise RefusalError(token, "whole bytes in hex, such as `0x61626364`")
    data = bytes.fromhex(text[2:]) if text.startswith("0x") else text.encode()
    if len(data) > LARGEST_OPTION_BYTES:
        raise WordError(token, f"an option has {LARGEST_OPTION_BYTES} bytes at most, and this one {len(data)}")
    return _always(data)


def _always(data: bytes) -> Callable[[Query, Request], bytes]:
    return lambda query, request: data


_no_data = _always(b"")

# RFC 5001 §4, RFC 7871 §6
NSID, SUBNET = 3, 8
# The values of each kind of option.
_EDNS = {"local": ("CODE", "DATA"), "nsid": (), "subnet": ("V4BITS", "V6BITS")}

_FIELDS: dict[str, Callable[[Token, Sequence[Token]], Rule]] = {
    "name": _read_name_rule,
    "type": _read_type_rule,
    "class": _read_class_rule,
    "ttl": _read_ttl_rule,
    "cname": _read_alias_rule,
    "rcode": _read_rcode_rule,
    "edns0": _read_edns_rule,
}


# --- Words of a rule ---


def _exactly(field: Token, words: Sequence[Token], count: int, syntax: str) -> Sequence[Token]:
    if len(words) == count:
        return words
    if len(words) > count:
        raise RefusalError(words[count], f"`{syntax}`")
    raise WordError(words[-1] if words else field, f"this rule has too few words: it is `{syntax}`")


def _split_match(field: Token, words: Sequence[Token], others: int, syntax: str) -> tuple[str, Sequence[Token]]:
    """How names are matched, `exact` unless it says so, and the words after that, of which there are enough."""
    # With no word to spare the first one is a name, whatever it looks like.
    explicit = len(words) > others and words[0].text in MATCHES
    rest = words[1:] if explicit else words
    if len(rest) < others:
        raise WordError(words[-1] if words else field, f"this rule has too few words: it is `{syntax}`")
    return (words[0].text if explicit else "exact"), rest


def _read_match(kind: str, source: Token) -> Match:
    match kind:
        case "exact":
            return Exact(_read_name(source))
        case "prefix":
            return Prefix(source.text)
        case "suffix":
            return Suffix(source.text)
        case "substring":
            return Substring(source.text)
    return Regex(read_substitution(source, msgspec.structs.replace(source, text="")))


def _read_renaming(kind: str, source: Token, to: Token) -> Match:
    match kind:
        case "exact":
            return Exact(_read_name(source), _read_name(to))
        case "prefix":
            return Prefix(source.text, to.text)
        case "suffix":
            return Suffix(source.text, to.text)
        case "substring":
            return Substring(source.text, to.text)
    return Regex(read_substitution(source, to))


def _read_name(token: Token) -> bytes:
    try:
        return names.from_text(token.text)
    except ValueError as error:
        raise WordError(token, f"`{token.text}` is no name: {error}") from None


def _read_type(token: Token) -> int:
    try:
        return type_from_text(token.text)
    except ValueError:
        raise RefusalError(token, "a type of records, such as `A` or `AAAA`") from None


def _read_class(token: Token) -> int:
    if token.text.upper() not in _CLASSES:
        raise RefusalError(token, "`IN`, `CH` or `HS`")
    return _CLASSES[token.text.upper()]


def _read_rcode(token: Token) -> int:
    if token.text.isdecimal() and len(token.text) < 5 and int(token.text) < 4096:
        return int(token.text)
    if token.text.upper() not in Rcode.__members__:
        raise RefusalError(token, "a response code, such as `NXDOMAIN` or `3`")
    return Rcode[token.text.upper()]


def _read_ttls(token: Token) -> Ttls:
    found = _TTL.fullmatch(token.text)
    if found is None or token.text == "-":
        raise RefusalError(token, "seconds, or a range of them: `30`, `30-300`, `30-` or `-300`")
    one, least, most = (None if group is None else int(group) for group in found.groups())
    low, high = (one, one) if one is not None else (least or 0, LARGEST_TTL if most is None else most)
    assert high is not None
    if low > high or high > LARGEST_TTL:
        raise RefusalError(token, f"seconds from 0 to {LARGEST_TTL}, the smaller number first")
    return Ttls(low, high)


def _read_number(token: Token, most: int) -> int:
    text = token.text
    value = -1
    if re.fullmatch(r"[0-9]{1,6}", text):
        value = int(text)
    elif re.fullmatch(r"0x[0-9a-fA-F]{1,5}", text):
        value = int(text, 16)
    if not 0 <= value <= most:
        raise RefusalError(token, f"a number from 0 to {most}")
    return value


class RewriteOptions(Options, directive="rewrite"):
    rule: Annotated[
        Written,
        argument(custom(_read_rule, "[continue|stop] FIELD...", "a rule", most=None)),
        "what is rewritten, and whether later rules see it",
    ]


# --- The directive ---


class Rewrite(Plugin):
    """The rules of a block, in their order."""

    name: ClassVar[str] = "rewrite"
    options: ClassVar[type[Options]] = RewriteOptions

    def __init__(self, options: Sequence[RewriteOptions], block: Block) -> None:
        self._block = block
        self._rules = [(each.rule.rule.apply, each.rule.stop) for each in options]
        self._tells_of_client = any(_tells_of_client(each.rule.rule) for each in options)
        own = [each.rule.rule.before for each in options if isinstance(each.rule.rule, ClassRule)]
        # Questions of these classes get here only where a rule wants them.
        self.classes = (CLASS_IN, *own)  # type: ignore[misc]

    @classmethod
    def read(cls, directives: Sequence[Directive], problems: list[Problem]) -> list[RewriteOptions] | None:
        """Each use is a rule; its words may stand on its line, in its block, or on both."""
        before = len(problems)
        written = [_on_one_line(directive, problems) for directive in directives]
        read = parse_each(RewriteOptions, written, problems)
        if any(not problem.warning for problem in problems[before:]):
            return None
        for directive, options in zip(written, read, strict=True):
            problems += _doubts(directive, options.rule)
            if options.rule.stop and _concerns_all(options.rule.rule) and options is not read[-1]:
                message = "this rule concerns every question and is the last for it: those behind are never reached"
                hint = "`rewrite continue` goes on with them"
                problems.append(Problem(message, directive.name.place(), hint=hint, warning=True))
        return read

    def notices(self) -> Iterator[str]:
        if self._tells_of_client and any(plugin.name == "cache" for plugin in self._block.plugins):
            yield "`cache` keeps a reply for questions with the same EDNS options only"

    async def handle(self, request: Request, next: Next) -> Answer:
        query = asked = request.query
        reverts: list[Revert] = []
        try:
            for apply, stop in self._rules:
                applied = apply(query, request)
                if applied is not None:
                    query = applied.query
                    reverts += applied.reverts
                    if stop:
                        break
            if query.rclass != CLASS_IN and not self._is_wanted_behind(query.rclass):
                return failure("", rcode=Rcode.REFUSED)
            if query is asked and not reverts:
                return await next(request)
            # On the same request, so what the answer depends on is known where the answer is kept.
            request.query = query
            try:
                answer = await next(request)
            finally:
                request.query = asked
            return await turn_back(answer, reverts, request)
        except InvalidNameError as error:
            return failure(str(error), self.name)

    def _is_wanted_behind(self, rclass: int) -> bool:
        """Whether another directive answers this class; one of class IN must not take such a question for its own."""
        return any(rclass in plugin.classes for plugin in self._block.plugins if plugin is not self)


def _on_one_line(directive: Directive, problems: list[Problem]) -> Directive:
    words = list(directive.args)
    for line in directive.body or ():
        words += [line.name, *line.args]
        if line.body is not None:
            problems.append(Problem(f"`{line.name.text}` takes no block", line.name.place()))
    return Directive(directive.name, words)


def _doubts(directive: Directive, written: Written) -> Iterator[Problem]:
    """What CoreDNS accepts in silence and nobody can have meant, and what means something else here."""
    rule = written.rule
    if isinstance(rule, EdnsRule) and rule.action == "unset":
        yield note("`edns0`: upstreams are sent no option of a client anyway", _word(directive, "unset").place())
    elif isinstance(rule, EdnsRule) and all(word.text != "revert" for word in directive.args):
        message = "`edns0`: upstreams are sent the option, and the reply doesn't have it"
        yield note(message, _word(directive, "edns0").place(), "with `revert` it is the same in CoreDNS")
    if isinstance(rule, EdnsRule) and rule.action == "append":
        yield note("`append`: an option that is there already isn't added again", _word(directive, "append").place())
    if isinstance(rule, AliasRule):
        message = "`cname`: where the target of the alias fails, the answer is SERVFAIL, and not the alias alone"
        yield note(message, _word(directive, "cname").place())
    if isinstance(rule, AnswerRule) and isinstance(rule.revert, Code):
        message = "`rcode`: the code is replaced in answers without records, too"
        yield note(message, _word(directive, "rcode").place())
    if isinstance(rule, NameRule) and not rule.auto and not any(isinstance(each, Owners) for each in rule.reverts):
        message = "answers have the rewritten name, and clients may refuse them"
        hint = "`answer auto` at the end turns it back"
        yield Problem(message, _word(directive, "name").place(), hint=hint, warning=True)


def _tells_of_client(rule: Rule) -> bool:
    """Whether upstreams are sent an option that one question has with several values."""
    of_question = (VARIABLES["{qname}"], VARIABLES["{qtype}"])
    if not isinstance(rule, EdnsRule) or rule.action == "unset" or rule.data in of_question:
        return False
    return rule.data in VARIABLES.values() or isinstance(rule.data, functools.partial)


def _concerns_all(rule: Rule) -> bool:
    return isinstance(rule, AliasRule) or (isinstance(rule, EdnsRule) and rule.action in ("set", "unset"))


def _word(directive: Directive, text: str) -> Token:
    return next((word for word in directive.args if word.text == text), directive.name)
