"""What the servers are asked: one cluster as manifests, and for each kind of work a file of questions for dnsperf.

Everything follows from a seed, so that two runs ask the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Object = dict[str, Any]

DOMAIN = "cluster.local"
NAMESPACES, SERVICES, HEADLESS, ENDPOINTS = 50, 100, 10, 10
# So many names that no server knows, each asked once in a pass; a pass is longer than any table of answers.
STRANGERS = 400_000
SEED = 4711
# What the pods of one namespace look up, and how: their own services by the short name, those of other namespaces with
# the namespace, a few as far as `svc`, and names of the world. With the search list of a pod and its `ndots:5` this
# makes 55 % NXDOMAIN.
OWN, OTHERS, AS_FAR_AS_SVC, WORLD = 18, 12, 2, 8


class Work(NamedTuple):
    """One kind of load: what it is called, its questions, and dnsperf's options for it."""

    name: str
    text: str
    questions: Callable[[], Iterator[str]]
    options: tuple[str, ...] = ()
    # Queries a second; 0 is as many as the server answers with a hundred under way.
    rate: int = 0
    floor: bool = True
    quick: bool = True
    # Asked of the kdns that finds short names, and of no other.
    searching: bool = False
    # The work that asks for the same names in full: what this one is compared with, as no other server has it.
    in_full: str = ""


def namespace(number: int) -> str:
    return f"team-{number:02d}"


def service(number: int) -> str:
    return f"checkout-{number:03d}"


def headless(number: int) -> str:
    return f"database-{number:03d}"


def manifests() -> list[Object]:
    """The cluster: per namespace a hundred services with an address and ten headless ones of ten endpoints."""
    objects: list[Object] = []
    for one in range(NAMESPACES):
        objects.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace(one)}})
        for number in range(SERVICES):
            address = f"10.96.{one}.{number + 10}"
            objects.append(service_object(one, service(number), address))
        for number in range(HEADLESS):
            objects.append(service_object(one, headless(number), "None"))
            objects.append(slice_object(one, headless(number), endpoints(one, number)))
    return objects


def service_object(one: int, name: str, address: str) -> Object:
    """A Service in the namespace of that number; `address` is its ClusterIP, or None as the API spells it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace(one)},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    }


def pod_object(one: int, name: str, address: str) -> Object:
    """A Pod in the namespace of that number."""
    metadata = {"name": name, "namespace": namespace(one)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {"podIP": address}}


def endpoints(one: int, number: int) -> list[str]:
    """The addresses of a headless service."""
    return [f"10.{128 + one}.{number}.{each + 1}" for each in range(ENDPOINTS)]


def slice_object(one: int, of: str, addresses: Sequence[str]) -> Object:
    """The slice of a service in the namespace of that number."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{of}-x7k2m",
            "namespace": namespace(one),
            "labels": {"kubernetes.io/service-name": of},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        "endpoints": [{"addresses": [each], "conditions": {"ready": True}} for each in addresses],
    }


def names_again() -> Iterator[str]:
    return _shuffled(f"{service(number)}.{_below(one)} A" for one in range(NAMESPACES) for number in range(SERVICES))


def services_srv() -> Iterator[str]:
    return _shuffled(
        f"_http._tcp.{service(number)}.{_below(one)} SRV" for one in range(NAMESPACES) for number in range(SERVICES)
    )


def headless_of_ten() -> Iterator[str]:
    return _shuffled(f"{headless(number)}.{_below(one)} A" for one in range(NAMESPACES) for number in range(HEADLESS))


def search_path() -> Iterator[str]:
    """What pods ask for, each name for A and AAAA, through the search list until it is found."""
    chance = random.Random(SEED)
    lookups = []
    for one in range(NAMESPACES):
        found = [service(number) for number in chance.sample(range(SERVICES), OWN)]
        found += [f"{service(chance.randrange(SERVICES))}.{namespace(_other(chance, one))}" for _ in range(OTHERS)]
        found += [
            f"{service(chance.randrange(SERVICES))}.{namespace(_other(chance, one))}.svc" for _ in range(AS_FAR_AS_SVC)
        ]
        found += [f"api-{number}.example.org" for number in range(WORLD)]
        lookups += [(one, name) for name in found]
    chance.shuffle(lookups)
    for one, name in lookups:
        for place, domain in enumerate((_below(one), f"svc.{DOMAIN}", DOMAIN)):
            for rtype in ("A", "AAAA"):
                yield f"{name}.{domain} {rtype}"
            if name.count(".") == place:
                break


def strangers() -> Iterator[str]:
    """Names that nobody has asked for, in namespaces that exist."""
    chance = random.Random(SEED)
    for _ in range(STRANGERS):
        yield f"x{chance.getrandbits(64):016x}.{_below(chance.randrange(NAMESPACES))} A"


def own_in_full() -> Iterator[str]:
    """The services of one namespace, whose pod asks."""
    return (f"{service(number)}.{_below(0)} A" for number in range(SERVICES))


def own_by_short_name() -> Iterator[str]:
    """The same, as that pod calls them."""
    return (f"{service(number)} A" for number in range(SERVICES))


def others_along_the_list() -> Iterator[str]:
    """Services of another namespace by the first name that the pod's resolver makes of `checkout-000.team-01`."""
    return (f"{service(number)}.{namespace(1)}.{_below(0)} A" for number in range(SERVICES))


def mixed_case() -> Iterator[str]:
    """Names as a resolver spells them that guards itself by random case (0x20): each time otherwise."""
    chance = random.Random(SEED)
    for _ in range(20):
        for line in names_again():
            name, rtype = line.split()
            yield f"{''.join(chance.choice((each, each.upper())) for each in name)} {rtype}"


def _below(one: int) -> str:
    return f"{namespace(one)}.svc.{DOMAIN}"


def _other(chance: random.Random, one: int) -> int:
    return (one + chance.randrange(1, NAMESPACES)) % NAMESPACES


def _shuffled(lines: Iterator[str]) -> Iterator[str]:
    found = list(lines)
    random.Random(SEED).shuffle(found)
    return iter(found)


# A cookie of a client alone (RFC 7873), as dig and other resolvers send.
_COOKIE = ("-E", "10:0123456789abcdef")

WORKS = (
    Work("names", "names again", names_again),
    Work("mix", "search-path mix", search_path),
    Work("flood", "unique NXDOMAIN flood", strangers),
    Work("headless", "headless of 10", headless_of_ten),
    Work("srv", "SRV", services_srv),
    Work("edns", "names again, EDNS", names_again, ("-e",)),
    Work("cookie", "names again, EDNS cookie", names_again, _COOKIE, quick=False),
    Work("case", "names again, 0x20", mixed_case, quick=False),
    Work("own", "services of one namespace in full", own_in_full, floor=False, searching=True),
    Work("short", "the same by their short names", own_by_short_name, floor=False, searching=True, in_full="own"),
    Work("autopath", "first names of a search list", others_along_the_list, floor=False, searching=True, in_full="own"),
    Work("tcp", "names again, TCP", names_again, ("-m", "tcp", "-c", "20"), floor=False),
    Work("slow", "1,000 queries a second", names_again, rate=1000),
    Work("steady", "10,000 queries a second", names_again, rate=10_000, quick=False),
)


def write(work: Work, folder: Path) -> Path:
    """The file of a work's questions."""
    file = folder / f"{work.name}.questions"
    with file.open("w") as out:
        out.writelines(f"{line}\n" for line in work.questions())
    return file


def write_manifests(file: Path) -> None:
    """The file of the cluster's objects."""
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests()}))
