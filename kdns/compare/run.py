"""What `kdns compare` does: its options to two servers and questions, and these to a report."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from kdns import corefile, dump, serve
from kdns.compare import questions
from kdns.compare.asking import Gently, InProcess, Remote, Server, client_of, in_process, own_addresses_of
from kdns.compare.comparison import Comparison, Progress, Report
from kdns.compare.known import truth_of
from kdns.compare.questions import Asked
from kdns.corefile import Corefile, Directive, Token, normalize_zone, read_text
from kdns.errors import ConfigError, Problem
from kdns.kubernetes.cluster import Cluster
from kdns.kubernetes.objects import Object
from kdns.upstream.destinations import upstream_at
from kdns.upstream.sockets import Upstream
from kdns.wire import names

OPTIONS = "options of `kdns compare`"
# What says where a `kubernetes` directive reads its cluster, or writes it down. The questions are made of the same one.
_SOURCES = ("inventory", "service_cidr", "cluster_ips", "kubeconfig", "endpoint", "tls", "snapshot")


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `kdns compare`, as they were given. Without `server`, kdns answers in this process."""

    against: str
    server: str = ""
    inventory: tuple[str, ...] = ()
    kubeconfig: str = ""
    context: str = ""
    corefile: str = ""
    questions: str = ""
    zone: str = "cluster.local"
    service_cidr: tuple[str, ...] = ()
    sample: int | None = None
    gently: Gently = Gently()


def run(wish: Wish, progress: Progress) -> Report:
    """Compare. Raises KdnsError."""
    there = _upstream("--against", wish.against)
    here = _upstream("--server", wish.server) if wish.server else None
    zone = _zone(wish.zone)
    objects = _objects(wish)
    truth = truth_of(objects)
    # Of what is asked by chance it is the same each time, so that two runs can be compared.
    asked = questions.of_cluster(truth.cluster, zone, random.Random(0), wish.sample) if objects else []
    asked = list(dict.fromkeys([*asked, *_of_file(wish.questions)]))
    if not asked:
        raise ConfigError([Problem(f"there is no question in `--questions {wish.questions}`")])

    async def compare() -> Report:
        async with _remote(there, wish.gently) as incumbent, _kdns(wish, here, incumbent, zone, truth.cluster) as kdns:
            hidden = truth.cluster.namespaces - kdns.shown if isinstance(kdns, InProcess) else frozenset()
            known = msgspec.structs.replace(truth, hidden=frozenset(hidden))
            return await Comparison(incumbent, kdns, known, zone, wish.gently.at_once).run(asked, progress)

    return asyncio.run(compare())


def _upstream(option: str, text: str) -> Upstream:
    found = upstream_at(text)
    if found is None:
        raise ConfigError([Problem(f"`{option} {text}` is no address", expected="IP, IP:PORT or [IPv6]:PORT")])
    return found


def _zone(text: str) -> bytes:
    try:
        return names.from_text(normalize_zone(text)[0])
    except ValueError as error:
        raise ConfigError([Problem(f"`--zone`: {error}")]) from error


def _objects(wish: Wish) -> list[Object]:
    """What the cluster has whose names are asked for; nothing where only a file says what to ask."""
    if wish.kubeconfig:
        return dump.of_cluster(wish.kubeconfig, wish.context)
    if wish.inventory:
        return dump.of_inventory(wish.inventory, serve.inventory_options(wish.service_cidr, "allocate"))
    return []


def _of_file(path: str) -> list[Asked]:
    if not path:
        return []
    try:
        return questions.of_file(path, read_text(path))
    except OSError as error:
        raise ConfigError([Problem(f"`--questions {path}`: {(error.strerror or str(error)).lower()}")]) from error


@asynccontextmanager
async def _remote(upstream: Upstream, gently: Gently) -> AsyncIterator[Remote]:
    remote = Remote(upstream, gently)
    try:
        yield remote
    finally:
        remote.close()


@asynccontextmanager
async def _kdns(
    wish: Wish, here: Upstream | None, incumbent: Remote, zone: bytes, cluster: Cluster
) -> AsyncIterator[Server]:
    if here is not None:
        async with _remote(here, wish.gently) as remote:
            yield remote
        return
    # As if it stood in its place: the name servers of the zone are the services that the server is an endpoint of, and
    # what depends on the client, such as `acl`, decides alike.
    own = await own_addresses_of(incumbent, zone, cluster)
    async with in_process(_corefile(wish), own, client_of(incumbent.upstream)) as server:
        yield server


def _corefile(wish: Wish) -> Corefile:
    if not wish.corefile:
        options = serve.Wish(
            wish.inventory, wish.kubeconfig, wish.context, zone=wish.zone, service_cidr=wish.service_cidr
        )
        return corefile.parse(serve.corefile_text(options), OPTIONS)
    parsed = corefile.load(wish.corefile)
    blocks = [
        msgspec.structs.replace(block, directives=[_reading(each, wish) for each in block.directives])
        for block in parsed.blocks
    ]
    return msgspec.structs.replace(parsed, blocks=blocks)


def _reading(directive: Directive, wish: Wish) -> Directive:
    """A `kubernetes` directive that reads what the options name, instead of the cluster that it runs in."""
    if directive.name.text != "kubernetes":
        return directive
    body = [line for line in directive.body or () if line.name.text not in _SOURCES]
    if wish.kubeconfig:
        body.append(_line("kubeconfig", wish.kubeconfig, *([wish.context] if wish.context else [])))
    else:
        body.append(_line("inventory", *wish.inventory))
    if wish.service_cidr:
        body.append(_line("service_cidr", *wish.service_cidr))
    return msgspec.structs.replace(directive, body=body)


def _line(*words: str) -> Directive:
    name, *arguments = (Token(word, OPTIONS) for word in words)
    return Directive(name, arguments)
