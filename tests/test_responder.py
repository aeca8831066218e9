"""Packets in, packets out: what each kind of good, odd and broken query is told.

A row is a sentence, the bytes of a query, and the reply as dig would sum it up: response code, flags, the counts of
question, answer, authority and additional records, and OPT. dnspython reads the replies.
"""

import asyncio
import logging
import struct
import time
from collections.abc import Iterator
from itertools import product

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest

from kdns import app, chain, corefile
from kdns.chain import Answer, Process, Request, Waiter, fold
from kdns.kubernetes.objects import Metadata, Namespace, Put, Service, ServicePort, ServiceSpec, Synced
from kdns.metrics import PACKETS_DROPPED, Metrics
from kdns.plugins.kubernetes import Kubernetes
from kdns.responder import Responder, Site
from kdns.wire.names import from_text
from kdns.wire.records import Record, Type

K = from_text("kubernetes.default.svc.cluster.local.")
CLIENT, LOCAL = ("10.244.0.7", 41234), ("10.96.0.10", 53)
RD = 0x0100
SILENCE = "silence"


def cluster() -> Responder:
    process = Process(Metrics(), lambda: 1_700_000_000.0)
    text = "cluster.local:53 10.in-addr.arpa ip6.arpa {\nkubernetes cluster.local 10.in-addr.arpa ip6.arpa\n}"
    configuration = app.build(corefile.parse(text, "Corefile"), process)
    spec = ServiceSpec("ClusterIP", "10.96.0.1", ports=[ServicePort(443, "https", "TCP")])
    events = [Put(Namespace(Metadata("default"))), Put(Service(Metadata("kubernetes", "default"), spec)), Synced()]
    for plugin in configuration.plugins:
        assert isinstance(plugin, Kubernetes)
        plugin.apply(events)
    return Responder(configuration.listeners[0].sites, process, process.metrics)


RESPONDER = cluster()


@pytest.fixture(autouse=True)
def _no_error_of_ours(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "crash" not in request.node.name:
        assert not [record.message for record in caplog.records if record.levelno >= logging.ERROR]


def respond(packet: bytes, transport: str = "udp", responder: Responder = RESPONDER) -> bytes | None:
    reply = responder.respond(packet, transport, CLIENT, LOCAL, _nobody)
    assert not isinstance(reply, Waiter)
    return reply


def _nobody(reply: bytes) -> None:
    raise AssertionError("a reply that was not waited for")


# How packets are written here


def query(
    name: bytes = K,
    rtype: int = 1,
    rclass: int = 1,
    *additional: bytes,
    flags: int = RD,
    counts: tuple[int, int, int, int] | None = None,
    rest: bytes = b"",
) -> bytes:
    header = struct.pack("!HHHHHH", 4711, flags, *(counts or (1, 0, 0, len(additional))))
    return header + name + struct.pack("!HH", rtype, rclass) + b"".join(additional) + rest


def header(flags: int = RD, *counts: int) -> bytes:
    return struct.pack("!HHHHHH", 4711, flags, *counts)


def rr(rtype: int, data: bytes, owner: bytes = b"\xc0\x0c", rclass: int = 1, ttl: int = 30) -> bytes:
    return owner + struct.pack("!HHIH", rtype, rclass, ttl, len(data)) + data


def opt(options: bytes = b"", size: int = 1232, version: int = 0, flags: int = 0, owner: bytes = b"\0") -> bytes:
    return rr(Type.OPT, options, owner, size, version << 16 | flags)


def option(code: int, data: bytes = b"") -> bytes:
    return struct.pack("!HH", code, len(data)) + data


A = rr(1, b"\x0a\x60\0\1")
COOKIE = option(10, b"12345678")
TSIG_DATA = b"\x0bhmac-sha256\0" + bytes(6) + b"\x01\x2c\0\x04MACS\0\7\0\0\0\0"
TSIG = rr(Type.TSIG, TSIG_DATA, b"\3key\0", 255, 0)
LONGEST = from_text(".".join(["x" * 63] * 3 + ["y" * 47]) + ".cluster.local.")
TOO_LONG = (b"\x3f" + b"x" * 63) * 3 + b"\x30" + b"y" * 48 + from_text("cluster.local.")
MANY_LABELS = from_text("a." * 120 + "cluster.local.")
QUESTION = K + b"\0\1\0\1"


def opcode(number: int) -> int:
    return RD | number << 11


# How replies are read here


def seen(reply: bytes | None) -> str:
    """The reply in a line."""
    if reply is None:
        return SILENCE
    counts = struct.unpack_from("!HHHH", reply, 4)
    if reply[-6:] == b"\0\7\0\x11\0\0" and b"\x0bhmac-sha256\0" in reply:
        # dnspython wants the key of a TSIG record; the record itself is looked at where it is expected.
        reply = reply[:10] + struct.pack("!H", counts[3] - 1) + reply[12 : reply.index(b"\3key\0")]
    message = dns.message.from_wire(reply)
    flags = dns.flags.to_text(message.flags & ~dns.flags.QR).lower()
    code = dns.opcode.to_text(message.opcode())
    words = [dns.rcode.to_text(message.rcode()), *([] if code == "QUERY" else [code]), *flags.split()]
    words += map(str, counts)
    if message.edns >= 0:
        words += ["opt", str(message.payload), *(["do"] if message.ednsflags & 0x8000 else [])]
        words += [f"option{each.otype}" for each in message.options]
        assert message.edns == 0
        assert not message.ednsflags & 0x7FFF
    return " ".join(words)


HEADER_ROWS = [
    ("an address", query(), "NOERROR aa rd 1 1 0 0"),
    ("RD is copied where it is clear", query(flags=0), "NOERROR aa 1 1 0 0"),
    ("the apex has an SOA (RFC 8906 8.1.1)", query(from_text("cluster.local."), 6), "NOERROR aa rd 1 1 0 0"),
    ("an unknown type at a name that exists (8.1.2)", query(K, 1000), "NOERROR aa rd 1 0 1 0"),
    ("CD is not copied (8.1.3)", query(flags=RD | 0x10), "NOERROR aa rd 1 1 0 0"),
    ("AD is not copied", query(flags=RD | 0x20), "NOERROR aa rd 1 1 0 0"),
    ("Z is not copied (8.1.3.3)", query(flags=RD | 0x40), "NOERROR aa rd 1 1 0 0"),
    ("AA, TC, RA and a response code mean nothing in a query", query(flags=RD | 0x068F), "NOERROR aa rd 1 1 0 0"),
    ("a response is not answered", query(flags=0x8000 | RD), SILENCE),
    ("a broken response is not answered", header(0x8000, 0, 0, 0, 0), SILENCE),
    ("opcode 15, a header alone (8.1.4)", header(opcode(15), 0, 0, 0, 0), "NOTIMP 15 rd 0 0 0 0"),
    ("opcode 15 with a question", query(flags=opcode(15)), "NOTIMP 15 rd 1 0 0 0"),
    ("opcode 15 with a question and OPT", query(K, 1, 1, opt(), flags=opcode(15)), "NOTIMP 15 rd 1 0 0 1 opt 1232"),
    ("opcode 15 with a question that is cut", query(flags=opcode(15))[:-1], "NOTIMP 15 rd 0 0 0 0"),
    ("opcode 15 with a broken name", header(opcode(15), 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", "NOTIMP 15 rd 0 0 0 0"),
    ("opcode 15 with two questions", header(opcode(15), 2, 0, 0, 0) + QUESTION * 2, "NOTIMP 15 rd 0 0 0 0"),
    ("opcode 3", query(flags=opcode(3)), "NOTIMP 3 rd 1 0 0 0"),
    ("STATUS", query(flags=opcode(2)), "NOTIMP STATUS rd 1 0 0 0"),
    ("IQUERY", query(flags=opcode(1)), "NOTIMP IQUERY rd 1 0 0 0"),
    ("DSO", header(6 << 11, 0, 0, 0, 0), "NOTIMP 6 0 0 0 0"),
    ("UPDATE", query(flags=opcode(5), rtype=6, counts=(1, 0, 1, 0), rest=A), "NOTIMP UPDATE rd 1 0 0 0"),
    ("NOTIFY", query(flags=opcode(4), rtype=6), "NOTAUTH NOTIFY rd 1 0 0 0"),
    ("NOTIFY with an SOA", query(flags=opcode(4), rtype=6, counts=(1, 1, 0, 0), rest=A), "NOTAUTH NOTIFY rd 1 0 0 0"),
    ("class CH", query(K, 1, 3), "REFUSED rd 1 0 0 0"),
    ("class HS", query(K, 1, 4), "REFUSED rd 1 0 0 0"),
    ("class 0", query(K, 1, 0), "REFUSED rd 1 0 0 0"),
    ("class 1234", query(K, 1, 1234), "REFUSED rd 1 0 0 0"),
    ("class NONE", query(K, 1, 254), "REFUSED rd 1 0 0 0"),
    ("class ANY", query(K, 1, 255), "REFUSED rd 1 0 0 0"),
    ("the server's version is nobody's business", query(from_text("version.bind."), 16, 3), "REFUSED rd 1 0 0 0"),
    ("nor is its name", query(from_text("hostname.bind."), 16, 3), "REFUSED rd 1 0 0 0"),
    ("nor its other name", query(from_text("id.server."), 16, 3), "REFUSED rd 1 0 0 0"),
    ("ANY gets one RRset (RFC 8482)", query(K, 255), "NOERROR aa rd 1 1 0 0"),
    ("AXFR over UDP", query(from_text("cluster.local."), 252), "REFUSED rd 1 0 0 0"),
    ("IXFR over UDP", query(from_text("cluster.local."), 251), "REFUSED rd 1 0 0 0"),
    ("IXFR with an SOA", query(K, 251, counts=(1, 0, 1, 0), rest=rr(6, bytes(22))), "REFUSED rd 1 0 0 0"),
    ("type OPT", query(K, 41), "FORMERR rd 1 0 0 0"),
    ("type TSIG", query(K, 250), "FORMERR rd 1 0 0 0"),
    ("type TKEY", query(K, 249), "FORMERR rd 1 0 0 0"),
    ("type MAILA", query(K, 254), "NOTIMP rd 1 0 0 0"),
    ("type MAILB", query(K, 253), "NOTIMP rd 1 0 0 0"),
    ("type 0", query(K, 0), "NOERROR aa rd 1 0 1 0"),
    ("type 65535", query(K, 65535), "NOERROR aa rd 1 0 1 0"),
    ("a name of no zone here, without a referral upward", query(from_text("example.org.")), "REFUSED rd 1 0 0 0"),
    ("the root", query(b"\0", 2), "REFUSED rd 1 0 0 0"),
    ("no question", header(RD, 0, 0, 0, 0), "FORMERR rd 0 0 0 0"),
    ("no question, with OPT", header(RD, 0, 0, 0, 1) + opt(), "FORMERR rd 0 0 0 1 opt 1232"),
    ("no question, with a cookie", header(RD, 0, 0, 0, 1) + opt(COOKIE), "FORMERR rd 0 0 0 1 opt 1232"),
    ("the same question twice", header(RD, 2, 0, 0, 0) + QUESTION * 2, "FORMERR rd 0 0 0 0"),
    ("two questions", header(RD, 2, 0, 0, 0) + QUESTION + b"\0\0\1\0\1", "FORMERR rd 0 0 0 0"),
    ("65535 questions", header(RD, 65535, 0, 0, 0) + QUESTION, "FORMERR rd 0 0 0 0"),
    ("an answer in a query", query(counts=(1, 1, 0, 0), rest=A), "FORMERR rd 1 0 0 0"),
    ("an authority in a query", query(counts=(1, 0, 1, 0), rest=A), "FORMERR rd 1 0 0 0"),
    ("an answer that is promised only", query(counts=(1, 1, 0, 0)), "FORMERR rd 1 0 0 0"),
    ("65535 additional records that are promised only", query(counts=(1, 0, 0, 65535)), "FORMERR rd 1 0 0 0"),
    ("65535 of everything", query(counts=(1, 65535, 65535, 65535)), "FORMERR rd 1 0 0 0"),
    ("an additional record that is promised only", query(counts=(1, 0, 0, 1)), "FORMERR rd 1 0 0 0"),
    ("OPT and one more that is promised only", query(counts=(1, 0, 0, 2), rest=opt()), "FORMERR rd 1 0 0 1 opt 1232"),
    ("OPT and two more that are promised only", query(counts=(1, 0, 0, 3), rest=opt()), "FORMERR rd 1 0 0 1 opt 1232"),
    ("an address in the additional section", query(K, 1, 1, A), "FORMERR rd 1 0 0 0"),
]  # fmt: skip

BYTES_ROWS = [
    ("nothing", b"", SILENCE),
    ("one byte", b"\0", SILENCE),
    ("eleven bytes", query()[:11], SILENCE),
    ("a header alone that promises a question", query()[:12], "FORMERR rd 0 0 0 0"),
    ("a name that is cut", query()[:20], "FORMERR rd 0 0 0 0"),
    ("a question without its type", query()[:-4], "FORMERR rd 0 0 0 0"),
    ("a question without its class", query()[:-2], "FORMERR rd 0 0 0 0"),
    ("a question without its last byte", query()[:-1], "FORMERR rd 0 0 0 0"),
    ("a byte behind the question is ignored", query(rest=b"?"), "NOERROR aa rd 1 1 0 0"),
    ("500 bytes behind the question are ignored", query(rest=b"?" * 500), "NOERROR aa rd 1 1 0 0"),
    ("an OPT that the header doesn't count is ignored", query(rest=opt()), "NOERROR aa rd 1 1 0 0"),
    ("bytes behind OPT are ignored", query(K, 1, 1, opt(), rest=b"???"), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("a label byte 0x40", query(b"\x40" + K), "FORMERR rd 0 0 0 0"),
    ("a label byte 0x80", query(b"\x80" + K), "FORMERR rd 0 0 0 0"),
    ("a label byte 0xBF", query(b"\xbf" + K), "FORMERR rd 0 0 0 0"),
    ("a label of 63 bytes", query(from_text("x" * 63 + ".cluster.local.")), "NXDOMAIN aa rd 1 0 1 0"),
    ("a name of 255 bytes", query(LONGEST), "NXDOMAIN aa rd 1 0 1 0"),
    ("a name of 256 bytes", query(TOO_LONG), "FORMERR rd 0 0 0 0"),
    ("a name of 122 labels", query(MANY_LABELS), "NXDOMAIN aa rd 1 0 1 0"),
    ("a zero byte in a label is data", query(b"\3a\0b" + from_text("cluster.local.")), "NXDOMAIN aa rd 1 0 1 0"),
    ("a pointer to itself", query(b"\xc0\x0c"), "FORMERR rd 0 0 0 0"),
    ("a label and a pointer back to it", query(b"\1a\xc0\x0c"), "FORMERR rd 0 0 0 0"),
    ("two pointers to one another", query(b"\xc0\x0e\xc0\x0c"), "FORMERR rd 0 0 0 0"),
    ("a pointer forward", query(b"\xc0\x20"), "FORMERR rd 0 0 0 0"),
    ("a pointer into the header", query(b"\xc0\x04"), "FORMERR rd 0 0 0 0"),
    ("a pointer past the end", query(b"\xff\xff"), "FORMERR rd 0 0 0 0"),
    ("half a pointer", query()[:12] + b"\xc0", "FORMERR rd 0 0 0 0"),
    ("an OPT that is cut", query(K, 1, 1, opt())[:-1], "FORMERR rd 1 0 0 0"),
    ("an OPT that is longer than the packet", query(K, 1, 1, opt()[:-2] + b"\0\5"), "FORMERR rd 1 0 0 0"),
    ("an owner whose pieces have a sum above 255",
     query(LONGEST, 1, 1, rr(1, b"", b"\5extra\xc0\x0c")), "FORMERR rd 1 0 0 0"),
    ("an owner that is a pointer to itself",
     query(K, 1, 1, rr(1, b"", struct.pack("!H", 0xC000 | len(query())))), "FORMERR rd 1 0 0 0"),
]  # fmt: skip

EDNS_ROWS = [
    ("OPT is answered with OPT", query(K, 1, 1, opt()), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("on every answer", query(from_text("no.cluster.local."), 1, 1, opt()), "NXDOMAIN aa rd 1 0 1 1 opt 1232"),
    ("on a refusal", query(from_text("example.org."), 1, 1, opt()), "REFUSED rd 1 0 0 1 opt 1232"),
    ("version 1", query(K, 1, 1, opt(version=1)), "BADVERS rd 1 0 0 1 opt 1232"),
    ("version 255", query(K, 1, 1, opt(version=255)), "BADVERS rd 1 0 0 1 opt 1232"),
    ("version 1 with an option", query(K, 1, 1, opt(option(100), version=1)), "BADVERS rd 1 0 0 1 opt 1232"),
    ("version 1 with broken options", query(K, 1, 1, opt(b"?", version=1)), "BADVERS rd 1 0 0 1 opt 1232"),
    ("version 1 with unknown flags", query(K, 1, 1, opt(version=1, flags=0x7FFF)), "BADVERS rd 1 0 0 1 opt 1232"),
    ("version 1 with DO", query(K, 1, 1, opt(version=1, flags=0x8000)), "BADVERS rd 1 0 0 1 opt 1232 do"),
    ("version 1 and class CH", query(K, 1, 3, opt(version=1)), "BADVERS rd 1 0 0 1 opt 1232"),
    ("an unknown option is not echoed", query(K, 1, 1, opt(option(100, b"x"))), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("unknown flags are not echoed", query(K, 1, 1, opt(flags=0x7FFF)), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("DO is copied", query(K, 1, 1, opt(flags=0x8000)), "NOERROR aa rd 1 1 0 1 opt 1232 do"),
    ("two OPTs", query(K, 1, 1, opt(), opt()), "FORMERR rd 1 0 0 1 opt 1232"),
    ("three OPTs", query(K, 1, 1, opt(), opt(), opt()), "FORMERR rd 1 0 0 1 opt 1232"),
    ("OPT in the answer section", query(counts=(1, 1, 0, 0), rest=opt()), "FORMERR rd 1 0 0 0"),
    ("OPT in the authority section", query(counts=(1, 0, 1, 0), rest=opt()), "FORMERR rd 1 0 0 0"),
    ("OPT at another name than the root", query(K, 1, 1, opt(owner=b"\1a\0")), "FORMERR rd 1 0 0 0"),
    ("OPT at a pointer to a name", query(K, 1, 1, opt(owner=b"\xc0\x0c")), "FORMERR rd 1 0 0 0"),
    ("size 0", query(K, 1, 1, opt(size=0)), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("size 511", query(K, 1, 1, opt(size=511)), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("size 65535", query(K, 1, 1, opt(size=65535)), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("an option that is longer than OPT", query(K, 1, 1, opt(b"\0\x64\0\5x")), "FORMERR rd 1 0 0 1 opt 1232"),
    ("three stray bytes in OPT", query(K, 1, 1, opt(b"\0\x64\0")), "FORMERR rd 1 0 0 1 opt 1232"),
    ("three stray bytes behind an option", query(K, 1, 1, opt(COOKIE + b"\0\x64\0")), "FORMERR rd 1 0 0 1 opt 1232"),
    ("100 options", query(K, 1, 1, opt(option(100) * 100)), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("250 options", query(K, 1, 1, opt(option(100) * 250)), "FORMERR rd 1 0 0 1 opt 1232"),
    ("a cookie is not echoed", query(K, 1, 1, opt(COOKIE)), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("a cookie of 24 bytes", query(K, 1, 1, opt(option(10, bytes(24)))), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("a cookie of 7 bytes", query(K, 1, 1, opt(option(10, bytes(7)))), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("a cookie of 41 bytes", query(K, 1, 1, opt(option(10, bytes(41)))), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("two cookies", query(K, 1, 1, opt(COOKIE * 2)), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("a client subnet of no family", query(K, 1, 1, opt(option(8, b"\0\x09\x20\0"))), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("a client subnet of 33 bits",
     query(K, 1, 1, opt(option(8, b"\0\1\x21\0\1\2\3\4\5"))), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("keepalive is not for UDP", query(K, 1, 1, opt(option(11))), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("keepalive with a value", query(K, 1, 1, opt(option(11, b"\0\1"))), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("NSID, EXPIRE, COOKIE and a subnet (8.2.10)",
     query(K, 1, 1, opt(option(3) + option(9) + COOKIE + option(8, b"\0\1\0\0"))), "NOERROR aa rd 1 1 0 1 opt 1232"),
    ("a signature of an unknown key", query(K, 1, 1, TSIG), "NOTAUTH rd 1 0 0 1"),
    ("OPT and a signature", query(K, 1, 1, opt(), TSIG), "NOTAUTH rd 1 0 0 2 opt 1232"),
    ("a signature before OPT", query(K, 1, 1, TSIG, opt()), "FORMERR rd 1 0 0 0"),
    ("two signatures", query(K, 1, 1, TSIG, TSIG), "FORMERR rd 1 0 0 0"),
    ("a signature that is cut", query(K, 1, 1, rr(250, TSIG_DATA[:-1], b"\3key\0")), "FORMERR rd 1 0 0 0"),
]  # fmt: skip

SEMANTICS_ROWS = [
    ("another spelling", query(from_text("KuBeRnEtEs.DEFAULT.svc.Cluster.local.")), "NOERROR aa rd 1 1 0 0"),
    ("letters beyond ASCII are not folded",
     query(b"\1\xc4" + from_text("svc.cluster.local.")), "NXDOMAIN aa rd 1 0 1 0"),
    ("a name between names: svc", query(from_text("svc.cluster.local.")), "NOERROR aa rd 1 0 1 0"),
    ("a name between names: a namespace", query(from_text("default.svc.cluster.local.")), "NOERROR aa rd 1 0 1 0"),
    ("a name between names: a protocol", query(b"\4_tcp" + K), "NOERROR aa rd 1 0 1 0"),
    ("a service that isn't there", query(from_text("no.default.svc.cluster.local.")), "NXDOMAIN aa rd 1 0 1 0"),
    ("no address of that family", query(K, 28), "NOERROR aa rd 1 0 1 0"),
    ("a port brings the address along", query(b"\6_https\4_tcp" + K, 33), "NOERROR aa rd 1 1 0 1"),
    ("a reverse name", query(from_text("1.0.96.10.in-addr.arpa."), 12), "NOERROR aa rd 1 1 0 0"),
    ("a reverse name with 256", query(from_text("256.0.96.10.in-addr.arpa."), 12), "NXDOMAIN aa rd 1 0 1 0"),
    ("a reverse name with a leading zero", query(from_text("01.0.96.10.in-addr.arpa."), 12), "NXDOMAIN aa rd 1 0 1 0"),
    ("a reverse name with five numbers", query(from_text("1.1.0.96.10.in-addr.arpa."), 12), "NXDOMAIN aa rd 1 0 1 0"),
    ("a reverse name of 31 nibbles", query(from_text("0." * 31 + "ip6.arpa."), 12), "NXDOMAIN aa rd 1 0 1 0"),
    ("a reverse name of 33 nibbles", query(from_text("0." * 33 + "ip6.arpa."), 12), "NXDOMAIN aa rd 1 0 1 0"),
    ("a label with a dot is one label",
     query(b"\x12kubernetes.default" + from_text("svc.cluster.local.")), "NXDOMAIN aa rd 1 0 1 0"),
    ("a namespace of 63 letters", query(from_text(f"a.{'n' * 63}.svc.cluster.local.")), "NXDOMAIN aa rd 1 0 1 0"),
    ("UTF-8 in a name", query(from_text("bücher.default.svc.cluster.local.")), "NXDOMAIN aa rd 1 0 1 0"),
    ("DS of the apex is the parent's, which isn't here",
     query(from_text("cluster.local."), 43), "NOERROR aa rd 1 0 1 0"),
]  # fmt: skip

ROWS = HEADER_ROWS + BYTES_ROWS + EDNS_ROWS + SEMANTICS_ROWS
IDS = [row[0] for row in ROWS]


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize(("packet", "expected"), [row[1:] for row in ROWS], ids=IDS)
def test_a_packet_is_told(packet: bytes, expected: str, transport: str) -> None:
    reply = respond(packet, transport)
    assert seen(reply) == expected
    _check(packet, reply)


# What errors may add to a query: OPT, and a TSIG whose key name was a pointer.
OPT_BYTES, KEY_BYTES = 11, 255


def _check(packet: bytes, reply: bytes | None) -> None:
    """What holds for every reply to any packet."""
    if len(packet) < 12 or packet[2] & 0x80:
        assert reply is None
        return
    assert reply is not None
    assert reply[:2] == packet[:2]
    (flags,) = struct.unpack_from("!H", reply, 2)
    assert flags & 0x8000
    assert flags & 0x7900 == struct.unpack_from("!H", packet, 2)[0] & 0x7900, "opcode and RD are copied"
    assert not flags & 0x00F0, "RA, Z, AD and CD are clear"
    code = flags & 0xF
    assert code != 2, "nothing here fails"
    if code in (0, 3) and flags & 0x0400:
        assert len(reply) <= 1232
    else:
        signed = KEY_BYTES if code == 9 and flags & 0x7800 == 0 else 0
        assert len(reply) <= len(packet) + OPT_BYTES + signed
    if struct.unpack_from("!H", reply, 4)[0]:
        end = _end_of_question(reply)
        assert reply[12:end] == packet[12:end], "the question comes back as it was sent"


def _end_of_question(message: bytes) -> int:
    position = 12
    while message[position]:
        position += message[position] + 1
    return position + 5


def _options_of(packet: bytes, transport: str, idle_seconds: float | None) -> list[tuple[int, bytes]]:
    responder = cluster()
    if idle_seconds is not None:
        responder.idle_seconds = lambda: idle_seconds
    reply = respond(packet, transport, responder)
    assert reply is not None
    return [(int(each.otype), each.to_wire() or b"") for each in dns.message.from_wire(reply).options]


@pytest.mark.parametrize(
    ("idle_seconds", "told"), [(10.0, b"\0\x64"), (0.25, b"\0\2"), (0.0, b"\0\0"), (10_000.0, b"\xff\xff")]
)
def test_who_asks_over_tcp_is_told_how_long_a_connection_may_idle(idle_seconds: float, told: bytes) -> None:
    asks = query(K, 1, 1, opt(COOKIE + option(11)))
    assert _options_of(asks, "tcp", idle_seconds) == [(11, told)]
    assert _options_of(asks, "udp", idle_seconds) == []
    assert _options_of(query(K, 1, 1, opt(COOKIE)), "tcp", idle_seconds) == [], "who doesn't ask isn't told"
    assert _options_of(asks, "tcp", None) == []


def test_the_idle_time_stands_beside_an_extended_error() -> None:
    process = Process(Metrics())
    built = app.build(corefile.parse(". {\n kubernetes cluster.local {\n inventory none\n }\n}", "Corefile"), process)
    responder = Responder(built.listeners[0].sites, process, process.metrics)
    responder.idle_seconds = lambda: 10.0
    reply = respond(query(K, 1, 1, opt(option(11))), "tcp", responder)
    assert reply is not None
    options = dns.message.from_wire(reply).options
    assert [int(each.otype) for each in options] == [11, 15]
    assert "not synced" in str(options[1])


def test_a_signature_comes_back_with_bad_key_and_without_its_mac() -> None:
    reply = respond(query(K, 1, 1, TSIG))
    assert reply is not None
    assert reply.endswith(rr(250, b"\x0bhmac-sha256\0" + bytes(6) + b"\x01\x2c\0\0\0\7\0\x11\0\0", b"\3key\0", 255, 0))


VALID = [
    query(),
    query(flags=0),
    query(K, 28),
    query(K, 33),
    query(K, 255),
    query(K, 16, 1, opt()),
    query(K, 1, 1, opt(flags=0x8000, size=4096)),
    query(K, 1, 1, opt(COOKIE)),
    query(K, 1, 1, opt(option(100, b"xyz") + option(3))),
    query(K, 1, 1, opt(version=1)),
    query(K, 1, 1, TSIG),
    query(K, 1, 1, opt(), TSIG),
    query(K, 1, 3),
    query(b"\6_https\4_tcp" + K, 33),
    query(from_text("cluster.local."), 6),
    query(from_text("www.example.org.default.svc.cluster.local.")),
    query(from_text("1.0.96.10.in-addr.arpa."), 12, 1, opt()),
    query(from_text("example.org.")),
    query(from_text("cluster.local."), 252),
    query(K, 6, flags=opcode(4)),
]
VALID_IDS = [str(number) for number in range(len(VALID))]


@pytest.mark.parametrize("packet", VALID, ids=VALID_IDS)
def test_every_prefix_of_a_query_gets_one_reply_or_none(packet: bytes) -> None:
    for size in range(len(packet) + 1):
        _read(packet[:size])


@pytest.mark.parametrize("packet", VALID, ids=VALID_IDS)
def test_every_query_with_one_bit_flipped_gets_one_reply_or_none(packet: bytes) -> None:
    for bit in range(len(packet) * 8):
        flipped = bytearray(packet)
        flipped[bit // 8] ^= 1 << bit % 8
        _read(bytes(flipped))


def _read(packet: bytes) -> None:
    reply = respond(packet)
    _check(packet, reply)
    # dnspython is slow, and sees opcodes such as UPDATE with eyes of its own.
    if reply is not None and not reply[2] & 0x78 and reply[3] & 0xF != 9:
        dns.message.from_wire(reply)


def test_every_pair_of_flag_bytes_gets_one_reply_or_none() -> None:
    identifier, rest = query()[:2], query()[4:]
    for flags in range(65536):
        packet = identifier + struct.pack("!H", flags) + rest
        _check(packet, respond(packet))


@pytest.mark.parametrize("counts", list(product((0, 1, 2, 65535), repeat=4)), ids=str)
def test_counts_that_lie_get_one_reply(counts: tuple[int, int, int, int]) -> None:
    for additional in ((), (opt(),), (A,), (TSIG,)):
        packet = query(K, 1, 1, *additional, counts=counts)
        _check(packet, respond(packet))


HEAVY = [
    ("pointer owners to a long name", LONGEST + b"\0\1\0\1" + rr(1, b"") * 4600),
    ("labels without an end", b"\1x" * 32000),
    ("a million options", QUESTION + opt(option(100) * 16000)),
    ("pointers to pointers", QUESTION + b"\xc0\x0c" * 32000),
]


@pytest.mark.parametrize("body", [row[1] for row in HEAVY], ids=[row[0] for row in HEAVY])
@pytest.mark.parametrize("additionals", [1, 2, 4600, 65535])
def test_64_kib_made_to_cost_time_are_a_format_error_at_once(body: bytes, additionals: int) -> None:
    packet = header(RD, 1, 0, 0, additionals) + body
    best = 1.0
    for _ in range(3):
        started = time.perf_counter()
        reply = respond(packet, "tcp")
        best = min(best, time.perf_counter() - started)
    assert seen(reply).startswith("FORMERR")
    assert best < 0.003


# Size limits: Knot's tests of 512, 513, 1232 and 1233 bytes, end to end


def one_text_of(size: int) -> Responder:
    async def handle(request: Request, following: object) -> Answer:
        data = bytes(size - 12 - len(QUESTION) - 12 - (11 if request.query.edns else 0))
        return Answer(answer=[Record(request.query.qname, Type.TXT, 5, data)], plugin="text")

    return Responder([Site(b"\0", fold([handle]), "dns://:53")], Process(Metrics()), Metrics())


SIZES = [
    ("512 bytes without OPT", query(), 512, "udp", False),
    ("513 bytes without OPT", query(), 513, "udp", True),
    ("1232 bytes with OPT", query(K, 1, 1, opt()), 1232, "udp", False),
    ("1233 bytes with OPT", query(K, 1, 1, opt()), 1233, "udp", True),
    ("1233 bytes for a client that takes 65535", query(K, 1, 1, opt(size=65535)), 1233, "udp", True),
    ("700 bytes for a client that takes 700", query(K, 1, 1, opt(size=700)), 700, "udp", False),
    ("701 bytes for a client that takes 700", query(K, 1, 1, opt(size=700)), 701, "udp", True),
    ("513 bytes for a client that says it takes 0", query(K, 1, 1, opt(size=0)), 513, "udp", True),
    ("513 bytes over TCP", query(), 513, "tcp", False),
    ("65535 bytes over TCP", query(), 65535, "tcp", False),
]


@pytest.mark.parametrize(
    ("packet", "size", "transport", "cut"), [row[1:] for row in SIZES], ids=[row[0] for row in SIZES]
)
def test_a_reply_fits_or_is_cut(packet: bytes, size: int, transport: str, cut: bool) -> None:
    reply = respond(packet, transport, one_text_of(size))
    assert reply is not None
    assert bool(reply[2] & 0x02) is cut
    assert len(reply) == (len(packet) if cut else size)


# Errors of ours, and replies that come later


def failing(what: object) -> Responder:
    async def handle(request: Request, following: object) -> Answer:
        if isinstance(what, Exception):
            raise what
        return what  # type: ignore[return-value]

    return Responder([Site(b"\0", fold([handle]), "dns://:53")], Process(Metrics()), Metrics())


FAILURES = [
    ("an exception", ValueError("oh")),
    ("no answer", None),
    ("a record that is none", Answer(answer=[Record(K, Type.MX, 5, b"")])),
    ("a TTL that is none", Answer(answer=[Record(K, Type.A, -1, b"1234")])),
]


@pytest.mark.parametrize("what", [row[1] for row in FAILURES], ids=[row[0] for row in FAILURES])
def test_a_crash_costs_the_one_query(what: object, caplog: pytest.LogCaptureFixture) -> None:
    assert seen(respond(query(), responder=failing(what))) == "SERVFAIL rd 1 0 0 0"
    assert ["kubernetes.default.svc.cluster.local. IN A" in record.message for record in caplog.records] == [True]


def test_a_reply_that_waits_comes_later() -> None:
    async def slow() -> list[Record]:
        await asyncio.sleep(0)
        return [Record(K, Type.A, 5, b"1234")]

    async def handle(request: Request, following: object) -> Answer:
        return Answer(answer=await request.wait(slow()))

    async def main() -> None:
        replies: asyncio.Queue[bytes] = asyncio.Queue()
        responder = Responder([Site(b"\0", fold([handle]), "dns://:53")], Process(Metrics()), Metrics())
        assert isinstance(responder.respond(query(), "udp", CLIENT, LOCAL, replies.put_nowait), Waiter)
        async with asyncio.timeout(5):
            assert seen(await replies.get()) == "NOERROR aa rd 1 1 0 0"
        await asyncio.sleep(0.01)
        assert replies.empty()

    asyncio.run(main())


def test_who_is_to_get_no_reply_gets_none_but_for_who_waited_already() -> None:
    async def slow() -> int:
        await asyncio.sleep(0)
        return chain.SILENCE

    async def handle(request: Request, following: object) -> Answer:
        waits = request.query.rtype == Type.AAAA
        return Answer(await request.wait(slow()) if waits else chain.SILENCE, plugin="acl")

    async def main() -> None:
        replies: asyncio.Queue[bytes] = asyncio.Queue()
        metrics = Metrics()
        responder = Responder([Site(b"\0", fold([handle]), "dns://:53")], Process(metrics), metrics)
        assert responder.respond(query(), "udp", CLIENT, LOCAL, replies.put_nowait) is None
        assert metrics._values[PACKETS_DROPPED] == {("acl",): 1}
        assert isinstance(responder.respond(query(K, Type.AAAA), "udp", CLIENT, LOCAL, replies.put_nowait), Waiter)
        async with asyncio.timeout(5):
            assert seen(await replies.get()) == "REFUSED rd 1 0 0 0"

    asyncio.run(main())


def test_the_zone_that_fits_best_is_asked() -> None:
    def site(zone: str) -> Site:
        async def handle(request: Request, following: object) -> Answer:
            return Answer(plugin=zone, answer=[Record(request.query.qname, Type.TXT, 5, zone.encode())])

        return Site(from_text(zone), fold([handle]), "dns://:53")

    sites = [site("."), site("local."), site("cluster.local.")]
    responder = Responder(sites, Process(Metrics()), Metrics())

    def asked(name: str, rtype: int = 16) -> bytes:
        reply = respond(query(from_text(name), rtype), responder=responder)
        assert reply is not None
        return reply[_end_of_question(reply) + 12 :]

    assert asked("a.cluster.local.") == b"cluster.local."
    assert asked("Cluster.Local.") == b"cluster.local."
    assert asked("xcluster.local.") == b"local."
    assert asked("example.org.") == b"."
    assert asked(".") == b"."
    # RFC 4035 §3.1.4.1: a DS record stands on the parent's side.
    assert asked("cluster.local.", Type.DS) == b"local."
