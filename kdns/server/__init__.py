"""Sockets: UDP, TCP and HTTP."""
