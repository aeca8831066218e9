"""Hints about a service that is there: its endpoints, ports, names of single pods, and aliases.

Law: kubernetes/dns, docs/specification.md 1.1.0, sections 2.3 to 2.5, and docs/coredns.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from kdns.addresses import pack_address
from kdns.explain import report
from kdns.explain.case import Case, Meant, full, target_of
from kdns.explain.knowledge import CLUSTER_IP, EXTERNAL_NAME, HEADLESS, Source
from kdns.explain.near import MOST_SUGGESTED, likeness, nearest_of
from kdns.kubernetes.cluster import ServiceModel, dashed
from kdns.wire.records import Type

Hints = Iterator[report.Hint]
# Of thousands of names of pods the first few are as good as any.
MOST_COMPARED = 100
_PROTOCOLS = ("tcp", "udp", "sctp")


def _below(case: Case, kind: str) -> tuple[Meant, report.Object] | None:
    """What was asked for below a service that is there, and wasn't found."""
    best, service = case.best, case.service
    if best is None or service is None or not service.exists or best.meaning.kind != kind or best.answered:
        return None
    return best, service


# Endpoints that aren't ready


def _headless_empty(case: Case) -> Hints:
    """A headless service has no name then."""
    for service in _empty(case, HEADLESS):
        text = f"nothing is ready behind Service `{full(service)}`; it is headless, so its name doesn't exist then"
        if service.endpoints is not None and service.endpoints.total:
            text += "; `publishNotReadyAddresses: true` gives names to pods that must find one another before"
        yield report.Hint("headless-nothing-ready", text)
        yield from _no_endpoints(case, service)


def _nothing_ready(case: Case) -> Hints:
    """Any other service has an address all the same, at which nobody answers."""
    for service in _empty(case, CLUSTER_IP):
        nothing = f"nothing is ready behind Service `{full(service)}`"
        if case.best is not None and case.best.source.plugin.view.ignore_empty:
            yield report.Hint("ignored-empty", f"{nothing}, and `ignore empty_service` hides its name then")
        else:
            yield report.Hint("nothing-ready", f"{nothing}: the name has an address, and connections to it fail")
        yield from _no_endpoints(case, service)


def _empty(case: Case, kind: str) -> Iterator[report.Object]:
    for each in case.told.objects:
        if each.endpoints is not None and not each.endpoints.ready and each.kind_for_dns == kind and not each.hidden_by:
            yield each


def _no_endpoints(case: Case, service: report.Object) -> Hints:
    """The selector matches nothing: perhaps all but one of its labels do."""
    objects = case.best.source.objects if case.best else None
    object = objects.services.get((service.namespace, service.name)) if objects else None
    if objects is None or object is None or service.endpoints is None or service.endpoints.total:
        return
    selector = object.spec.selector or {}
    if not selector:
        yield report.Hint("no-selector", f"Service `{full(service)}` has no selector, and no EndpointSlice names it")
        return
    for (namespace, name), pod in sorted(objects.pods.items()):
        labels = pod.metadata.labels or {}
        missed = [key for key, value in selector.items() if labels.get(key) != value]
        if namespace != service.namespace or pod.finished or len(missed) != 1:
            continue
        key = missed[0]
        if len(selector) > 1 or likeness(selector[key], labels.get(key, "")):
            has = f"`{key}={labels[key]}`" if key in labels else f"no label `{key}`"
            text = f"its selector wants `{key}={selector[key]}`, and pod `{name}` has {has}"
            yield report.Hint("near-selector", text)
            return
    text = f"its selector `{service.selector}` matches no pod of namespace `{service.namespace}`"
    yield report.Hint("no-pods", text)


# Ports


def _port(case: Case) -> Hints:
    found = _below(case, "port")
    if found is None:
        return
    best, service = found
    wanted, protocol = best.meaning.port, best.meaning.protocol
    host = f"{service.name}.{service.namespace}.svc.{best.source.zone}"
    named = [port for port in service.ports if port.name]
    if service.kind_for_dns == EXTERNAL_NAME:
        yield report.Hint("alias-has-no-ports", f"Service `{full(service)}` is an ExternalName, without SRV records")
    elif wanted in _PROTOCOLS and protocol not in _PROTOCOLS:
        yield report.Hint("port-swapped", f"the port comes first, then the protocol: `_{protocol}._{wanted}.{host}`")
    elif service.ports and not named:
        text = (
            f"the port of Service `{full(service)}` has no name, and so no SRV record of its own; `{host} SRV` has it"
        )
        yield report.Hint("unnamed-port", text)
    elif named:
        yield from _named_port(service, named, wanted, protocol, host)


def _named_port(service: report.Object, named: list[report.Port], wanted: str, protocol: str, host: str) -> Hints:
    by_name = next((port for port in named if port.name == wanted), None)
    if by_name is not None and by_name.protocol.lower() != protocol:
        right = f"_{by_name.name}._{by_name.protocol.lower()}.{host}"
        yield report.Hint("port-protocol", f"port `{wanted}` is {by_name.protocol}: `{right}`")
    if by_name is not None:
        return
    by_number = next((port for port in named if wanted.isdecimal() and port.port == int(wanted)), None)
    if by_number is not None:
        right = f"_{by_number.name}._{by_number.protocol.lower()}.{host}"
        yield report.Hint("port-number", f"port {wanted} is asked for by its name: `{right}`")
        return
    meant = nearest_of(wanted, [port.name for port in named])
    known = ", ".join(f"`{port.name}`" for port in named)
    text = f"Service `{full(service)}` has no port `{wanted}`; its named ports are {known}"
    yield report.Hint("no-such-port", text + (f"; did you mean `{meant}`?" if meant else ""))


def _half_a_port(service: report.Object, label: str, zone: str) -> Hints:
    """`_http.web.shop` or `_tcp.web.shop`, where a port is named with its protocol."""
    half = label.removeprefix("_")
    named = [port for port in service.ports if port.name]
    meant = [port for port in named if half in (port.name, port.protocol.lower())] or named
    right = f"_{meant[0].name}._{meant[0].protocol.lower()}" if meant else "_PORT._PROTOCOL"
    text = f"a port is asked for with its protocol: `{right}.{service.name}.{service.namespace}.svc.{zone}`"
    yield report.Hint("half-a-port", text if named else f"Service `{full(service)}` has no named port")


# Single endpoints


def _endpoint(case: Case) -> Hints:
    """Which names single pods have, and why one has none."""
    found = _below(case, "endpoint")
    if found is None:
        return
    best, service = found
    label = best.meaning.label
    if service.kind_for_dns == EXTERNAL_NAME:
        text = f"Service `{full(service)}` is an ExternalName: there are no names below it"
        yield report.Hint("alias-has-no-endpoints", text)
        return
    if label.startswith("_"):
        yield from _half_a_port(service, label, best.source.zone)
        return
    endpoints = service.endpoints
    waiting = next((each for each in endpoints.not_ready if each.name == label), None) if endpoints else None
    if waiting is not None:
        why = f": {waiting.why}" if waiting.why != "not ready" else ""
        yield report.Hint("endpoint-not-ready", f"pod `{label}` isn't ready, so it has no name{why}")
        return
    labels = _labels(best.source.model(service.namespace, service.name), label)
    yield from _pod_without_name(best.source, service, label, labels)
    if labels and label not in labels:
        left = endpoints.total - endpoints.ready if endpoints is not None and not endpoints.known else 0
        # Addresses are all alike; and what is asked for may be one of those that aren't ready.
        meant = "" if left or label[:1].isdigit() else nearest_of(label, labels[:MOST_COMPARED])
        shown = ", ".join(f"`{each}`" for each in labels[:MOST_SUGGESTED])
        more = f" and {len(labels) - MOST_SUGGESTED} more" if len(labels) > MOST_SUGGESTED else ""
        text = f"the ready endpoints of Service `{full(service)}` are called {shown}{more}"
        if left:
            text += f", and {left} {'is' if left == 1 else 'are'} not ready, so without a name"
        yield report.Hint("endpoint-names", text + (f"; did you mean `{meant}`?" if meant else ""))


def _labels(model: ServiceModel | None, label: str) -> list[str]:
    """What the ready endpoints are called; who asked for one of them has put them in order."""
    if model is None:
        return []
    model.at_label(label.encode())
    return [each.decode() for each in model.by_label or ()]


def _pod_without_name(source: Source, service: report.Object, label: str, labels: Sequence[str]) -> Hints:
    """The label is a pod's name, which is no name in DNS but for pods that ask for one."""
    pod = source.objects.pods.get((service.namespace, label)) if source.objects else None
    if pod is None:
        return
    spec = pod.spec
    subdomain = spec.subdomain if spec is not None else None
    if spec is not None and spec.hostname and subdomain == service.name:
        return
    has = f"which is `{subdomain}`" if subdomain else "and it has none"
    addresses = [dashed(packed).decode() for packed in source.cluster.pod_addresses(service.namespace, label)]
    called = next((each for each in addresses if each in labels), "")
    text = f"a pod is called by its `hostname` only below the Service that its `subdomain` names, {has}"
    yield report.Hint("no-hostname", text + (f"; here `{label}` is called `{called}`" if called else ""))


# Aliases


def _alias(case: Case) -> Hints:
    service, best = case.service, case.best
    if service is None or service.kind_for_dns != EXTERNAL_NAME or best is None:
        return
    if pack_address(service.external_name.rstrip(".")) is not None:
        text = (
            f"`externalName` of Service `{full(service)}` is the address {service.external_name}, and an alias needs a "
            "name; a headless Service with an EndpointSlice of its own gives a name to an address"
        )
        yield report.Hint("alias-is-address", text)
        return
    if best.meaning.kind == "service" and case.alias is None:
        text = (
            f"Service `{full(service)}` is an ExternalName, an alias for A and AAAA; `rfc_cname` in `kubernetes` makes "
            "it one for every type"
        )
        yield report.Hint("alias-type", text)
        return
    target = target_of(best.source, service)
    yield from _outside(case, best.source, service) if target is None else _inside(case, best.source, service)


def _outside(case: Case, source: Source, service: report.Object) -> Hints:
    labels = service.external_name.rstrip(".").split(".")
    namespace = labels[1] if len(labels) > 1 else service.namespace
    if len(labels) < 4 and source.model(namespace, labels[0]) is not None:
        right = f"{labels[0]}.{namespace}.svc.{source.zone}"
        text = f"no search list applies to `externalName`: for a Service of the cluster write `{right}`"
        yield report.Hint("alias-is-short", text)
    elif case.told.resolves is False and any(
        each.outcome == report.NO_DATA and each.records and not _claimed(each) for each in case.told.walk
    ):
        text = (
            f"the alias leads out of the cluster, to {service.external_name}, and nobody here answers for that; "
            "`forward . ADDRESS` would ask others"
        )
        yield report.Hint("alias-unanswered", text)


def _claimed(verdict: report.Verdict) -> bool:
    """Whether a directive had an answer to the name that an alias leads to, be it that it doesn't exist."""
    return any(step.depth and step.does == "answers" for step in verdict.steps)


def _inside(case: Case, source: Source, service: report.Object) -> Hints:
    chain = [service, *(each for each in case.told.objects if each is not service)]
    last = chain[-1]
    target = target_of(source, last) if last.kind_for_dns == EXTERNAL_NAME else None
    if not last.exists:
        text = f"the alias `{full(service)}` leads to Service `{full(last)}`, which doesn't exist"
        yield report.Hint("alias-dangling", text)
    elif target is not None and any(
        (each.namespace, each.name) == (target.namespace, target.service) for each in chain
    ):
        yield report.Hint("alias-loop", f"the alias `{full(service)}` leads back to Service `{target.service}`")
    elif target is not None:
        yield report.Hint("alias-dangling", f"the alias `{full(last)}` leads to {last.external_name}, which is nothing")


# Types


def _type(case: Case) -> Hints:
    """The name is there, without a record of the type."""
    best = case.best
    if not case.unresolved or case.service is None or best is None or len(case.types) != 1:
        return
    if best.meaning.label.startswith("_"):
        return
    # What an alias leads to is told last.
    service = case.told.objects[-1]
    there = any(each.outcome == report.NO_DATA and each.name == best.text for each in case.told.walk)
    if not there or not service.exists or service.kind_for_dns == EXTERNAL_NAME:
        return
    rtype = case.types[0]
    if rtype in (Type.A, Type.AAAA):
        missing, there_is = ("IPv6", "A") if rtype == Type.AAAA else ("IPv4", "AAAA")
        yield report.Hint("other-family", f"Service `{full(service)}` has no {missing} address; ask for {there_is}")
    elif service is not case.service:
        return
    elif rtype == Type.SRV:
        yield report.Hint("no-ports", f"Service `{full(service)}` has no port, and so no SRV record")
    else:
        text = "a Service has A, AAAA and SRV records, an ExternalName a CNAME, and an address a PTR; there is no other"
        yield report.Hint("wrong-type", text)


RULES: tuple[Callable[[Case], Hints], ...] = (_headless_empty, _port, _endpoint, _alias, _type, _nothing_ready)
