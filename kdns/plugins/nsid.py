"""`nsid`: which of several servers with one address has answered, for a client that asks (RFC 5001).

Law: docs/plugins/nsid.md.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, ClassVar

from kdns.chain import Answer, Block, Next, Plugin, Request
from kdns.corefile import Token
from kdns.options import Options, argument, custom
from kdns.wire.query import option_codes

NSID = 3
# It has to fit into the smallest reply, beside the longest name.
LONGEST_BYTES = 128


def _read_data(tokens: Sequence[Token]) -> str:
    data = " ".join(token.text for token in tokens)
    if len(data.encode()) > LONGEST_BYTES:
        raise ValueError(f"at most {LONGEST_BYTES} bytes, these are {len(data.encode())}")
    return data


class NsidOptions(Options, directive="nsid", once=True):
    data: Annotated[
        str,
        argument(custom(_read_data, "DATA...", "words", most=None)),
        "what a client that asks for it is told; the name of the host unless given",
    ] = ""


class Nsid(Plugin):
    name = "nsid"
    options: ClassVar[type[Options]] = NsidOptions

    def __init__(self, options: NsidOptions, block: Block) -> None:
        data = (options.data or socket.gethostname()).encode()[:LONGEST_BYTES]
        self._option = struct.pack("!HH", NSID, len(data)) + data

    def handle(self, request: Request, next: Next) -> Coroutine[Any, Any, Answer]:
        """Note the option for the reply; no coroutine of its own for that."""
        options = request.query.options
        if options and NSID in option_codes(options):
            request.reply_options += self._option
        return next(request)
