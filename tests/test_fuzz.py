"""Every fuzz target runs for a moment, always from the same seed; its first line has the command for a longer run."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "fuzz"
TARGETS = sorted(FOLDER.glob("fuzz_*.py"))
# Whichever comes first; no single input may take longer than the time-out.
RUNS, SECONDS, TIMEOUT_SECONDS = 5000, 5, 5


def test_there_are_targets() -> None:
    assert {target.stem for target in TARGETS} >= {"fuzz_corefile", "fuzz_inventory", "fuzz_query"}


@pytest.mark.parametrize("target", TARGETS, ids=[target.stem for target in TARGETS])
def test_a_fuzz_target_finds_nothing(target: Path, tmp_path: Path) -> None:
    limits = [f"-runs={RUNS}", f"-max_total_time={SECONDS}", f"-timeout={TIMEOUT_SECONDS}", "-seed=1", "-verbosity=0"]
    # The input that fails is left in the folder, whose name the failure shows.
    found = subprocess.run(
        [sys.executable, target, *limits], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert found.returncode == 0, f"{tmp_path}\n{found.stdout}\n{found.stderr}"
