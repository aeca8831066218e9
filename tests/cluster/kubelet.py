"""What a kubelet does that needs no node: the variables of services, by Kubernetes' own code."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from tests.cluster import control_plane

Document = dict[str, Any]


def variables_of(services: Sequence[Document]) -> list[tuple[str, str]]:
    """Name and value of each variable that the kubelet makes of these services, in its order."""
    done = subprocess.run(
        [str(control_plane.found_programs() / "service-variables")],
        input=json.dumps(services),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    # Go writes a list without anything in it as null.
    return [(each["name"], each.get("value", "")) for each in json.loads(done.stdout) or ()]
