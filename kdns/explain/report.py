"""What an explanation says, as data: the shape of `kdns explain --json`, which tools may rely on (docs/explain.md).

Fields are added, never renamed or removed. Names are text with a final dot, times seconds, sizes bytes.
"""

from __future__ import annotations

import msgspec

# What came of one query.
ANSWER, NO_DATA, NO_NAME, FAILURE, SILENCE, ELSEWHERE = (
    "answer",
    "no data",
    "no such name",
    "failure",
    "no reply",
    "asked elsewhere",
)


class Report(msgspec.Struct):
    """The parent of what is told."""


class Client(Report):
    """Who asks. `assumed` tells that nobody said so; `asks` whom its resolv.conf names."""

    namespace: str
    pod: str = ""
    address: str = ""
    dns_policy: str = "ClusterFirst"
    asks: str = ""
    search: list[str] = []
    ndots: int = 5
    assumed: bool = True
    notes: list[str] = []


class Step(Report):
    """A directive that a query met, and whether it `answers`, `passes on`, `changes` the answer of those behind it.

    `question` is what it was asked, where that is another one than the client's; then `depth` may be above 0.
    """

    directive: str
    does: str
    question: str = ""
    depth: int = 0


class Verdict(Report):
    """One query of the walk, and what came of it: the first records of its answer, and how many there are.

    `to` is whom the question would be sent to, offline.
    """

    name: str
    type: str
    outcome: str
    rcode: str
    zone: str = ""
    directive: str = ""
    records: list[str] = []
    count: int = 0
    to: list[str] = []
    error: str = ""
    steps: list[Step] = []


class Answer(Report):
    """A reply that ends the walk, as it comes over TCP: its first records, and how many there are.

    `truncated` says at which sizes of UDP it is cut, so that the client asks again over TCP. `kept` is whether it is
    (in a running server) or would be (offline) kept for the next who asks, `ages` whether its TTLs go down meanwhile;
    `kept_out_by` is the directive that doesn't want it to be.
    """

    name: str
    type: str
    records: list[str]
    count: int
    additional: list[str]
    ttl: int
    size_bytes: int
    truncated: dict[str, bool]
    kept: bool
    ages: bool = False
    kept_out_by: str = ""


class Port(Report):
    """A port of a Service."""

    name: str
    protocol: str
    port: int


class NotReady(Report):
    """An endpoint that has no address in answers, and why."""

    name: str
    address: str
    why: str


class Endpoints(Report):
    """How many of a Service's endpoints are ready. `counted` says what: pods, endpoints of slices, or addresses.

    `known` tells whether the others could be looked at. A running server has only their number: then `conditions` says
    how many there are of each condition.
    """

    ready: int
    total: int
    counted: str
    known: bool
    not_ready: list[NotReady] = []
    conditions: dict[str, int] = {}


class Object(Report):
    """What the name means: a Service, a Pod, or a Namespace. `hidden_by` says why DNS doesn't show it, if it doesn't.

    `kind_for_dns` is `ClusterIP`, `headless` or `ExternalName` for a Service.
    """

    kind: str
    namespace: str
    name: str
    exists: bool
    resource_version: str = ""
    kind_for_dns: str = ""
    type: str = ""
    addresses: list[str] = []
    external_name: str = ""
    ports: list[Port] = []
    selector: str = ""
    hidden_by: str = ""
    endpoints: Endpoints | None = None


class Hint(Report):
    """What is probably amiss: a word for tools, and a sentence for people."""

    code: str
    text: str


class Explanation(Report):
    """The whole. `resolves` is None where that is for others to say."""

    name: str
    types: list[str]
    source: str
    zones: list[str]
    client: Client
    resolves: bool | None
    summary: str
    walk: list[Verdict]
    queries: int
    packets: int
    answers: list[Answer] = []
    objects: list[Object] = []
    hints: list[Hint] = []


def parts_of(record: str) -> tuple[str, str]:
    """The type and the data of a record's text."""
    _, _, _, rtype, data = record.split(" ", 4)
    return rtype, data
