"""Builds the image without a container engine, and starts it as a pod would be started.

The base, Debian's slim image, can't be pulled everywhere; debootstrap makes a stand-in with the same packages.
All storage lies in one temporary folder, which is gone at the end.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import needs

PROJECT = Path(__file__).parents[2]
RELEASE = "bookworm"
# Where distributions keep the bundle of trusted authorities, after what the environment names.
BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


@dataclass(frozen=True)
class Image:
    """A built image: its file system, and what its configuration says about starting it."""

    root: Path
    user: str
    entrypoint: list[str]
    environment: dict[str, str]
    ports: set[str]


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    needs.root()
    needs.command("buildah", "debootstrap", "unshare", "nsenter", "ip", "chroot")
    storage = Path(tempfile.mkdtemp(prefix="kdns-image-"))
    buildah = Buildah(storage)
    try:
        make_base(buildah)
        buildah("bud", "--pull-never", "--isolation", "chroot", "--tag", "kdns", str(PROJECT))
        container = buildah("from", "--pull-never", "kdns")
        config = json.loads(buildah("inspect", "--type", "image", "kdns"))["OCIv1"]["config"]
        yield Image(
            root=Path(buildah("mount", container)),
            user=config["User"],
            entrypoint=config["Entrypoint"],
            environment=dict(variable.split("=", 1) for variable in config["Env"]),
            ports=set(config["ExposedPorts"]),
        )
    finally:
        buildah("umount", "--all")
        shutil.rmtree(storage)


class Buildah:
    """The command, on storage of its own; vfs, because overlays don't nest in CI's containers."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage

    def __call__(self, *arguments: str) -> str:
        where = ["--storage-driver", "vfs", "--root", f"{self.storage}/root", "--runroot", f"{self.storage}/run"]
        # Layers pass through TMPDIR; a path there must not outlive the storage.
        environment = {**os.environ, "TMPDIR": str(self.storage)}
        return run(["buildah", *where, *arguments], environment)


def make_base(buildah: Buildah) -> None:
    """A stand-in for Debian's slim image, in which apt and pip reach what this machine reaches."""
    container = buildah("from", "scratch")
    root = Path(buildah("mount", container))
    debootstrap = [needs.command("debootstrap"), "--variant=minbase", RELEASE, str(root)]
    run([*debootstrap, *mirror()])
    bundle = next((path for path in bundles() if Path(path).is_file()), None)
    settings = pip_settings()
    if bundle is not None:
        # A file of its own: installing ca-certificates writes the usual one anew.
        shutil.copy(bundle, root / "etc/stand-in.pem")
        settings["cert"] = "/etc/stand-in.pem"
    (root / "etc/pip.conf").write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    (root / "etc/apt/apt.conf.d/stand-in").write_text(apt_settings())
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
    buildah("config", "--cmd", "bash", container)
    buildah("commit", "--rm", container, f"debian:{RELEASE}-slim")


def mirror() -> list[str]:
    """The mirror that this machine's apt has for the release; none on another system, where debootstrap knows one."""
    if shutil.which("apt-get") is None:
        return []
    lines = run(["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"])
    found = [line.split()[2] for line in lines.splitlines() if line.startswith(f"{RELEASE} main ")]
    return found[:1]


def bundles() -> list[str]:
    named = (os.environ.get(name) for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"))
    return [path for path in named if path] + list(BUNDLES)


def pip_settings() -> dict[str, str]:
    """How this machine's pip finds packages, from its files and its environment; the environment wins, as in pip."""
    settings = {}
    pip = shutil.which("pip") or shutil.which("pip3")
    lines = run([pip, "config", "list"]).splitlines() if pip else []
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in {"index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout"}:
            settings[key.removeprefix("default-")] = value.strip("'\"").replace("\\n", "\n    ")
    return settings


def apt_settings() -> str:
    """The proxies of this machine's apt."""
    if shutil.which("apt-config") is None:
        return ""
    dump = run(["apt-config", "dump", "Acquire"])
    return "".join(f"{line}\n" for line in dump.splitlines() if "::Proxy " in line)


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Run to the end and return its output; a failure shows the last of all that it said."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-4000:]
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{said}", pytrace=False)
    return done.stdout.strip()
