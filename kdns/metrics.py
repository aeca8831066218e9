"""Every metric, declared once: name, kind, labels, buckets; and the numbers themselves, as plain dicts and lists.

Knows nothing of DNS but the numbers of types and response codes that are labels. No label holds a name that was asked.
Law: what CoreDNS 1.14 exports keeps its name, labels and buckets; what only kdns has begins with `kdns_`.
"""

from __future__ import annotations

import contextlib
import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

import kdns

Labels = tuple[str, ...]

TIME_BUCKETS = tuple(0.00025 * 2**power for power in range(16))
SLIM_BUCKETS = (0.00025, 0.0025, 0.025, 0.25, 2.5)
# What client libraries of Prometheus take unless told otherwise.
DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
PROGRAMMING_BUCKETS = tuple(0.001 * 2**power for power in range(20))
SIZE_BUCKETS = (0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16000, 32000, 48000, 64000)

# The types that CoreDNS has a label for; a client chooses the number, so all others share one.
TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 43: "DS", 46: "RRSIG",
    47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 64: "SVCB", 65: "HTTPS", 251: "IXFR", 252: "AXFR", 255: "ANY",
}  # fmt: skip
RCODES = {
    0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 6: "YXDOMAIN", 7: "YXRRSET",
    8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE", 16: "BADVERS",
}  # fmt: skip


class Metric(msgspec.Struct, frozen=True, eq=False):
    """The declaration of one metric. One without labels is there with value 0 from the start.

    `several` makes one value of those that several sources tell of the same labels.
    """

    name: str
    kind: type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]
    text: str
    labels: Labels = ()
    buckets: tuple[float, ...] = ()
    several: Callable[[Iterable[float]], float] = max


# Values by their labels, from whoever knows them now.
Source = Callable[[], Mapping[Labels, float]]

_DECLARED: list[Metric] = []


def _counter(name: str, text: str, *labels: str) -> Metric:
    return _declare(Metric(name, CounterMetricFamily, text, labels, several=sum))


def _gauge(name: str, text: str, *labels: str, several: Callable[[Iterable[float]], float] = max) -> Metric:
    return _declare(Metric(name, GaugeMetricFamily, text, labels, several=several))


def _histogram(name: str, buckets: tuple[float, ...], text: str, *labels: str) -> Metric:
    return _declare(Metric(name, HistogramMetricFamily, text, labels, buckets))


def _declare(metric: Metric) -> Metric:
    _DECLARED.append(metric)
    return metric


# fmt: off
BUILD_INFO = _gauge("coredns_build_info", "The version that runs; `goversion` is that of Python.",
                    "version", "revision", "goversion")
PLUGIN_ENABLED = _gauge("coredns_plugin_enabled", "Which directives a server block has.",
                        "server", "zone", "view", "name")
PANICS = _counter("coredns_panics_total", "Queries and watches that failed by an error of the server.")

REQUESTS = _counter("coredns_dns_requests_total", "Queries by zone, transport, address family and type.",
                    "server", "zone", "view", "proto", "family", "type")
REQUEST_SECONDS = _histogram("coredns_dns_request_duration_seconds", TIME_BUCKETS, "Time from a query to its reply.",
                             "server", "zone", "view")
REQUEST_BYTES = _histogram("coredns_dns_request_size_bytes", SIZE_BUCKETS, "Size of queries.",
                           "server", "zone", "view", "proto")
RESPONSE_BYTES = _histogram("coredns_dns_response_size_bytes", SIZE_BUCKETS, "Size of replies.",
                            "server", "zone", "view", "proto")
DO_REQUESTS = _counter("coredns_dns_do_requests_total", "Queries with the DO bit.", "server", "zone", "view")
RESPONSES = _counter("coredns_dns_responses_total", "Replies by response code and by the plugin that answered.",
                     "server", "zone", "view", "rcode", "plugin")

PROXY_SECONDS = _histogram("coredns_proxy_request_duration_seconds", TIME_BUCKETS, "Time that an upstream took.",
                           "proxy_name", "to", "rcode")
PROXY_HEALTH_FAILURES = _counter("coredns_proxy_healthcheck_failures_total", "Failed health checks of an upstream.",
                                 "proxy_name", "to")
PROXY_CONNECTION_HITS = _counter("coredns_proxy_conn_cache_hits_total",
                                 "Questions for which there was a connection to the upstream already.",
                                 "proxy_name", "to", "proto")
PROXY_CONNECTION_MISSES = _counter("coredns_proxy_conn_cache_misses_total",
                                   "Questions for which a connection to the upstream was made.",
                                   "proxy_name", "to", "proto")
FORWARD_HEALTH_BROKEN = _counter("coredns_forward_healthcheck_broken_total",
                                 "Queries for which every upstream was taken for dead.")
FORWARD_REJECTED = _counter("coredns_forward_max_concurrent_rejects_total",
                            "Queries refused because `max_concurrent` was reached.")
# CoreDNS dropped the four below in 1.11; dashboards still ask for them.
FORWARD_REQUESTS = _counter("coredns_forward_requests_total", "Queries sent to an upstream.", "to")
FORWARD_RESPONSES = _counter("coredns_forward_responses_total", "Replies of an upstream.", "to", "rcode")
FORWARD_SECONDS = _histogram("coredns_forward_request_duration_seconds", TIME_BUCKETS, "Time that an upstream took.",
                             "to", "rcode")
FORWARD_HEALTH_FAILURES = _counter("coredns_forward_healthcheck_failures_total",
                                   "Failed health checks of an upstream.", "to")

HOSTS_ENTRIES = _gauge("coredns_hosts_entries", "Names and addresses that `hosts` knows, by its file.", "hostsfile")
HOSTS_RELOADED = _gauge("coredns_hosts_reload_timestamp_seconds", "When the file of `hosts` was read last.")

CACHE_ENTRIES = _gauge("coredns_cache_entries", "Replies of upstreams that are kept.",
                       "server", "type", "zones", "view")
CACHE_REQUESTS = _counter("coredns_cache_requests_total", "Queries that came to the cache.", "server", "zones", "view")
CACHE_HITS = _counter("coredns_cache_hits_total", "Queries that were answered with a kept reply.",
                      "server", "type", "zones", "view")
CACHE_MISSES = _counter("coredns_cache_misses_total", "Queries for which nothing was kept.", "server", "zones", "view")
CACHE_PREFETCHES = _counter("coredns_cache_prefetch_total", "Kept replies that were fetched anew in the background.",
                            "server", "zones", "view")
CACHE_STALE = _counter("coredns_cache_served_stale_total", "Queries answered with a reply whose time was over.",
                       "server", "zones", "view")
CACHE_DROPS = _counter("coredns_cache_drops_total", "Replies to another question; they are ignored before the cache.",
                       "server", "zones", "view")
CACHE_EVICTIONS = _counter("coredns_cache_evictions_total", "Kept replies that had to make room for others.",
                           "server", "type", "zones", "view")
CACHE_BYTES = _gauge("kdns_cache_bytes", "What the kept replies of upstreams cost in memory, about.",
                     "server", "type", "zones", "view")

HEALTH_SECONDS = _histogram("coredns_health_request_duration_seconds", SLIM_BUCKETS,
                            "Time that a request to our own /health took.")
# For dashboards alone: kdns measures without a request that could fail.
HEALTH_FAILURES = _counter("coredns_health_request_failures_total", "Requests to our own /health that failed.")
RELOAD_FAILED = _counter("coredns_reload_failed_total", "New configurations that could not be put to use.")
RELOAD_VERSION = _gauge("coredns_reload_version_info", "The hash of the configuration.", "hash", "value")

TEMPLATE_MATCHES = _counter("coredns_template_matches_total", "Questions that a `template` had an answer for.",
                            "server", "zone", "view", "class", "type")
TEMPLATE_FAILURES = _counter("coredns_template_template_failures_total", "Templates that could not be filled in.",
                             "server", "zone", "view", "class", "type", "section", "template")
TEMPLATE_RR_FAILURES = _counter("coredns_template_rr_failures_total", "Templates that made no record.",
                                "server", "zone", "view", "class", "type", "section", "template")

PACKETS_DROPPED = _counter("kdns_packets_dropped_total", "Packets that got no reply, by reason.", "reason")
TRAILING_BYTES = _counter("kdns_trailing_bytes_total", "Queries with bytes behind them, which were ignored.")
TCP_ACCEPT_ERRORS = _counter("kdns_tcp_accept_errors_total",
                             "TCP connections that could not be accepted, as where file descriptors ran out.")
TCP_CLOSED = _counter("kdns_tcp_connections_closed_total", "TCP connections that the server cut, by reason.", "reason")
UDP_SEND_DROPS = _counter("kdns_udp_send_drops_total", "Replies that the kernel would not take, by reason.", "reason")
UDP_RECEIVE_DROPS = _counter("kdns_udp_receive_drops_total", "Packets lost because a socket's receive buffer was full.")
DNS64_TRANSLATED = _counter("coredns_dns64_requests_translated_total", "Queries answered with translated addresses.",
                            "server")
AUTOPATH_SUCCESS = _counter("coredns_autopath_success_total",
                            "Queries for the first name of a search list that were answered with a later one's answer.",
                            "server")
LOCAL_REQUESTS = _counter("coredns_local_localhost_requests_total", "Queries for names with `localhost` in them.")
ACL_BLOCKED = _counter("coredns_acl_blocked_requests_total", "Queries that were refused.", "server", "zone", "view")
ACL_FILTERED = _counter("coredns_acl_filtered_requests_total", "Queries answered as if there were no data.",
                        "server", "zone", "view")
ACL_DROPPED = _counter("coredns_acl_dropped_requests_total", "Queries without a reply.", "server", "zone", "view")
ACL_ALLOWED = _counter("coredns_acl_allowed_requests_total", "Queries that were let through.", "server", "view")
LOOP_DETECTED = _gauge("kdns_loop_detected", "1 while forwarded names lead back to this server, else 0.",
                       "server", "zone")
# A process may have several sources of a cluster's names: all is well only where all of them are.
INVENTORY_LOADED = _gauge("kdns_inventory_loaded", "1 when the last load of every inventory was good, else 0.",
                          several=min)
INVENTORY_PROBLEMS = _gauge("kdns_inventory_problems", "Mistakes and warnings of the last load of the inventories.",
                            several=sum)
INVENTORY_RELOADS = _counter("kdns_inventory_reloads_total", "Loads of the inventory, by result.", "result")
INVENTORY_OBJECTS = _gauge("kdns_inventory_objects", "Objects of the inventories in use, by kind.", "kind",
                           several=sum)

SEARCH_PATH_MISSES = _counter("kdns_search_path_misses_total",
                              "Queries for what isn't there, below the services of a namespace.", "namespace")
SEARCH_PATH_SAVED = _counter("kdns_search_path_ndots_savings_total",
                             "Those of them that clients with `ndots:2` would not have sent first.", "namespace")
KUBERNETES_PROGRAMMING = _histogram("coredns_kubernetes_dns_programming_duration_seconds", PROGRAMMING_BUCKETS,
                                    "Time from a change of pods to the answers that show it.", "service_kind")
REST_REQUESTS = _counter("coredns_kubernetes_rest_client_requests_total",
                         "Requests to the API, by HTTP status; `<error>` is for those without a reply.",
                         "code", "method", "host")
REST_SECONDS = _histogram("coredns_kubernetes_rest_client_request_duration_seconds", DEFAULT_BUCKETS,
                          "Time from a request to the API to the beginning of its reply.", "verb", "host")
KUBERNETES_SYNCED = _gauge("kdns_kubernetes_synced", "1 once all that the API has was read, else 0.", several=min)
KUBERNETES_CONNECTED = _gauge("kdns_kubernetes_connected", "1 while every watch of the API is open, else 0.",
                              several=min)
KUBERNETES_STALE = _gauge("kdns_kubernetes_stale", "1 while answers come from a snapshot, else 0.")
KUBERNETES_SYNC_SECONDS = _gauge("kdns_kubernetes_sync_seconds", "Time that the first reading of the API took.")
KUBERNETES_AGE = _gauge("kdns_kubernetes_watch_age_seconds", "Time since the API last told anything, by what it told.",
                        "watch")
KUBERNETES_EVENTS = _counter("kdns_kubernetes_events_total", "Objects that the API told of, by what became of them.",
                             "kind", "event")
KUBERNETES_RELISTS = _counter("kdns_kubernetes_relists_total", "Lists after the first one, by reason.",
                              "kind", "reason")
KUBERNETES_FAILURES = _counter("kdns_kubernetes_failures_total", "Requests and watches that failed, by HTTP status.",
                               "kind", "status")
KUBERNETES_SKIPPED = _counter("kdns_kubernetes_objects_skipped_total", "Objects that could not be read.", "kind")
KUBERNETES_DRIFT = _counter("kdns_kubernetes_drift_repaired_total",
                            "Objects that an audit found otherwise than they had been told.", "kind")
SNAPSHOT_AGE = _gauge("kdns_kubernetes_snapshot_age_seconds", "Time since the snapshot on disk was written.", "file")
SNAPSHOT_FAILURES = _counter("kdns_kubernetes_snapshot_failures_total", "Snapshots that could not be written.")
# fmt: on

DECLARED: tuple[Metric, ...] = tuple(_DECLARED)
# Their numbers are read off the rows of queries.
_OF_QUERIES = frozenset((REQUESTS, REQUEST_SECONDS, REQUEST_BYTES, RESPONSE_BYTES, DO_REQUESTS, RESPONSES))

# A row of queries that are alike: how many, and the sums of their and their replies' bytes.
_QUERIES, _REQUEST_BYTES, _REPLY_BYTES = range(3)
# What queries of one block and zone took: the sum of seconds, then how many in each bucket.
SECONDS, FIRST_BUCKET = range(2)
# The bucket of each size that a message can have: a look-up where a search would be.
_SIZE_BUCKET = bytes(bisect_left(SIZE_BUCKETS, size) for size in range(65536))
_NO_VIEW = ""


class Metrics(Collector):
    """The numbers of one process and their exposition. Not for several threads."""

    def __init__(self, version: str = kdns.__version__, revision: str = "") -> None:
        self.registry = CollectorRegistry()
        self._values: dict[Metric, dict[Labels, float]] = {}
        self._histograms: dict[Metric, dict[Labels, list[float]]] = {}
        self._sources: dict[Metric, list[Source]] = {}
        self._rows: dict[tuple[str, str, str, str, str, bool, int, int, int, str], list[float]] = {}
        self._times: dict[tuple[str, str], list[float]] = {}
        self._late: list[Callable[[], None]] = []
        self._whole_as_integer = False
        for metric in DECLARED:
            if metric.buckets:
                self._histograms[metric] = {} if metric.labels else {(): _new_histogram(metric)}
            else:
                self._values[metric] = {} if metric.labels else {(): 0}
        self.set(BUILD_INFO, 1, version, revision, platform.python_version())
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def count(
        self,
        server: str,
        zone: str,
        transport: str,
        family: str,
        rtype: int,
        do: bool,
        request_size: int,
        rcode: int,
        reply_size: int,
        plugin: str,
        seconds: float,
    ) -> tuple[list[float], list[float]]:
        """Count one query and its reply. Sizes are in bytes, family is `1` for IPv4 and `2` for IPv6.

        Returns its row and its times, for who counts more of the same by hand.
        """
        row = self.row(server, zone, transport, family, rtype, do, request_size, rcode, reply_size, plugin)
        row[_QUERIES] += 1
        row[_REQUEST_BYTES] += request_size
        row[_REPLY_BYTES] += reply_size
        times = self.times(server, zone)
        times[SECONDS] += seconds
        times[time_bucket(seconds)] += 1
        return row, times

    def row(
        self,
        server: str,
        zone: str,
        transport: str,
        family: str,
        rtype: int,
        do: bool,
        request_size: int,
        rcode: int,
        reply_size: int,
        plugin: str,
    ) -> list[float]:
        """The row in which such a query counts, for who keeps a reply and counts its uses by hand.

        Its items are how many queries there were, and the sums of their bytes and of their replies' bytes.
        """
        key = (
            server,
            zone,
            transport,
            family,
            TYPES.get(rtype, "other"),
            do,
            _SIZE_BUCKET[request_size],
            rcode,
            _SIZE_BUCKET[reply_size],
            plugin,
        )
        try:
            return self._rows[key]
        except KeyError:
            row = self._rows[key] = [0, 0, 0]
            return row

    def times(self, server: str, zone: str) -> list[float]:
        """What the queries of a block and zone took: the sum of seconds, then how many at each `time_bucket`."""
        try:
            return self._times[server, zone]
        except KeyError:
            times = self._times[server, zone] = [0.0] * (FIRST_BUCKET + len(TIME_BUCKETS) + 1)
            return times

    def before_reading(self, tell: Callable[[], None]) -> None:
        """Call this before each exposition: whoever counts by hand brings the rows up to date then."""
        self._late.append(tell)

    def before_reading_no_more(self, tell: Callable[[], None]) -> None:
        """Call this no more: it has brought its last numbers."""
        self._late.remove(tell)

    def increase(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Add to a counter or gauge."""
        values = self._values[metric]
        try:
            values[labels] += by
        except KeyError:
            values[_checked(metric, labels)] = by

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._values[metric][_checked(metric, labels)] = value

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Add an observation to a histogram."""
        histogram = self._histograms[metric].get(labels)
        if histogram is None:
            histogram = self._histograms[metric][_checked(metric, labels)] = _new_histogram(metric)
        histogram[0] += value
        histogram[1 + bisect_left(metric.buckets, value)] += 1

    def clear(self, metric: Metric) -> None:
        """Forget what a metric with labels had (a gauge of a configuration that is gone)."""
        self._values[metric].clear()

    def read(self, metric: Metric, source: Source) -> None:
        """Ask `source` for more values at each exposition.

        Where several tell of the same labels, counters add up; of gauges the largest counts, unless the metric's
        `several` says otherwise.
        """
        self._sources.setdefault(metric, []).append(source)

    def unread(self, metric: Metric, source: Source) -> None:
        """Ask `source` no more. What it counted stays counted; a gauge of it is gone."""
        self._sources[metric].remove(source)
        if metric.kind is CounterMetricFamily:
            for labels, value in source().items():
                self.increase(metric, *labels, by=value)

    @contextlib.contextmanager
    def reading(self, sources: Mapping[Metric, Source]) -> Iterator[None]:
        """Ask these for values of their metrics for as long as the block lasts."""
        for metric, source in sources.items():
            self.read(metric, source)
        try:
            yield
        finally:
            for metric, source in sources.items():
                self.unread(metric, source)

    def enable(self, server: str, zone: str, names: Iterable[str]) -> None:
        """Tell which directives a zone of a server block has; `clear(PLUGIN_ENABLED)` first after a reload."""
        for name in names:
            self.set(PLUGIN_ENABLED, 1, server, zone, _NO_VIEW, name)

    def forwarded(self, to: str, rcode: int, seconds: float) -> None:
        """Count one exchange with an upstream, under the names of today's CoreDNS and those of before 1.11."""
        code = rcode_label(rcode)
        self.observe(PROXY_SECONDS, seconds, "forward", to, code)
        self.increase(FORWARD_REQUESTS, to)
        self.increase(FORWARD_RESPONSES, to, code)
        self.observe(FORWARD_SECONDS, seconds, to, code)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics for who accepts it, else the text format."""
        try:
            encode, content_type = choose_encoder(accept)
        except (ValueError, TypeError):
            # Both are what prometheus-client raises for a version that is none.
            encode, content_type = generate_latest, CONTENT_TYPE_PLAIN_0_0_4
        # Go's client writes le="100" in the text format, and le="100.0" in OpenMetrics, which demands it.
        self._whole_as_integer = "openmetrics" not in content_type
        return encode(self.registry), content_type

    def collect(self) -> Iterator[Family]:
        """What prometheus-client asks of a collector."""
        for tell in self._late:
            tell()
        values, histograms = self._of_queries()
        for metric in DECLARED:
            if metric.buckets:
                yield self._histogram_family(metric, histograms if metric in _OF_QUERIES else self._histograms)
            else:
                yield self._value_family(metric, values if metric in _OF_QUERIES else self._values)

    def _value_family(self, metric: Metric, values: Mapping[Metric, Mapping[Labels, float]]) -> Family:
        family = metric.kind(metric.name, metric.text, labels=metric.labels)
        told: dict[Labels, list[float]] = {}
        for source in self._sources.get(metric, ()):
            for labels, value in source().items():
                told.setdefault(labels, []).append(value)
        shown = dict(values[metric])
        for labels, several in told.items():
            # What a counter had before its sources stays counted; a gauge is as they are now.
            before = shown.get(labels, 0) if metric.kind is CounterMetricFamily else 0
            shown[labels] = before + metric.several(several)
        for labels, value in shown.items():
            family.add_metric(labels, value)  # type: ignore[call-arg, arg-type, unused-ignore]
        return family

    def _histogram_family(
        self, metric: Metric, histograms: Mapping[Metric, Mapping[Labels, Sequence[float]]]
    ) -> Family:
        family = HistogramMetricFamily(metric.name, metric.text, labels=metric.labels)
        bounds = [*map(self._bound_text, metric.buckets), "+Inf"]
        for labels, (total, *buckets) in histograms[metric].items():
            family.add_metric(labels, list(zip(bounds, accumulate(buckets), strict=True)), total)
        return family

    def _bound_text(self, bound: float) -> str:
        return str(int(bound)) if self._whole_as_integer and bound == int(bound) else str(floatToGoString(bound))  # type: ignore[no-untyped-call]

    def _of_queries(self) -> tuple[dict[Metric, dict[Labels, float]], dict[Metric, dict[Labels, list[float]]]]:
        """The metrics of queries, added up from their rows."""
        values: dict[Metric, dict[Labels, float]] = {REQUESTS: {}, DO_REQUESTS: {}, RESPONSES: {}}
        histograms: dict[Metric, dict[Labels, list[float]]] = {
            REQUEST_SECONDS: {},
            REQUEST_BYTES: {},
            RESPONSE_BYTES: {},
        }
        for key, row in self._rows.items():
            server, zone, transport, family, rtype, do, request_bucket, rcode, reply_bucket, plugin = key
            block = (server, zone, _NO_VIEW)
            queries = row[_QUERIES]
            _add(values[REQUESTS], (*block, transport, family, rtype), queries)
            _add(values[RESPONSES], (*block, rcode_label(rcode), plugin), queries)
            # CoreDNS has the series from a block's first query, with DO or without.
            _add(values[DO_REQUESTS], block, queries if do else 0)
            for metric, total, bucket in (
                (REQUEST_BYTES, row[_REQUEST_BYTES], request_bucket),
                (RESPONSE_BYTES, row[_REPLY_BYTES], reply_bucket),
            ):
                sizes = histograms[metric].setdefault((*block, transport), _new_histogram(metric))
                sizes[0] += total
                sizes[1 + bucket] += queries
        for (server, zone), times in self._times.items():
            histograms[REQUEST_SECONDS][server, zone, _NO_VIEW] = times
        return values, histograms


def time_bucket(seconds: float) -> int:
    """Where in `Metrics.times` a query that took so long is counted."""
    return FIRST_BUCKET + bisect_left(TIME_BUCKETS, seconds)


def rcode_label(rcode: int) -> str:
    """The `rcode` label: a name, or the number where there is none."""
    return RCODES.get(rcode) or str(rcode)


def _checked(metric: Metric, labels: Labels) -> Labels:
    if len(labels) != len(metric.labels):
        raise ValueError(f"{metric.name} has the labels {metric.labels}, not {labels}")
    return labels


def _new_histogram(metric: Metric) -> list[float]:
    return [0.0] * (len(metric.buckets) + 2)


def _add(values: dict[Labels, float], labels: Labels, value: float) -> None:
    values[labels] = values.get(labels, 0) + value
