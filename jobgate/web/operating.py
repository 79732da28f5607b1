"""
Requests of operators: about the gate, its queues and its workers, and who may.

Their documents are in `views`. Must not know how workers are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobgate import errors
from jobgate.web import views
from jobgate.web.exchange import Response, json_response
from jobgate.web.metrics import Metrics

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from jobgate.gate import Gate
    from jobgate.gate.road import Road
    from jobgate.web.access import Access
    from jobgate.web.exchange import Exchange

__all__ = ["OperatingRequests"]


class OperatingRequests:
    """
    What operators ask and have done.

    Args:
        gate: Whose queues and workers.
        access: Who may.
    """

    def __init__(self, gate: Gate, access: Access) -> None:
        self._gate = gate
        self._access = access
        self._metrics = Metrics(gate)

    # --- the gate

    def readiness(self) -> Response:
        """Whether every queue can accept; otherwise which cannot, and why. Anybody may ask."""
        refusals = {
            road.config.name: why for road in self._gate.dispatcher if (why := road.refusal())
        }
        if self._gate.draining:
            return json_response({"status": "draining", "queues": refusals}, 503)
        if not self._gate.started:
            return json_response({"status": "starting", "queues": refusals}, 503)
        trouble = self._gate.jobs.journal.trouble
        if trouble:
            # Calls go on, but no queue can accept a job.
            said = {"status": "not ready", "queues": refusals, "store": trouble}
            return json_response(said, 503)
        if refusals:
            return json_response({"status": "not ready", "queues": refusals}, 503)
        return json_response({"status": "ready", "queues": {}})

    def metrics(self, exchange: Exchange) -> Response:
        """Everything that is counted."""
        self._access.need(exchange, "metrics")
        return self._metrics.render(exchange.head.headers.get(b"accept", b"").decode("latin-1"))

    # --- queues

    def queues(self, exchange: Exchange) -> Response:
        """All of them."""
        self._access.need(exchange, "admin")
        found = [views.queue(self._gate, road) for road in self._gate.dispatcher]
        return json_response(views.Queues(queues=found))

    def queue(self, exchange: Exchange, name: str) -> Response:
        """One of them."""
        return self._shown(self._road(exchange, name))

    def pause(self, exchange: Exchange, name: str) -> Response:
        """Hand out none of its commands."""
        road = self._road(exchange, name)
        road.pause()
        return self._shown(road)

    def resume(self, exchange: Exchange, name: str) -> Response:
        """Hand them out again."""
        road = self._road(exchange, name)
        road.resume()
        return self._shown(road)

    def purge(self, exchange: Exchange, name: str) -> Deferred[Response]:
        """Throw out everything that waits in it, calls and jobs."""
        calls = self._road(exchange, name).purge()
        jobs = self._gate.jobs.purge(name)
        return jobs.addCallback(lambda count: json_response(views.Purged(purged=calls + count)))

    def reload(self, exchange: Exchange, name: str) -> Response:
        """Replace its workers and forget its poison."""
        road = self._road(exchange, name)
        road.poison.clear()
        self._gate.supervisor(name).reload()
        return self._shown(road, 202)

    # --- workers

    def workers(self, exchange: Exchange) -> Response:
        """All of them, and the places where they keep dying."""
        self._access.need(exchange, "admin")
        return json_response(views.workers(self._gate))

    def recycle(self, exchange: Exchange, name: str) -> Response:
        """Replace one of them."""
        self._access.need(exchange, "admin")
        supervisor, post = self._gate.post(name)
        supervisor.recycle(post)
        return json_response(views.Recycling(worker=name), 202)

    def report(self, exchange: Exchange, name: str) -> Response:
        """How the last one of a name died, and what was slow."""
        self._access.need(exchange, "admin")
        _, post = self._gate.post(name)
        story = post.story
        if story is None:
            message = f"{name} has left no report: it has not died"
            raise errors.NotFound(message)
        return json_response(story)

    def report_command(self, exchange: Exchange, name: str) -> Response:
        """The body of the command that it died with."""
        self._access.need(exchange, "admin")
        _, post = self._gate.post(name)
        found = post.evidence
        if found is None:
            message = f"{name} has not died with a command that it had begun"
            raise errors.NotFound(message)
        # A caller's bytes, for an operator: to be saved, never to be shown as a page.
        fields = (
            f"Jobgate-Id: {found.id}\r\nContent-Disposition: attachment\r\n"
            "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
        )
        return Response(200, found.content_type, found.body, fields)

    # --- inside

    def _road(self, exchange: Exchange, name: str) -> Road:
        """The queue of that name, for an operator."""
        self._access.need(exchange, "admin")
        return self._gate.dispatcher.any(name)

    def _shown(self, road: Road, status: int = 200) -> Response:
        return json_response(views.queue(self._gate, road), status)
