"""The picture of the architecture is true: imports go one way (the contracts stand in pyproject.toml)."""

from pathlib import Path

from click.testing import CliRunner
from importlinter.cli import lint_imports_command

ROOT = Path(__file__).parents[1]


def test_imports_go_one_way() -> None:
    result = CliRunner().invoke(lint_imports_command, ["--config", str(ROOT / "pyproject.toml"), "--no-cache"])
    assert result.exit_code == 0, result.output
