"""What a Kubernetes API server says when it refuses: Status objects, word for word as kube-apiserver 1.36 has them."""

from __future__ import annotations

from typing import Any

from tests.faults.store import RESOURCES
from tests.faults.wire import Reply, Request, json_reply

USER = "system:serviceaccount:kube-system:coredns"
Status = dict[str, Any]


def status(code: int, reason: str, message: str, details: Status | None = None, **metadata: str) -> Status:
    """A Status of failure; an empty reason or no details are left out."""
    body: Status = {"kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure", "message": message}
    if reason:
        body["reason"] = reason
    if details is not None:
        body["details"] = details
    return {**body, "code": code}


def refusal(body: Status) -> Reply:
    """The reply that carries a Status, with the Retry-After that it names."""
    seconds = body.get("details", {}).get("retryAfterSeconds")
    return json_reply(body["code"], body, **({"retry_after": str(seconds)} if seconds is not None else {}))


def unauthorized() -> Status:
    return status(401, "Unauthorized", "Unauthorized")


def forbidden(request: Request) -> Status:
    resource = RESOURCES[request.resource]
    # RBAC asks after the name of a single object, by path or by field selector.
    named = f' "{request.name}"' if request.name else ""
    qualified = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
    where = f'in the namespace "{request.namespace}"' if request.namespace else "at the cluster scope"
    message = (
        f'{qualified}{named} is forbidden: User "{USER}" cannot {request.verb} resource "{resource.plural}" '
        f'in API group "{resource.group}" {where}'
    )
    details = {"name": request.name, "group": resource.group, "kind": resource.plural}
    return status(403, "Forbidden", message, {field: value for field, value in details.items() if value})


def not_found(request: Request) -> Status:
    resource = RESOURCES[request.resource]
    qualified = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
    details = {"name": request.name, "group": resource.group, "kind": resource.plural}
    return status(
        404,
        "NotFound",
        f'{qualified} "{request.name}" not found',
        {field: value for field, value in details.items() if value},
    )


def bad_request(message: str) -> Status:
    return status(400, "BadRequest", message)


def expired_watch(asked: str, oldest: int) -> Status:
    return status(410, "Expired", f"too old resource version: {asked} ({oldest})")


def expired_list() -> Status:
    return status(410, "Expired", "The resourceVersion for the provided list is too old.")


def expired_page(token: str) -> Status:
    message = (
        "The provided continue parameter is too old to display a consistent list result. You can start a new list "
        "without the continue parameter, or use the continue token in this response to retrieve the remainder of the "
        "results. Continuing with the provided token results in an inconsistent list - objects that were created, "
        "modified, or deleted between the time the first chunk was returned and now may show up in the list."
    )
    return {**status(410, "Expired", message), "metadata": {"continue": token}}


def too_large(asked: str, current: int) -> Status:
    """A version that this server has not seen yet."""
    causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    return status(504, "Timeout", message, {"causes": causes, "retryAfterSeconds": 1})


def too_large_as_before_1_19(asked: str, current: int) -> Status:
    """The same of an older server: the cause has its words and no reason."""
    causes = [{"message": "Too large resource version"}]
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    return status(504, "Timeout", message, {"causes": causes, "retryAfterSeconds": 1})


def too_large_as_before_1_17(asked: str, current: int) -> Status:
    """The same of the oldest: nothing but the message."""
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    return status(504, "Timeout", message, {"retryAfterSeconds": 1})


def invalid_options(*faults: tuple[str, str]) -> Status:
    """Options that contradict one another, or that this server doesn't know: pairs of a field and what is said."""
    causes = [
        {"reason": "FieldValueForbidden", "message": f"Forbidden: {text}", "field": field} for field, text in faults
    ]
    listed = [f"{field}: Forbidden: {text}" for field, text in faults]
    text = listed[0] if len(listed) == 1 else f"[{', '.join(listed)}]"
    details = {"group": "meta.k8s.io", "kind": "ListOptions", "causes": causes}
    return status(422, "Invalid", f'ListOptions.meta.k8s.io "" is invalid: {text}', details)


def no_watch_list() -> Status:
    """A server without sendInitialEvents: before 1.32, or with the feature switched off."""
    gate = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
    return invalid_options(("sendInitialEvents", gate))
