"""What the counters add up to, and that the exposition is what Prometheus and CoreDNS's dashboards read."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from kdns import metrics
from kdns.metrics import Metrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def samples(counted: Metrics) -> dict[str, float]:
    """Each sample of the exposition, as `name{label=value,...}`."""
    text = counted.render()[0].decode()
    return {
        f"{sample.name}{{{','.join(map('='.join, sorted(sample.labels.items())))}}}": sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def count(counted: Metrics, **changes: object) -> None:
    query: dict[str, object] = {
        "server": "dns://:53",
        "zone": "cluster.local.",
        "transport": "udp",
        "family": "1",
        "rtype": 1,
        "do": False,
        "request_size": 54,
        "rcode": 0,
        "reply_size": 106,
        "plugin": "kubernetes",
        "seconds": 0.0001,
    }
    counted.count(**{**query, **changes})  # type: ignore[arg-type]


BLOCK = "server=dns://:53,view=,zone=cluster.local."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("coredns_panics_total{}", 0),
        ("coredns_forward_healthcheck_broken_total{}", 0),
        ("coredns_forward_max_concurrent_rejects_total{}", 0),
        ("coredns_health_request_failures_total{}", 0),
        ("coredns_health_request_duration_seconds_count{}", 0),
        ("coredns_reload_failed_total{}", 0),
        ("kdns_inventory_loaded{}", 0),
    ],
)
def test_what_has_no_labels_is_there_from_the_start(name: str, value: float) -> None:
    assert samples(Metrics())[name] == value


@pytest.mark.parametrize("accept", ["", "text/plain;version=0.0.4", "*/*", "application/openmetrics-text; version=x"])
def test_the_text_format_parses_and_every_metric_is_declared_in_it(accept: str) -> None:
    text, content_type = Metrics().render(accept)
    families = {family.name for family in parse_text(text.decode())}
    assert content_type.startswith("text/plain; version=0.0.4")
    # The parser drops a counter's ending.
    assert {metric.name.removesuffix("_total") for metric in metrics.DECLARED} <= families
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "process_open_fds"} <= families


def test_openmetrics_is_what_a_prometheus_of_today_asks_for() -> None:
    counted = Metrics()
    count(counted)
    text, content_type = counted.render(f"{OPENMETRICS},text/plain;version=0.0.4;q=0.2")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert "coredns_dns_requests" in {family.name for family in parse_openmetrics(text.decode())}


def test_a_bound_is_a_whole_number_in_text_as_in_go_and_a_float_in_openmetrics() -> None:
    counted = Metrics()
    count(counted)
    assert b'le="100"' in counted.render()[0]
    assert b'le="0.00025"' in counted.render()[0]
    assert b'le="100.0"' in counted.render(OPENMETRICS)[0]


def test_a_query_is_counted_in_all_its_metrics() -> None:
    counted = Metrics()
    count(counted)
    count(counted, seconds=0.3, request_size=100, reply_size=512)
    count(counted, transport="tcp", family="2", rtype=28, do=True, rcode=3, plugin="")
    found = samples(counted)
    assert {
        name: value
        for name, value in found.items()
        if name.startswith("coredns_dns_") and "_bucket" not in name and value
    } == {
        "coredns_dns_requests_total{family=1,proto=udp,server=dns://:53,type=A,view=,zone=cluster.local.}": 2,
        "coredns_dns_requests_total{family=2,proto=tcp,server=dns://:53,type=AAAA,view=,zone=cluster.local.}": 1,
        f"coredns_dns_do_requests_total{{{BLOCK}}}": 1,
        "coredns_dns_responses_total{plugin=kubernetes,rcode=NOERROR," + BLOCK + "}": 2,
        "coredns_dns_responses_total{plugin=,rcode=NXDOMAIN," + BLOCK + "}": 1,
        f"coredns_dns_request_duration_seconds_count{{{BLOCK}}}": 3,
        f"coredns_dns_request_duration_seconds_sum{{{BLOCK}}}": pytest.approx(0.3002),
        "coredns_dns_request_size_bytes_count{proto=udp," + BLOCK + "}": 2,
        "coredns_dns_request_size_bytes_count{proto=tcp," + BLOCK + "}": 1,
        "coredns_dns_request_size_bytes_sum{proto=udp," + BLOCK + "}": 154,
        "coredns_dns_request_size_bytes_sum{proto=tcp," + BLOCK + "}": 54,
        "coredns_dns_response_size_bytes_count{proto=udp," + BLOCK + "}": 2,
        "coredns_dns_response_size_bytes_count{proto=tcp," + BLOCK + "}": 1,
        "coredns_dns_response_size_bytes_sum{proto=udp," + BLOCK + "}": 618,
        "coredns_dns_response_size_bytes_sum{proto=tcp," + BLOCK + "}": 106,
    }
    buckets = {name: value for name, value in found.items() if "size_bytes_bucket" in name and "proto=udp" in name}
    assert buckets[f"coredns_dns_request_size_bytes_bucket{{le=0,proto=udp,{BLOCK}}}"] == 0
    assert buckets[f"coredns_dns_request_size_bytes_bucket{{le=100,proto=udp,{BLOCK}}}"] == 2, "a bound belongs to it"
    assert buckets[f"coredns_dns_response_size_bytes_bucket{{le=511,proto=udp,{BLOCK}}}"] == 1
    assert buckets[f"coredns_dns_response_size_bytes_bucket{{le=+Inf,proto=udp,{BLOCK}}}"] == 2


@pytest.mark.parametrize(
    ("rtype", "label"),
    [(1, "A"), (255, "ANY"), (65, "HTTPS"), (252, "AXFR"), (257, "other"), (65280, "other"), (0, "other")],
)
def test_types_without_a_label_share_one(rtype: int, label: str) -> None:
    counted = Metrics()
    count(counted, rtype=rtype)
    assert f"type={label}," in next(name for name in samples(counted) if name.startswith("coredns_dns_requests_total"))


def test_strangers_types_and_sizes_make_few_rows() -> None:
    counted = Metrics()
    for rtype in range(300):
        for size in range(12, 1233):
            count(counted, rtype=rtype, request_size=size)
    assert len(counted._rows) <= 20 * 8


def test_a_kept_replys_uses_count_like_any_other() -> None:
    by_call, by_hand = Metrics(), Metrics()
    for seconds in (0.00001, 0.004, 20.0):
        count(by_call, seconds=seconds)
        row = by_hand.row("dns://:53", "cluster.local.", "udp", "1", 1, False, 54, 0, 106, "kubernetes")
        times = by_hand.times("dns://:53", "cluster.local.")
        row[0] += 1
        row[1] += 54
        row[2] += 106
        times[0] += seconds
        times[metrics.time_bucket(seconds)] += 1
    of_queries = [
        {name: value for name, value in samples(each).items() if name.startswith("coredns_dns")}
        for each in (by_call, by_hand)
    ]
    assert of_queries[0] == of_queries[1]


def test_an_exchange_with_an_upstream_has_its_names_of_today_and_of_before() -> None:
    counted = Metrics()
    counted.forwarded("10.0.0.2:53", 2, 0.01)
    found = samples(counted)
    assert found["coredns_proxy_request_duration_seconds_count{proxy_name=forward,rcode=SERVFAIL,to=10.0.0.2:53}"] == 1
    assert found["coredns_forward_requests_total{to=10.0.0.2:53}"] == 1
    assert found["coredns_forward_responses_total{rcode=SERVFAIL,to=10.0.0.2:53}"] == 1
    assert found["coredns_forward_request_duration_seconds_count{rcode=SERVFAIL,to=10.0.0.2:53}"] == 1


def test_values_that_others_count_are_read_at_each_exposition() -> None:
    counted = Metrics()
    dropped = {("short",): 3.0}
    counted.read(metrics.PACKETS_DROPPED, lambda: dropped)
    counted.read(metrics.PACKETS_DROPPED, lambda: {("short",): 2.0})
    counted.increase(metrics.PACKETS_DROPPED, "response")
    dropped["short",] += 1
    found = samples(counted)
    assert found["kdns_packets_dropped_total{reason=short}"] == 6
    assert found["kdns_packets_dropped_total{reason=response}"] == 1


def test_of_several_sources_a_gauge_says_what_is_true_of_all_of_them() -> None:
    counted = Metrics()
    name = "kdns_kubernetes_{}{{}}"
    true, false = (lambda: {(): 1.0}), (lambda: {(): 0.0})
    one = {metrics.KUBERNETES_SYNCED: true, metrics.KUBERNETES_STALE: false, metrics.KUBERNETES_CONNECTED: true}
    other = {metrics.KUBERNETES_SYNCED: false, metrics.KUBERNETES_STALE: true, metrics.KUBERNETES_CONNECTED: true}
    with counted.reading(one), counted.reading(other):
        found = samples(counted)
    assert [found[name.format(each)] for each in ("synced", "stale", "connected")] == [0, 1, 1]
    assert [samples(counted)[name.format(each)] for each in ("synced", "stale", "connected")] == [0, 0, 0]


def test_of_several_inventories_objects_and_problems_add_up() -> None:
    counted = Metrics()
    for _ in range(2):
        counted.read(metrics.INVENTORY_PROBLEMS, lambda: {(): 1})
        counted.read(metrics.INVENTORY_OBJECTS, lambda: {("Service",): 2, ("Pod",): 3})
    found = samples(counted)
    assert found["kdns_inventory_problems{}"] == 2
    assert found["kdns_inventory_objects{kind=Service}"] == 4
    assert found["kdns_inventory_objects{kind=Pod}"] == 6


def test_what_a_configuration_had_goes_with_it() -> None:
    counted = Metrics()
    counted.set(metrics.PLUGIN_ENABLED, 1, "dns://:53", ".", "", "whoami")
    counted.clear(metrics.PLUGIN_ENABLED)
    assert not [name for name in samples(counted) if name.startswith("coredns_plugin_enabled")]


def test_labels_that_do_not_fit_are_our_mistake_at_once() -> None:
    with pytest.raises(ValueError, match="kdns_inventory_objects has the labels"):
        Metrics().set(metrics.INVENTORY_OBJECTS, 1)


def test_two_processes_worth_of_metrics_live_side_by_side() -> None:
    one, other = Metrics(), Metrics()
    count(one)
    assert "coredns_dns_requests" not in "".join(name for name in samples(other) if "type=A" in name)
