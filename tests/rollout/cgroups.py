"""Limits on memory and CPU for one process, by control groups of either version."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tests import needs

_ROOT = Path("/sys/fs/cgroup")
_PERIOD_MICROSECONDS = 100_000
_NUMBERS = itertools.count(1)


class Group:
    """Control groups with limits. `enter` before a command has it run in them."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders

    @property
    def enter(self) -> list[str]:
        joins = "".join(f'echo $$ > "{folder}/cgroup.procs"; ' for folder in self._folders)
        return ["sh", "-euc", f'{joins}exec "$@"', "sh"]

    @property
    def most_megabytes(self) -> float:
        """The most memory that it had so far, page cache included."""
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            for folder in self._folders:
                if (folder / name).exists():
                    return int((folder / name).read_text()) / 1024 / 1024
        raise AssertionError("the kernel doesn't tell")


@contextlib.contextmanager
def limited(megabytes: int, cpus: float) -> Iterator[Group]:
    """A group with this memory and this share of the time of a CPU. It ends with the block, as its processes must."""
    needs.root()
    name = f"kdns-{os.getpid()}-{next(_NUMBERS)}"
    quota = int(cpus * _PERIOD_MICROSECONDS)
    limits: dict[Path, dict[str, str]]
    if (_ROOT / "memory/memory.limit_in_bytes").exists() and (_ROOT / "cpu/cpu.shares").exists():
        limits = {
            _ROOT / "memory" / name: {"memory.limit_in_bytes": f"{megabytes << 20}"},
            _ROOT / "cpu" / name: {"cpu.cfs_period_us": f"{_PERIOD_MICROSECONDS}", "cpu.cfs_quota_us": f"{quota}"},
        }
    else:
        limits = {_ROOT / name: {"memory.max": f"{megabytes << 20}", "cpu.max": f"{quota} {_PERIOD_MICROSECONDS}"}}
    with contextlib.ExitStack() as stack:
        try:
            for folder, values in limits.items():
                folder.mkdir()
                stack.callback(_remove, folder)
                for file, value in values.items():
                    (folder / file).write_text(value)
        except OSError as error:
            needs.lacking(f"no control group with limits on memory and CPU: {error}")
        yield Group(list(limits))


def _remove(folder: Path) -> None:
    # A process that has just ended may still be counted.
    for _ in range(100):
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.05)
