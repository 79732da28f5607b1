"""
The short form of `chaos`: a few kills.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from chaos import Chaos

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(240)
def test_nothing_is_lost(tmp_path: Path) -> None:
    counts = Chaos(tmp_path, 7).run(3)
    assert counts["gate kills"] == 3
    for name in ("worker kills", "replies checked", "calls answered", "outcomes of keys"):
        assert counts[name], counts
