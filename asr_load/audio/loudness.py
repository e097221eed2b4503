"""Find silence, the end of speech, and quiet places to cut a recording."""

from __future__ import annotations

import numpy as np

from asr_load.audio.decoder import BLOCK_FRAMES

SILENCE = 2.0**-10
"""Half the peak-to-peak amplitude below which a recording is silent: -60 dBFS (full scale is 1.0)."""

FRAME_S, QUIET = 0.020, 0.02
"""Speech ends with the last frame of FRAME_S seconds that has at least the share QUIET of the loudest frame's
amplitude."""

QUIET_S = 0.2
"""Length of the quiet stretch, in seconds. A cut is in the middle of the quietest stretch in the last third of a part's
maximum length."""


def is_silent(pcm: np.ndarray) -> bool:
    """Whether 16-bit samples, shape (n,) with n > 0, are below -60 dBFS."""
    # Peak to peak, so that a constant offset counts as silence too. Widened first: the span can exceed 16 bits.
    return (int(pcm.max()) - int(pcm.min())) / 2 < SILENCE * 32768


def end_of_speech(pcm: np.ndarray, sample_rate: int) -> float:
    """The end of the last frame that is not quiet compared with the loudest one, in seconds. `pcm` has shape (n,),
    n > 0."""
    frame = max(round(FRAME_S * sample_rate), 1)
    block = BLOCK_FRAMES // frame * frame
    energies = np.concatenate([_energies(pcm[first : first + block], frame) for first in range(0, len(pcm), block)])
    loud = np.flatnonzero(energies > QUIET**2 * energies.max())
    return min((int(loud[-1]) + 1) * frame if len(loud) else len(pcm), len(pcm)) / sample_rate


def _energies(pcm: np.ndarray, frame: int) -> np.ndarray:
    """The mean squares of frames of `frame` samples; the last frame may be shorter."""
    starts = np.arange(0, len(pcm), frame)
    means: np.ndarray = np.add.reduceat(np.square(pcm, dtype=np.float64), starts) / np.diff([*starts, len(pcm)])
    return means


def cuts(pcm: np.ndarray, sample_rate: int, longest_s: float) -> list[int]:
    """The ends of all parts of 16-bit samples, shape (n,), cut so that none is longer than `longest_s`; the last is
    n."""
    most, quiet = int(longest_s * sample_rate), max(int(QUIET_S * sample_rate), 1)
    ends: list[int] = []
    begin = 0
    while len(pcm) - begin > most:
        first = begin + most * 2 // 3
        window = pcm[first : begin + most].astype(np.float64)
        energies = np.convolve(window * window, np.ones(min(quiet, len(window))), "valid")
        begin = first + int(np.argmin(energies)) + min(quiet, len(window)) // 2
        ends.append(begin)
    return [*ends, len(pcm)]
