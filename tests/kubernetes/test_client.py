"""Credentials of a kubeconfig: what of it is used, and that whatever changes on disk is found."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import msgspec
import pytest

from kdns.errors import KdnsError
from kdns.kubernetes.client import Client
from kdns.kubernetes.credentials import Credentials, at_endpoint, from_kubeconfig
from tests import needs
from tests.cluster.authority import Authority
from tests.faults.fake import Fake, api_server
from tests.faults.wire import Reply, Request
from tests.kubeconfig import Fields, write_kubeconfig

SERVER = "https://127.0.0.1:6443"


def replace(path: Path, text: str) -> None:
    """Replace a file in one step."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.rename(path)


def read(path: Path, *between: Callable[[], None]) -> list[Credentials]:
    """The credentials, and again after each step."""

    async def whole() -> list[Credentials]:
        source = from_kubeconfig(str(path))
        found = [await source(False)]
        for step in between:
            step()
            found.append(await source(False))
        return found

    return asyncio.run(whole())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A kubeconfig that names all the files that one can, by relative names, and these files."""
    authority = Authority(tmp_path / "authority")
    authority.client(tmp_path / "client.crt", tmp_path / "client.key", "kdns")
    (tmp_path / "ca.crt").write_text(authority.certificate.read_text())
    (tmp_path / "token").write_text("first")
    user = {"client-certificate": "client.crt", "client-key": "client.key", "tokenFile": "token"}
    write_kubeconfig(tmp_path / "kubeconfig", SERVER, user, {"certificate-authority": "ca.crt"})
    return tmp_path


def test_all_that_a_kubeconfig_names_is_used(folder: Path) -> None:
    (found,) = read(folder / "kubeconfig")
    assert msgspec.structs.replace(found, stamps=()) == Credentials(
        SERVER,
        token="first",
        ca=(folder / "ca.crt").read_bytes(),
        certificate=str(folder / "client.crt"),
        key=str(folder / "client.key"),
    )
    assert found.tls()


def test_files_that_have_not_changed_are_not_read_again(folder: Path) -> None:
    first, second = read(folder / "kubeconfig", lambda: None)
    assert first is second


@pytest.mark.parametrize("name", ["ca.crt", "client.crt", "client.key", "token", "kubeconfig"])
def test_each_file_is_read_again_when_it_is_another_one(folder: Path, name: str) -> None:
    file = folder / name
    change = {"kubeconfig": lambda: replace(file, file.read_text().replace("6443", "7443"))}
    first, second = read(folder / "kubeconfig", change.get(name, lambda: replace(file, f"{file.read_text()}\n")))
    if name == "kubeconfig":
        assert second.server == "https://127.0.0.1:7443"
    elif name == "token":
        assert (first.tls_identity, second.token) == (second.tls_identity, "first\n".strip())
        assert first is not second
    else:
        # Another TLS context is made of it.
        assert first.tls_identity != second.tls_identity


def test_a_file_that_is_replaced_by_one_of_the_same_size_and_time_is_read_again(folder: Path) -> None:
    token = folder / "token"

    def swap() -> None:
        times = token.stat()
        new = folder / "new"
        new.write_text("other")
        os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
        new.rename(token)

    assert [each.token for each in read(folder / "kubeconfig", swap)] == ["first", "other"]


def test_a_plugin_runs_once_until_its_token_is_refused(tmp_path: Path) -> None:
    runs, plugin = tmp_path / "runs", tmp_path / "plugin"
    credential = {"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": {"token": "x"}}
    plugin.write_text(f"#!{sys.executable}\nopen({str(runs)!r}, 'a').write('.')\nprint({json.dumps(credential)!r})\n")
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}}
    path = write_kubeconfig(tmp_path / "kubeconfig", SERVER, user)

    async def whole() -> None:
        source = from_kubeconfig(str(path))
        assert [(await source(refused)).token for refused in (False, False, True, False)] == ["x"] * 4

    asyncio.run(whole())
    assert runs.read_text() == ".."


class Issuer:
    """An OpenID provider that gives each refresh token once, as most do."""

    def __init__(self) -> None:
        self.given = 1
        self.refused = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        body = await reader.readexactly(int(length[1])) if length else b""
        status, content = 200, {"token_endpoint": f"{self.url}/token"}
        if head.startswith(b"POST"):
            if f"refresh_token=refresh-{self.given}" in body.decode():
                self.given += 1
                content = {"id_token": expired_token(self.given), "refresh_token": f"refresh-{self.given}"}
            else:
                self.refused += 1
                status = 400
        text = json.dumps(content).encode()
        headers = f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n"
        writer.write(f"{headers}Connection: close\r\n\r\n".encode() + text)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def expired_token(number: int) -> str:
    """Every reading renews it."""
    parts = ({"alg": "none"}, {"exp": 1, "number": number}, {})
    return ".".join(base64.urlsafe_b64encode(json.dumps(each).encode()).decode().rstrip("=") for each in parts)


# What kubernetes.aio uses of aiohttp.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_refresh_token_that_replaces_another_is_used_the_next_time(tmp_path: Path) -> None:
    async def whole() -> None:
        issuer = Issuer()
        server = await asyncio.start_server(issuer.serve, "127.0.0.1", 0)
        issuer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        config = {
            "client-id": "kdns",
            "client-secret": "secret",
            "idp-issuer-url": issuer.url,
            "id-token": expired_token(1),
            "refresh-token": "refresh-1",
        }
        user = {"auth-provider": {"name": "oidc", "config": config}}
        source = from_kubeconfig(str(write_kubeconfig(tmp_path / "kubeconfig", SERVER, user)))
        async with server:
            tokens = [(await source(refused)).token for refused in (False, False, True, True)]
        assert tokens == [expired_token(number) for number in (2, 2, 3, 4)]
        assert issuer.refused == 0

    asyncio.run(whole())


@pytest.mark.parametrize("content", ["", "7", "[]", "{", "clusters: 7", "clusters: [{name: a}]"])
def test_what_is_no_kubeconfig_is_told_by_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(content)
    with pytest.raises(KdnsError, match=f"kubeconfig {path}: "):
        read(path)


@pytest.mark.parametrize("wrong", ["client.crt", "client.key"])
@pytest.mark.parametrize("content", ["", "none", "encrypted"])
def test_a_certificate_or_key_that_cannot_be_used_is_told_by_its_name(folder: Path, wrong: str, content: str) -> None:
    (found,) = read(folder / "kubeconfig")
    if content == "none":
        (folder / wrong).unlink()
    elif content == "encrypted":
        # What is asked for at a terminal holds up everything.
        made = ["-in", folder / "client.key", "-aes256", "-passout", "pass:secret", "-out", folder / wrong]
        subprocess.run([needs.command("openssl"), "ec", *map(str, made)], check=True, capture_output=True)
    else:
        (folder / wrong).write_text(content)
    files = f"{folder}/client.crt with its key {folder}/client.key"
    with pytest.raises(KdnsError, match=f"^the client certificate {files}: "):
        found.tls()


def test_an_authority_that_is_none_is_told_as_such() -> None:
    with pytest.raises(KdnsError, match=r"^the API server's CA: "):
        Credentials(SERVER, ca=b"rubbish").tls()


def test_credentials_that_can_not_be_read_again_are_told_once_until_they_can(caplog: pytest.LogCaptureFixture) -> None:
    async def whole() -> None:
        times = count(0, 60)
        there = iter([True, False, False, True, False, False])
        async with api_server() as fake:

            async def source(refused: bool) -> Credentials:
                if not next(there):
                    raise OSError("the token is gone")
                return Credentials(fake.url)

            # Whenever it looks at the clock it is time to read them again.
            client = Client(source, lambda: next(times))
            for _ in range(6):
                await client.get("/version", {})
            await client.close()
        assert list(there) == []

    asyncio.run(whole())
    text = "the credentials for the API could not be read again: the token is gone"
    assert [record.getMessage() for record in caplog.records] == [text, text]


# What the server sees


def seen(tmp_path: Path, user: Fields, **cluster: object) -> Request:
    """A request with the credentials of a kubeconfig; `FAKE` in the cluster's fields is the server's URL."""

    async def whole() -> Request:
        async with api_server() as fake:
            fields = {name.replace("_", "-"): fake.url if value == "FAKE" else value for name, value in cluster.items()}
            server = str(fields.pop("server", fake.url))
            client = Client(from_kubeconfig(str(write_kubeconfig(tmp_path / "kubeconfig", server, user, fields))))
            try:
                await client.get("/version", {})
            finally:
                await client.close()
            return fake.requests[0]

    return asyncio.run(whole())


def test_a_token_is_shown_as_bearer(tmp_path: Path) -> None:
    assert seen(tmp_path, {"token": "x"}).headers["authorization"] == "Bearer x"


def test_a_name_and_a_password_are_shown_as_such(tmp_path: Path) -> None:
    expected = f"Basic {base64.b64encode(b'me:secret').decode()}"
    assert seen(tmp_path, {"username": "me", "password": "secret"}).headers["authorization"] == expected


def test_a_proxy_is_asked_where_the_kubeconfig_names_one(tmp_path: Path) -> None:
    request = seen(tmp_path, {"token": "x"}, server="http://api.invalid:8080", proxy_url="FAKE")
    assert request.headers["host"] == "api.invalid:8080"


def test_a_reply_may_be_slow_but_not_silent() -> None:
    def slow(request: Request, reply: Reply) -> Reply:
        async def pieces():  # type: ignore[no-untyped-def]
            for _ in range(10):
                yield b" "
                yield 0.05
            yield b"{}"

        return Reply(200, {"Content-Type": "application/json"}, stream=pieces())

    async def whole(fake: Fake) -> bytes:
        fake.on("", "", slow)
        client = Client(at_endpoint(fake.url))
        try:
            return await client.get("/version", {}, seconds=0.3)
        finally:
            await client.close()

    async def run() -> bytes:
        async with api_server() as fake:
            return await whole(fake)

    assert asyncio.run(run()).strip() == b"{}"
