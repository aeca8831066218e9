"""What is probably amiss with a name, each mistake in a sentence with its way out.

A rule is a function from the case to hints; the rules stand in the order in which their hints are told, the likeliest
cause first. Those about a service that is there are `service_hints.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kdns.addresses import pack_address
from kdns.explain import report
from kdns.explain.case import Case, full
from kdns.explain.knowledge import Source
from kdns.explain.meaning import meaning_of
from kdns.explain.near import MOST_SUGGESTED
from kdns.explain.service_hints import RULES as OF_SERVICES
from kdns.explain.stub import NODE, OTHER, in_cluster
from kdns.kubernetes.cluster import dashed
from kdns.kubernetes.schema import pointers
from kdns.wire import names

Hints = Iterator[report.Hint]


def find(case: Case) -> list[report.Hint]:
    """All that is to be said of a case; nothing twice."""
    found = [hint for rule in RULES for hint in rule(case)]
    return found or list(_nobody(case))


def _not_read(case: Case) -> Hints:
    """What is known of the cluster is nothing, or old."""
    for source in case.sources:
        live, missing = source.plugin.live, source.plugin.missing()
        why = f": {missing}" if missing else ""
        if not source.cluster.synced:
            yield report.Hint("not-read", f"the cluster isn't read yet, so each of its names is SERVFAIL{why}")
        elif live is not None and live.stale:
            yield report.Hint("stale", f"the cluster is told as a snapshot has it, for the API isn't read yet{why}")
        elif live is not None and case.running and not live.connected:
            text = "the API server doesn't answer at the moment: what has changed since isn't known"
            yield report.Hint("not-connected", text)


def _other_resolver(case: Case) -> Hints:
    """The pod asks somebody else, so whatever is said here is of no use to it."""
    client = case.client
    pod = f"pod `{client.namespace}/{client.pod}`"
    if client.asks == NODE and client.dns_policy == "ClusterFirst":
        text = (
            f"{pod} doesn't ask the cluster's DNS: it uses the network of its node (`hostNetwork: true`), and so its "
            "resolv.conf, too; with `dnsPolicy: ClusterFirstWithHostNet` it would"
        )
        yield report.Hint("other-resolver", text)
    elif client.asks == NODE:
        text = (
            f"{pod} doesn't ask the cluster's DNS: with `dnsPolicy: {client.dns_policy}` it has the resolv.conf of its "
            "node; with `ClusterFirst` it would, or with `ClusterFirstWithHostNet` on the network of its node"
        )
        yield report.Hint("other-resolver", text)
    elif client.asks == OTHER:
        text = f"{pod} has `dnsPolicy: None`, so it asks whom its dnsConfig names, and searches where that says"
        yield report.Hint("other-resolver", text)


def _hidden(case: Case) -> Hints:
    for each in case.told.objects:
        if each.exists and each.hidden_by:
            yield report.Hint(
                "hidden", f"{each.kind} `{full(each)}` is there, but DNS doesn't show it: {each.hidden_by}"
            )
        elif each.hidden_by:
            yield report.Hint("hidden", f"if it were there, DNS wouldn't show it: {each.hidden_by}")
        elif not each.exists and case.best is not None:
            yield from _perhaps_hidden(case.best.source)


def _perhaps_hidden(source: Source) -> Hints:
    """The API filters by labels, so a server never hears of what it doesn't show."""
    visible = source.plugin.visible
    filters = {"namespace_labels": visible.namespace_labels, "labels": visible.labels}
    named = " and ".join(f"`{name}`" for name, matcher in filters.items() if matcher is not None)
    if named and source.objects is None:
        yield report.Hint("perhaps-hidden", f"{named} may hide it, if it is there: `--kubeconfig FILE` tells")


def _wrong_zone(case: Case) -> Hints:
    """`web.shop.svc.cluster.locl`, where the zone is `cluster.local`."""
    labels = case.text.lower().rstrip(".").split(".")
    if not case.unresolved or case.in_full or "svc" not in labels[1:]:
        return
    place = labels.index("svc", 1)
    zone = labels[place + 1 :]
    meaning = meaning_of([label.encode() for label in labels[: place + 1]])
    for source in case.sources if zone and meaning.of_service else ():
        text = f"`{'.'.join(zone)}` is no zone of this cluster, whose zone is `{source.zone}`"
        if source.model(meaning.namespace, meaning.service) is not None:
            text += f": ask for `{'.'.join(labels[: place + 1])}.{source.zone}`"
        yield report.Hint("wrong-zone", text)


def _missing_label(case: Case) -> Hints:
    """`web.shop.cluster.local`, and `web.svc.cluster.local`, which lacks the namespace."""
    labels = names.labels_of(names.from_text(case.text).lower())
    for source in case.sources if case.unresolved else ():
        left = [label.decode(errors="replace") for label in source.left_of_zone(labels) or ()]
        if not 1 < len(left) < 5:
            continue
        if left[-1] not in ("svc", "pod", "dns") and source.has_namespace(left[-1]):
            text = f"`svc` is missing between namespace and zone: `{'.'.join(left)}.svc.{source.zone}`"
            yield report.Hint("missing-svc", text)
        elif len(left) == 2 and left[1] == "svc" and not source.has_namespace(left[0]):
            found = [each for each in sorted(source.namespaces) if source.model(each, left[0]) is not None]
            for namespace in found[:MOST_SUGGESTED]:
                text = f"the namespace is missing: `{left[0]}.{namespace}.svc.{source.zone}`"
                yield report.Hint("missing-namespace", text)


def _swapped(case: Case) -> Hints:
    """`shop.web` for `web.shop`."""
    best = case.best
    if best is None or not case.unresolved or best.meaning.kind != "service":
        return
    meaning = best.meaning
    if not case.elsewhere and best.source.model(meaning.service, meaning.namespace) is not None:
        right = f"{meaning.namespace}.{meaning.service}"
        yield report.Hint("swapped", f"the Service comes first, then its namespace: `{right}`")


def _near_namespace(case: Case) -> Hints:
    best = case.best
    if best is None or not case.near_namespaces:
        return
    source, meaning = best.source, best.meaning
    with_service = [each for each in case.near_namespaces if source.model(each, meaning.service) is not None]
    if with_service:
        text = f"did you mean `{meaning.service}.{with_service[0]}`? there is no namespace `{meaning.namespace}`"
    else:
        text = f"did you mean namespace `{case.near_namespaces[0]}`? there is none called `{meaning.namespace}`"
    yield report.Hint("near-namespace", text)


def _other_namespace(case: Case) -> Hints:
    best = case.best
    found = [each for each in case.elsewhere if each not in case.near_namespaces]
    if best is None or not found:
        return
    name = best.meaning.service
    short = case.resolver.search and not case.in_full
    first = f"{name}.{found[0]}" if short else f"{name}.{found[0]}.svc.{best.source.zone}"
    if len(found) == 1:
        text = f"Service `{name}` is in namespace `{found[0]}`: ask for `{first}`"
    else:
        shown = ", ".join(f"`{each}`" for each in found[:MOST_SUGGESTED])
        more = f" and {len(found) - MOST_SUGGESTED} more" if len(found) > MOST_SUGGESTED else ""
        text = f"Services called `{name}` are in namespaces {shown}{more}: say which, as in `{first}`"
    yield report.Hint("other-namespace", text)


def _near_service(case: Case) -> Hints:
    best = case.best
    if best is not None and case.near_services:
        found = " or ".join(f"`{each}`" for each in case.near_services)
        text = f"did you mean {found}? there is no Service `{best.meaning.service}` in `{best.meaning.namespace}`"
        yield report.Hint("near-service", text)


def _pod(case: Case) -> Hints:
    best = case.best
    if best is None or best.meaning.kind != "pod" or not case.unresolved:
        return
    source, meaning = best.source, best.meaning
    if source.plugin.view.pods == "disabled":
        text = "pods have no names here: `pods insecure` or `pods verified` in `kubernetes` gives them"
        yield report.Hint("pods-disabled", text)
        return
    if not meaning.address:
        text = "a pod is asked for by its address, with `-` for each dot"
        addresses = source.cluster.pod_addresses(meaning.namespace, meaning.label)
        if addresses:
            text += f": `{dashed(addresses[0]).decode()}.{meaning.namespace}.pod.{source.zone}`"
        yield report.Hint("pod-by-name", text)
        return
    at = [each for each in case.told.objects if each.kind == "Pod"]
    if at and at[0].namespace != meaning.namespace:
        text = f"the pod at {meaning.address} is `{full(at[0])}`, in another namespace"
        yield report.Hint("pod-other-namespace", text)
    elif not at and source.plugin.view.pods == "verified":
        text = f"no pod of namespace `{meaning.namespace}` has the address {meaning.address}"
        yield report.Hint("no-such-pod", text)


def _address(case: Case) -> Hints:
    best = case.best
    if best is None or best.meaning.kind != "address" or case.told.resolves is not False:
        return
    if any(each.outcome == report.NO_DATA for each in case.told.walk):
        yield report.Hint("address-type", "the name of an address has PTR records only")
        return
    packed = pack_address(best.meaning.address)
    if packed is None:
        yield report.Hint("partial-address", "a reverse name has a PTR record where it spells a whole address")
    elif not pointers(best.source.plugin.view, packed, set()):
        text = f"no Service has the address {best.meaning.address}, nor has a ready endpoint of one"
        for pod in best.source.objects.pods_at(best.meaning.address)[:1] if best.source.objects else ():
            text += f"; it is that of pod `{pod.metadata.namespace}/{pod.metadata.name}`"
        yield report.Hint("no-such-address", text)


def _final_dot(case: Case) -> Hints:
    """A final dot keeps the search list out; without it the name would be found."""
    found = _searched(case) if case.text.endswith(".") and case.client.search else ""
    if found:
        short = case.text.rstrip(".")
        text = f"the final dot says that the name is whole; `{short}` without it is `{found}`"
        yield report.Hint("final-dot", text)


def _searched(case: Case) -> str:
    """The Service that the search list of a pod would make of a name that isn't found; empty where there is none."""
    if not case.unresolved or case.in_full:
        return ""
    short = case.text.rstrip(".").lower()
    for source in case.sources:
        for domain in in_cluster(case.client.namespace or "default", source.zone).search:
            labels = [label.encode() for label in f"{short}.{domain}".split(".")]
            meaning = meaning_of(source.left_of_zone(labels) or ())
            if meaning.kind == "service" and source.model(meaning.namespace, meaning.service) is not None:
                return f"{short}.{domain}."
    return ""


def _ndots(case: Case) -> Hints:
    """Queries that come to nothing because the name has too few dots, and names with too many to be searched."""
    told, ndots, dots = case.told, case.client.ndots, case.text.rstrip(".").count(".")
    wasted = sum(each.outcome == report.NO_NAME for each in told.walk)
    if case.in_full and wasted and told.resolves is not False and dots < ndots:
        text = (
            f"{wasted} of {told.queries} queries are for nothing: with ndots:{ndots} a name of so few dots is searched "
            f"first; `{case.text}.` with a final dot is asked for at once"
        )
        yield report.Hint("ndots", text)
    if case.unresolved and case.best is not None and ndots <= dots and case.client.search and not case.in_full:
        text = (
            f"with ndots:{ndots} a name of so many dots is taken for whole; glibc tries the search list after that, "
            "musl (Alpine) doesn't"
        )
        yield report.Hint("ndots", text)


def _no_search_list(case: Case) -> Hints:
    client = case.client
    if not case.unresolved or client.search or client.asks or case.in_full or not case.sources:
        return
    found = _searched(case) if "." in case.text.rstrip(".") else ""
    if found or case.best is not None or "." not in case.text:
        right = found or f"NAME.NAMESPACE.svc.{case.sources[0].zone}"
        yield report.Hint("no-search-list", f"without a search list a Service is asked for in full: `{right}`")


def _nobody(case: Case) -> Hints:
    """REFUSED: no directive has the name, which isn't one of the cluster. Told where nothing else is."""
    last = case.told.walk[-1] if case.told.walk else None
    if last is not None and case.outside and "." in case.text.rstrip("."):
        text = "no directive here answers for it: `forward . ADDRESS` would ask others"
        yield report.Hint("nobody", text)


RULES: tuple[Callable[[Case], Hints], ...] = (
    _not_read,
    _other_resolver,
    _hidden,
    _wrong_zone,
    _missing_label,
    _swapped,
    _other_namespace,
    _near_namespace,
    _near_service,
    *OF_SERVICES,
    _pod,
    _address,
    _final_dot,
    _ndots,
    _no_search_list,
)
