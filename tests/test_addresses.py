"""Hosts and ports as text, and text as hosts."""

from kdns.addresses import Address, bracketed, host_and_port, is_address


def test_an_ipv6_address_stands_in_brackets_before_a_port() -> None:
    assert host_and_port("10.0.0.10", 53) == "10.0.0.10:53"
    assert host_and_port("fd00::a", 5353) == str(Address("fd00::a", 5353)) == "[fd00::a]:5353"
    assert host_and_port("", 53) == ":53"
    assert [bracketed(host) for host in ("fd00::a", "10.0.0.10", "dns.example", "")] == [
        "[fd00::a]", "10.0.0.10", "dns.example", "",
    ]  # fmt: skip


def test_a_numeric_address_is_one_with_or_without_a_zone() -> None:
    assert [is_address(text) for text in ("10.0.0.1", "::1", "fe80::1%lo", "dns.example", "", "10.0.0")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
