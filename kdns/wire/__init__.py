"""Bytes to values and back: names, records, queries, replies. Knows no Kubernetes and no sockets."""
