"""What README and docs say is true: Corefiles are built, transcripts are run, tables are compared with the code.

A `corefile` block is parsed and built as `kdns check` does it; only the files that it names needn't be there.
A `console` block is a transcript: `$ command`, then all that it prints on both streams, in the root of the repository.
- `make run` and `kdns serve` are started, compared with what they say at start, and asked by the commands after them.
- Where a transcript has a `dig` and starts no server, one answers from the example zones.
- Port 1053 is replaced by a free one.
- The lines that dig prints may come in any order, for kdns rotates them; runs of blanks count as one.
- `SERIAL` stands for a number, and a line `...` for any lines.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdns import app, corefile
from kdns.chain import Plugin, Process
from kdns.metrics import DECLARED, Metrics
from kdns.options import table
from kdns.plugins import PLUGINS
from tests import needs, started
from tests.started import COMMANDS, ROOT, Started

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://)(?P<target>[^)#]+)[^)]*\)")
_DOCUMENTED_PORT = 1053
_DEFAULT_SERVER = "kdns serve --inventory zones --listen 127.0.0.1:1053"
_FOREVER = ("make run", "kdns serve")


def blocks(kind: str) -> list[object]:
    """Every block of that kind in the pages, named by page and line."""
    found_blocks = []
    for path in PAGES:
        text = path.read_text()
        for found in _BLOCK.finditer(text):
            if found["kind"] == kind:
                line = text.count("\n", 0, found.start()) + 1
                found_blocks.append(pytest.param(found["text"], id=f"{path.relative_to(ROOT)}:{line}"))
    return found_blocks


# Corefiles


@pytest.mark.parametrize("text", blocks("corefile"))
def test_a_corefile_in_the_docs_is_one(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    monkeypatch.chdir(tmp_path)
    parsed = corefile.parse(text.replace("/etc/resolv.conf", "resolv.conf"), "docs")
    configuration = app.build(parsed, Process(Metrics()))
    assert configuration.listeners
    assert not [problem.message for problem in configuration.warnings if not problem.note]


# Transcripts


@pytest.mark.parametrize("text", blocks("console"))
def test_a_transcript_in_the_docs_is_what_happens(text: str) -> None:
    entries = list(_entries(text))
    assert entries, "a console block begins with `$ `"
    if any(command.startswith("dig ") for command, _ in entries):
        needs.command("dig")
    with contextlib.ExitStack() as stack:
        server: Started | None = None
        for command, expected in entries:
            if command.startswith(_FOREVER) and "--print-corefile" not in command:
                server = stack.enter_context(_serve(command))
                _same(command, expected, _start_text(command, server), server.port)
                continue
            if command.startswith("dig ") and server is None:
                server = stack.enter_context(_serve(_DEFAULT_SERVER))
            port = server.port if server else _DOCUMENTED_PORT
            _same(command, expected, _run(command.replace(str(_DOCUMENTED_PORT), str(port))), port)


def _entries(text: str) -> Iterator[tuple[str, list[str]]]:
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *expected = part.rstrip("\n").split("\n")
        yield command, [line for line in expected if line]


@contextlib.contextmanager
def _serve(command: str) -> Iterator[Started]:
    words = shlex.split(_recipe("run") if command == "make run" else command)
    words = [word.replace(str(_DOCUMENTED_PORT), "PORT") for word in words]
    if "--corefile" not in words and not {"--listen", "-l"} & set(words):
        words += ["--listen", "127.0.0.1:PORT"]
    with started.started(*words) as running:
        # The line that stands last.
        running.says(" SRV\n")
        yield running


def _start_text(command: str, server: Started) -> str:
    # make says what it does before it does it.
    return (f".venv/bin/{_recipe('run')}\n" if command == "make run" else "") + server.said


def _recipe(target: str) -> str:
    """The command that a target of the Makefile runs, without where it is."""
    found = re.search(rf"^{target}:[^\n]*\n\t\$\(BIN\)/([^\n]+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found, f"the Makefile has no target `{target}`"
    return found[1].replace("$(PORT)", str(_DOCUMENTED_PORT))


def _run(command: str) -> str:
    path = f"{COMMANDS}:{started.plain_environment().get('PATH', '')}"
    done = subprocess.run(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=started.plain_environment() | {"PATH": path},
        timeout=started.PATIENCE_SECONDS,
        check=False,
    )
    return done.stdout


def _same(command: str, expected: list[str], said: str, port: int) -> None:
    found = [_plain(line) for line in said.replace(f":{port}", ":1053").replace(f"-p {port}", "-p 1053").splitlines()]
    found = [line for line in found if line]
    wanted = [_plain(line) for line in expected]
    if command.startswith("dig "):
        found, wanted = sorted(found), sorted(wanted)
    pattern = "\n".join(".*" if line == "..." else re.escape(line).replace("SERIAL", r"\d+") for line in wanted)
    if not re.fullmatch(pattern, "\n".join(found), re.DOTALL):
        assert found == wanted, f"$ {command}"


def _plain(line: str) -> str:
    return " ".join(line.split())


# References


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_every_directive_has_a_page_with_all_its_options(plugin: type[Plugin]) -> None:
    page = ROOT / "docs" / "plugins" / f"{plugin.name}.md"
    text = page.read_text()
    assert re.findall(r"^## (\w+)", text, re.MULTILINE)[:2] == ["Name", "Description"]
    section = text.partition("\n## Syntax\n")[2].partition("\n## ")[0]
    syntax = next(found["text"] for found in _BLOCK.finditer(section))
    first, *lines = syntax.splitlines()
    assert first.split()[0] == plugin.name
    told = {line.split()[0].strip("[") for line in lines if line.startswith("    ")}
    # A row that is a group of lines has its names in its syntax.
    rows = [row for row in table(plugin.options) if not row.is_argument]
    known = {row.name if row.lines is None else row.kind.syntax.split()[0] for row in rows}
    assert told <= known
    # What is read only to be refused or without effect may be told below the synopsis.
    assert not [name for name in known - told if f"`{name}" not in section]
    assert "\n## Examples\n" in text


def test_every_page_of_a_directive_is_of_one() -> None:
    pages = {page.stem for page in (ROOT / "docs" / "plugins").glob("*.md")}
    assert pages == {plugin.name for plugin in PLUGINS}


def test_every_metric_is_on_the_page_of_prometheus_with_its_labels() -> None:
    text = (ROOT / "docs" / "plugins" / "prometheus.md").read_text()
    rows = re.findall(r"^\|( `(?:coredns|kdns)_.*) \|(.*)\|$", text, re.MULTILINE)
    told = {name: labels.partition("(")[0].strip() for names, labels in rows for name in re.findall("`(.*?)`", names)}
    assert told == {metric.name: ", ".join(metric.labels) for metric in DECLARED}


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in sorted((ROOT / "docs").rglob("*.md")):
        if page.name != "README.md":
            assert f"({page.relative_to(ROOT / 'docs')})" in index


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_and_no_word_talks_down(page: Path) -> None:
    text = page.read_text()
    for found in _LINK.finditer(text):
        assert (page.parent / found["target"]).exists(), found["target"]
    assert not re.findall(r"\b(?:simply|just)\b", text)


@pytest.mark.parametrize("page", ["README.md", "docs/contributing.md", "docs/design.md"])
def test_files_that_are_named_are_there(page: str) -> None:
    """Every `path/with.ending` and `folder/` in these pages is in the repository or in kdns/."""
    text = (ROOT / page).read_text()
    for name in set(re.findall(r"`((?:[a-z_.-]+/)+[a-z_.-]*|[a-z_-]+\.(?:py|md|toml))`", text)):
        assert (ROOT / name).exists() or (ROOT / "kdns" / name).exists(), name
