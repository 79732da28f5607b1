"""
`jobgate.enums`.
"""

from __future__ import annotations

from enum import Enum

from twisted.trial.unittest import SynchronousTestCase

from jobgate.enums import plain


@plain
class Colour(Enum):
    RED = "red"
    GREEN = "green"


class EnumTests(SynchronousTestCase):
    """What an enum promises, it keeps."""

    def test_members(self) -> None:
        """They are the same by attribute, name and value, and stand in order."""
        self.assertIs(Colour.RED, Colour("red"))
        self.assertIs(Colour.GREEN, Colour["GREEN"])
        self.assertEqual(list(Colour), [Colour.RED, Colour.GREEN])
        self.assertEqual(Colour.RED.name, "RED")
        self.assertIs(vars(Colour)["RED"], Colour.RED)

    def test_fixed(self) -> None:
        """They still cannot be set anew."""
        self.assertRaises(AttributeError, setattr, Colour, "RED", "blue")
