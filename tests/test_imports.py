"""The picture of the architecture is true: imports go one way (the contracts stand in pyproject.toml)."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In a process of its own: the linter configures logging for all of the one that it runs in.
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def test_imports_go_one_way() -> None:
    command = [sys.executable, "-c", LINT, "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
