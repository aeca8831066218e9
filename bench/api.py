"""As much of an API server as CoreDNS and kdns need: it lists objects, and its watches tell of what is changed by PUT.

So the comparison needs no control plane. Run as `python -m bench.api PORT MANIFESTS`. A change is acknowledged once all
watches were told of it.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]

# Where the objects of each kind are listed.
PATHS = {
    "/api/v1/namespaces": ("v1", "Namespace"),
    "/api/v1/services": ("v1", "Service"),
    "/apis/discovery.k8s.io/v1/endpointslices": ("discovery.k8s.io/v1", "EndpointSlice"),
}
RESOURCES = {
    "/api/v1": ("v1", [("namespaces", "Namespace", False), ("services", "Service", True)]),
    "/apis/discovery.k8s.io/v1": ("discovery.k8s.io/v1", [("endpointslices", "EndpointSlice", True)]),
}
# What PUT has in place of the path of one object, which nobody here reads.
CHANGE = "/change"
JSON = "application/json"


class Store:
    """All objects, as the JSON that is sent: making it for each reader would cost more than what is measured."""

    def __init__(self, objects: list[Object]) -> None:
        self.version = 1
        self.lock = threading.Lock()
        self.items: dict[str, dict[tuple[str, str], bytes]] = {kind: {} for _, kind in PATHS.values()}
        self.watches: dict[str, set[BinaryIO]] = {kind: set() for _, kind in PATHS.values()}
        for number, each in enumerate(objects):
            each["metadata"].update(uid=f"00000000-0000-4000-8000-{number:012x}", resourceVersion="1")
            self.items[each["kind"]][_key(each)] = json.dumps(each).encode()

    def change(self, thing: Object) -> None:
        """Put an object in the place of the one of its name, and tell all watches of it."""
        with self.lock:
            self.version += 1
            kind, key = thing["kind"], _key(thing)
            before = json.loads(self.items[kind][key])
            thing["metadata"] = before["metadata"] | thing["metadata"] | {"resourceVersion": str(self.version)}
            self.items[kind][key] = content = json.dumps(thing).encode()
            for out in list(self.watches[kind]):
                try:
                    out.write(b'{"type":"MODIFIED","object":%b}\n' % content)
                    out.flush()
                except OSError:
                    self.watches[kind].discard(out)


class Api(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    store: Store

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path in RESOURCES:
            self._say(200, json.dumps(_resources(*RESOURCES[url.path])).encode())
        elif url.path == "/version":
            self._say(200, b'{"major":"1","minor":"36","gitVersion":"v1.36.0"}')
        elif url.path not in PATHS:
            self._say(404, b'{"kind":"Status","apiVersion":"v1","status":"Failure","code":404}')
        elif "watch" in parse_qs(url.query):
            self._watch(*PATHS[url.path], initial="sendInitialEvents=true" in url.query)
        else:
            self._list(*PATHS[url.path])

    def do_PUT(self) -> None:
        self.store.change(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._say(200, b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: nobody reads it."""

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", JSON)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _list(self, version: str, kind: str) -> None:
        with self.store.lock:
            head = b'{"kind":"%bList","apiVersion":"%b","metadata":{"resourceVersion":"%d"},"items":['
            body = head % (kind.encode(), version.encode(), self.store.version)
            body += b",".join(self.store.items[kind].values()) + b"]}"
        self._say(200, body)

    def _watch(self, version: str, kind: str, initial: bool) -> None:
        """All objects, where the client wants to begin with them, then each change until it goes away."""
        self.send_response(200)
        self.send_header("Content-Type", JSON)
        self.send_header("Connection", "close")
        self.end_headers()
        with self.store.lock:
            if initial:
                for each in self.store.items[kind].values():
                    self.wfile.write(b'{"type":"ADDED","object":%b}\n' % each)
                annotations = {"k8s.io/initial-events-end": "true"}
                metadata = {"resourceVersion": str(self.store.version), "annotations": annotations}
                end = {"kind": kind, "apiVersion": version, "metadata": metadata}
                self.wfile.write(json.dumps({"type": "BOOKMARK", "object": end}).encode() + b"\n")
            self.wfile.flush()
            self.store.watches[kind].add(self.wfile)
        threading.Event().wait()


def _key(thing: Object) -> tuple[str, str]:
    return thing["metadata"].get("namespace", ""), thing["metadata"]["name"]


def _resources(version: str, resources: list[tuple[str, str, bool]]) -> Object:
    listed = [
        {"name": name, "kind": kind, "namespaced": namespaced, "singularName": "", "verbs": ["list", "watch"]}
        for name, kind, namespaced in resources
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": listed}


def main() -> None:
    port, file = sys.argv[1:]
    Api.store = Store(json.loads(Path(file).read_text())["items"])
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Api)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
