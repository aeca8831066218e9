"""Fuzzes packets and the text of names: `python tests/fuzz/fuzz_query.py -max_total_time=60 [FOLDER OF PACKETS]`.

Any bytes get one reply or none, never an exception or SERVFAIL; any text is a name or a ValueError.
"""

import struct
import sys

import atheris

with atheris.instrument_imports():
    from kdns.chain import Answer, Next, Process, Request, Waiter, fold
    from kdns.metrics import Metrics
    from kdns.responder import Responder, Site
    from kdns.wire import message, names
    from kdns.wire.records import Record, Type, address, srv

ZONE = names.from_text("cluster.local.")
# What makes a packet of bytes that have no header: questions and additional records that are promised.
HEADERS = [struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, count) for count in range(4)]
QUESTION = b"\3web" + ZONE + b"\0\1\0\1"


async def records_of_each_section(request: Request, next: Next) -> Answer:
    qname = request.query.qname
    return Answer(
        answer=[address(qname, 5, b"1234"), srv(qname, 5, 1, 80, qname)],
        authority=[Record(ZONE, Type.NS, 5, qname)],
        additional=[address(qname, 5, bytes(16)) for _ in range(90)],
    )


RESPONDER = Responder([Site(b"\0", fold([records_of_each_section]), "")], Process(Metrics()), Metrics())


def unexpected(reply: bytes) -> None:
    raise AssertionError(reply)


def one_input(data: bytes) -> None:
    a_packet(data)
    if data:
        a_packet(HEADERS[data[0] % 4] + data[1:])
        a_packet(HEADERS[data[0] % 4] + QUESTION + data[1:])
    a_name(data.decode(errors="replace"))


def a_packet(packet: bytes) -> None:
    for transport, limit in (("udp", 1232), ("tcp", 65535)):
        reply = RESPONDER.respond(packet, transport, ("127.0.0.1", 9), ("127.0.0.1", 53), unexpected)
        if len(packet) < 12 or packet[2] & 0x80:
            assert reply is None
            continue
        assert reply is not None
        assert not isinstance(reply, Waiter)
        assert reply[:2] == packet[:2]
        assert len(reply) <= limit
        assert reply[3] & 0xF != 2, "an error of ours"
        if reply[3] & 0xF == 0 and not reply[2] & 0x02:
            assert message.decode(reply).rcode in (0, 16)


def a_name(text: str) -> None:
    try:
        name = names.from_text(text)
    except ValueError:
        return
    assert len(name) <= names.LONGEST_NAME
    assert names.from_text(names.to_text(name)) == name
    assert names.read_name(bytes(12) + name, 12) == (name, 12 + len(name))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
