"""`chaos`: the server's version, authors and host as TXT records of class CH, `version.bind` and the like (RFC 4892).

Law: docs/plugins/chaos.md.
"""

from __future__ import annotations

import socket
from collections.abc import Coroutine, Iterable, Sequence
from random import Random
from typing import Annotated, Any, ClassVar

import kdns
from kdns.chain import Answer, Block, Next, Plugin, Request, failure
from kdns.corefile import Token
from kdns.options import Options, WordError, argument, custom
from kdns.wire import names
from kdns.wire.records import CLASS_CH, CLASS_IN, Rcode, Type, txt

_VERSION = tuple(map(names.from_text, ("version.bind", "version.server")))
_HOST = tuple(map(names.from_text, ("hostname.bind", "id.server")))
_AUTHORS = names.from_text("authors.bind")
LONGEST_STRING = 255


def _read_string(tokens: Sequence[Token]) -> str:
    return _read_strings(tokens)[0]


def _read_strings(tokens: Sequence[Token]) -> tuple[str, ...]:
    for token in tokens:
        if len(token.text.encode()) > LONGEST_STRING:
            raise WordError(token, f"a text in DNS has at most {LONGEST_STRING} bytes")
    return tuple(token.text for token in tokens)


class ChaosOptions(Options, directive="chaos"):
    version: Annotated[
        str, argument(custom(_read_string, "VERSION", "a text")), "what `version.bind` and `version.server` say"
    ] = f"kdns-{kdns.__version__}"
    authors: Annotated[
        tuple[str, ...],
        argument(custom(_read_strings, "AUTHORS...", "texts", most=None)),
        "what `authors.bind` says, each a record of its own",
    ] = ("the authors of kdns",)


class Chaos(Plugin):
    name = "chaos"
    options: ClassVar[type[Options]] = ChaosOptions
    classes = (CLASS_CH,)

    def __init__(self, options: ChaosOptions, block: Block) -> None:
        self._authors = [author.encode() for author in options.authors]
        own = ChaosOptions()
        # Those that say something else here than in CoreDNS, which has its own version and authors.
        self._differing = [*(_VERSION if options.version == own.version else ())]
        self._differing += [_AUTHORS] if options.authors == own.authors else []
        self._zones = block.zones
        self._random = Random()
        host = socket.gethostname().encode()[:LONGEST_STRING]
        self._texts = dict.fromkeys(_VERSION, options.version.encode()) | dict.fromkeys(_HOST, host)

    def notices(self) -> Iterable[str]:
        """What is asked of this block and answered otherwise; a zone may be one of the names itself."""
        differing = [name for name in self._differing if any(name.endswith(zone) for zone in self._zones)]
        if differing:
            told = ", ".join(f"`{names.to_text(name).removesuffix('.')}`" for name in differing)
            yield f"kdns's own texts at {told}, unless VERSION and AUTHORS are given"
        if any(zone not in (*_VERSION, *_HOST, _AUTHORS) for zone in self._zones):
            yield "other names and types of class CH are REFUSED, and no other directive is asked"

    def handle(self, request: Request, next: Next) -> Coroutine[Any, Any, Answer]:
        """Class IN is for the others, and CH is nobody else's."""
        if request.query.rclass == CLASS_IN:
            return next(request)
        return self._answer(request)

    async def _answer(self, request: Request) -> Answer:
        qname = request.query.qname
        strings: list[bytes] = []
        if request.query.rtype == Type.TXT and qname == _AUTHORS:
            strings = self._random.sample(self._authors, len(self._authors))
            request.varies = len(strings) > 1
        elif request.query.rtype == Type.TXT and qname in self._texts:
            strings = [self._texts[qname]]
        if not strings:
            return failure("", rcode=Rcode.REFUSED)
        return Answer(answer=[txt(qname, 0, string) for string in strings], flags=0, plugin=self.name)
