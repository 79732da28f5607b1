"""
HTTPHandler: every route, declared once, for Klein.

Decides nothing: what each route does is in the module of its subject. Those of `calls`, `pushes`,
`pulls` and `leases` the short way finds there, too.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, cast

from klein import Klein
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.exceptions import NotFound as NoRoute

from jobgate import errors
from jobgate.web.exchange import Response, json_response
from jobgate.web.graphs import GraphRequests
from jobgate.web.jobs import JobRequests, run
from jobgate.web.openapi import document
from jobgate.web.operating import OperatingRequests
from jobgate.web.problems import page, problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure
    from twisted.web.iweb import IRequest

    from jobgate.gate import Gate
    from jobgate.web.access import Access
    from jobgate.web.calls import Calls
    from jobgate.web.exchange import Exchange
    from jobgate.web.klein_channel import KleinRequest
    from jobgate.web.leases import LeaseRequests
    from jobgate.web.pulls import Pulls
    from jobgate.web.pushes import Pushes

__all__ = ["HTTPHandler"]

_Answer = Response | Deferred[Response]


def _route(function: Callable[..., _Answer]) -> Callable[..., Any]:
    """Let a route take an Exchange and return a Response; Klein sees what Klein wants."""

    @wraps(function)
    def wrapper(self: HTTPHandler, request: IRequest, *failure: Failure, **named: str) -> Any:  # noqa: ANN401 (Klein's)
        klein_request = cast("KleinRequest", request)

        def give(response: Response) -> bytes:
            klein_request.response = response
            return b""

        answer = function(self, klein_request.exchange, *failure, **named)
        return answer.addCallback(give) if isinstance(answer, Deferred) else give(answer)

    return wrapper


class HTTPHandler:
    """
    The routes.

    Args:
        gate: What they are about.
        calls: The call route's body.
        pushes: The push route's body.
        pulls: What pullers ask for.
        leases: What they say of what they have.
        access: Who may do what.
    """

    app = Klein()
    # An address with an empty segment is another address, not one to be redirected from.
    app.url_map.merge_slashes = False
    _log = Logger()

    def __init__(
        self,
        gate: Gate,
        calls: Calls,
        pushes: Pushes,
        pulls: Pulls,
        leases: LeaseRequests,
        access: Access,
    ) -> None:
        self._calls = calls
        self._pushes = pushes
        self._jobs = JobRequests(gate, access)
        self._pulls = pulls
        self._leases = leases
        self._graphs = GraphRequests(gate, access)
        self._operating = OperatingRequests(gate, access)

    # --- calling

    @app.route("/call/<queue>", methods=["POST"])
    @_route
    def call(self, exchange: Exchange, queue: str) -> _Answer:
        """Run the body as a command; the worker's reply is the response."""
        answer: Deferred[Response] = Deferred()
        self._calls.call(exchange, queue, answer.callback)
        return answer

    # --- pushing, and asking for jobs

    @app.route("/push/<queue>", methods=["POST"])
    @_route
    def push(self, exchange: Exchange, queue: str) -> _Answer:
        """Store the body as a job (`?each=line`: each of its lines) and answer 202."""
        answer: Deferred[Response] = Deferred()
        self._pushes.push(exchange, queue, answer.callback)
        return answer

    @app.route("/pull/<queue>", methods=["GET", "POST"])
    @_route
    def pull(self, exchange: Exchange, queue: str) -> _Answer:
        """The next command of a queue, once there is one: `?wait=&lease=&max=&min=&each=line`."""
        answer: Deferred[Response] = Deferred()
        self._pulls.pull(exchange, queue, answer.callback)
        return answer

    @app.route("/jobs/<name>/reply", methods=["POST"])
    @_route
    def reply(self, exchange: Exchange, name: str) -> _Answer:
        """The result of a pulled command; `?next=` gets the next one in the same exchange."""
        return run(self._leases.reply(exchange, name))

    @app.route("/jobs/<name>/fail", methods=["POST"])
    @_route
    def fail(self, exchange: Exchange, name: str) -> _Answer:
        """A pulled command could not be done: `title`, `detail`, `status` and `retry` as JSON."""
        return run(self._leases.fail(exchange, name))

    @app.route("/jobs/<name>/decline", methods=["POST"])
    @_route
    def decline(self, exchange: Exchange, name: str) -> _Answer:
        """A pulled command goes back, for another puller; no attempt is counted."""
        return run(self._leases.decline(exchange, name))

    @app.route("/jobs/<name>/extend", methods=["POST"])
    @_route
    def extend(self, exchange: Exchange, name: str) -> _Answer:
        """A pulled command takes longer: its lease runs `?lease=` seconds from now on."""
        return run(self._leases.extend(exchange, name))

    @app.route("/leases/<lease>/ack", methods=["POST"])
    @_route
    def finish_lease(self, exchange: Exchange, lease: str) -> _Answer:
        """All commands under a lease have been done; saying so again is harmless."""
        answer: Deferred[Response] = Deferred()
        self._leases.finish_lease(exchange, lease, answer.callback)
        return answer

    @app.route("/leases/<lease>/fail", methods=["POST"])
    @_route
    def fail_lease(self, exchange: Exchange, lease: str) -> _Answer:
        """None of the commands under a lease could be done."""
        return run(self._leases.fail_lease(exchange, lease))

    @app.route("/leases/<lease>/extend", methods=["POST"])
    @_route
    def extend_lease(self, exchange: Exchange, lease: str) -> _Answer:
        """All that is under a lease takes longer: it runs `?lease=` seconds from now on."""
        return run(self._leases.extend_lease(exchange, lease))

    @app.route("/jobs", methods=["GET"])
    @_route
    def jobs(self, exchange: Exchange) -> _Answer:
        """A page of jobs, newest first: `?queue=&state=&limit=&after=`."""
        return run(self._jobs.page(exchange))

    @app.route("/jobs/<name>", methods=["GET"])
    @_route
    def job(self, exchange: Exchange, name: str) -> _Answer:
        """A job's state document; `why` says in words what it waits for."""
        return run(self._jobs.show(exchange, name))

    @app.route("/jobs/<name>", methods=["DELETE"])
    @_route
    def cancel_job(self, exchange: Exchange, name: str) -> _Answer:
        """Cancel a job; 409 if it has ended."""
        return run(self._jobs.cancel(exchange, name))

    @app.route("/jobs/<name>/result", methods=["GET"])
    @_route
    def result(self, exchange: Exchange, name: str) -> _Answer:
        """A job's reply; `?wait=` waits so many seconds for it, then 202."""
        return run(self._jobs.result(exchange, name))

    @app.route("/jobs/<name>/inputs", methods=["GET"])
    @_route
    def inputs(self, exchange: Exchange, name: str) -> _Answer:
        """The names of the jobs whose replies a job receives."""
        return run(self._jobs.inputs(exchange, name))

    @app.route("/jobs/<name>/events", methods=["GET"])
    @_route
    def events(self, exchange: Exchange, name: str) -> _Answer:
        """What happens to a job, as server-sent events."""
        return run(self._jobs.events(exchange, name))

    @app.route("/jobs/<name>/retry", methods=["POST"])
    @_route
    def retry(self, exchange: Exchange, name: str) -> _Answer:
        """Run a dead or failed job again, with all its attempts."""
        return run(self._jobs.retry(exchange, name))

    @app.route("/jobs/<name>/inputs/<path:need>", methods=["GET"])
    @_route
    def job_input(self, exchange: Exchange, name: str, need: str) -> _Answer:
        """What became of a job that this one needed, for those who pull it."""
        return run(self._jobs.input(exchange, name, need))

    # --- graphs

    @app.route("/graphs", methods=["POST"])
    @_route
    def submit_graph(self, exchange: Exchange) -> _Answer:
        """Store jobs that need each other; `Prefer: wait=N` gets all results in one answer."""
        return run(self._graphs.submit(exchange))

    @app.route("/graphs/<name>", methods=["GET"])
    @_route
    def graph(self, exchange: Exchange, name: str) -> _Answer:
        """The state of a graph and of all its jobs."""
        return run(self._graphs.show(exchange, name))

    @app.route("/graphs/<name>.svg", methods=["GET"])
    @_route
    def graph_picture(self, exchange: Exchange, name: str) -> _Answer:
        """A picture of a graph, its jobs coloured by state."""
        return run(self._graphs.draw(exchange, name))

    @app.route("/graphs/<name>/result", methods=["GET"])
    @_route
    def graph_result(self, exchange: Exchange, name: str) -> _Answer:
        """All replies and problems of a graph; `?wait=` waits so many seconds for them."""
        return run(self._graphs.result(exchange, name))

    @app.route("/graphs/<name>", methods=["DELETE"])
    @_route
    def cancel_graph(self, exchange: Exchange, name: str) -> _Answer:
        """Cancel all jobs of a graph that have not ended; 409 if all have."""
        return run(self._graphs.cancel(exchange, name))

    # --- operating

    @app.route("/healthz", methods=["GET"])
    @_route
    def healthz(self, _: Exchange) -> _Answer:
        """The loop turns."""
        return json_response({"status": "ok"})

    @app.route("/readyz", methods=["GET"])
    @_route
    def readyz(self, _: Exchange) -> _Answer:
        """Whether every queue can accept; otherwise which cannot, and why."""
        return self._operating.readiness()

    @app.route("/metrics", methods=["GET"])
    @_route
    def metrics(self, exchange: Exchange) -> _Answer:
        """Everything that is counted, for Prometheus."""
        return self._operating.metrics(exchange)

    @app.route("/openapi.json", methods=["GET"])
    @_route
    def openapi(self, _: Exchange) -> _Answer:
        """This interface, as OpenAPI 3.1."""
        return json_response(document(self.app))

    @app.route("/problems/<slug>", methods=["GET"])
    @_route
    def problem_page(self, _: Exchange, slug: str) -> _Answer:
        """What a kind of problem means and what to do about it."""
        return page(slug)

    @app.route("/queues", methods=["GET"])
    @_route
    def queues(self, exchange: Exchange) -> _Answer:
        """All queues."""
        return self._operating.queues(exchange)

    @app.route("/queues/<queue>", methods=["GET"])
    @_route
    def queue(self, exchange: Exchange, queue: str) -> _Answer:
        """One queue: depth, running, rates, expected wait."""
        return self._operating.queue(exchange, queue)

    @app.route("/queues/<queue>/pause", methods=["POST"])
    @_route
    def pause(self, exchange: Exchange, queue: str) -> _Answer:
        """Hand out no commands of this queue until it is resumed; calls still come in and wait."""
        return self._operating.pause(exchange, queue)

    @app.route("/queues/<queue>/resume", methods=["POST"])
    @_route
    def resume(self, exchange: Exchange, queue: str) -> _Answer:
        """Hand out commands of this queue again."""
        return self._operating.resume(exchange, queue)

    @app.route("/queues/<queue>/purge", methods=["POST"])
    @_route
    def purge(self, exchange: Exchange, queue: str) -> _Answer:
        """Throw out everything that waits in this queue; its callers get the problem `purged`."""
        return self._operating.purge(exchange, queue)

    @app.route("/queues/<queue>/reload", methods=["POST"])
    @_route
    def reload(self, exchange: Exchange, queue: str) -> _Answer:
        """Replace all workers, one by one, a canary first, and forget the poison."""
        return self._operating.reload(exchange, queue)

    @app.route("/workers", methods=["GET"])
    @_route
    def workers(self, exchange: Exchange) -> _Answer:
        """All workers: what each runs, and since when; and the places where they keep dying."""
        return self._operating.workers(exchange)

    @app.route("/workers/<name>/recycle", methods=["POST"])
    @_route
    def recycle(self, exchange: Exchange, name: str) -> _Answer:
        """Start another worker in this one's place, then let this one finish and go."""
        return self._operating.recycle(exchange, name)

    @app.route("/workers/<name>/report", methods=["GET"])
    @_route
    def report(self, exchange: Exchange, name: str) -> _Answer:
        """How the last worker of this name died, and what was slow: output, stacks, what it ran."""
        return self._operating.report(exchange, name)

    @app.route("/workers/<name>/report/command", methods=["GET"])
    @_route
    def report_command(self, exchange: Exchange, name: str) -> _Answer:
        """The body of the command that the last worker of this name died with."""
        return self._operating.report_command(exchange, name)

    # --- what goes wrong

    @app.handle_errors(errors.JobgateError)
    @_route
    def jobgate_error(self, _: Exchange, failure: Failure) -> _Answer:
        """An error with a name."""
        return problem(cast("errors.JobgateError", failure.value))

    @app.handle_errors(HTTPException)
    @_route
    def routing_error(self, exchange: Exchange, failure: Failure) -> _Answer:
        """No such route, or not by that method."""
        error = failure.value
        if isinstance(error, MethodNotAllowed):
            methods = set(error.valid_methods or ())
            if exchange.head.path.startswith(b"/pull/"):
                methods.discard("HEAD")  # Klein takes it wherever GET is; a probe must take nothing
            return problem(errors.MethodNotAllowed(", ".join(sorted(methods))))
        if isinstance(error, NoRoute):
            return problem(errors.NotFound(f"no route {exchange.head.path.decode('latin-1')}"))
        return problem(errors.BadRequest(str(failure.value)))

    @app.handle_errors(Exception)
    @_route
    def bug(self, exchange: Exchange, failure: Failure) -> _Answer:
        """Anything else is a bug."""
        self._log.failure("{exchange!r} failed", failure=failure, exchange=exchange)
        return problem(errors.InternalError("the gate's log has the details"))
