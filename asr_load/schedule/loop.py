"""The loop of a test: closed, or open with a rate, stages or a trace. `arrivals.py` computes its arrivals."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from asr_load.errors import InputError
from asr_load.schedule.trace import read_trace

PROCESSES = ("poisson", "constant", "gamma")
"""The values of --arrivals."""

_STAGE = re.compile(r"(?P<length>[\d.]+)(?P<unit>s|m|h|):(?P<first>[\d.]+)(?:-(?P<last>[\d.]+))?", re.ASCII)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


class Stage(NamedTuple):
    """A rate in requests per second that changes linearly from `first` to `last` within `seconds`."""

    seconds: float
    first: float
    last: float


@dataclass(frozen=True)
class Loop:
    """The requested arrivals. In an open loop, one of rate, stages and trace is set."""

    rate: float | None = None
    arrivals: str = "poisson"
    burstiness: float = 1.0
    """vLLM's: gaps follow a gamma distribution with this shape and the rate's mean; 1 is Poisson, smaller values are
    burstier, larger ones more even."""
    stages: str = ""
    trace: str = ""
    speed: float = 1.0
    seed: int = 0

    @property
    def open(self) -> bool:
        return self.rate is not None or bool(self.stages) or bool(self.trace)

    @property
    def trace_sha256(self) -> str:
        """Hash of the trace's file; empty without one."""
        return hashlib.sha256(Path(self.trace).expanduser().read_bytes()).hexdigest() if self.trace else ""

    def check(self) -> None:
        """Raise InputError for values that exclude each other or are out of range, and for a trace that cannot be
        read."""
        sources = {"--request-rate": self.rate is not None, "--rate-stages": self.stages, "--arrival-trace": self.trace}
        named = [name for name, given in sources.items() if given]
        if len(named) > 1:
            raise InputError(f"{' and '.join(named)} exclude each other: use only one of them")
        if self.arrivals not in PROCESSES:
            raise InputError(f"--arrivals {self.arrivals!r} must be one of {', '.join(PROCESSES)}")
        if not _positive(self.burstiness):
            raise InputError(f"--burstiness must be above 0 (1 is Poisson), not {self.burstiness:g}")
        if self.burstiness != 1 and self.arrivals != "gamma":
            raise InputError(f"--burstiness {self.burstiness:g} applies only to gamma arrivals: add --arrivals gamma")
        if not _positive(self.speed):
            raise InputError(f"--trace-speed must be above 0 (2 is twice as fast), not {self.speed:g}")
        if self.speed != 1 and not self.trace:
            raise InputError("--trace-speed applies only to a trace: add --arrival-trace FILE")
        if self.rate is not None and not _positive(self.rate):
            raise InputError(
                f"--request-rate must be above 0 requests per second, not {self.rate:g}; for a closed loop, remove it"
            )
        if self.trace:
            read_trace(Path(self.trace).expanduser())
        elif self.stages:
            parse_stages(self.stages)


def parse_stages(text: str) -> list[Stage]:
    """Parse stages such as `60s:5,30s:5-20,2m:20`: 5 requests/s for a minute, a ramp to 20 within half a minute, then
    20. Raises InputError."""
    stages = []
    for item in text.split(","):
        match = _STAGE.fullmatch(item.strip())
        try:
            if match is None:
                raise ValueError
            seconds = float(match["length"]) * _UNITS[match["unit"]]
            first = float(match["first"])
            last = first if match["last"] is None else float(match["last"])
        except ValueError:
            allowed = "DURATION:RATE or DURATION:RATE-RATE, such as 60s:5 or 2m:5-20, separated by commas"
            raise InputError(f"--rate-stages: {item.strip()!r} is not a stage; use {allowed}") from None
        if not _positive(seconds):
            raise InputError(f"--rate-stages: {item.strip()!r} must last longer than 0 s")
        stages.append(Stage(seconds, first, last))
    return stages


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
