"""A list while it is read: what is held back until its end, and what it says of what is known."""

from __future__ import annotations

from kdns.kubernetes.listing import MOST_EVENTS, Listing
from kdns.kubernetes.objects import SERVICE_NAME_LABEL, EndpointSlice, Metadata, Object, Service


def part(name: str, service: str, version: str = "1") -> EndpointSlice:
    labels = {SERVICE_NAME_LABEL: service}
    return EndpointSlice(Metadata(name=name, namespace="shop", resource_version=version, labels=labels))


def held(listing: Listing) -> list[list[Object]]:
    return [batch for batch in listing.batches() if batch]


def test_only_where_nothing_is_known_is_there_nothing_to_hold_back() -> None:
    assert Listing([]).at_once
    assert not Listing(["shop/web"]).at_once
    # What a snapshot had is known, and worth less than the beginning of a list.
    assert Listing(["shop/web"], protected=False).at_once


def test_what_it_has_not_named_is_unseen() -> None:
    listing = Listing(["shop/web", "shop/db", "shop/bad"])
    listing.names("shop/web", 7)
    listing.poison("shop/bad", 7)
    assert (listing.unseen, listing.poisoned) == ({"shop/db"}, {"shop/bad": 7})


def test_the_newest_version_of_an_object_counts_in_whatever_order_they_come() -> None:
    listing = Listing(["shop/web"])
    old, new = (Service(Metadata(name="web", namespace="shop", resource_version=version)) for version in ("7", "9"))
    for version, object in ((7, old), (9, new), (8, old)):
        if listing.names("shop/web", version):
            listing.hold("shop/web", object)
    assert held(listing) == [[new]]


def test_an_object_that_could_be_read_first_and_not_later_keeps_what_was_read() -> None:
    listing = Listing(["shop/web"])
    good = Service(Metadata(name="web", namespace="shop"))
    listing.names("shop/web", 7)
    listing.hold("shop/web", good)
    listing.poison("shop/web", 8)
    assert held(listing) == [[good]]
    # And one that can be read again is no longer poisoned.
    listing.names("shop/web", 9)
    assert listing.poisoned == {}


def test_the_slices_of_a_service_are_never_apart() -> None:
    listing = Listing(["shop/x"])
    slices = [part(f"{number}-{name}", name) for number in range(MOST_EVENTS // 2 + 10) for name in ("a", "b", "c")]
    for each in slices:
        listing.hold(f"shop/{each.metadata.name}", each)
    batches = held(listing)
    assert len(batches) == 2
    # It is let go with that, since the stream that follows may last for minutes.
    assert held(listing) == []
    owners = [{each.service for each in batch if isinstance(each, EndpointSlice)} for batch in batches]
    assert owners == [{"a", "b"}, {"c"}]
    assert sorted(each.metadata.name for batch in batches for each in batch) == sorted(
        each.metadata.name for each in slices
    )
