"""Files on disk as events: which files, which mistakes, and what a change sends. The child process is the real one."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdns.errors import ConfigError, Place, Problem
from kdns.kubernetes import inventory as inventory_module
from kdns.kubernetes.inventory import (
    Batch,
    Change,
    InventoryOptions,
    Reminder,
    Report,
    _Follower,
    _Watcher,
    difference,
    find_files,
    load,
    reminder,
    watch,
)
from kdns.kubernetes.objects import Delete, Metadata, Namespace, Put, Service, Synced

ZONES = Path(__file__).parents[2] / "zones"


def service(name: str, address: str = "10.96.0.7", namespace: str = "shop") -> str:
    return (
        f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
        f"spec: {{clusterIP: {address}, ports: [{{port: 80}}]}}\n"
    )


def refusal(*paths: Path | str, options: InventoryOptions | None = None) -> str:
    with pytest.raises(ConfigError) as raised:
        load([str(path) for path in paths], options)
    return str(raised.value)


# Which files


def test_a_folder_means_the_manifests_in_it_and_below_but_no_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "c.json", "notes.txt", ".hidden.yaml", "sub/D.YAML", ".git/e.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    files, problems = find_files([str(tmp_path)])
    names = [str(Path(file).relative_to(tmp_path)) for file in files]
    assert names == ["a.yml", "b.yaml", "c.json", "sub/D.YAML"]
    assert problems == []


def test_the_files_of_a_config_map_are_found_once_though_they_lead_into_a_hidden_folder(tmp_path: Path) -> None:
    mount_config_map(tmp_path, "..1", {"shop.yaml": service("web")})
    files, _ = find_files([str(tmp_path)])
    assert files == {str(tmp_path / "shop.yaml"): False}
    assert ("Service", "shop", "web") in load([str(tmp_path)]).objects


def test_a_file_that_several_paths_mean_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(service("web"))
    inventory = load([str(tmp_path), str(tmp_path / "a.yaml"), str(tmp_path / "*.yaml")])
    assert inventory.files == [str(tmp_path / "a.yaml")]


def test_a_link_to_a_folder_above_is_not_followed_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(service("web"))
    (tmp_path / "loop").symlink_to(tmp_path)
    assert load([str(tmp_path)]).counts == {"Service": 1}


def test_a_file_that_is_named_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "manifests.txt").write_text(service("web"))
    assert load([str(tmp_path / "manifests.txt")]).counts == {"Service": 1}


def test_a_path_that_means_nothing_is_told_with_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(service("web"))
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "shp.yaml", tmp_path / "*.yml", tmp_path / "empty") == (
        f"error: there is no file or folder `{tmp_path}/shp.yaml`\n"
        f"hint: was `{tmp_path}/shop.yaml` meant?\n"
        f"error: no file matches `{tmp_path}/*.yml`\n"
        "hint: quotes keep a shell from matching the pattern first\n"
        "error: a folder without manifests\n"
        f"  {tmp_path}/empty\n"
        "  expected files that end in .yaml, .yml or .json"
    )


# Mistakes


def test_the_mistakes_of_all_files_are_told_in_the_order_in_which_they_stand(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(service("web") + service("Web") + "---\na: b: c\n")
    (tmp_path / "b.yaml").write_text(service("api", "1.2.3"))
    lines = [line for line in refusal(tmp_path).splitlines() if line.startswith(("error", f"  {tmp_path}"))]
    assert lines == [
        "error: `Web` is no name for a Service",
        f"  {tmp_path}/a.yaml:9:18",
        "error: a `:` where no mapping can begin",
        f"  {tmp_path}/a.yaml:12:5",
        "error: `1.2.3` is no IP address",
        f"  {tmp_path}/b.yaml:5:19",
    ]


def test_an_object_that_is_there_twice_is_told_with_the_first_place(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(service("web"))
    (tmp_path / "b.yaml").write_text(service("api", "10.96.0.8") + service("web"))
    assert refusal(tmp_path) == (
        "error: a second Service shop/web\n"
        f"  {tmp_path}/b.yaml:9:18\n"
        "  in Service shop/web: metadata.name\n"
        "    9 | metadata: {name: web, namespace: shop}\n"
        "      |                  ^^^\n"
        f"  expected one object of a kind, namespace and name; the first is at {tmp_path}/a.yaml:4"
    )


BYTES = [
    ("a binary file", b"\x7fELF\x00\xff\xfe", "error: the byte 0xff is not UTF-8", "hint: is this a text file?"),
    ("Latin-1", b"a: caf\xe9\n", "error: the byte 0xe9 is not UTF-8", "hint: save it as UTF-8"),
    ("UTF-16", "a: b".encode("utf-16"), "error: the file is in UTF-16", "  expected UTF-8"),
    ("an empty file", b" \n", "error: the file is empty", "hint: a manifest begins with `apiVersion:` and `kind:`"),
    ("comments only", b"# nothing\n", "error: no object for DNS in ", ""),
    ("other kinds only", b"apiVersion: v1\nkind: Secret\n", "error: no object for DNS in ", "; there is 1 Secret"),
]


@pytest.mark.parametrize(("data", "first", "last"), [row[1:] for row in BYTES], ids=[row[0] for row in BYTES])
def test_a_file_that_holds_no_manifests(tmp_path: Path, data: bytes, first: str, last: str) -> None:
    (tmp_path / "a.yaml").write_bytes(data)
    text = refusal(tmp_path / "a.yaml")
    assert text.startswith(first)
    assert text.endswith(last)


def test_windows_line_ends_and_a_byte_order_mark_are_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(
        b"\xef\xbb\xbf" + (service("web") + service("api", "10.96.0.8")).replace("\n", "\r\n").encode()
    )
    assert load([str(tmp_path)]).counts == {"Service": 2}


def test_a_range_that_is_none_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(service("web"))
    text = refusal(tmp_path, options=InventoryOptions(service_cidrs=("10.96.0.1/12",)))
    assert text.startswith("error: `service_cidr` takes a range, and 10.96.0.1/12 has host bits set")


@pytest.mark.parametrize("cidr", ["10.96.0.0/31", "10.96.0.0/32", "fd00::/126"])
def test_a_range_that_is_too_small_is_one_mistake(tmp_path: Path, cidr: str) -> None:
    (tmp_path / "a.yaml").write_text(service("web") + service("api", '""') + service("db", '""'))
    assert refusal(tmp_path, options=InventoryOptions(service_cidrs=(cidr,))) == (
        f"error: `service_cidr`: the range {cidr} is too small\n  expected at least 8 addresses\n"
        "hint: e.g. `10.96.0.0/12`"
    )


def test_what_stands_in_several_objects_is_told_beside_the_mistakes_of_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        service("web", "999.1.1.1")
        + service("web", "10.96.0.8")
        + service("api", "10.96.0.9")
        + service("db", "10.96.0.9")
        + service("none").replace("ports:", "selector: {a: b}, ports:")
    )
    told = [line for line in refusal(tmp_path).splitlines() if line.startswith(("error", "warning"))]
    assert told == [
        "error: `999.1.1.1` is no IP address",
        "error: a second Service shop/web",
        "error: the ClusterIP `10.96.0.9` is taken",
        "warning: the selector matches no Pod of the inventory",
    ]


def test_no_selector_is_said_to_match_nothing_where_a_pod_has_a_mistake(tmp_path: Path) -> None:
    pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, labels: {a: yes}}\n"
    (tmp_path / "a.yaml").write_text(service("web").replace("ports:", "selector: {a: b}, ports:") + pod)
    assert "warning" not in refusal(tmp_path)


def test_what_is_no_manifest_is_passed_over_in_a_folder_and_a_mistake_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(service("web"))
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "tasks.yml").write_text("- a\n")
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.yaml")
    inventory = load([str(tmp_path)])
    assert inventory.counts == {"Service": 1}
    said = [(Path(each.place.file).name, each.message, each.hint) for each in inventory.warnings if each.place]
    assert sorted(said) == [
        ("empty.yaml", "the file is empty", "it is passed over"),
        ("gone.yaml", "a link to nothing", "it is passed over"),
        ("package.json", "a document without `apiVersion` and `kind`", "it is passed over"),
        ("pipe.yaml", "neither a file nor a folder", "it is passed over"),
        ("tasks.yml", "a list where an object should be", "it is passed over"),
    ]
    for name in ("empty.yaml", "package.json", "tasks.yml", "pipe.yaml"):
        told = refusal(tmp_path, tmp_path / name)
        assert told.count("error: ") == 1


def test_a_folder_of_which_nothing_is_a_manifest_is_a_mistake(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert f"error: no object for DNS in {tmp_path}\n" in refusal(tmp_path)


def test_a_near_name_is_offered_only_if_it_may_hold_manifests(tmp_path: Path) -> None:
    (tmp_path / "r.zone").write_text("")
    assert "meant" not in refusal(tmp_path / "zones")
    (tmp_path / "zone").mkdir()
    assert f"hint: was `{tmp_path}/zone` meant?" in refusal(tmp_path / "zones")


def test_a_warning_has_its_place_and_names_the_workload_that_was_meant(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  selector:\n    app: web\n"
        "  ports: [{port: 80}]\n---\n"
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: front}\n"
        "spec: {template: {metadata: {labels: {app: web}}}}\n"
    )
    inventory = load([str(tmp_path)])
    (warning,) = inventory.warnings
    assert inventory.passed_over == {"Deployment": 1}
    assert warning.place is not None
    assert (warning.place.line, warning.place.column) == (6, 3)
    assert warning.hint.startswith("the pods of Deployment `front` would match; ")


@pytest.mark.parametrize("name", sorted(path.name for path in ZONES.iterdir()))
def test_every_example_loads_without_error_and_warning(name: str) -> None:
    inventory = load([str(ZONES / name)])
    assert inventory.warnings == []
    assert inventory.passed_over == {}


def test_the_examples_load_together() -> None:
    assert load([str(ZONES)]).warnings == []


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from(["a.yaml", "a.json"]))
def test_any_bytes_are_loaded_or_refused(tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError):
        load([str(tmp_path / name)])


# Differences


def test_namespaces_come_first_and_go_last() -> None:
    space, web = Namespace(Metadata("shop")), Service(Metadata("web", "shop"))
    state = {("Service", "shop", "web"): web, ("Namespace", "", "shop"): space}
    assert list(difference({}, state)) == [Put(space), Put(web)]
    assert list(difference(state, {})) == [Delete("Service", "shop", "web"), Delete("Namespace", "", "shop")]


def test_an_equal_object_is_no_change() -> None:
    before = {("Service", "shop", "web"): Service(Metadata("web", "shop"))}
    assert list(difference(before, {key: msgspec.structs.replace(value) for key, value in before.items()})) == []


# Watching


class Watched:
    """An inventory under watch, and what it has told so far."""

    def __init__(self, *paths: Path | str) -> None:
        self.stream: AsyncIterator[Change] = watch([str(path) for path in paths])

    async def until_report(self, seconds: float = 10.0) -> tuple[list[str], Report]:
        """The events up to the next report, each in a word."""
        words: list[str] = []
        async with asyncio.timeout(seconds):
            async for change in self.stream:
                if isinstance(change, Report):
                    return words, change
                words += [word(event) for event in change.events]
        raise AssertionError("the stream ended")

    async def close(self) -> None:
        await self.stream.aclose()  # type: ignore[attr-defined]


def word(event: object) -> str:
    match event:
        case Put(thing):
            address = f" {thing.spec.cluster_ip}" if isinstance(thing, Service) else ""
            return f"+{type(thing).__name__} {thing.metadata.name}{address}"
        case Delete(kind, _, name):
            return f"-{kind} {name}"
        case _:
            return type(event).__name__


def mount_config_map(folder: Path, version: str, files: dict[str, str]) -> None:
    """What the kubelet does: a folder with the new version, then one link put in the place of another."""
    (folder / version).mkdir()
    for name, text in files.items():
        (folder / version / name).write_text(text)
    (folder / "..data_tmp").symlink_to(version)
    (folder / "..data_tmp").rename(folder / "..data")
    for name in files:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")


def rename_into_place(file: Path, text: str) -> None:
    other = file.with_name(".next")
    other.write_text(text)
    other.rename(file)


def remove_and_write(file: Path, text: str) -> None:
    file.unlink()
    time.sleep(0.1)
    file.write_text(text)


@pytest.mark.parametrize(
    "write", [Path.write_text, rename_into_place, remove_and_write], ids=["in place", "by rename", "after removal"]
)
def test_a_change_is_told_within_a_second_and_nothing_else(
    tmp_path: Path, write: Callable[[Path, str], object]
) -> None:
    async def scenario() -> None:
        file = tmp_path / "shop.yaml"
        file.write_text(service("web") + service("api", "10.96.0.8"))
        watched = Watched(file)
        words, report = await watched.until_report()
        assert words == ["+Namespace shop", "+Service api 10.96.0.8", "+Service web 10.96.0.7", "Synced"]
        assert (report.loaded, report.counts, report.problems) == (True, {"Service": 2}, [])
        began = time.monotonic()
        write(file, service("web", "10.96.0.9"))
        words, report = await watched.until_report()
        assert words == ["+Service web 10.96.0.9", "-Service api"]
        assert report.loaded
        assert time.monotonic() - began < 1.5
        await watched.close()

    asyncio.run(scenario())


def test_a_config_maps_new_version_is_seen(tmp_path: Path) -> None:
    async def scenario() -> None:
        mount_config_map(tmp_path, "..1", {"shop.yaml": service("web")})
        watched = Watched(tmp_path)
        await watched.until_report()
        mount_config_map(tmp_path, "..2", {"shop.yaml": service("web", "10.96.0.9")})
        assert (await watched.until_report())[0] == ["+Service web 10.96.0.9"]
        mount_config_map(tmp_path, "..3", {"shop.yaml": service("web", "10.96.0.10")})
        assert (await watched.until_report())[0] == ["+Service web 10.96.0.10"]
        await watched.close()

    asyncio.run(scenario())


def test_files_and_folders_that_come_and_go_are_seen(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "a.yaml").write_text(service("web"))
        watched = Watched(tmp_path)
        await watched.until_report()
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "b.yaml").write_text(service("api", "10.96.0.8"))
        assert (await watched.until_report())[0] == ["+Service api 10.96.0.8"]
        (tmp_path / "sub" / "b.yaml").write_text(service("api", "10.96.0.9"))
        assert (await watched.until_report())[0] == ["+Service api 10.96.0.9"]
        (tmp_path / "sub" / "b.yaml").unlink()
        assert (await watched.until_report())[0] == ["-Service api"]
        await watched.close()

    asyncio.run(scenario())


def test_a_broken_file_changes_nothing_until_it_is_mended(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "shop.yaml"
        file.write_text(service("web"))
        watched = Watched(file)
        await watched.until_report()
        file.write_text(service("web", "10.96.0.300"))
        words, report = await watched.until_report()
        assert (words, report.loaded) == ([], False)
        assert [problem.message for problem in report.problems] == ["`10.96.0.300` is no IP address"]
        file.unlink()
        words, report = await watched.until_report()
        assert (words, report.loaded) == ([], False)
        assert report.problems[0].message == f"there is no file or folder `{file}`"
        file.write_text(service("web", "10.96.0.30"))
        words, report = await watched.until_report()
        assert (words, report.loaded) == (["+Service web 10.96.0.30"], True)
        await watched.close()

    asyncio.run(scenario())


def test_a_file_that_becomes_empty_in_a_folder_is_a_mistake(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "a.yaml").write_text(service("web"))
        (tmp_path / "b.yaml").write_text(service("api", "10.96.0.8"))
        watched = Watched(tmp_path)
        await watched.until_report()
        (tmp_path / "b.yaml").write_text("")
        words, report = await watched.until_report()
        assert (words, report.loaded) == ([], False)
        assert [problem.message for problem in report.problems] == ["the file is empty"]
        (tmp_path / "b.yaml").unlink()
        assert (await watched.until_report())[0] == ["-Service api"]
        await watched.close()

    asyncio.run(scenario())


def test_who_waits_for_a_change_is_back_after_a_while_without_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(service("web"))
    watcher = _Watcher([str(tmp_path)])
    stamp = watcher.stamp()
    began = time.monotonic()
    assert watcher.wait(stamp, 0.1) == stamp
    assert time.monotonic() - began < 5


def test_the_log_is_reminded_of_a_broken_inventory(caplog: pytest.LogCaptureFixture) -> None:
    problems = [Problem("old", Place("a.yaml", 3), warning=True), Problem("`x` is no IP address", Place("b.yaml", 7))]
    text = reminder(ConfigError(problems), 125.0)
    assert text == (
        "for 2 min the inventory has had 1 mistake: b.yaml:7: `x` is no IP address; the last good one is served"
    )

    async def scenario() -> None:
        frame = msgspec.msgpack.encode(Reminder(text))
        program = f"import sys; sys.stdout.buffer.write({len(frame).to_bytes(4, 'big') + frame!r})"
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert [change async for change in _Follower(set(), True).follow(child)] == []
        await child.wait()

    asyncio.run(scenario())
    assert caplog.messages == [text]


def test_what_was_taken_in_is_not_looked_at_by_the_garbage_collector_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "a.yaml").write_text(
            "".join(service(f"web-{n}", f"10.97.{n // 250}.{n % 250}") for n in range(500))
        )
        stream = watch([str(tmp_path)])
        held = []
        async for change in stream:
            if isinstance(change, Report):
                break
            held.append(change)
        assert not any(each is held[0] for each in gc.get_objects())
        await stream.aclose()  # type: ignore[attr-defined]

    try:
        asyncio.run(scenario())
    finally:
        gc.unfreeze()


def test_a_first_load_that_fails_is_reported_and_raised(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "shop.yaml").write_text(service("web", "nonsense"))
        watched = Watched(tmp_path)
        words, report = await watched.until_report()
        assert (words, report.loaded) == ([], False)
        with pytest.raises(ConfigError, match="`nonsense` is no IP address"):
            await watched.until_report()

    asyncio.run(scenario())


def test_large_inventories_come_in_small_batches(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "shop.yaml").write_text(
            "".join(service(f"web-{n}", f"10.97.{n // 250}.{n % 250}") for n in range(1000))
        )
        stream = watch([str(tmp_path)])
        batches = []
        async for change in stream:
            if isinstance(change, Report):
                break
            batches.append(change)
        assert sum(len(batch.events) for batch in batches) == 1002
        assert all(isinstance(batch, Batch) and len(batch.events) <= 40 for batch in batches)
        assert all(len(msgspec.msgpack.encode(batch)) <= 18_000 for batch in batches)
        assert batches[-1].events[-1] == Synced()
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(scenario())


def test_files_that_never_rest_are_served_all_the_same(tmp_path: Path) -> None:
    async def restless(file: Path) -> None:
        for number in range(10_000):
            rename_into_place(file, service("web") + f"# {number}\n")
            await asyncio.sleep(0.001)

    async def scenario() -> None:
        (tmp_path / "large.yaml").write_text(
            "".join(service(f"web-{n}", f"10.97.{n // 250}.{n % 250}") for n in range(2000))
        )
        file = tmp_path / "shop.yaml"
        file.write_text(service("api", "10.96.0.8"))
        watched = Watched(tmp_path)
        await watched.until_report()
        writing = asyncio.create_task(restless(file))
        assert (await watched.until_report())[0] == ["+Service web 10.96.0.7", "-Service api"]
        writing.cancel()
        await watched.close()

    asyncio.run(scenario())


def children() -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True
    )
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "kdns.kubernetes.inventory" in line]


def test_a_reader_that_dies_is_started_again_and_what_is_gone_meanwhile_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "shop.yaml"
        file.write_text(service("web") + service("api", "10.96.0.8"))
        watched = Watched(file)
        await watched.until_report()
        (child,) = children()
        os.kill(child, signal.SIGKILL)
        words, report = await watched.until_report()
        assert (words, report.loaded) == ([], False)
        assert report.problems[0].message == "the process that reads the inventory was killed by signal 9"
        assert report.verdict == "what it had read is still served"
        file.write_text(service("web", "10.96.0.9"))
        words, report = await watched.until_report()
        assert words == ["+Namespace shop", "+Service web 10.96.0.9", "-Service api"]
        assert report.loaded
        file.write_text(service("web", "10.96.0.10"))
        assert (await watched.until_report())[0] == ["+Service web 10.96.0.10"]
        await watched.close()
        assert children() == []

    asyncio.run(scenario())


def test_the_reader_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(service("web"))
    program = (
        "import asyncio, sys\nfrom kdns.kubernetes.inventory import watch\n"
        "async def main():\n"
        "    async for change in watch([sys.argv[1]]):\n"
        "        print(type(change).__name__, flush=True)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert [parent.stdout.readline(), parent.stdout.readline()] == ["Batch\n", "Report\n"]
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(parent.pid)], capture_output=True, text=True, check=True
        )
        (child,) = [int(line) for line in found.stdout.split()]
        parent.kill()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the reader outlives its parent"
        time.sleep(0.05)


def test_a_process_that_cannot_be_started_again_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no other way to be out of processes for a moment."""
    file = tmp_path / "web.yaml"
    file.write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
    real = inventory_module.asyncio.create_subprocess_exec
    starts = 0

    async def short(*arguments: Any, **options: Any) -> Any:
        nonlocal starts
        starts += 1
        if starts == 2:
            raise BlockingIOError(errno.EAGAIN, "no process left")
        return await real(*arguments, **options)

    monkeypatch.setattr(inventory_module.asyncio, "create_subprocess_exec", short)
    monkeypatch.setattr(inventory_module, "RESTART_SECONDS", (0.01,))

    async def story() -> None:
        watched = Watched(file)
        assert (await watched.until_report())[1].loaded
        # The first one is killed, the second can't be started, the third reads on.
        for child in _children():
            os.kill(child, signal.SIGKILL)
        assert "was killed" in (await watched.until_report())[1].problems[0].message
        assert "could not be started" in (await watched.until_report())[1].problems[0].message
        assert (await watched.until_report())[1].loaded
        await watched.close()

    asyncio.run(story())


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]
