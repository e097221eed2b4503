"""Reported latencies against the stamps of the scripted server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from asr_load.selftest.calibrate import run_step
from asr_load.selftest.ground_truth import TTFT_S, share_cores


@pytest.mark.long
def test_calibration_trial_measures_errors_against_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCUST_SKIP_MONKEY_PATCH")
    made, reader = run_step(4, 1, share_cores(), tmp_path / "trial")
    assert reader in ("compiled", "python")
    assert (made.workers, made.streams) == (1, 4)
    assert 150 <= made.chunks_per_s <= 250
    errors = np.array([made.ttft_p50, made.itl_p50, made.ttft_p99, made.itl_p99, made.upload_p99])
    assert (errors > 0).all()
    # A wrong clock offset or a misplaced stamp would give a far larger error.
    assert (errors[:2] < TTFT_S / 4).all()
