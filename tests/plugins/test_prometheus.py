"""prometheus: where the metrics are served, and in which of the two forms."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from kdns.plugins.prometheus import Prometheus
from tests.plugins import trial


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("prometheus", ("localhost", 9153)),
        ("prometheus :9153", ("", 9153)),
        ("prometheus 127.0.0.1:1", ("127.0.0.1", 1)),
    ],
)
def test_the_path_is_served_where_the_corefile_says(line: str, place: tuple[str, int]) -> None:
    (route,) = trial.plugin(Prometheus, line).routes()
    assert (route.address, route.port, route.path) == (*place, "/metrics")


def test_who_accepts_openmetrics_gets_it_and_all_others_the_text_format() -> None:
    prometheus = trial.plugin(Prometheus, "prometheus")
    status, text, content_type = prometheus.respond({})
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert list(parse_text(text.decode()))
    status, text, content_type = prometheus.respond({"accept": "application/openmetrics-text;version=1.0.0,*/*;q=0.1"})
    assert (status, content_type.split(";")[0]) == (200, "application/openmetrics-text")
    assert list(parse_openmetrics(text.decode()))


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("prometheus 9153", "hint: write `:9153` for all addresses"),
        ("prometheus {\n tls /web.yml\n}", "error: `tls`: metrics over TLS aren't in kdns yet"),
        ("prometheus {\n runtime_metrics\n}", "note: `runtime_metrics` has no effect"),
        ("prometheus\nprometheus", "can only be used once"),
    ],
)
def test_what_it_does_not_take_is_told(line: str, part: str) -> None:
    assert part in trial.problems(Prometheus, line)
