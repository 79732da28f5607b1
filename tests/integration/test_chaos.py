"""
The short form of `chaos`: fifty kills, soon after each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from chaos import Chaos

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(600)
def test_nothing_is_lost(tmp_path: Path) -> None:
    counts = Chaos(tmp_path, 7).run(50, apart=0.4)
    assert counts["gate kills"] == 50
    for name in ("worker kills", "replies checked", "calls answered", "outcomes of keys"):
        assert counts[name], counts
