"""Kept replies by themselves: keys, spelling, orders, bounds, and what is forgotten."""

from __future__ import annotations

import struct
from collections import Counter
from random import Random

import pytest

from kdns.answers import AnswerCache, Bounds, Lifetime, question_end, with_ttl
from kdns.wire import names

A, HTTPS = b"\0\1\0\1", b"\0\x41\0\1"
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
WEB = ("service", b"shop", b"web")
SHOP = ("namespace", b"shop")


def query(name: str, end: bytes = A, id: bytes = b"\0\7", opt: bytes = b"") -> bytes:
    return id + b"\1\0\0\1\0\0\0\0\0" + (b"\1" if opt else b"\0") + names.from_text(name) + end + opt


def reply_to(packet: bytes, data: bytes = b"answer") -> bytes:
    end = question_end(packet) or len(packet)
    return packet[:2] + b"\x85\0\0\1\0\1\0\0\0\0" + packet[12:end] + b"\xc0\x0c" + data


def keep(
    answers: AnswerCache, packet: bytes, *tags: tuple[object, ...], varies: bool = False, data: bytes = b"answer"
) -> list[float]:
    row, times = [0.0, 0.0, 0.0], [0.0] * 20
    answers.keep(packet, reply_to(packet, data), row, times, tags, negative=False, varies=varies)
    return row


def found(answers: AnswerCache, packet: bytes) -> bytes | None:
    reply = answers.find(packet)
    return reply[0] if reply else None


@pytest.mark.parametrize("opt", [b"", OPT])
def test_a_kept_reply_has_the_id_of_each_query(opt: bytes) -> None:
    answers = AnswerCache()
    asked = query("web.shop", opt=opt)
    assert answers.find(asked) is None
    keep(answers, asked)
    for id in (b"\0\7", b"\xff\xfe"):
        again = query("web.shop", id=id, opt=opt)
        assert found(answers, again) == reply_to(again)


@pytest.mark.parametrize("first", ["web.shop", "WEB.Shop"])
def test_each_client_finds_its_own_spelling(first: str) -> None:
    answers = AnswerCache()
    keep(answers, query(first, opt=OPT))
    for spelled in ("web.shop", "WEB.Shop", "wEb.sHop"):
        asked = query(spelled, opt=OPT)
        assert found(answers, asked) == reply_to(asked)


def test_a_type_is_never_folded() -> None:
    answers = AnswerCache()
    # 0x41 is `A` in ASCII, and 0x61 another type.
    keep(answers, query("web.shop", HTTPS))
    assert answers.find(query("WEB.shop", HTTPS)) is not None
    assert answers.find(query("web.shop", b"\0\x61\0\1")) is None


OTHERS = [
    pytest.param(query("web.shop", opt=OPT[:-2] + b"\0\4\0\x0a\0\0"), id="an option"),
    pytest.param(query("web.shop") + b"?", id="a byte behind it"),
    pytest.param(query("web.shop")[:4] + b"\0\2" + query("web.shop")[6:], id="two questions"),
    pytest.param(query("web.shop")[:6] + b"\0\1" + query("web.shop")[8:], id="an answer"),
    pytest.param(query("web.shop")[:8] + b"\0\1" + query("web.shop")[10:], id="an authority"),
    pytest.param(query("web.shop", opt=OPT)[:10] + b"\0\2" + query("web.shop", opt=OPT)[12:], id="two more records"),
]


@pytest.mark.parametrize("packet", [each for each in OTHERS if each.id != "a byte behind it"])
def test_packets_of_other_forms_have_no_key(packet: bytes) -> None:
    assert question_end(packet) == 0
    answers = AnswerCache()
    keep(answers, packet)
    assert not len(answers.positive)


@pytest.mark.parametrize("packet", OTHERS)
def test_another_packet_is_not_taken_for_one_that_was_answered(packet: bytes) -> None:
    answers = AnswerCache()
    keep(answers, query("web.shop"))
    keep(answers, query("web.shop", opt=OPT))
    assert answers.find(packet) is None


COOKIE = OPT[:-2] + b"\0\x0c\0\x0a\0\x0812345678"
ALIKE = [
    pytest.param(query("WEB.Shop"), id="capitals"),
    pytest.param(query("WEB.Shop", opt=OPT), id="capitals, EDNS"),
    pytest.param(query("web.shop", opt=COOKIE), id="a cookie"),
    pytest.param(query("WEB.shop", opt=COOKIE), id="capitals, a cookie"),
]


@pytest.mark.parametrize("packet", [*ALIKE, *OTHERS, pytest.param(b"", id="nothing")])
def test_the_short_way_to_a_reply_for_another_spelling_or_cookie_finds_what_the_long_one_does(packet: bytes) -> None:
    answers = AnswerCache()
    for asked in (query("web.shop"), query("web.shop", opt=OPT), query("web.shop", opt=COOKIE)):
        keep(answers, asked)
    short = answers.find_otherwise(packet[2:])
    reply = None
    if short is not None:
        kept, end = short
        reply = packet[:2] + kept.body[:10] + packet[12 : 2 + end] + kept.body[end:]
    assert reply == found(answers, packet)
    assert (reply is not None) == (packet in [each.values[0] for each in ALIKE])


def test_the_short_way_folds_no_type() -> None:
    answers = AnswerCache()
    keep(answers, query("web.shop", b"\0\x61\0\1"))
    assert answers.find_otherwise(query("WEB.shop", b"\0\x61\0\1")[2:]) is not None
    assert answers.find_otherwise(query("WEB.shop", HTTPS)[2:]) is None


def test_a_tag_is_forgotten_with_all_that_bears_it_and_nothing_else() -> None:
    answers = AnswerCache()
    web, db, other = query("web.shop"), query("db.shop"), query("web.other")
    keep(answers, web, WEB, SHOP)
    keep(answers, db, SHOP)
    keep(answers, other, ("namespace", b"other"))
    answers.forget({WEB})
    assert [answers.find(each) is not None for each in (web, db, other)] == [False, True, True]
    keep(answers, web, WEB, SHOP)
    answers.forget({SHOP, ("service", b"nobody", b"asked")})
    assert [answers.find(each) is not None for each in (web, db, other)] == [False, False, True]
    answers.clear()
    assert answers.find(other) is None


def test_what_changed_while_an_answer_waited_is_remembered() -> None:
    answers = AnswerCache()
    since = answers.changes
    assert answers.unchanged(since, {WEB})
    answers.forget({SHOP})
    assert answers.unchanged(since, {WEB})
    assert not answers.unchanged(since, {WEB, SHOP})
    later = answers.changes
    assert answers.unchanged(later, {SHOP})
    for _ in range(2000):
        answers.forget({("serial",)})
    # Nobody knows any more.
    assert not answers.unchanged(later, {WEB})
    now = answers.changes
    answers.clear()
    assert not answers.unchanged(now, set())


def test_uses_are_counted_wherever_the_reply_goes() -> None:
    answers = AnswerCache()
    packet = query("web.shop")
    row = keep(answers, packet, WEB)
    size = len(reply_to(packet))
    for _ in range(3):
        answers.find(packet)
    assert row == [0, 0, 0]
    answers.tell()
    answers.tell()
    assert row == [3, 3 * len(packet), 3 * size]
    answers.find(query("WEB.shop"))
    answers.forget({WEB})
    assert row == [4, 4 * len(packet), 4 * size]
    row = keep(answers, packet, WEB)
    answers.find(packet)
    keep(answers, packet, WEB)
    assert row[0] == 1
    answers.find(packet)
    answers.clear()
    assert row[0] == 1


def test_a_reply_that_varies_is_made_as_often_as_there_are_variants_and_then_once_a_round() -> None:
    answers = AnswerCache(Bounds(variants=4), Random(1))
    packet = query("web.shop")
    made = kept = 0
    seen: Counter[bytes] = Counter()
    for _ in range(104):
        reply = found(answers, packet)
        if reply is None:
            keep(answers, packet, varies=True, data=b"variant %d" % made)
            made += 1
        else:
            kept += 1
            seen[reply] += 1
    # Four to begin with; then rounds of four, each with one more that is new.
    assert (made, kept) == (4 + 20, 80)
    # None is sent for ever: each round replaces one of four by chance.
    assert len(seen) > 15
    assert max(seen.values()) < 40


@pytest.mark.parametrize("negative", [False, True])
def test_the_names_of_strangers_cost_no_more_than_their_bound(negative: bool) -> None:
    answers = AnswerCache(Bounds(positive=200_000, negative=200_000))
    table = answers.negative if negative else answers.positive
    for number in range(5000):
        packet = query(f"x{number}.shop")
        answers.keep(packet, reply_to(packet), [0.0] * 3, [0.0] * 20, (SHOP,), negative, varies=False)
        assert len(table) < 2 * 200_000 / 500
    assert not len(answers.positive if negative else answers.negative)


def test_where_more_is_asked_than_has_room_a_reply_is_kept_from_the_second_question_on() -> None:
    answers = AnswerCache(Bounds(positive=20_000))
    for number in range(100):
        packet = query(f"x{number}.shop")
        keep(answers, packet, SHOP)
    first = query("web.shop")
    keep(answers, first, WEB)
    assert answers.find(first) is None
    keep(answers, first, WEB)
    assert found(answers, first) == reply_to(first)


def test_names_in_use_outlive_a_flood_of_others() -> None:
    answers = AnswerCache(Bounds(positive=200_000))
    hot = [query(f"hot{number}.shop") for number in range(50)]
    for packet in hot:
        keep(answers, packet, WEB)
    missed = 0
    for number in range(20_000):
        packet = query(f"x{number}.shop")
        assert answers.find(packet) is None
        keep(answers, packet, SHOP)
        if number % 4 == 0:
            missed += answers.find(hot[number // 4 % 50]) is None
    assert missed == 0
    # They are forgotten as ever, wherever they have moved.
    answers.forget({WEB})
    assert all(answers.find(packet) is None for packet in hot)


# Lifetimes


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(owner: bytes, ttl: int, data: bytes, rtype: int = 1) -> bytes:
    return owner + struct.pack("!HHIH", rtype, 1, ttl, len(data)) + data


def message_of(asked: bytes, *ttls: int, opt: bytes = b"") -> bytes:
    """A reply with a record for each TTL, and OPT; the owner of every other one is spelled out."""
    end = question_end(asked)
    counts = struct.pack("!HHHH", 1, len(ttls), 0, 1 if opt else 0)
    owners = [b"\xc0\x0c", names.from_text("web.shop")] * len(ttls)
    records = b"".join(record(owner, ttl, b"\x0a\0\0\1") for owner, ttl in zip(owners, ttls, strict=False))
    return asked[:2] + b"\x85\0" + counts + asked[12:end] + records + opt


@pytest.mark.parametrize("opt", [b"", OPT])
def test_a_ttl_is_set_in_all_records_but_opt(opt: bytes) -> None:
    asked = query("web.shop", opt=opt)
    for count in range(4):
        made = message_of(asked, *(30, 31, 32)[:count], opt=opt)
        assert with_ttl(made[2:], 7) == message_of(asked, *(7,) * count, opt=opt)[2:]


def test_a_reply_with_a_lifetime_ages_at_each_whole_second_and_ends() -> None:
    clock = Clock()
    answers = AnswerCache(clock=clock)
    asked = query("web.shop", opt=OPT)
    told: list[int] = []
    lifetime = Lifetime(1000.0, 1002.5, 2, told.append)
    answers.keep(asked, message_of(asked, 2, opt=OPT), [0.0] * 3, [0.0] * 20, (), False, False, lifetime)
    for now, ttl in ((1000.0, 2), (1000.9, 2), (1001.0, 1), (1002.4, 0)):
        clock.now = now
        assert found(answers, asked) == message_of(asked, ttl, opt=OPT)
    assert told == []
    for now in (1002.5, 1001.0):
        clock.now = now
        assert found(answers, asked) is None
    assert told == [4]


def test_a_clock_that_was_set_back_ends_a_lifetime() -> None:
    clock = Clock()
    answers = AnswerCache(clock=clock)
    asked = query("web.shop")
    answers.keep(asked, message_of(asked, 2), [0.0] * 3, [0.0] * 20, (), False, False, Lifetime(1000.0, 1002.0, 2))
    clock.now = 999.0
    assert found(answers, asked) is None


def test_a_reply_without_ttl_in_its_lifetime_stays_as_it_is_until_then() -> None:
    clock = Clock()
    answers = AnswerCache(clock=clock)
    asked = query("web.shop")
    answers.keep(asked, message_of(asked, 30), [0.0] * 3, [0.0] * 20, (), False, False, Lifetime(1000.0, 1002.0))
    clock.now = 1001.9
    assert found(answers, asked) == message_of(asked, 30)
    clock.now = 1002.0
    assert found(answers, asked) is None


def test_orders_age_together_and_those_of_an_older_message_go_with_it() -> None:
    clock = Clock()
    answers = AnswerCache(Bounds(variants=2), Random(1), clock)
    asked = query("web.shop")

    def keep_order(last: bytes, since: float) -> None:
        made = message_of(asked, 30)[:-1] + last
        answers.keep(asked, made, [0.0] * 3, [0.0] * 20, (), False, True, Lifetime(since, since + 30, 30))

    keep_order(b"\1", 1000.0)
    assert found(answers, asked) is None
    keep_order(b"\2", 1000.0)
    clock.now = 1010.0
    seen = {found(answers, asked), found(answers, asked)}
    assert seen == {message_of(asked, 20)[:-1] + last for last in (b"\1", b"\2")}
    keep_order(b"\3", 1010.0)
    assert found(answers, asked) is None
    keep_order(b"\4", 1010.0)
    seen = {found(answers, asked), found(answers, asked)}
    assert seen == {message_of(asked, 30)[:-1] + last for last in (b"\3", b"\4")}
