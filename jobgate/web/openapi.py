"""
`GET /openapi.json`: the interface as OpenAPI 3.1, made from the routes themselves.

Paths, methods and summaries come from Klein's map and the routes' docstrings, schemas
from the structs that are sent, so the document cannot say what the code does not do.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from jobgate import __version__
from jobgate.pool.report import Report
from jobgate.web import graphs, job_views, leases, views
from jobgate.web.problems import PROBLEMS

if TYPE_CHECKING:
    from klein import Klein

__all__ = ["document"]


class ProblemDocument(msgspec.Struct):
    """
    A problem (RFC 9457).

    Attributes:
        type: The address of the page that explains it.
        title: One line, the same for every occurrence.
        status: The HTTP status.
        detail: What was wrong this time.
        executed: Whether a worker may have run the command: no, maybe or yes.
        id: The command, where there is one.
    """

    type: str
    title: str
    status: int
    detail: str
    executed: str
    id: str | None = None


class Accepted(msgspec.Struct):
    """
    What has been stored.

    Attributes:
        id: The job; with `?each=line` there are `accepted`, `first` and `last` instead.
        state: queued, or scheduled.
        queue: Its queue.
        accepted: How many lines.
        first: The first line's job.
        last: The last line's job.
    """

    id: str | None = None
    state: str | None = None
    queue: str | None = None
    accepted: int | None = None
    first: str | None = None
    last: str | None = None


_RETURNS: dict[str, tuple[int, type | None]] = {
    "job": (200, job_views.Job),
    "jobs": (200, job_views.Jobs),
    "inputs": (200, job_views.Inputs),
    "cancel_job": (200, job_views.Job),
    "retry": (202, job_views.Job),
    "push": (202, Accepted),
    "submit_graph": (202, graphs.GraphAccepted),
    "graph": (200, graphs.GraphState),
    "graph_result": (200, graphs.GraphResult),
    "cancel_graph": (200, graphs.GraphState),
    "reply": (200, leases.Said),
    "fail": (200, leases.Said),
    "decline": (200, leases.Said),
    "extend": (200, leases.Lease),
    "finish_lease": (200, leases.Said),
    "fail_lease": (200, leases.Said),
    "extend_lease": (200, leases.Lease),
    "healthz": (200, views.Status),
    "readyz": (200, views.Status),
    "queues": (200, views.Queues),
    "queue": (200, views.Queue),
    "pause": (200, views.Queue),
    "resume": (200, views.Queue),
    "purge": (200, views.Purged),
    "reload": (202, views.Queue),
    "workers": (200, views.Workers),
    "recycle": (202, views.Recycling),
    "report": (200, Report),
}
"""What a route answers when all is well; one that is not here answers with its own media type."""

_KEY = ("The same key goes to the same shard", "string")
_PRIORITY = ("`u=0` (first) to `u=7`; default `u=3` (RFC 9218)", "string")
_TRACE = ("Handed on to the worker (W3C Trace Context)", "string")
_DELAY = ("Seconds until it may start", "number")
_CALLBACK = ("An address that is told of its end", "string")
_LEASE = ("The lease that it was pulled under, if any", "string")
_HEADERS: dict[str, dict[str, tuple[str, str]]] = {
    "call": {
        "Jobgate-Timeout": ("Seconds in all, waiting included; may only shorten", "number"),
        "Jobgate-Key": _KEY,
        "Jobgate-No-Queue": ("`?1`: refuse unless a worker is free now", "string"),
        "Priority": _PRIORITY,
        "Prefer": (
            "`wait=N`: as Jobgate-Timeout; `respond-async`: 202 after N (RFC 7240)",
            "string",
        ),
        "Jobgate-Delay": (f"{_DELAY[0]}; only with `respond-async`", "number"),
        "Jobgate-Callback": (f"{_CALLBACK[0]}; only with `respond-async`", "string"),
        "Idempotency-Key": ("Joins the running call of this key, or repeats its outcome", "string"),
        "traceparent": _TRACE,
    },
    "push": {
        "Jobgate-Delay": _DELAY,
        "Jobgate-Callback": _CALLBACK,
        "Jobgate-Key": _KEY,
        "Priority": _PRIORITY,
        "Idempotency-Key": ("The same key stands for the same job", "string"),
        "traceparent": _TRACE,
    },
    "pull": {"Idempotency-Key": ("With `lease`: the same key gets the same lease", "string")},
    "reply": {
        "Jobgate-Lease": _LEASE,
        "Jobgate-Status": ("The status that the caller gets, 200 to 599; default 200", "integer"),
    },
    "fail": {"Jobgate-Lease": _LEASE},
    "decline": {"Jobgate-Lease": _LEASE},
    "extend": {"Jobgate-Lease": _LEASE},
    "events": {"Last-Event-ID": ("The last event that was seen: go on behind it", "string")},
    "submit_graph": {
        "Prefer": (
            "`wait=N`: all results in the answer, if there are after N seconds (RFC 7240)",
            "string",
        ),
        "Idempotency-Key": ("The same key stands for the same graph", "string"),
        "traceparent": ("Handed on to the workers (W3C Trace Context)", "string"),
    },
}
_BODIES: dict[str, tuple[str, type | None]] = {
    "call": ("The command; any media type, handed on to the worker.", None),
    "push": ("The command; any media type, handed on to the worker.", None),
    "reply": ("The result; any media type, handed on to the caller.", None),
    "fail": ("Why it could not be done; may be left out.", leases.PullerFailure),
    "fail_lease": ("Why they could not be done; may be left out.", leases.PullerFailure),
    "submit_graph": ("The graph.", graphs.GraphDocument),
}
"""What a route takes; one that is not here takes nothing."""

_WAIT = ("Seconds to wait for that", "number")
_PULL = {
    "wait": ("Seconds to wait for a command; 0: take what is there", "number"),
    "lease": ("Seconds for which it is the puller's, until a reply", "number"),
    "max": ("With `each=line`: at most so many, up to 1000", "integer"),
    "min": ("With `each=line`: wait until there are so many", "integer"),
    "each": ("`line`: each command is a line of the answer", "string"),
}
_QUERIES: dict[str, dict[str, tuple[str, str]]] = {
    "push": {"each": ("`line`: each line of the body is its own command", "string")},
    "pull": _PULL,
    "reply": {"next": ("A queue to pull from in the same exchange", "string"), **_PULL},
    "result": {"wait": _WAIT},
    "graph_result": {"wait": _WAIT},
    "extend": {"lease": ("Seconds from now", "number")},
    "extend_lease": {"lease": ("Seconds from now", "number")},
    "jobs": {
        "queue": ("Only of this queue", "string"),
        "state": ("Only in this state", "string"),
        "limit": ("At most so many, up to 1000", "integer"),
        "after": ("The cursor that the page before gave", "string"),
    },
}
_OTHERWISE: dict[str, dict[int, str]] = {
    "call": {202: "With `Prefer: respond-async`: stored, and not ended in time"},
    "events": {204: "It has ended, and `Last-Event-ID` shows that the reader knows how"},
    "pull": {204: "No command came in time"},
    "reply": {204: "With `next`: no command came in time"},
    "result": {202: "Not ended in time: the state document"},
    "submit_graph": {200: "With `Prefer: wait=N`: all its results, if it has ended in time"},
    "graph_result": {202: "Not ended in time: the state document"},
}
"""Answers that are no problem, beside those above."""


def document(app: Klein) -> dict[str, Any]:
    """The OpenAPI document of a Klein app."""
    kinds = {kind for _, kind in _RETURNS.values() if kind} | {
        ProblemDocument,
        *(kind for _, kind in _BODIES.values() if kind),
    }
    schemas, components = msgspec.json.schema_components(
        sorted(kinds, key=lambda kind: kind.__name__), ref_template="#/components/schemas/{name}"
    )
    del schemas
    paths: dict[str, dict[str, Any]] = {}
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        methods = sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
        for method in methods:
            operation = _operation(app, rule.endpoint, path)
            if method != methods[0]:
                operation["operationId"] += f"_by_{method.lower()}"
            paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "jobgate",
            "version": __version__,
            "summary": "Slow programs behind HTTP.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(app: Klein, endpoint: str, path: str) -> dict[str, Any]:
    about = " ".join((app.endpoints[endpoint].__doc__ or "").split())
    status, kind = _RETURNS.get(endpoint, (200, None))
    operation: dict[str, Any] = {
        "operationId": endpoint,
        "summary": about,
        "responses": {str(status): _success(kind), "default": _problem()},
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ]
    if endpoint in ("report", "report_command"):
        operation["responses"]["404"] = _problem(404)
    parameters += [
        {"name": name, "in": "query", "description": text, "schema": {"type": kind_name}}
        for name, (text, kind_name) in _QUERIES.get(endpoint, {}).items()
    ]
    for code, text in _OTHERWISE.get(endpoint, {}).items():
        operation["responses"][str(code)] = {"description": text, "content": {"*/*": {}}}
    if endpoint == "readyz":
        operation["responses"]["503"] = _success(kind)
    parameters += [
        {"name": name, "in": "header", "description": text, "schema": {"type": kind_name}}
        for name, (text, kind_name) in _HEADERS.get(endpoint, {}).items()
    ]
    if endpoint in _BODIES:
        operation["requestBody"] = _body(*_BODIES[endpoint])
    if endpoint == "call":
        operation["responses"] |= {
            str(code): _problem(code)
            for code in sorted({problem.status for problem in PROBLEMS.values()})
        }
    if endpoint == "submit_graph":
        operation["responses"] |= {str(code): _problem(code) for code in (400, 422, 503)}
    if parameters:
        operation["parameters"] = parameters
    return operation


def _body(about: str, kind: type | None) -> dict[str, Any]:
    if kind is None:
        return {"description": about, "content": {"*/*": {}}}
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {
        "description": about,
        "required": any(field.required for field in msgspec.structs.fields(kind)),
        "content": {"application/json": {"schema": schema}},
    }


def _success(kind: type | None) -> dict[str, Any]:
    if kind is None:
        return {"description": "The answer", "content": {"*/*": {}}}
    reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"description": "The answer", "content": {"application/json": {"schema": reference}}}


def _problem(status: int = 0) -> dict[str, Any]:
    slugs = [slug for slug, problem in PROBLEMS.items() if problem.status == status]
    return {
        "description": ", ".join(slugs) or "A problem",
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}
        },
    }
