"""Find the places of a clip where dither also changes the features that an engine computes."""

from __future__ import annotations

import numpy as np

from asr_load.audio.dither import DITHER_EVERY_S, DITHER_FIRST, DITHER_STEP, DITHERED


def dither_places(pcm: np.ndarray, sample_rate: int) -> list[int]:
    """The start of the loudest run of DITHERED samples in each second, among the places that base64 allows. A last
    second that is too short has no place, unless it is the only second."""
    places = []
    window = round(DITHER_EVERY_S * sample_rate)
    for begin in range(0, len(pcm), window):
        first = begin + (DITHER_FIRST - begin) % DITHER_STEP
        piece = pcm[first : begin + window].astype(np.int64)
        if len(piece) >= DITHERED:
            sums = np.concatenate(([0], np.cumsum(piece * piece)))
            energies = sums[DITHERED:] - sums[:-DITHERED]
            places.append(first + int(np.argmax(energies[::DITHER_STEP])) * DITHER_STEP)
    return places or [DITHER_FIRST]
