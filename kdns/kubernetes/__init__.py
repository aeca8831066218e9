"""The cluster: objects, where they come from, the model of them and its records.

Knows no DNS packets and no sockets of ours.
"""
