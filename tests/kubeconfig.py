"""A kubeconfig of one context, as tests need them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

Fields = Mapping[str, object]


def write_kubeconfig(path: Path, server: str, user: Fields, cluster: Fields | None = None) -> Path:
    """Write one with the context `kdns`. Returns its path."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kdns", "cluster": {"server": server, **(cluster or {})}}],
        "users": [{"name": "kdns", "user": dict(user)}],
        "contexts": [{"name": "kdns", "context": {"cluster": "kdns", "user": "kdns"}}],
        "current-context": "kdns",
    }
    path.write_text(json.dumps(content, indent=2))
    return path
