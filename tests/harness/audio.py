"""Audio as bytes of a file."""

from __future__ import annotations

import io

import numpy as np
import soundfile


def encoded(samples: np.ndarray, rate: int = 16000, **kwargs: str) -> bytes:
    """A file of samples, shape (n,) or (n, channels): WAV, or what soundfile is told."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **({"format": "WAV"} | kwargs))
    return buffer.getvalue()
