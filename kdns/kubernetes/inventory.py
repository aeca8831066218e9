"""An inventory: manifests on disk as the events that an API server would send, now and whenever a file changes.

Knows files and processes, no DNS. Reading YAML takes longer than a query may wait, so `watch` leaves it to a process of
its own, which sends only what changed, in batches small enough to apply between two queries.
"""

from __future__ import annotations

import asyncio
import gc
import glob
import ipaddress
import itertools
import logging
import math
import os
import signal
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from kdns.errors import ConfigError, KdnsError, Place, Problem, nearest
from kdns.kubernetes import yamltext
from kdns.kubernetes.controller import Completed, InventoryOptions, Key, Manifest, Workload, complete, key_of, subject
from kdns.kubernetes.controller import Path as FieldPath
from kdns.kubernetes.manifests import Located, Part, Reader, in_file, moved
from kdns.kubernetes.objects import Delete, Event, Object, Put, Synced

log = logging.getLogger("kdns.plugin.kubernetes")

__all__ = ["Batch", "Change", "Inventory", "InventoryOptions", "Report", "load", "watch"]

# As for an API server (`ServiceIPRange`).
SMALLEST_RANGE = 8
SUFFIXES = (".yaml", ".yml", ".json")
# Namespaces before what is in them, services before their slices.
ORDER = {"Namespace": 0, "Service": 1, "EndpointSlice": 2, "Pod": 3}

# A batch is decoded and applied in about 1 ms (bench/reload.py); one large object may be a batch of its own.
BATCH_BYTES = 16 * 1024
BATCH_EVENTS = 40
# A report is one message as well; more problems than that nobody reads at once.
REPORTED_PROBLEMS = 100
# As long as an inventory is broken, the log says so again.
REMINDER_SECONDS = 60.0
# A larger text is not searched for the place of a warning: it would cost seconds each time.
SEARCHED_BYTES = 8 * 1024 * 1024

DEBOUNCE_MILLISECONDS = 50
# Where the kernel tells nothing (network file systems, no inotify left), a look at each file's time and size has to do.
POLL_SECONDS = 1.0
# An editor's rename leaves no file for a moment; a mistake that lasts longer is one.
SETTLE_SECONDS = 0.2
UNREST_SECONDS = 2.0
RESTART_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

FileStamp = tuple[int, int, int]
"""A file's inode, size and time of change: another one means that the file has to be read again."""


class Inventory(msgspec.Struct, frozen=True):
    """What the manifests stand for, and what became of each."""

    objects: dict[Key, Object]
    counts: dict[str, int]
    passed_over: dict[str, int]
    files: list[str]
    warnings: list[Problem]


class Batch(msgspec.Struct, tag=True, frozen=True):
    """Some events, in the order in which to apply them."""

    events: list[Event]


class Report(msgspec.Struct, tag=True, frozen=True):
    """How a load went: not `loaded`, it left the last good state in place, and `verdict` says why in a sentence.

    `passed_over` counts the objects of other kinds.
    """

    problems: list[Problem]
    loaded: bool
    counts: dict[str, int] = {}
    passed_over: dict[str, int] = {}
    verdict: str = "the inventory has mistakes; the last good one is still served"


class Reminder(msgspec.Struct, tag=True, frozen=True):
    """What was reported some time ago and still holds, in a sentence for the log."""

    text: str


Change = Batch | Report


def load(paths: Sequence[str], options: InventoryOptions | None = None) -> Inventory:
    """The inventory in these files, folders and patterns; raises ConfigError with every mistake in them."""
    return _Loader(paths, options or InventoryOptions()).load()


async def watch(paths: Sequence[str], options: InventoryOptions | None = None) -> AsyncIterator[Change]:
    """The inventory as events up to `Synced`, then each change; raises ConfigError if it can't be read at first."""
    known: set[Key] = set()
    synced = False
    failures = 0
    while True:
        follower = _Follower(known, synced)
        try:
            child = await _start(paths, options or InventoryOptions(), may_fail=not synced)
        except OSError as error:
            # No process, no memory, no descriptor left: at the next try there may be.
            end = f"could not be started ({os.strerror(error.errno or 0)})"
        else:
            try:
                async for change in follower.follow(child):
                    yield change
            finally:
                status = await _stop(child)
            end = _ended(status)
        if not synced and not follower.synced:
            if follower.refused:
                raise ConfigError(follower.refused)
            raise KdnsError(f"the process that reads the inventory {end} before it had read it")
        # What it has told stays good; the next one tells all again, and what is gone by then.
        synced, failures = True, 0 if follower.synced else failures + 1
        pause = RESTART_SECONDS[min(failures, len(RESTART_SECONDS) - 1)]
        hint = f"it starts again in {pause:g} s; until then changes to the files are not seen"
        ended = Problem(f"the process that reads the inventory {end}", hint=hint)
        yield Report([ended], loaded=False, verdict="what it had read is still served")
        await asyncio.sleep(pause)


class _Follower:
    """Turns what one child says into changes, whatever an earlier child has said before."""

    def __init__(self, known: set[Key], synced_before: bool) -> None:
        self.known = known
        self.synced_before = synced_before
        self.synced = False
        self.seen: set[Key] = set()
        self.refused: list[Problem] = []

    async def follow(self, child: asyncio.subprocess.Process) -> AsyncIterator[Change]:
        assert child.stdout is not None
        while True:
            try:
                size = int.from_bytes(await child.stdout.readexactly(4), "big")
                change = _FRAME.decode(await child.stdout.readexactly(size))
            except asyncio.IncompleteReadError:
                return
            if isinstance(change, Reminder):
                log.error("%s", change.text)
            elif isinstance(change, Report):
                self.refused = [] if change.loaded else change.problems
                yield change
            else:
                for batch in self.noted(change):
                    yield batch
                    _settle()
            # Frames that wait in the buffer are read without a pause; queries are to have theirs.
            await asyncio.sleep(0)

    def noted(self, batch: Batch) -> Iterator[Batch]:
        if self.synced:
            self.note(batch.events)
            yield batch
            return
        for event in batch.events:
            if isinstance(event, Put):
                self.seen.add(key_of(event.object))
                self.known.add(key_of(event.object))
        if not any(isinstance(event, Synced) for event in batch.events):
            yield batch
            return
        self.synced = True
        if not self.synced_before:
            yield batch
            return
        # Told again after a crash: whoever listens was synced long ago, and does not know yet what went meanwhile.
        yield Batch([event for event in batch.events if not isinstance(event, Synced)])
        gone = sorted(self.known - self.seen, key=_delete_order)
        self.known.difference_update(gone)
        for some in _chunks(gone, BATCH_EVENTS):
            yield Batch([Delete(*key) for key in some])

    def note(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Put):
                self.known.add(key_of(event.object))
            elif isinstance(event, Delete):
                self.known.discard((event.kind, event.namespace, event.name))


def _settle() -> None:
    """Takes what a batch left behind out of the garbage collector's sight.

    A full collection over 10,000 services stops the process for 90 ms. What is frozen is still freed once nothing
    refers to it; and as little is left to look at, the collection that frees the rest costs less than 1 ms.
    """
    gc.collect()
    gc.freeze()


_FRAME: msgspec.msgpack.Decoder[Change | Reminder] = msgspec.msgpack.Decoder(Change | Reminder)


async def _start(paths: Sequence[str], options: InventoryOptions, may_fail: bool) -> asyncio.subprocess.Process:
    order = msgspec.json.encode(_Order(list(paths), options, may_fail)).decode()
    # The child has to find the same kdns, and nothing that happens to lie in the working directory (-P).
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "kdns.kubernetes.inventory",
        order,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )


async def _stop(child: asyncio.subprocess.Process) -> int:
    """Ends the child, which is asked by closing its stdin and has nothing to lose."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.close()
    try:
        async with asyncio.timeout(1.0):
            # Some versions of asyncio know of the end only once the pipe was read to its own.
            while await child.stdout.read(BATCH_BYTES):
                pass
            return await child.wait()
    except TimeoutError:
        child.kill()
        return await child.wait()
    except asyncio.CancelledError:
        child.kill()
        raise


def _ended(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _chunks(keys: list[Key], size: int) -> Iterator[list[Key]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


# Loading


class _Source(NamedTuple):
    """Where a manifest stands."""

    file: str
    piece: yamltext.Piece
    path: FieldPath


class _Loader:
    """Loads the same paths again and again; what was parsed for one load serves the next."""

    def __init__(self, paths: Sequence[str], options: InventoryOptions) -> None:
        self.paths = paths
        self.options = options
        self.reader = Reader()
        self.sources: dict[Key, _Source] = {}
        self.marked: tuple[yamltext.Piece, yamltext.Marks] | None = None
        self.held: set[str] = set()

    def load(self) -> Inventory:
        """Raises ConfigError with every mistake and warning; the next call begins afresh."""
        problems = _check_options(self.options)
        usable = not problems
        files, about_paths = find_files(self.paths)
        problems += about_paths
        manifests: dict[Key, Manifest] = {}
        workloads: list[Workload] = []
        passed_over: Counter[str] = Counter()
        held: set[str] = set()
        self.sources = {}
        for file, named in files.items():
            for piece, parsed in self.read(file, named, problems):
                problems += [moved(problem, piece, file) for problem in parsed.problems]
                workloads += parsed.workloads
                passed_over += parsed.passed_over
                for located in parsed.manifests:
                    held.add(file)
                    self.add(manifests, located, _Source(file, piece, located.path), problems)
        self.reader.forget_unread()
        mistakes = [problem for problem in problems if not problem.warning]
        if not manifests and not mistakes:
            problems.append(_nothing_in(self.paths, passed_over))
        completed = Completed({}, [], [])
        if usable:
            completed = complete(manifests.values(), self.options, workloads, self.locate)
        problems += completed.problems
        # Where a Pod may be missing for a mistake, "no Pod matches" might be wrong.
        if all(problem.subject.startswith("Service ") for problem in mistakes):
            problems += completed.warnings
        self.clear()
        order = {file: position for position, file in enumerate(files)}
        problems.sort(key=lambda problem: _reading_order(problem, order))
        if any(not problem.warning for problem in problems):
            raise ConfigError(problems)
        self.held = held
        counts = Counter(kind for kind, _, _ in manifests)
        return Inventory(completed.objects, dict(counts), dict(passed_over), list(files), problems)

    def read(self, file: str, named: bool, problems: list[Problem]) -> list[Part]:
        """What is in a file. Nothing for Kubernetes is a mistake in one that was named, or had objects until now."""
        text = _text_of(file)
        if isinstance(text, Problem):
            problems.append(text)
            return []
        parts: list[Part] = []
        if text.strip():
            parts = self.reader.read(text, file.lower().endswith(".json"))
            foreign = [moved(problem, piece, file) for piece, parsed in parts for problem in parsed.foreign]
        else:
            foreign = [
                Problem("the file is empty", Place(file), hint="a manifest begins with `apiVersion:` and `kind:`")
            ]
        emptied = file in self.held and not any(parsed.manifests for _, parsed in parts)
        problems += foreign if named or emptied else [_passed_over(problem) for problem in foreign]
        return parts

    def clear(self) -> None:
        """Lets go of the texts: only their objects are needed from here on."""
        self.sources, self.marked = {}, None

    def add(self, manifests: dict[Key, Manifest], found: Located, source: _Source, problems: list[Problem]) -> None:
        key = key_of(found.manifest)
        if not key[2]:
            return
        first = self.sources.setdefault(key, source)
        if first is source:
            if found.sound:
                manifests[key] = found.manifest
            return
        place = self.place(first, ("metadata", "name"))
        there = f"{place.file}:{place.line}" if place and place.line else first.file
        problems.append(
            Problem(
                f"a second {subject(key)}",
                self.place(source, ("metadata", "name")),
                subject(key, "metadata.name"),
                f"one object of a kind, namespace and name; the first is at {there}",
            )
        )

    def locate(self, key: Key, path: FieldPath) -> Place | None:
        """The place of a field, for what the controller has to say."""
        source = self.sources.get(key)
        if source is None:
            return None
        if len(source.piece.text) > SEARCHED_BYTES:
            return Place(source.file)
        return self.place(source, path)

    def place(self, source: _Source, path: FieldPath) -> Place | None:
        if self.marked is None or self.marked[0] is not source.piece:
            self.marked = (source.piece, yamltext.Marks(source.piece.text))
        spot = self.marked[1].find((*source.path, *path))
        return in_file(spot, source.piece, source.file) if spot else Place(source.file)


def _reading_order(problem: Problem, files: Mapping[str, int]) -> tuple[int, int, int]:
    """As the mistakes stand in the files; what is in none comes first."""
    place = problem.place
    return (files.get(place.file, -1), place.line, place.column) if place else (-1, 0, 0)


def _check_options(options: InventoryOptions) -> list[Problem]:
    problems = []
    for cidr in options.service_cidrs:
        try:
            size = ipaddress.ip_network(cidr).num_addresses
        except ValueError as error:
            problems.append(Problem(f"`service_cidr` takes a range, and {error}", hint="e.g. `10.96.0.0/12`"))
            continue
        if size < SMALLEST_RANGE:
            message = f"`service_cidr`: the range {cidr} is too small"
            problems.append(
                Problem(message, expected=f"at least {SMALLEST_RANGE} addresses", hint="e.g. `10.96.0.0/12`")
            )
    return problems


def find_files(paths: Sequence[str]) -> tuple[dict[str, bool], list[Problem]]:
    """The files that the paths mean, each once and whether it was named, and what there is to say about other paths."""
    files: dict[str, tuple[str, bool]] = {}
    problems = []
    for path in paths:
        named = Path(path).exists() and not Path(path).is_dir()
        found = [path] if named else list(_files_in(path))
        if not found:
            problems.append(_no_file(path))
        for file in found:
            if Path(file).is_file():
                real = os.path.realpath(file)
                first, before = files.get(real, (file, False))
                files[real] = (first, named or before)
            else:
                problems.append(_irregular(file, named))
    return dict(files.values()), problems


def _files_in(path: str) -> Iterator[str]:
    """What looks like a manifest in a folder, or what a pattern matches."""
    if Path(path).is_dir():
        for folder, files in _folders_in(path):
            yield from (str(Path(folder, name)) for name in sorted(files) if _may_be_manifest(name))
    elif glob.has_magic(path):
        yield from (match for match in sorted(glob.glob(path, recursive=True)) if not Path(match).is_dir())  # noqa: PTH207


def _may_be_manifest(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _folders_in(path: str) -> Iterator[tuple[str, list[str]]]:
    """The folder and those in it, each with the names of its files.

    Hidden folders are left out: a ConfigMap's files are links into its hidden `..data`.
    """
    seen = set()
    for folder, names, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        # A link to a folder above would be followed without end.
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield folder, files


def _no_file(path: str) -> Problem:
    if Path(path).is_dir():
        return Problem("a folder without manifests", Place(path), expected="files that end in .yaml, .yml or .json")
    if glob.has_magic(path):
        return Problem(f"no file matches `{path}`", hint="quotes keep a shell from matching the pattern first")
    parent = Path(path).parent
    entries = list(parent.iterdir()) if parent.is_dir() and os.access(parent, os.R_OK) else []
    likely = [entry.name for entry in entries if _may_be_manifest(entry.name) or entry.is_dir()]
    near = nearest(Path(path).name, [name for name in likely if not name.startswith(".")])
    return Problem(
        f"there is no file or folder `{path}`",
        hint=f"was `{parent / near}` meant?" if near else f"it is looked for in {parent.resolve()}",
    )


def _irregular(file: str, named: bool) -> Problem:
    what = "a link to nothing" if Path(file).is_symlink() and not Path(file).exists() else "neither a file nor a folder"
    hint = "what changes is read again, and that takes a file"
    return Problem(what, Place(file), hint=hint) if named else _passed_over(Problem(what, Place(file)))


def _passed_over(problem: Problem) -> Problem:
    return msgspec.structs.replace(problem, hint="it is passed over", warning=True)


def _text_of(file: str) -> str | Problem:
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        return Problem(f"can't read the file: {(error.strerror or str(error)).lower()}", Place(file))
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return Problem("the file is in UTF-16", Place(file), expected="UTF-8")
        line = data.count(b"\n", 0, error.start)
        column = len(data[data.rfind(b"\n", 0, error.start) + 1 : error.start].decode(errors="replace"))
        return Problem(
            f"the byte 0x{data[error.start]:02x} is not UTF-8",
            Place(file, line + 1, column + 1),
            expected="text in UTF-8",
            hint="is this a text file?" if b"\0" in data[:4096] else "save it as UTF-8",
        )
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _nothing_in(paths: Sequence[str], passed_over: Mapping[str, int]) -> Problem:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(passed_over.items()))
    return Problem(
        f"no object for DNS in {paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else ""),
        expected="a Namespace, Service, Pod, EndpointSlice or Endpoints" + (f"; there is {kinds}" if kinds else ""),
    )


# The child: loads, watches, and writes changes to its stdout, each behind its length in 4 bytes.


class _Order(msgspec.Struct):
    paths: list[str]
    options: InventoryOptions
    may_fail: bool


class _RawBatch(msgspec.Struct, tag="Batch"):
    events: list[msgspec.Raw]


class _Teller:
    """Sends what differs from what it has sent before."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.encoder = msgspec.msgpack.Encoder()
        self.sent: dict[Key, Object] | None = None

    def tell(self, inventory: Inventory) -> None:
        sent = self.sent if self.sent is not None else {}
        first = self.sent is None
        events = difference(sent, inventory.objects)
        self.send_events(itertools.chain(events, [Synced()] if first else []))
        self.sent = inventory.objects
        self.report(inventory.warnings, True, inventory.counts, inventory.passed_over)

    def report(
        self,
        problems: Sequence[Problem],
        loaded: bool,
        counts: dict[str, int] | None = None,
        passed_over: dict[str, int] | None = None,
    ) -> None:
        some = sorted(problems, key=lambda problem: problem.warning)[:REPORTED_PROBLEMS]
        if len(problems) > len(some):
            more = f"and {len(problems) - len(some)} more of them"
            some.append(Problem(more, hint="`kdns check` shows all", warning=loaded))
        self.send(self.encoder.encode(Report(some, loaded, counts or {}, passed_over or {})))

    def remind(self, text: str) -> None:
        self.send(self.encoder.encode(Reminder(text)))

    def send_events(self, events: Iterable[Event]) -> None:
        waiting: list[msgspec.Raw] = []
        size = 0
        for event in events:
            raw = self.encoder.encode(event)
            if waiting and (size + len(raw) > BATCH_BYTES or len(waiting) >= BATCH_EVENTS):
                self.send(self.encoder.encode(_RawBatch(waiting)))
                waiting, size = [], 0
            waiting.append(msgspec.Raw(raw))
            size += len(raw)
        if waiting:
            self.send(self.encoder.encode(_RawBatch(waiting)))

    def send(self, frame: bytes) -> None:
        self.out.write(len(frame).to_bytes(4, "big") + frame)
        self.out.flush()


def difference(before: Mapping[Key, Object], after: Mapping[Key, Object]) -> Iterator[Event]:
    """The events that lead from one state to another: what is new or changed from the top down, then what is gone."""
    changed = [key for key, thing in after.items() if (old := before.get(key)) is not thing and old != thing]
    for key in sorted(changed, key=lambda key: (ORDER[key[0]], key)):
        yield Put(after[key])
    for key in sorted(before.keys() - after.keys(), key=_delete_order):
        yield Delete(*key)


def _delete_order(key: Key) -> tuple[int, Key]:
    """What is in a namespace goes before the namespace."""
    return (-ORDER[key[0]], key)


class _Watcher:
    """Waits until a file of the inventory is another."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def stamp(self) -> dict[str, FileStamp | None]:
        """Every file of the inventory and what would change with its content."""
        return {file: _file_stamp(file) for file in find_files(self.paths)[0]}

    def wait(self, seen: Mapping[str, FileStamp | None], seconds: float = math.inf) -> dict[str, FileStamp | None]:
        """The stamp that is not the one seen any more, or the same so many seconds later."""
        end = time.monotonic() + seconds
        while True:
            folders = self.folders()
            for _ in _wakeups(list(folders)):
                found = self.stamp()
                if found != seen or time.monotonic() > end:
                    return found
                # Another folder under the same name isn't watched yet.
                if self.folders() != folders:
                    break

    def folders(self) -> dict[str, FileStamp]:
        """The folders in which a change may matter: the paths' own, and those that links lead to."""
        found: set[str] = set()
        for path in self.paths:
            if Path(path).is_dir():
                found.update(folder for folder, _ in _folders_in(path))
            else:
                found.add(str(Path(path.split("*")[0].split("?")[0].split("[")[0] + "x").parent))
        for file in find_files(self.paths)[0]:
            found.add(str(Path(file).parent))
            found.add(str(Path(os.path.realpath(file)).parent))
        return {
            folder: (each.st_ino, each.st_dev, 0) for folder in sorted(found) if (each := _stat(folder)) is not None
        }


def _wakeups(folders: list[str]) -> Iterator[None]:
    """Yields when something happened in the folders, and each second in case nobody told."""
    from watchfiles import watch as watch_folders

    try:
        # The first look is at once: something may have happened before the watch began.
        for _ in itertools.chain(
            [None],
            watch_folders(
                *folders,
                watch_filter=None,
                step=DEBOUNCE_MILLISECONDS,
                debounce=10 * DEBOUNCE_MILLISECONDS,
                rust_timeout=int(POLL_SECONDS * 1000),
                yield_on_timeout=True,
                recursive=False,
            ),
        ):
            yield None
    except (OSError, RuntimeError):
        # No inotify left, or a folder gone: the look each second has to do.
        time.sleep(POLL_SECONDS)
        yield None


def _stat(path: str) -> os.stat_result | None:
    try:
        return Path(path).stat()
    except OSError:
        return None


def _file_stamp(file: str) -> FileStamp | None:
    found = _stat(file)
    return (found.st_ino, found.st_size, found.st_mtime_ns) if found else None


def _attempt(loader: _Loader, watcher: _Watcher) -> tuple[Inventory | ConfigError, dict[str, FileStamp | None]]:
    """A load of files that did not change meanwhile; a mistake counts once it has lasted."""
    began = time.monotonic()
    patience = began + SETTLE_SECONDS
    while True:
        stamp = watcher.stamp()
        result: Inventory | ConfigError
        try:
            result = loader.load()
        except ConfigError as error:
            result = error
        # Files that never rest are served all the same; the next load puts right what this one saw by halves.
        if watcher.stamp() != stamp and time.monotonic() - began < UNREST_SECONDS:
            continue
        if isinstance(result, Inventory) or time.monotonic() > patience:
            return result, stamp
        while watcher.stamp() == stamp and time.monotonic() <= patience:
            time.sleep(SETTLE_SECONDS / 10)
        if watcher.stamp() == stamp:
            return result, stamp


def _follow_files(order: _Order, out: BinaryIO) -> int:
    teller, watcher = _Teller(out), _Watcher(order.paths)
    loader = _Loader(order.paths, order.options)
    stamp = watcher.stamp()
    result: Inventory | ConfigError
    try:
        result = loader.load()
    except ConfigError as error:
        if order.may_fail:
            teller.report(error.problems, loaded=False)
            return 1
        result = error
    good_at = time.monotonic()
    while True:
        if isinstance(result, Inventory):
            teller.tell(result)
            watcher.wait(stamp)
            good_at = time.monotonic()
        else:
            teller.report(result.problems, loaded=False)
            while watcher.wait(stamp, REMINDER_SECONDS) == stamp:
                teller.remind(reminder(result, time.monotonic() - good_at))
        result, stamp = _attempt(loader, watcher)


def reminder(error: ConfigError, seconds: float) -> str:
    """One sentence on an inventory that has been broken for so long."""
    mistakes = [problem for problem in error.problems if not problem.warning]
    first = mistakes[0]
    where = f"{first.place.file}:{first.place.line}: " if first.place else ""
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes, the first is"
    return (
        f"for {seconds / 60:.0f} min the inventory has had {count}: {where}{first.message}; the last good one is served"
    )


def _end_with_parent() -> None:
    """Nobody writes to stdin; its end is the parent's."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> int:
    """The child's life; the order comes as JSON in the first argument."""
    # Ctrl-C reaches the whole foreground group; the parent decides when this ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Where both want the processor, a query goes before a file.
    os.nice(5)
    # Nothing but frames may reach the parent: what else is printed goes to stderr.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        if stat.S_ISFIFO(os.fstat(0).st_mode) or stat.S_ISSOCK(os.fstat(0).st_mode):
            threading.Thread(target=_end_with_parent, daemon=True).start()
        try:
            return _follow_files(msgspec.json.decode(sys.argv[1], type=_Order), out)
        except BrokenPipeError:
            return 0


if __name__ == "__main__":
    # Without the interpreter's own clean-up, which would flush a broken pipe and wait for the thread on stdin.
    os._exit(main())
