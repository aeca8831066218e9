"""Many datagrams by one system call: recvmmsg(2) and sendmmsg(2), with the reply in the buffer of its query.

Knows no DNS: sizes, addresses, bytes. Linux alone has these calls; `available` says whether this machine does.
Law: recvmmsg(2), sendmmsg(2), cmsg(3), and struct mmsghdr of 64-bit Linux.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys

# Datagrams in one call, and the bytes of each. Not a power of two: those would all fall into the same lines of a cache.
PLACES = 64
PLACE_BYTES = 4096 + 128

_HEADER_BYTES, _NAME_BYTES, _CONTROL_BYTES = 64, 32, 64
# struct msghdr: name, its length, the vector, its length, control, its length, flags; then the datagram's length.
_HEADER = struct.Struct("=QI4xQQQQI4xI4x")
_VECTOR = struct.Struct("=QQ")
_LENGTH, _FLAGS = 14, 12
# Of the words of a control buffer: where the interface's index is, behind the 16 bytes of the header.
_INDEX4, _INDEX6 = 4, 8
_ADDRESS = 16
_NO_INDEX = memoryview(bytes(4 * PLACES)).cast("I")

Peer = tuple[str, int] | tuple[str, int, int, int]
Ancillary = list[tuple[int, int, bytes]]


def _library() -> ctypes.CDLL | None:
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "recvmmsg") or not hasattr(library, "sendmmsg"):
        return None
    library.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
    library.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
    return library


_LIBC = _library()
available = _LIBC is not None


class Ring:
    """Buffers for as many datagrams as one call takes. Between `receive` and `send` each has one place.

    `data` are the bytes of all places, the place of number N begins at N * PLACE_BYTES. `lengths[N * 16 + 14]` is the
    size of the datagram, `ports[N * 16 + 1]` its port in network order, `vectors[N * 2 + 1]` the size of what is sent.
    Whoever is in a hurry reads and writes these; the methods say the same.
    """

    def __init__(self, sock: socket.socket, destinations: bool) -> None:
        """`destinations` tells that the socket says which address was asked (pktinfo): replies leave from there."""
        assert _LIBC is not None
        self._receive, self._send = _LIBC.recvmmsg, _LIBC.sendmmsg
        self._fd = sock.fileno()
        self._six = sock.family == socket.AF_INET6
        buffers = [
            ctypes.create_string_buffer(PLACES * size)
            for size in (PLACE_BYTES, _HEADER_BYTES, _VECTOR.size, _NAME_BYTES, _CONTROL_BYTES)
        ]
        # The kernel is told where they are and not that somebody needs them: they live as long as this does.
        self._buffers = buffers
        places, headers, vectors, names, controls = (ctypes.addressof(each) for each in buffers)
        self._headers_at = headers
        self.data, header_bytes, vector_bytes, name_bytes, control_bytes = (
            memoryview(each).cast("B") for each in buffers
        )
        self._header_bytes, self._names, self._control_bytes = header_bytes, name_bytes, control_bytes
        self._vector_bytes = vector_bytes
        self.lengths = header_bytes.cast("I")
        self.vectors = vector_bytes.cast("Q")
        self.ports = name_bytes.cast("H")
        self._control = control_bytes.cast("I")
        # The kernel changes what it is given; before each call all of it is put back.
        self._fresh_headers = b"".join(
            _HEADER.pack(
                names + number * _NAME_BYTES,
                _NAME_BYTES,
                vectors + number * _VECTOR.size,
                1,
                controls + number * _CONTROL_BYTES if destinations else 0,
                _CONTROL_BYTES if destinations else 0,
                0,
                0,
            )
            for number in range(PLACES)
        )
        self._fresh_vectors = b"".join(
            _VECTOR.pack(places + number * PLACE_BYTES, PLACE_BYTES) for number in range(PLACES)
        )
        self._used = PLACES

    def receive(self) -> int:
        """How many datagrams there are now, at most PLACES. Raises BlockingIOError if none, and OSError."""
        used = self._used
        self._header_bytes[: used * _HEADER_BYTES] = self._fresh_headers[: used * _HEADER_BYTES]
        self._vector_bytes[: used * _VECTOR.size] = self._fresh_vectors[: used * _VECTOR.size]
        count: int = self._receive(self._fd, self._headers_at, PLACES, socket.MSG_DONTWAIT, None)
        # One more than came may have been begun.
        self._used = min(max(count, 0) + 1, PLACES)
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return count

    def packet(self, number: int) -> bytes:
        """The datagram in a place."""
        start = number * PLACE_BYTES
        return self.data[start : start + self.lengths[number * 16 + _LENGTH]].tobytes()

    def was_cut(self, number: int) -> bool:
        """Whether the datagram was larger than its place."""
        return bool(self.lengths[number * 16 + _FLAGS] & socket.MSG_TRUNC)

    def peer(self, number: int) -> Peer:
        """Whom the datagram came from, as Python's sockets have it."""
        name = self._names[number * _NAME_BYTES : (number + 1) * _NAME_BYTES]
        port = name[2] << 8 | name[3]
        if not self._six:
            return socket.inet_ntop(socket.AF_INET, name[4:8]), port
        flow, scope = int.from_bytes(name[4:8], "big"), int.from_bytes(name[24:28], sys.byteorder)
        return socket.inet_ntop(socket.AF_INET6, name[8:24]), port, flow, scope

    def address(self, number: int) -> bytes:
        """The address that the datagram came from, packed."""
        start = number * _NAME_BYTES
        return (
            self._names[start + 8 : start + 24].tobytes() if self._six else self._names[start + 4 : start + 8].tobytes()
        )

    def ancillary(self, number: int) -> Ancillary:
        """The address that was asked, as the ancillary data that came with the datagram."""
        start = number * _CONTROL_BYTES
        size = 20 if self._six else 12
        level, kind = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) if self._six else (socket.IPPROTO_IP, 8)
        return [(level, kind, self._control_bytes[start + _ADDRESS : start + _ADDRESS + size].tobytes())]

    def leave_interfaces_to_routing(self, count: int) -> None:
        """Let replies leave by any interface, but for link-local addresses, which mean nothing without their link."""
        if not self._six:
            self._control[_INDEX4 : count * 16 : 16] = _NO_INDEX[:count]
            return
        firsts = self._control_bytes[_ADDRESS : count * _CONTROL_BYTES : _CONTROL_BYTES].tobytes()
        for number in range(count):
            second = self._control_bytes[number * _CONTROL_BYTES + _ADDRESS + 1]
            if firsts[number] != 0xFE or second & 0xC0 != 0x80:
                self._control[number * 16 + _INDEX6] = 0

    def reply(self, number: int, data: bytes) -> None:
        """Put what is to be sent into the place of its query; at most PLACE_BYTES."""
        start = number * PLACE_BYTES
        self.data[start : start + len(data)] = data
        self.vectors[number * 2 + 1] = len(data)

    def send(self, first: int, after: int) -> tuple[int, int]:
        """Send what is in the places from `first` up to `after`.

        Returns how many of them the kernel had no room for, and how many it refused.
        """
        blocked = refused = 0
        while first < after:
            sent: int = self._send(
                self._fd, self._headers_at + first * _HEADER_BYTES, after - first, socket.MSG_DONTWAIT
            )
            if sent > 0:
                first += sent
                continue
            # Only the first message's error is told; those after it may be well.
            number = ctypes.get_errno()
            if number == errno.EINTR:
                continue
            if number in (errno.EAGAIN, errno.ENOBUFS):
                blocked += after - first
                break
            refused += 1
            first += 1
        return blocked, refused
