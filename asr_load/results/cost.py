"""What a server costs for the speech that it transcribed."""

from __future__ import annotations

import msgspec


class Cost(msgspec.Struct):
    """Prices at the load of a test, or at the load that a search found, in `currency`. None where that load is 0."""

    price: float
    """Price of the whole server for an hour (--price)."""
    currency: str
    per_audio_hour: float | None
    """Price of transcribing an hour of audio."""
    per_1000_minutes: float | None
    streams_per_unit: float | None
    """Streams that one unit of the currency an hour carries; None for an open loop."""


def cost(price: float, currency: str, rtfx: float | None, streams: float | None) -> Cost:
    """The cost of a server that transcribes `rtfx` hours of audio an hour, for this number of `streams`; None: it has
    none."""
    per_audio_hour = price / rtfx if rtfx else None
    return Cost(
        price,
        currency,
        per_audio_hour,
        None if per_audio_hour is None else per_audio_hour / 60 * 1000,
        streams / price if streams else None,
    )
