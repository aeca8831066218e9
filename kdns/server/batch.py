"""Queries over UDP, many in one system call: the way of nearly all packets of a busy server.

What was answered before is put into the buffer of its query and sent from there; any other query takes the way of
`udp.py`, and its reply joins the others if it comes at once.
One of the places where looks are given for speed: `_round` says by hand what `AnswerCache.find` and `UdpServer` say
plainly, and `tests/server/test_udp.py` has both answer the same packets. What an answer costs so is in
docs/benchmarks.md (`make bench`).
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from kdns.metrics import SECONDS, time_bucket
from kdns.server.mmsg import PLACE_BYTES, PLACES, Ring, available
from kdns.server.udp import SILENT_PORTS, UdpServer, destination

if TYPE_CHECKING:
    import socket

    from kdns.answers import AnswerCache, Denial, Kept
    from kdns.server.seam import Responder
    from kdns.server.udp import UdpLimits

# After so many calls of one wake-up the rest of the process has its turn, however many packets wait.
ROUNDS = 4

# The numbers of Ring's fields for each place, looked up instead of multiplied: the place, where its bytes begin, where
# they go on behind the ID, and where its length, and that of its reply, stand.
_NUMBERS = tuple(
    (number, number * PLACE_BYTES, number * PLACE_BYTES + 2, number * 16 + 14, number * 2 + 1)
    for number in range(PLACES)
)
# In a key, where the leftmost label of the name begins, behind its length.
_LABEL = 11
# As they stand in a socket address, in network order.
_SILENT = frozenset(int.from_bytes(port.to_bytes(2, "big"), "little") for port in SILENT_PORTS)


def serve_udp(responder: Responder, sock: socket.socket, limits: UdpLimits | None = None) -> UdpServer:
    """The fastest server of a socket that this system has."""
    return BatchedUdpServer(responder, sock, limits) if available else UdpServer(responder, sock, limits)


class BatchedUdpServer(UdpServer):
    """Answers up to 64 packets for two system calls."""

    def __init__(self, responder: Responder, sock: socket.socket, limits: UdpLimits | None = None) -> None:
        super().__init__(responder, sock, limits)
        self._ring = Ring(sock, self._anywhere)
        self._six = ":" in self._local[0]
        self._answers: AnswerCache = responder.answers("udp", self._six)
        self._responder = responder

    def _readable(self) -> None:
        try:
            for _ in range(ROUNDS):
                if self._round() < PLACES:
                    return
        except BlockingIOError:
            return
        except OSError:
            # An ICMP error for an earlier reply, or a shortage in the kernel: neither concerns the next packet.
            self.receive_errors += 1

    def _round(self) -> int:
        """Receive what there is, answer it, send the replies. Returns how many packets there were."""
        ring = self._ring
        count = ring.receive()
        began = perf_counter()
        self.received += count
        if self._anywhere:
            ring.leave_interfaces_to_routing(count)
        data, lengths, vectors = ring.data, ring.lengths, ring.vectors
        positive, negative = self._answers.positive.young_get, self._answers.negative.young_get
        denials = self._answers.denials.young_get
        otherwise = self._answers.find_otherwise
        placed = self._responder.placed_answers("udp", self._six)
        ports = ring.ports[1 : count * 16 : 16].tolist()
        # Those of all places where one of them may be silent; mostly none is, and no place needs a look of its own.
        doubtful = [] if _SILENT.isdisjoint(ports) else ports
        unsent: list[int] = []
        used: list[Kept] = []
        hits = 0
        kept: Kept | None = None
        # With one zone all that a batch took goes to its times; with several each reply says which.
        many_zones = self._responder.many_zones
        for number, start, behind_id, length, vector in _NUMBERS if count == PLACES else _NUMBERS[:count]:
            key = data[behind_id : start + lengths[length]].tobytes()
            found = positive(key) or negative(key)
            if found is None and not doubtful and len(key) > _LABEL:
                # As `AnswerCache.denial` does it, without its two calls.
                after = _LABEL + key[_LABEL - 1]
                denied: Denial | None = denials(key[:_LABEL] + key[after:])  # type: ignore[assignment]
                if denied is not None and key[_LABEL:after].lower() not in denied.siblings:
                    data[behind_id : behind_id + 10] = denied.head
                    tail = start + denied.tail_at
                    data[tail : start + denied.reply_size] = denied.tail
                    vectors[vector] = denied.reply_size
                    denied.uses += 1
                    kept = denied
                    hits += 1
                    if many_zones:
                        used.append(denied)
                    continue
            if found is None and placed is not None:
                # What is kept for those who stand where this client does.
                place = placed.places.get(ring.address(number))
                if place is not None:
                    placed_key = place + key
                    found = placed.positive.young_get(placed_key) or placed.negative.young_get(placed_key)
            if found is not None and (not doubtful or doubtful[number] not in _SILENT):
                body = found.body or next(found.replies, None)
                if body is not None:
                    size = len(body)
                    data[behind_id : behind_id + size] = body
                    vectors[vector] = size + 2
                    found.uses += 1
                    kept = found
                    hits += 1
                    if many_zones:
                        used.append(found)
                    continue
            elif not doubtful and (other := otherwise(key)) is not None:
                # The question stays as the client spelled it: what the reply says of its name are pointers to it.
                found, question_end = other
                body = found.body or next(found.replies, None)
                if body is not None:
                    size = len(body)
                    data[behind_id : behind_id + 10] = body[:10]
                    data[behind_id + question_end : behind_id + size] = body[question_end:]
                    vectors[vector] = size + 2
                    found.uses += 1
                    kept = found
                    hits += 1
                    if many_zones:
                        used.append(found)
                    continue
            if not self._answer_place(number):
                unsent.append(number)
        self._send_all(count, unsent)
        if kept is not None:
            seconds = perf_counter() - began
            bucket = time_bucket(seconds)
            if many_zones:
                for each in used:
                    each.times[SECONDS] += seconds
                    each.times[bucket] += 1
            else:
                kept.times[SECONDS] += hits * seconds
                kept.times[bucket] += hits
        return count

    def _answer_place(self, number: int) -> bool:
        """Answer a packet that has no kept reply. Returns whether there is a reply in its place now."""
        ring = self._ring
        peer, local, back = ring.peer(number), self._local, None
        if self._anywhere:
            asked, back = destination(ring.ancillary(number))
            local = (asked, local[1])
        # What was larger than its place is no query that anybody sends; its beginning gets the error that it deserves.
        reply = self._answer(ring.packet(number), peer, local, back)
        if not reply:
            return False
        if len(reply) > PLACE_BYTES:
            self._send(reply, peer, back)
            return False
        ring.reply(number, reply)
        return True

    def _send_all(self, count: int, unsent: list[int]) -> None:
        """Send what is in all places but these: in one call, if there is a reply in each."""
        first = 0
        for after in (*unsent, count):
            if first < after:
                blocked, refused = self._ring.send(first, after)
                self.dropped_sends += blocked
                self.send_errors += refused
                self.sent += after - first - blocked - refused
            first = after + 1
