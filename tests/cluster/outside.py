"""The DNS server of the world outside of a cluster, on port 53: it knows one name, and that there is no other.

python outside.py NAME ADDRESS
"""

import socketserver
import sys
import threading

import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

NAME, ADDRESS = dns.name.from_text(sys.argv[1]), sys.argv[2]


def reply_to(packet: bytes) -> bytes:
    query = dns.message.from_wire(packet)
    question = query.question[0]
    reply = dns.message.make_response(query, recursion_available=True)
    if question.name != NAME:
        reply.set_rcode(dns.rcode.NXDOMAIN)
    elif question.rdtype == dns.rdatatype.A:
        reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", ADDRESS))
    return reply.to_wire()


class Udp(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(reply_to(self.rfile.read()))


class Tcp(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while length := self.rfile.read(2):
            reply = reply_to(self.rfile.read(int.from_bytes(length)))
            self.wfile.write(len(reply).to_bytes(2) + reply)


if __name__ == "__main__":
    tcp, udp = socketserver.ThreadingTCPServer(("", 53), Tcp), socketserver.ThreadingUDPServer(("", 53), Udp)
    threading.Thread(target=udp.serve_forever, daemon=True).start()
    tcp.serve_forever()
