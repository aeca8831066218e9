"""A small cluster that changes by chance, and every answer that has ever been right about it.

Some names exist throughout (`FOREVER`); the others come, go, and change what they are. Each address is given once,
so that an answer shows which states of which objects it was made of. A seed makes the same world again, given the same
order of calls.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from random import Random

import msgspec

from tests.faults.store import Key, Store, endpoint_slice, external, namespace, pod, service

# The answer to a question: addresses or names. None at all is as good as no such name.
Answer = frozenset[str]
NOTHING: Answer = frozenset()

SUFFIX = "svc.cluster.local."
WEB, DB, BIG, OUT = (f"{name}.shop.{SUFFIX}" for name in ("web", "db", "big", "out"))
# A ClusterIP, a headless service of one slice, one of several, an alias; and the first one's PTR record.
FOREVER = ((WEB, "A"), (DB, "A"), (BIG, "A"), (OUT, "CNAME"), ("1.0.96.10.in-addr.arpa.", "PTR"))
CHURNING = [f"s{number}" for number in range(12)]


class World:
    """The cluster in a store. `right` has every answer that was right at some time, by name.

    Of the names in `loose` any part of what was right may be answered: their slices are told one by one.
    """

    def __init__(self, store: Store, random: Random) -> None:
        self.store = store
        self.random = random
        self.right: dict[str, set[Answer]] = defaultdict(set)
        self.loose: dict[str, set[str]] = defaultdict(set)
        self._addresses = (f"10.{1 + n // 62500}.{n // 250 % 250}.{1 + n % 250}" for n in itertools.count())
        self._cluster_ips = (f"10.96.{1 + n // 250}.{1 + n % 250}" for n in itertools.count())
        # Where the addresses of `big` are, by slice; there is always one at least.
        self._big: dict[str, list[str]] = {"big-0": [next(self._addresses)], "big-1": [next(self._addresses)]}
        store.put("namespaces", namespace("shop"))
        store.put("namespaces", namespace("other"))
        store.put("services", service("shop", "web", "10.96.0.1"))
        store.put("services", external("shop", "out", "www.example.com"))
        store.put("services", service("shop", "db"))
        store.put("services", service("shop", "big"))
        self.change_db()
        for name in self._big:
            self._put_big(name)
        self._note(WEB, "10.96.0.1")
        self._note(OUT, "www.example.com.")
        self.right["1.0.96.10.in-addr.arpa."].add(frozenset([WEB]))
        for _ in range(10):
            self.churn()

    # Answers

    def is_right(self, name: str, answer: Answer) -> bool:
        """Whether the answer to a name was right at some time, or is a part of what was where slices are told alone."""
        if answer in self.right[name]:
            return True
        return bool(answer) and name in self.loose and answer <= self.loose[name]

    def _note(self, name: str, *answer: str) -> None:
        self.right[name].add(frozenset(answer))

    # Changes

    def churn(self) -> None:
        """Change something."""
        steps: list[tuple[Callable[[], None], int]] = [
            (self.change_db, 2),
            (self.move_in_big, 3),
            (self.put_service, 4),
            (self.delete_service, 2),
            (self.recreate_service, 2),
            (self.change_unseen, 1),
            (self.change_namespace, 1),
            (self.change_pod, 1),
        ]
        self.random.choices([step for step, _ in steps], [weight for _, weight in steps])[0]()

    def change_db(self) -> None:
        """Other addresses for the headless service of one slice, sometimes some that are not ready."""
        ready = [next(self._addresses) for _ in range(self.random.randint(1, 3))]
        not_ready = [next(self._addresses) for _ in range(self.random.randint(0, 1))]
        self.store.put("endpointslices", endpoint_slice("shop", "db-0", "db", ready, not_ready))
        self._note(DB, *ready)

    def move_in_big(self) -> None:
        """Move an address to another slice, or a new one, as the controller does it: first there, then away."""
        source = self.random.choice(list(self._big))
        target = self.random.choice([each for each in (f"big-{n}" for n in range(4)) if each != source])
        moving = self._big[source].pop(0)
        self._big.setdefault(target, []).append(moving)
        if self.random.random() < 0.5:
            self._big[target].append(next(self._addresses))
        if len(self._big[target]) > 4:
            self._big[target].pop(0)
        self._put_big(target)
        if self._big[source]:
            self._put_big(source)
        else:
            del self._big[source]
            self.store.delete("endpointslices", "shop", source)

    def put_service(self) -> None:
        """A service of some type, new or changed, with an address or slice that no other ever had."""
        name = self.random.choice(CHURNING)
        kind = self.random.choice(["address", "address", "headless", "alias"])
        question = f"{name}.other.{SUFFIX}"
        self._note(question)
        if kind == "address":
            address = next(self._cluster_ips)
            self.store.put("services", service("other", name, address))
            self._note(question, address)
        elif kind == "alias":
            target = f"www-{self.store.number}.example.com"
            self.store.put("services", external("other", name, target))
            self._note(question, f"{target}.")
        else:
            addresses = [next(self._addresses) for _ in range(2)]
            self.loose[question] |= set(addresses)
            steps = [
                lambda: self.store.put("services", service("other", name)),
                lambda: self.store.put("endpointslices", endpoint_slice("other", f"{name}-0", name, addresses)),
            ]
            self.random.shuffle(steps)
            for step in steps:
                step()

    def delete_service(self) -> None:
        """A service that churns is no more; its slices may stay a little longer."""
        found = self._churning("services")
        if found:
            of, name = self.random.choice(found)
            self._note(f"{name}.other.{SUFFIX}")
            self.store.delete("services", of, name)
        slices = self._churning("endpointslices")
        if slices and self.random.random() < 0.5:
            self.store.delete("endpointslices", *self.random.choice(slices))

    def recreate_service(self) -> None:
        """A service is deleted, and another of its name is there at once."""
        found = self._churning("services")
        if found:
            of, name = self.random.choice(found)
            address = next(self._cluster_ips)
            self._note(f"{name}.other.{SUFFIX}")
            self._note(f"{name}.other.{SUFFIX}", address)
            self.store.delete("services", of, name)
            self.store.put("services", service(of, name, address))

    def change_unseen(self) -> None:
        """A change that DNS doesn't show, and versions that nobody here watches."""
        more = {"sessionAffinity": self.random.choice(["None", "ClientIP"])}
        self.store.put("services", service("shop", "web", "10.96.0.1", **more))
        self.store.tick(self.random.randint(0, 5))

    def change_namespace(self) -> None:
        """A namespace comes or goes."""
        name = f"ns{self.random.randrange(3)}"
        if ("", name) in self.store.objects["namespaces"]:
            self.store.delete("namespaces", "", name)
        else:
            self.store.put("namespaces", namespace(name))

    def change_pod(self) -> None:
        """A pod comes, moves or ends."""
        name = f"pod{self.random.randrange(5)}"
        if ("other", name) in self.store.objects["pods"] and self.random.random() < 0.5:
            self.store.delete("pods", "other", name)
        else:
            phase = self.random.choice(["Running", "Succeeded"])
            self.store.put("pods", pod("other", name, next(self._addresses), phase))

    def _put_big(self, name: str) -> None:
        self.loose[BIG] |= set(self._big[name])
        self.store.put("endpointslices", endpoint_slice("shop", name, "big", self._big[name]))

    def _churning(self, plural: str) -> list[Key]:
        return sorted(key for key in self.store.objects[plural] if key[0] == "other")

    def forget_places(self) -> None:
        """Learn anew where the addresses of `big` are, after the store went back."""
        self._big = {
            name: [each["addresses"][0] for each in msgspec.json.decode(version.item)["endpoints"]]
            for (_, name), version in self.store.objects["endpointslices"].items()
            if name.startswith("big-")
        }

    def questions(self) -> Iterator[str]:
        """The names that come and go."""
        yield from (f"{name}.other.{SUFFIX}" for name in CHURNING)
