"""As much of an API server as CoreDNS needs to start: it lists objects that never change, and its watches say nothing.

So the comparison needs no control plane. Run as `python -m bench.api PORT MANIFESTS`.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]

VERSION = "1"
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


class Api(BaseHTTPRequestHandler):
    """One request. `objects` are those of the cluster, by kind."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, list[Object]]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path in RESOURCES:
            self._say(200, _resources(*RESOURCES[url.path]))
        elif url.path not in PATHS:
            self._say(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})
        elif "watch" in parse_qs(url.query):
            self._watch(*PATHS[url.path], initial="sendInitialEvents=true" in url.query)
        else:
            version, kind = PATHS[url.path]
            head = {"kind": f"{kind}List", "apiVersion": version, "metadata": {"resourceVersion": VERSION}}
            self._say(200, {**head, "items": self.objects.get(kind, [])})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: nobody reads it."""

    def _say(self, status: int, document: Object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _watch(self, version: str, kind: str, initial: bool) -> None:
        """All objects, where the client wants to begin with them, then silence until it goes away."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        if initial:
            for each in self.objects.get(kind, []):
                self.wfile.write(json.dumps({"type": "ADDED", "object": each}).encode() + b"\n")
            metadata = {"resourceVersion": VERSION, "annotations": {"k8s.io/initial-events-end": "true"}}
            end = {"kind": kind, "apiVersion": version, "metadata": metadata}
            self.wfile.write(json.dumps({"type": "BOOKMARK", "object": end}).encode() + b"\n")
        self.wfile.flush()
        threading.Event().wait()


def _resources(version: str, resources: list[tuple[str, str, bool]]) -> Object:
    listed = [
        {"name": name, "kind": kind, "namespaced": namespaced, "singularName": "", "verbs": ["list", "watch"]}
        for name, kind, namespaced in resources
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": listed}


def main() -> None:
    port, file = sys.argv[1:]
    objects: dict[str, list[Object]] = {}
    for number, each in enumerate(json.loads(Path(file).read_text())["items"]):
        each["metadata"].update(uid=f"00000000-0000-4000-8000-{number:012x}", resourceVersion=VERSION)
        objects.setdefault(each["kind"], []).append(each)
    Api.objects = objects
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Api)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
