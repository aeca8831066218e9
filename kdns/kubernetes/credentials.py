"""Who we are to an API server, and who it is to us: the files of a pod, a kubeconfig, or an endpoint with its files.

What is read says how to ask; it knows no requests. In a cluster two variables and three files are the whole
configuration. A kubeconfig comes through `kubernetes.aio`, imported only then, since that costs half a second.
Law: the API concepts of Kubernetes (bearer tokens that rotate), k8s.io/client-go (kubeconfig).
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from kdns.addresses import host_and_port
from kdns.errors import ConfigError, KdnsError, Problem

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

# What tells that a file is another one than before, though of the same name.
Stamps = tuple[tuple[int, int, int], ...]


class Credentials(msgspec.Struct, frozen=True):
    """What a request shows of us, and how it knows the server. `stamps` tell a changed file of the same name."""

    server: str
    token: str = ""
    headers: dict[str, str] = {}
    ca: bytes = b""
    certificate: str = ""
    key: str = ""
    verify: bool = True
    server_name: str = ""
    proxy: str = ""
    stamps: Stamps = ()

    @property
    def tls_identity(self) -> tuple[object, ...]:
        """Equal as long as the same TLS context does."""
        return (self.ca, self.certificate, self.key, self.verify, self.stamps)

    def tls(self) -> ssl.SSLContext | bool:
        """The TLS context. Raises KdnsError where a file is missing or none."""
        if not self.server.startswith("https:"):
            return False
        try:
            context = ssl.create_default_context(cadata=self.ca.decode() if self.ca else None)
        except (OSError, ValueError) as error:
            raise KdnsError(f"the API server's CA: {error}") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate:
            try:
                # Without a password a key that needs one would be asked for at the terminal, and all would wait.
                context.load_cert_chain(self.certificate, self.key or None, "")
            except OSError as error:
                files = f"{self.certificate} with its key {self.key}" if self.key else self.certificate
                raise KdnsError(f"the client certificate {files}: {error}") from error
        return context


# Reads the credentials as they are now; the argument says that the last ones were refused.
Source = Callable[[bool], Awaitable[Credentials]]


def in_cluster(environment: Mapping[str, str] = os.environ, folder: str = SERVICE_ACCOUNT) -> Source:
    """The credentials of a pod's service account. Raises ConfigError outside of a cluster."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        message = "not in a cluster: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set"
        hint = "outside of a cluster give `kubeconfig FILE`, `endpoint URL` or `inventory PATH`"
        raise ConfigError([Problem(message, hint=hint)])
    server = f"https://{host_and_port(host, port)}"
    token_file, ca_file = f"{folder}/token", f"{folder}/ca.crt"

    async def read(refused: bool) -> Credentials:
        # A few kilobytes of a tmpfs: quicker than a thread that would read them.
        return Credentials(server, token=_content(token_file).decode().strip(), ca=_content(ca_file))

    return read


def at_endpoint(url: str, certificate: str = "", key: str = "", ca: str = "") -> Source:
    """The credentials of `endpoint URL` and `tls CERT KEY CA`."""
    if "://" not in url:
        url = f"http://{url}"

    async def read(refused: bool) -> Credentials:
        authority = _content(ca) if ca else b""
        return Credentials(
            url.rstrip("/"), ca=authority, certificate=certificate, key=key, stamps=_stamps(certificate, key)
        )

    return read


def from_kubeconfig(path: str, context: str = "") -> Source:
    """The credentials of a kubeconfig, exec plugins and OIDC included; the source that it returns raises KdnsError."""
    return _Kubeconfig(path, context).read


class _Kubeconfig:
    """A kubeconfig and the files that it names, read again when one of them is another.

    A plugin that fetches tokens may take seconds and ask a person; it runs then, and when the last token was refused.
    """

    def __init__(self, path: str, context: str) -> None:
        self._path = path
        self._context = context
        self._files = [path]
        self._stamps: Stamps | None = None
        # Where a token is renewed by another, that is replaced, too, and what is read again in the file is the old one.
        self._content: Any = None
        self._credentials: Credentials | None = None

    async def read(self, refused: bool) -> Credentials:
        try:
            if self._stamps is None or self._stamps != _stamps(*self._files):
                self._load()
            credentials = None if refused else self._credentials
            if credentials is None:
                self._credentials = None
                credentials = self._credentials = await _of_content(self._content, self._context)
            return credentials
        except Exception as error:
            # The library raises its own, YAML's, OSError and what an exec plugin brings; to us they are one.
            raise KdnsError(f"kubeconfig {self._path}: {error}") from error

    def _load(self) -> None:
        self._credentials = self._stamps = None
        self._content = msgspec.yaml.decode(_content(self._path))
        self._files = [self._path, *_absolute_files(self._content, self._path)]
        # Before they are read: what changes meanwhile is found the next time.
        self._stamps = _stamps(*self._files)


# Where a kubeconfig names files, in its clusters and its users (k8s.io/client-go, tools/clientcmd/api/v1).
_FILES = ("certificate-authority", "client-certificate", "client-key", "tokenFile")


def _absolute_files(content: Any, path: str) -> list[str]:
    """The files that a kubeconfig names; their names are absolute in it from now on."""
    if not isinstance(content, dict):
        raise ValueError("there is no configuration in it")
    found, folder = [], Path(path).absolute().parent
    for entry in [*(content.get("clusters") or ()), *(content.get("users") or ())]:
        for inner in entry.values():
            for name in _FILES:
                if isinstance(inner, dict) and inner.get(name):
                    inner[name] = str(folder / inner[name])
                    found.append(inner[name])
    return found


async def _of_content(content: Any, context: str) -> Credentials:
    from kubernetes.aio import client as api
    from kubernetes.aio import config

    configuration = api.Configuration()
    await config.load_kube_config_from_dict(
        config_dict=content, context=context or None, client_configuration=configuration
    )
    token = str(configuration.api_key.get("BearerToken") or "")
    # The library has a name and a password there, too, as what is to be sent.
    headers = {"Authorization": token} if token.startswith("Basic ") else {}
    certificate, key = configuration.cert_file or "", configuration.key_file or ""
    return Credentials(
        str(configuration.host).rstrip("/"),
        token="" if headers else token.removeprefix("Bearer ").strip(),
        headers=headers,
        ca=_content(configuration.ssl_ca_cert) if configuration.ssl_ca_cert else b"",
        certificate=certificate,
        key=key,
        verify=bool(configuration.verify_ssl),
        server_name=getattr(configuration, "tls_server_name", None) or "",
        proxy=configuration.proxy or "",
        stamps=_stamps(certificate, key),
    )


def _content(path: str) -> bytes:
    return Path(path).read_bytes()


def _stamps(*paths: str) -> Stamps:
    """When the files changed last, their sizes and places; a missing one is told where it is read."""
    found = []
    for path in filter(None, paths):
        with contextlib.suppress(OSError):
            status = Path(path).stat()
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)
