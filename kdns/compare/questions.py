"""What to ask two servers of a cluster so that all its names have been asked for, and some that it doesn't have.

Pure: the model of a cluster in, questions out. Law for the kinds of names: kubernetes/dns, docs/specification.md 1.1.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import TypeVar

import msgspec

from kdns.errors import ConfigError, Place, Problem
from kdns.kubernetes.cluster import Cluster, Kind, ServiceModel, dashed
from kdns.kubernetes.schema import View, reverse_address, reverse_name, zone_names
from kdns.wire import names
from kdns.wire.records import Type, type_from_text, type_to_text

T = TypeVar("T")

# Of what is asked beyond each name's own records, and of what isn't there, so many of each kind.
SAMPLE = 20
_ADDRESSES = (Type.A, Type.AAAA)
_ODD = (Type.TXT, Type.MX, Type.NS, Type.SOA, Type.CNAME, Type.HTTPS, Type.ANY)
_REVERSE = ([b"in-addr", b"arpa"], [b"ip6", b"arpa"])


class Asked(msgspec.Struct, frozen=True):
    """A question of both servers: a name in wire form and a type."""

    name: bytes
    rtype: int

    def __str__(self) -> str:
        return f"{names.to_text(self.name)} {type_to_text(self.rtype)}"


class Shape(msgspec.Struct, frozen=True):
    """What a name is by its form: `kind` for people, `left` its folded labels left of the zone.

    A reverse name has its address, packed, where it spells one.
    """

    kind: str
    left: tuple[bytes, ...] = ()
    address: bytes | None = None


def shape_of(name: bytes, zone: bytes) -> Shape:
    """What a name would be in a cluster whose domain is `zone`."""
    labels, domain = names.labels_of(name.lower()), names.labels_of(zone.lower())
    if labels[-2:] in _REVERSE:
        return Shape("reverse name", tuple(labels[:-2]), reverse_address(labels))
    if labels[len(labels) - len(domain) :] != domain:
        return Shape("name outside")
    left = tuple(labels[: len(labels) - len(domain)])
    return Shape(_kind(left), left)


def _kind(left: tuple[bytes, ...]) -> str:
    match left:
        case ():
            return "zone"
        case (b"dns-version",):
            return "version"
        case (b"ns", b"dns"):
            return "name server"
        case (b"svc",) | (b"pod",):
            return "subtree"
        case (_, b"svc") | (_, b"pod"):
            return "namespace"
        case (_, _, b"svc"):
            return "service"
        case (_, _, _, b"svc"):
            return "endpoint"
        case (_, _, _, _, b"svc"):
            return "port"
        case (*_, _, _, b"pod"):
            return "pod"
        case _:
            return "other name"


def of_cluster(cluster: Cluster, zone: bytes, random: Random, most: int | None = None) -> list[Asked]:
    """Every name of the cluster, each once, then some that it doesn't have.

    With `most`, of so many services and so many pods by chance, if there are more.
    """
    chosen = _all(cluster) if most is None else _chosen(cluster, random, most)
    found = [*_of_names(cluster, zone, chosen), *_of_addresses(chosen), *_of_sample(cluster, zone, random)]
    return list(dict.fromkeys(found))


class _Chosen(msgspec.Struct, frozen=True):
    """What is asked for: services and pods by the labels of their names, as `web.shop.svc`, and packed addresses."""

    owners: set[tuple[bytes, ...]]
    addresses: set[bytes]


def _all(cluster: Cluster) -> _Chosen:
    return _Chosen(_owners(cluster.all_services(), cluster.all_pods()), cluster.known_addresses())


def _chosen(cluster: Cluster, random: Random, most: int) -> _Chosen:
    services = _some(list(cluster.all_services()), random, most)
    pods = _some(cluster.all_pods(), random, most)
    addresses = {address for each in services for address in each.addresses}
    addresses.update(ready.address for each in services for ready, _ in each.candidates())
    return _Chosen(_owners(services, pods), addresses)


def _owners(services: Iterable[ServiceModel], pods: Iterable[tuple[bytes, bytes]]) -> set[tuple[bytes, ...]]:
    found: set[tuple[bytes, ...]] = {(each.name, each.namespace, b"svc") for each in services}
    found.update((dashed(packed), namespace, b"pod") for namespace, packed in pods)
    return found


def of_file(path: str, text: str) -> list[Asked]:
    """The questions of a file, one a line as `NAME TYPE`; lines that begin with `#` are none. Raises ConfigError."""
    found: list[Asked] = []
    problems: list[Problem] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            name, rtype = words
            found.append(Asked(names.from_text(name), type_from_text(rtype)))
        except ValueError as error:
            place = Place(path, number, line.index(words[0]) + 1, len(line.strip()), line)
            why = str(error) if len(words) == 2 else "a question is a name and a type"
            problems.append(Problem(why, place, expected="NAME TYPE, such as `example.org AAAA`"))
    if problems:
        raise ConfigError(problems)
    return found


def _of_names(cluster: Cluster, zone: bytes, chosen: _Chosen) -> Iterator[Asked]:
    for left, types in zone_names(View(cluster, zone, pods="verified")):
        # Those of the zone itself have fewer labels.
        if len(left) >= 3 and tuple(left[-3:]) not in chosen.owners:
            continue
        yield from _each(left, zone, types)
        if types == (Type.CNAME,):
            # An ExternalName is asked for to be followed.
            yield from _each(left, zone, _ADDRESSES)


def _of_addresses(chosen: _Chosen) -> Iterator[Asked]:
    for packed in sorted(chosen.addresses, key=lambda each: (len(each), each)):
        yield Asked(reverse_name(packed), Type.PTR)


def _of_sample(cluster: Cluster, zone: bytes, random: Random) -> Iterator[Asked]:
    stranger = f"kdns-compare-{random.getrandbits(32):08x}".encode()
    spaces = sorted(cluster.namespaces)
    for left in ([], [b"svc"], [b"pod"], [b"ns", b"dns"], [b"dns-version"], [stranger], [b"dns"]):
        yield from _each(left, zone, (Type.A, *_ODD))
    yield Asked(_upper(zone), Type.NS)
    yield from _each([stranger, b"svc"], zone, _ADDRESSES)
    for space in _some(spaces, random):
        yield from _each([space, b"svc"], zone, (Type.A, *_ODD))
        yield from _each([space, b"pod"], zone, (Type.A,))
        yield from _each([stranger, space, b"svc"], zone, (*_ADDRESSES, Type.SRV, *_ODD))
        # What a search list makes of names of the world.
        yield from _each([b"www", b"example", b"com", space, b"svc"], zone, _ADDRESSES)
        yield from _each([b"192-0-2-1", space, b"pod"], zone, (*_ADDRESSES, Type.SRV))
        yield from _each([stranger, space, b"pod"], zone, _ADDRESSES)
    services = list(cluster.all_services())
    for kind in Kind:
        for service in _some([each for each in services if each.kind is kind], random):
            base = [service.name, service.namespace, b"svc"]
            yield from _each(base, zone, _ODD)
            yield Asked(_upper(_name(base, zone)), Type.A)
            yield from _each([stranger, *base], zone, (*_ADDRESSES, Type.SRV))
            yield from _each([b"_" + stranger[:14], b"_tcp", *base], zone, (Type.SRV,))
            yield from _each([b"_tcp", *base], zone, (Type.SRV,))
    for namespace, packed in _some(cluster.all_pods(), random):
        yield from _each([dashed(packed), namespace, b"pod"], zone, (Type.SRV, Type.TXT))
    addresses = cluster.known_addresses()
    for packed in _some(sorted(addresses), random):
        yield Asked(reverse_name(packed), Type.A)
        if (neighbour := _after(packed)) not in addresses:
            yield Asked(reverse_name(neighbour), Type.PTR)


def _each(left: Sequence[bytes], zone: bytes, types: Iterable[int]) -> Iterator[Asked]:
    try:
        name = _name(left, zone)
    except ValueError:
        # Longer than a message can hold: nobody can ask for it.
        return
    for rtype in types:
        yield Asked(name, rtype)


def _name(left: Sequence[bytes], zone: bytes) -> bytes:
    return names.from_labels([*left, *names.labels_of(zone)])


def _some(all: Sequence[T], random: Random, most: int = SAMPLE) -> Sequence[T]:
    return all if len(all) <= most else random.sample(all, most)


def _upper(name: bytes) -> bytes:
    # The length of a label is no letter's code, but upper() would find those in it that are.
    return names.from_labels([label.upper() for label in names.labels_of(name)])


def _after(packed: bytes) -> bytes:
    return ((int.from_bytes(packed, "big") + 1) % (1 << 8 * len(packed))).to_bytes(len(packed), "big")
