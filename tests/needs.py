"""What a test needs of the machine: commands, root.

Without it the test is skipped, and the summary says what that cost (conftest.py).
Where CI=true what is missing is a failure: that machine was prepared, and a test that never runs proves nothing.
"""

import os
import shutil
from typing import NoReturn

import pytest

ON_CI = os.environ.get("CI") == "true"
COULD_NOT_RUN = "could not run here: "
# Debian keeps named-checkzone, debootstrap, nft and the like in sbin, which a developer's PATH may lack.
SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def command(*names: str) -> str:
    """Path of the first command, once all of them are there."""
    found = [shutil.which(name, path=SEARCHED) for name in names]
    missing = [name for name, where in zip(names, found, strict=True) if where is None]
    if missing:
        lacking("no command " + ", ".join(f"`{name}`" for name in missing))
    assert found[0] is not None
    return found[0]


def root() -> None:
    """Network namespaces, mounts and ports below 1024 take root."""
    if os.geteuid() != 0:
        lacking("not root")


def lacking(reason: str) -> NoReturn:
    """Leave the test for a reason that lies in the machine."""
    if ON_CI:
        pytest.fail(f"CI lacks what this test needs: {reason}", pytrace=False)
    pytest.skip(f"{COULD_NOT_RUN}{reason}")
