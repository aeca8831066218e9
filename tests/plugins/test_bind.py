"""bind: which addresses a block listens at."""

import socket

import pytest

from kdns.errors import ConfigError
from kdns.plugins.bind import Bind, interface_addresses, resolve
from tests.plugins import trial

LOOPBACK = next(name for name, address in interface_addresses() if address == "127.0.0.1")
INTERFACES = [("lo", "127.0.0.1"), ("lo", "::1"), ("eth0", "10.0.0.5"), ("eth0", "fe80::1%eth0")]


def addresses(text: str) -> list[str]:
    block = trial.block()
    trial.plugin(Bind, text, block)
    return block.addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("bind 127.0.0.1", ["127.0.0.1"], id="one address"),
        pytest.param("bind 127.0.0.1 ::1", ["127.0.0.1", "::1"], id="several on a line"),
        pytest.param(
            "bind 127.0.0.1\nbind ::1\nbind 127.0.0.1", ["127.0.0.1", "::1"], id="several lines, each address once"
        ),
        pytest.param("bind 127.0.0.1 0:0::1 {\n except 127.0.0.1\n}", ["::1"], id="but not this one"),
        pytest.param("bind 0.0.0.0", [], id="a wildcard is every address"),
        pytest.param("bind 127.0.0.1 ::", [], id="of either family"),
    ],
)
def test_a_block_listens_at_what_its_lines_name(text: str, expected: list[str]) -> None:
    assert addresses(text) == expected


def test_an_interface_is_all_its_addresses_but_those_left_out() -> None:
    assert "127.0.0.1" in addresses(f"bind {LOOPBACK}")
    assert "127.0.0.1" not in addresses(f"bind 127.0.0.2 {LOOPBACK} {{\n except 127.0.0.1\n}}")
    assert resolve(["eth0", "127.0.0.1", "lo"], INTERFACES) == ["10.0.0.5", "fe80::1%eth0", "127.0.0.1", "::1"]


def test_the_system_knows_of_no_other_interfaces() -> None:
    assert {name for name, _ in interface_addresses()} <= {name for _, name in socket.if_nameindex()}


def test_leaving_out_everything_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="leaves no address to listen on"):
        addresses("bind 127.0.0.1 {\n except 127.0.0.1\n}")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("bind wlan7", "expected an IP address or the name of an interface, found `wlan7`"),
        ("bind 127.0.0.1 {\n except 10.0.0\n}", "expected an IP address or the name of an interface, found `10.0.0`"),
        ("bind 10.0.0.1:53", "found `10.0.0.1:53`"),
        ("bind", "`bind` needs ADDRESS|INTERFACE"),
    ],
)
def test_what_it_does_not_take_is_told(line: str, part: str) -> None:
    assert part in trial.problems(Bind, line)
