"""whoami tells the client about itself, and keeps nothing of it for the next one."""

import pytest

from kdns.plugins.whoami import Whoami
from kdns.wire.records import to_text
from tests.plugins import trial


@pytest.mark.parametrize(
    ("client", "transport", "additional"),
    [
        pytest.param(
            ("10.244.0.7", 41234),
            "udp",
            ["web.shop. 0 IN A 10.244.0.7", "_udp.web.shop. 0 IN SRV 0 0 41234 ."],
            id="a client over IPv4 and UDP",
        ),
        pytest.param(
            ("2001:db8::7", 5),
            "tcp",
            ["web.shop. 0 IN AAAA 2001:db8::7", "_tcp.web.shop. 0 IN SRV 0 0 5 ."],
            id="IPv6 and TCP",
        ),
        pytest.param(
            ("fe80::1%eth0", 5),
            "udp",
            ["web.shop. 0 IN AAAA fe80::1", "_udp.web.shop. 0 IN SRV 0 0 5 ."],
            id="a link-local client, whose interface is nobody's business",
        ),
    ],
)
def test_the_client_is_in_the_additional_section(
    client: tuple[str, int], transport: str, additional: list[str]
) -> None:
    request = trial.request("Web.Shop. A", transport, client)
    said = trial.answer(trial.plugin(Whoami, "whoami"), request)
    assert (said.rcode, said.flags, list(said.answer), said.plugin) == (0, 0x0400, [], "whoami")
    assert [to_text(record) for record in said.additional] == additional
    assert not request.keep


def test_a_name_without_room_for_one_more_label_gets_the_address_alone() -> None:
    longest = ".".join(["a" * 63] * 3 + ["b" * 61]) + "."
    said = trial.answer(trial.plugin(Whoami, "whoami"), trial.request(f"{longest} A"))
    assert [record.rtype for record in said.additional] == [1]


def test_it_takes_no_arguments() -> None:
    assert "`whoami` takes no arguments" in trial.problems(Whoami, "whoami now")
