"""
`jobgate.jobs.webhooks`: the signature of Standard Webhooks.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from jobgate.config import Secret
from jobgate.jobs.webhooks import signed


class SignedTests(SynchronousTestCase):
    """The headers of a message."""

    def test_published_example(self) -> None:
        """The example that the libraries of Standard Webhooks test themselves with."""
        headers = signed(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1614265330,
            b'{"test": 2432232314}',
            Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").key,
        )
        self.assertEqual(
            headers,
            {
                "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
                "webhook-timestamp": "1614265330",
                "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            },
        )

    def test_unsigned(self) -> None:
        """Without a secret it has an id and a time, and nothing that looks like a signature."""
        self.assertEqual(signed("i", 7, b"", b""), {"webhook-id": "i", "webhook-timestamp": "7"})
