"""Troubles of watches, told once for all that have them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from kdns.kubernetes import troubles as module
from kdns.kubernetes.troubles import MOST_NAMED, Troubles, named

REFUSED = "not reached: 127.0.0.1:6443: Connection refused"
KINDS = ("namespaces", "services", "endpointslices")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What the log has after each of some steps, given time to be said."""
    monkeypatch.setattr(module, "GATHER_SECONDS", 0.01)
    caplog.set_level("INFO")

    def run(*steps: Callable[[Troubles], None]) -> list[str]:
        async def whole() -> None:
            troubles = Troubles()
            for step in steps:
                step(troubles)
                await asyncio.sleep(0.05)
            troubles.close()

        asyncio.run(whole())
        return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]

    return run


def all_have(trouble: str, *kinds: str) -> Callable[[Troubles], None]:
    def step(troubles: Troubles) -> None:
        for kind in kinds or KINDS:
            troubles.note(kind, trouble)

    return step


def test_an_outage_is_one_line_at_its_beginning_and_one_at_its_end(said: Callable[..., list[str]]) -> None:
    assert said(all_have(REFUSED), all_have(REFUSED), all_have("")) == [
        f"WARNING namespaces, services, endpointslices: {REFUSED}",
        "INFO namespaces, services, endpointslices: watched again",
    ]


def test_what_has_passed_before_it_could_be_said_is_not_said(said: Callable[..., list[str]]) -> None:
    def brief(troubles: Troubles) -> None:
        all_have("cut off")(troubles)
        all_have("")(troubles)

    assert said(brief, all_have("cut off", "services")) == ["WARNING services: cut off"]


def test_a_trouble_that_comes_and_goes_between_others_is_said_once(said: Callable[..., list[str]]) -> None:
    flapping = [all_have(trouble) for trouble in (REFUSED, "503", REFUSED, "503", "")]
    assert said(*flapping) == [
        f"WARNING namespaces, services, endpointslices: {REFUSED}",
        "WARNING namespaces, services, endpointslices: 503",
        "INFO namespaces, services, endpointslices: watched again",
    ]


def test_each_is_named_with_its_own_trouble_and_its_own_end(said: Callable[..., list[str]]) -> None:
    forbidden = "not allowed to watch services"
    assert said(
        all_have(REFUSED),
        all_have(forbidden, "services"),
        all_have("", "namespaces", "endpointslices"),
        all_have("", "services"),
        all_have(REFUSED, "services"),
    ) == [
        f"WARNING namespaces, services, endpointslices: {REFUSED}",
        f"WARNING services: {forbidden}",
        "INFO namespaces, endpointslices: watched again",
        "INFO services: watched again",
        f"WARNING services: {REFUSED}",
    ]


def test_of_hundreds_some_are_named() -> None:
    assert named(["a", "b"]) == "a, b"
    assert named([str(number) for number in range(MOST_NAMED + 3)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"
