"""The variables that tell a process where services are, exactly as a kubelet gives them to the containers of a pod.

Pure, but for `of_cluster`: objects in, variables out.
Law: kubernetes 1.36, `getServiceEnvVarMap` of pkg/kubelet/kubelet_pods.go for the services that are told, and
`FromServices` of pkg/kubelet/envvars for what is told of each.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NoReturn

import msgspec

from kdns.addresses import host_and_port
from kdns.errors import ConfigError, KdnsError, Problem, nearest
from kdns.kubernetes.objects import Namespace, Object, Pod, Service

# The service of the API server, which each pod is told of wherever it lives (`masterServices` in the kubelet).
MASTER = ("default", "kubernetes")
# How long a cluster may take to be read.
READ_SECONDS = 60.0
# The same for namespace `default`, once the server has shown that it answers.
MASTER_SECONDS = 5.0

_SHELL_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
# Of what names and values are made in an API server that checks what it is given. Then no format needs quotes but that
# of a shell, and nobody who can write to a cluster writes lines of a script that a user evaluates.
_ALLOWED = re.compile(r"[A-Za-z0-9_./:\[\]-]+")


class Environment(msgspec.Struct, frozen=True):
    """Variables in the order in which services, by name, give them, and what is to be said about them."""

    variables: dict[str, str]
    warnings: list[Problem] = []


def of_namespace(objects: Sequence[Object], namespace: str, pod: str = "") -> Environment:
    """What any pod of a namespace is told, or one of them: it may have switched service links off.

    Raises ConfigError where there is no such namespace or pod.
    """
    spaces = [each.metadata.name for each in objects if isinstance(each, Namespace)]
    if namespace not in spaces:
        raise ConfigError([_missing("namespace", namespace, spaces)])
    links = True
    if pod:
        pods = {each.metadata.name: each for each in objects if isinstance(each, Pod) and _is_in(each, namespace)}
        if pod not in pods:
            raise ConfigError([_missing("pod", pod, list(pods), f" in `{namespace}`")])
        spec = pods[pod].spec
        # The API gives it the value true where nobody has said otherwise.
        links = spec is None or spec.enable_service_links is not False
    return of_services(told(objects, namespace, links))


def of_cluster(kubeconfig: str, context: str, namespace: str, pod: str = "") -> Environment:
    """The same of a live cluster, with no more rights than to read the namespace and `default`. Raises KdnsError.

    Who may not read `default` goes without its one service, and is told.
    """
    # Three times what an inventory needs in memory and time, so not for who has one.
    from kdns.kubernetes.api import Wanted
    from kdns.kubernetes.live import Server, read_once

    server = Server(kubeconfig, context)
    wanted = Wanted((namespace,), endpoints=False, pods=bool(pod))
    objects = asyncio.run(read_once(server, READ_SECONDS, wanted))
    warnings: list[Problem] = []
    if namespace != MASTER[0]:
        try:
            objects += asyncio.run(read_once(server, MASTER_SECONDS, Wanted((MASTER[0],), endpoints=False)))
        except KdnsError as error:
            warnings.append(Problem(f"the variables of `kubernetes` are missing: {error}", warning=True))
    found = of_namespace(objects, namespace, pod)
    return Environment(found.variables, [*found.warnings, *warnings])


def told(objects: Iterable[Object], namespace: str, links: bool) -> list[Service]:
    """The services that a pod of the namespace is told of, by name: with `links` all that have a ClusterIP.

    `kubernetes` of namespace `default` is always among them, unless the pod's own namespace has one of that name.
    """
    found: dict[str, Service] = {}
    for each in objects:
        if not isinstance(each, Service) or _address(each) is None:
            continue
        name = each.metadata.name
        if (each.metadata.namespace, name) == MASTER:
            found.setdefault(name, each)
        elif links and _is_in(each, namespace):
            found[name] = each
    return [service for _, service in sorted(found.items())]


def of_services(services: Iterable[Service]) -> Environment:
    """The variables of these services. Where two give one of the same name, the later one's holds.

    A service such as Kubernetes allows none gives no variables.
    """
    variables: dict[str, str] = {}
    given_by: dict[str, str] = {}
    warnings: list[Problem] = []
    for service in services:
        name = service.metadata.name
        given = dict(_variables(service))
        if not all(map(_ALLOWED.fullmatch, [*given, *given.values()])):
            warnings.append(Problem(f"{name!r} gives no variables: Kubernetes allows no such service", warning=True))
            continue
        for variable, value in given.items():
            before = given_by.get(variable)
            if before is not None and variables[variable] != value:
                warnings.append(_clash(variable, before, name))
            given_by[variable] = name
            variables[variable] = value
    return Environment(variables, warnings)


def _variables(service: Service) -> Iterator[tuple[str, str]]:
    address = _address(service) or ""
    prefix = _spelled(service.metadata.name)
    ports = service.spec.ports or []
    yield f"{prefix}_SERVICE_HOST", address
    for port in ports[:1]:
        yield f"{prefix}_SERVICE_PORT", str(port.port)
    for port in ports:
        if port.name:
            yield f"{prefix}_SERVICE_PORT_{_spelled(port.name)}", str(port.port)
    # What links between containers of Docker once gave.
    for number, port in enumerate(ports):
        protocol = port.transport.lower()
        url = f"{protocol}://{host_and_port(address, port.port)}"
        if number == 0:
            yield f"{prefix}_PORT", url
        of_port = f"{prefix}_PORT_{port.port}_{port.transport}"
        yield of_port, url
        yield f"{of_port}_PROTO", protocol
        yield f"{of_port}_PORT", str(port.port)
        yield f"{of_port}_ADDR", address


def _address(service: Service) -> str | None:
    """The first ClusterIP as it is written; None for a headless service, an ExternalName, one that waits for it."""
    address = next(iter(service.addresses), "")
    return None if address in ("", "None") else address


def _spelled(name: str) -> str:
    return name.upper().replace("-", "_")


def _is_in(object: Object, namespace: str) -> bool:
    return object.metadata.namespace == namespace


def _missing(kind: str, name: str, known: Sequence[str], where: str = "") -> Problem:
    meant = nearest(name, known)
    return Problem(f"there is no {kind} `{name}`{where}", hint=f"did you mean `{meant}`?" if meant else "")


def _clash(variable: str, before: str, name: str) -> Problem:
    return Problem(
        f"the services `{before}` and `{name}` both give `{variable}`; here it is that of `{name}`",
        hint="a kubelet takes either, by chance",
        warning=True,
    )


# How they are printed


def as_env(variables: Mapping[str, str]) -> Iterator[str]:
    """Lines as env(1) prints them, and as every reader of a .env file takes them; some know no quotes."""
    return (f"{name}={value}" for name, value in variables.items())


def as_export(variables: Mapping[str, str]) -> Iterator[str]:
    """Lines for a POSIX shell's `eval`. A name that no shell variable can have is a comment."""
    for name, value in variables.items():
        if _SHELL_NAME.fullmatch(name):
            yield f"export {name}={shlex.quote(value)}"
        else:
            yield f"# {name}={value} is no variable of a shell"


def as_json(variables: Mapping[str, str]) -> Iterator[str]:
    """One JSON object."""
    yield msgspec.json.format(msgspec.json.encode(dict(variables))).decode()


FORMATS: dict[str, Callable[[Mapping[str, str]], Iterator[str]]] = {
    "env": as_env,
    "export": as_export,
    "json": as_json,
    "dotenv": as_env,
}


def run(command: Sequence[str], variables: Mapping[str, str]) -> NoReturn:
    """Become this command, with the variables over those that are there. Raises OSError where it can't be started."""
    if not command[0]:
        # What execve(2) says of an empty path, and Python doesn't.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    # Python ignores these for itself; a program counts on finding them as they are by default.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execvpe(command[0], list(command), {**os.environ, **variables})
