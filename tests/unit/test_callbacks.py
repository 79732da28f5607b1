"""
`jobgate.jobs`: telling the end of a job.
"""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from jobgate.jobs.job import CALLBACKS, State, callback


class CallbackTests(SynchronousTestCase):
    """The job that tells an end."""

    def test_job(self) -> None:
        """Its id is the other's and how that ended, so that it is put once for each end."""
        job = callback("g-1", State.DEAD, "https://a.example/")
        self.assertEqual(
            (job.id, job.queue, job.content_type), ("g-1-dead", CALLBACKS, "application/json")
        )
        self.assertEqual(job.attempts, 10)
        self.assertEqual(
            json.loads(job.body), {"job": "g-1", "state": "dead", "url": "https://a.example/"}
        )
