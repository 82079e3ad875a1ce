"""Every mask of the Triton kernels is dropped once; the quick ones are part of the suite itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_triton import passed, skip_where_missing, start

SECONDS = 7200


@pytest.mark.slow
def test_no_mask_can_be_dropped_unseen(tmp_path: Path) -> None:
    skip_where_missing("ttsem")
    run = start("ttsem", tmp_path, "-m", "slow")
    try:
        assert len(passed(run, SECONDS)) >= 100
    finally:
        run.process.kill()
        run.process.wait()
