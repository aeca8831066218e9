"""A port that servers have one after the other, or several at once: their Corefile, and what to ask there."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests import started
from tests.rollout.load import question
from tests.rollout.upstreams import ADDRESS
from tests.started import Started

WEB = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}
"""
LOCAL = question("web.shop.svc.cluster.local.", "10.96.0.7")
FORWARDED = question("www.example.", ADDRESS)


class Port:
    """A port that servers have one after the other, or several at once, and the Corefile of all of them."""

    def __init__(self, folder: Path, upstream_port: int, *options: str) -> None:
        self.number = started.free_port()
        self._folder = folder
        lines = "\n".join(["prefer_udp", *options])
        self._forward = f"forward . 127.0.0.1:{upstream_port} {{\n{lines}\n}}"
        (folder / "web.yaml").write_text(WEB)

    def write(self, *lines: str) -> None:
        """Have these lines in the server block, besides those that answer."""
        lines = (*lines, "kubernetes cluster.local {\n inventory web.yaml\n}", self._forward)
        corefile = f".:{self.number} {{\n" + "".join(f"    {line}\n" for line in lines) + "}\n"
        (self._folder / "Corefile").write_text(corefile)

    def serving(self) -> contextlib.AbstractContextManager[Started]:
        """One more server."""
        return started.started("coredns", "-conf", str(self._folder / "Corefile"), cwd=self._folder)
