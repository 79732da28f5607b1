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
from jobgate.web import views
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


_RETURNS: dict[str, tuple[int, type | None]] = {
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

_CALL_HEADERS = {
    "Jobgate-Timeout": ("Seconds in all, waiting included; may only shorten", "number"),
    "Jobgate-Key": ("The same key goes to the same shard", "string"),
    "Jobgate-No-Queue": ("`?1`: refuse unless a worker is free now", "string"),
    "Priority": ("`u=0` (first) to `u=7`; default `u=3` (RFC 9218)", "string"),
    "Prefer": ("`wait=N`: as Jobgate-Timeout (RFC 7240)", "string"),
    "traceparent": ("Handed on to the worker (W3C Trace Context)", "string"),
}


def document(app: Klein) -> dict[str, Any]:
    """The OpenAPI document of a Klein app."""
    kinds = {kind for _, kind in _RETURNS.values() if kind} | {ProblemDocument}
    schemas, components = msgspec.json.schema_components(
        sorted(kinds, key=lambda kind: kind.__name__), ref_template="#/components/schemas/{name}"
    )
    del schemas
    paths: dict[str, dict[str, Any]] = {}
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(path, {})[method.lower()] = _operation(app, rule.endpoint, path)
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
    if endpoint == "readyz":
        operation["responses"]["503"] = _success(kind)
    if endpoint == "call":
        parameters += [
            {"name": name, "in": "header", "description": text, "schema": {"type": kind_name}}
            for name, (text, kind_name) in _CALL_HEADERS.items()
        ]
        operation["requestBody"] = {
            "description": "The command; any media type, handed on to the worker.",
            "content": {"*/*": {}},
        }
        operation["responses"] |= {
            str(code): _problem(code)
            for code in sorted({problem.status for problem in PROBLEMS.values()})
        }
    if parameters:
        operation["parameters"] = parameters
    return operation


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
