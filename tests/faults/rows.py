"""What the rows of faults have in common: which requests begin, which resume, and what is needed for many of them."""

from __future__ import annotations

import msgspec
import pytest

from kdns.kubernetes.waiting import Timing
from tests.faults.store import service
from tests.faults.trial import FAST, Trial
from tests.faults.wire import Request

RESOURCES = ("services", "endpointslices", "namespaces")
each_kind = pytest.mark.parametrize("resource", RESOURCES)


def resumes(request: Request) -> bool:
    """Whether a watch goes on where another stopped."""
    return request.verb == "watch" and "sendInitialEvents" not in request.parameters


def begins(request: Request) -> bool:
    """Whether a request is for all there is, by a list or a watch."""
    return request.verb == "list" or (request.verb == "watch" and not resumes(request))


def beginnings(it: Trial, after: float = 0.0) -> list[Request]:
    """The lists so far, of either form, but not those of audits."""
    return [each for each in it.fake.requests if begins(each) and not each.partial and each.time > after]


def asked_version(request: Request) -> str:
    """The version that a request names; empty for what is the newest."""
    return request.parameters.get("resourceVersion", "")


def bulk(it: Trial, count: int) -> None:
    """So many more services, for lists of several pages."""
    for number in range(count):
        it.fake.store.put("services", service("bulk", f"bulk{number}", f"10.97.{number // 250}.{1 + number % 250}"))


def with_watches_of(seconds: float) -> Timing:
    """Watches that end by themselves so soon."""
    return msgspec.structs.replace(FAST, watch=(seconds, seconds))
