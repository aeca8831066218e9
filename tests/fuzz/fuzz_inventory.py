"""Fuzzes inventories: `python tests/fuzz/fuzz_inventory.py -max_total_time=60 [FOLDER OF MANIFESTS]`.

Any bytes are objects that a cluster can hold and a zone can show, or a ConfigError whose problems can be drawn.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kdns"]):
    from kdns.errors import ConfigError
    from kdns.kubernetes.cluster import Cluster
    from kdns.kubernetes.inventory import load
    from kdns.kubernetes.objects import Put
    from kdns.kubernetes.schema import View, reverse_records, zone_records
    from kdns.wire import names
    from kdns.wire.records import to_text

ZONE = names.from_text("cluster.local.")
FOLDER = Path(tempfile.mkdtemp())
# What most bytes never find by themselves: enough of an object to be looked at closely.
BEGINNINGS = [
    b"",
    b"apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: ",
    b"apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nstatus: ",
    b"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web}\naddressType: IPv4\nendpoints: ",
    b"apiVersion: v1\nkind: List\nitems:\n- ",
    b'{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": ',
]


def one_input(data: bytes) -> None:
    beginning = BEGINNINGS[data[0] % len(BEGINNINGS)] if data else b""
    file = FOLDER / ("it.json" if beginning[:1] == b"{" else "it.yaml")
    file.write_bytes(beginning + data[1:])
    try:
        inventory = load([str(file)])
    except ConfigError as error:
        if not error.problems or not str(error):
            raise AssertionError(data) from error
        return
    cluster = Cluster(lambda: 0.0)
    for each in inventory.objects.values():
        cluster.apply(Put(each))
    view = View(cluster, ZONE, pods="verified")
    for record in zone_records(view, ZONE):
        to_text(record)
    for record in reverse_records(view, names.from_text("in-addr.arpa.")):
        to_text(record)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
