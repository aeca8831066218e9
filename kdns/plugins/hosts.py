"""`hosts`: names and addresses of a file in the form of /etc/hosts, and of lines in the Corefile.

Law: docs/plugins/hosts.md, which is CoreDNS's; hosts(5) for the file. Every answer, and every name handed on because
it isn't in the file, bears the directive's tag, so both are forgotten when the file changes.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from kdns import metrics
from kdns.addresses import pack_address
from kdns.answers import Tag
from kdns.chain import Answer, Block, Next, Plugin, Request, failure
from kdns.corefile import Directive, Token
from kdns.errors import Problem, nearest
from kdns.kubernetes.schema import reverse_name
from kdns.logs import plugin_logger
from kdns.options import (
    Fault,
    Options,
    RefusalError,
    SeveralError,
    WordError,
    argument,
    collected,
    duration,
    flag,
    lines,
    number,
    parse_options,
    repeatable,
    word,
    zone_arguments,
    zones,
)
from kdns.wire import names
from kdns.wire.records import Record, Type, address

_log = plugin_logger("hosts")

DEFAULT_FILE = "/etc/hosts"
# A file that blocks advertisers has 100,000 lines; so many are read between two turns of the event loop.
LINES_A_TURN = 500
_ASTERISK = b"\x01*"
_FAMILY = {Type.A: 4, Type.AAAA: 16}
# When a file was changed, its size and its inode.
Version = tuple[int, int, int]


class Entry(msgspec.Struct, frozen=True):
    """A line: a packed address, and names in wire form and lower case."""

    address: bytes
    names: tuple[bytes, ...]


class Table:
    """The addresses of each name, and the names of each address, which stand under its reverse name."""

    __slots__ = ("addresses", "entries", "pointers", "wildcards")

    def __init__(self) -> None:
        self.addresses: dict[bytes, list[bytes]] = {}
        self.pointers: dict[bytes, list[bytes]] = {}
        self.wildcards = False
        self.entries = 0

    def add(self, packed: bytes, name: bytes, reverse: bool) -> None:
        """Take in one name of an address; `reverse` says whether the address leads back to it."""
        # RFC 2181 §5: a set has no record twice.
        known = self.addresses.setdefault(name, [])
        if packed not in known:
            known.append(packed)
            self.entries += 1
        if name.startswith(_ASTERISK):
            self.wildcards = True
        elif reverse:
            pointers = self.pointers.setdefault(reverse_name(packed), [])
            if name not in pointers:
                pointers.append(name)
                self.entries += 1

    def find(self, qname: bytes) -> list[bytes] | None:
        """The addresses of a name, of both families; None where there is no such name. `*` stands for one label."""
        found = self.addresses.get(qname)
        if found is None and self.wildcards and qname != names.ROOT:
            return self.addresses.get(_ASTERISK + qname[qname[0] + 1 :])
        return found


def read_line(line: str) -> Entry | None:
    """A line of the file; None for one that says nothing, or nothing that DNS could."""
    fields = line.partition("#")[0].split()
    packed = _pack(fields[0]) if len(fields) > 1 else None
    if packed is None:
        return None
    found = []
    for field in fields[1:]:
        try:
            found.append(names.from_text(field).lower())
        except ValueError:
            # The other names of the line are as good as before.
            continue
    return Entry(packed, tuple(found))


def _read_entry(line: Directive) -> Entry:
    packed = _pack(line.name.text)
    if packed is None:
        meant = nearest(line.name.text, _OPTIONS)
        raise RefusalError(
            line.name, "an option, or an address and its names", f"did you mean `{meant}`?" if meant else ""
        )
    if not line.args or line.body is not None:
        raise RefusalError(line.name, "an address and its names")
    found: list[bytes] = []
    wrong: list[ValueError] = []
    for token in line.args:
        with collected(wrong):
            found.append(_read_name(token))
    if wrong:
        raise SeveralError(wrong)
    return Entry(packed, tuple(found))


def _read_name(token: Token) -> bytes:
    try:
        return names.from_text(token.text).lower()
    except ValueError as error:
        raise WordError(token, f"`{token.text}` is no name: {error}") from None


def _pack(text: str) -> bytes | None:
    # A link-local address may have its interface, which is nothing to a client.
    return pack_address(text.partition("%")[0] if ":" in text else text)


class HostsOptions(Options, directive="hosts", once=True):
    file: Annotated[str, argument(word("FILE")), "a file in the form of /etc/hosts"] = DEFAULT_FILE
    zones: Annotated[
        tuple[str, ...], zone_arguments(), "names in these zones are answered; those of the block unless given"
    ] = ()
    entries: Annotated[
        tuple[Entry, ...], lines(_read_entry, syntax="ADDRESS NAME..."), "one more line, as if it stood in the file"
    ] = ()
    ttl: Annotated[int, number(1, 65535, unit="seconds"), "the TTL of all records"] = 3600
    no_reverse: Annotated[bool, flag(), "addresses don't lead back to their names"] = False
    reload: Annotated[float, duration(0), "how often the file is looked at; 0s for once"] = 5.0
    fallthrough: Annotated[
        tuple[str, ...],
        zones(none=(".",)),
        repeatable,
        "a name that isn't known is the next directive's, in these zones or all",
    ] = ()
    fallthrough_unsupported: Annotated[
        bool, flag(), "so are other types than A, AAAA and PTR of a name that is known"
    ] = False

    def faults(self) -> Iterable[Fault]:
        if self.fallthrough_unsupported and not self.fallthrough:
            sentence = "`fallthrough_unsupported` needs `fallthrough`"
            yield Fault("fallthrough_unsupported", sentence, besides=("fallthrough",))


_OPTIONS = ("ttl", "no_reverse", "reload", "fallthrough", "fallthrough_unsupported")


class Hosts(Plugin):
    """Answers for the names of one file and of lines of the Corefile."""

    name: ClassVar[str] = "hosts"
    options: ClassVar[type[Options]] = HostsOptions

    def __init__(self, options: HostsOptions, block: Block) -> None:
        self._options = options
        self._process = block.process
        self._zones = names.Zones([names.from_text(zone) for zone in options.zones] or block.zones)
        self._fallthrough = names.Zones([names.from_text(zone) for zone in options.fallthrough])
        # No other directive has this object, so no other has the tag.
        self._tag: Tag = ("hosts", object())
        self._table = Table()
        self._read = asyncio.Event()
        self._seen: Version | None = None
        self._reachable = True
        self._fill(self._table, options.entries)

    @classmethod
    def read(cls, directives: Sequence[Directive], problems: list[Problem]) -> HostsOptions | None:
        """The options; a line that CoreDNS would not take behind `fallthrough` is told as well."""
        for directive in directives:
            problems += _misplaced(directive)
        return parse_options(HostsOptions, directives, problems)

    # The query

    async def handle(self, request: Request, next: Next) -> Answer:
        query = request.query
        qname, rtype = query.qname, query.rtype
        if rtype == Type.PTR:
            request.tags.add(self._tag)
            found = self._table.pointers.get(qname)
            if found is None:
                return await next(request)
            ttl = self._options.ttl
            return Answer(answer=[Record(qname, Type.PTR, ttl, name) for name in found], plugin=self.name)
        if not self._zones.hold(qname, query.labels):
            return await next(request)
        request.tags.add(self._tag)
        addresses = self._table.find(qname)
        family = _FAMILY.get(rtype)
        if addresses is None or (family is None and self._options.fallthrough_unsupported):
            if self._fallthrough.hold(qname, query.labels):
                return await next(request)
            if addresses is None:
                # Without a zone there is no SOA, so a name that isn't there can't be denied; CoreDNS says the same.
                return failure("", self.name)
        ttl = self._options.ttl
        return Answer(
            answer=[address(qname, ttl, packed) for packed in addresses or () if len(packed) == family],
            plugin=self.name,
        )

    # The file

    async def feed(self) -> None:
        """Read the file, and read it again when it has changed."""
        try:
            await self._look()
        finally:
            self._read.set()
        while self._options.reload:
            await asyncio.sleep(self._options.reload)
            await self._look()

    async def started(self) -> None:
        await self._read.wait()

    async def _look(self) -> None:
        path = self._options.file
        try:
            changed = _read_changed(Path(path), self._seen)
        except OSError as error:
            self._missing(error)
            return
        self._reachable = True
        if changed is None:
            return
        seen, text = changed
        table = Table()
        for number_of, line in enumerate(text.splitlines(), 1):
            entry = read_line(line)
            if entry is not None:
                self._fill(table, [entry])
            if number_of % LINES_A_TURN == 0:
                await asyncio.sleep(0)
        self._fill(table, self._options.entries)
        self._seen, self._table = seen, table
        self._process.forget({self._tag})
        self._process.metrics.set(metrics.HOSTS_RELOADED, self._process.clock())
        self._process.metrics.set(metrics.HOSTS_ENTRIES, table.entries, path)

    def _missing(self, error: OSError) -> None:
        """Say once that the file can't be read. What was read before stays."""
        path = self._options.file
        if self._seen is None:
            self._process.metrics.set(metrics.HOSTS_ENTRIES, self._table.entries, path)
        if not self._reachable:
            return
        self._reachable = False
        if isinstance(error, FileNotFoundError):
            _log.warning("File does not exist: %s", path)
        else:
            _log.warning("%s can't be read: %s", path, error.strerror or error)

    def _fill(self, table: Table, entries: Iterable[Entry]) -> None:
        for entry in entries:
            for name in entry.names:
                if self._zones.hold(name, names.labels_of(name)):
                    table.add(entry.address, name, not self._options.no_reverse)


def _read_changed(path: Path, seen: Version | None) -> tuple[Version, str] | None:
    """What marks this version of a file, and its text; None if it is the one that was seen. Raises OSError."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        # A pipe would be waited for.
        raise OSError(0, "not a regular file")
    version = (found.st_mtime_ns, found.st_size, found.st_ino)
    return None if version == seen else (version, path.read_text("utf-8", "surrogateescape"))


def _misplaced(directive: Directive) -> Iterable[Problem]:
    body = directive.body or []
    places = [place for place, line in enumerate(body) if line.name.text == "fallthrough"]
    for line in body[places[0] :] if places else ():
        if line.name.text not in _OPTIONS and _pack(line.name.text) is not None:
            message = "CoreDNS takes no entries behind `fallthrough`"
            yield Problem(message, line.name.place(), hint="move `fallthrough` to the end", warning=True)
