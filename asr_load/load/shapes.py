"""Loads that change during the test: ramp, steps and spike, chosen with --shape or in the web form.

    locust -f locustfiles/transcribe.py,locustfiles/shapes.py --headless --shape steps -u 40 --stages 4 --stage-time 30

The number of users (-u) is the peak. This is a separate file, because Locust uses any shape that it finds.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, NamedTuple

from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser

from asr_load.load.plugin import plugin_of
from asr_load.options.parser import LOAD, add_to_group
from asr_load.options.table import SHAPE_OPTIONS


class Stage(NamedTuple):
    """A part of the test, in seconds from its start, in which users change linearly from `first` to `last`."""

    name: str
    begins: float
    ends: float
    first: int
    last: int


def plan(shape: str, peak: int, stages: int, stage_time: float) -> list[Stage]:
    """The stages of a shape, each of `stage_time` seconds.

    ramp: linearly to the peak within `stages` stages, and one stage at the peak. steps: `stages` equal steps up to the
    peak. spike: a tenth of the peak, the peak, and a tenth again; always three stages.
    """
    if shape == "ramp":
        top = stages * stage_time
        return [Stage("ramp", 0, top, 1, peak), Stage("peak", top, top + stage_time, peak, peak)]
    if shape == "steps":
        levels = [max(1, round(peak * step / stages)) for step in range(1, stages + 1)]
    else:
        base = max(1, round(peak / 10))
        levels = [base, peak, base]
    times = [number * stage_time for number in range(len(levels) + 1)]
    return [
        Stage(f"{users} users", begins, ends, users, users)
        for (begins, ends), users in zip(pairwise(times), levels, strict=True)
    ]


def stage_at(stages: list[Stage], time: float) -> tuple[Stage, int] | None:
    """The stage at a time and its number of users; None after the last."""
    for stage in stages:
        if time < stage.ends:
            done = (time - stage.begins) / (stage.ends - stage.begins)
            return stage, round(stage.first + (stage.last - stage.first) * done)
    return None


class Shape(LoadTestShape):
    """Follows the plan of the options."""

    use_common_options: ClassVar[bool] = True  # keep the form's field for users, which is the peak
    option: ClassVar[str] = "shape"
    """The option that chooses this shape, or none."""

    def tick(self) -> tuple[int, float] | None:
        """Called by Locust once a second. Returns users and users to start per second; None ends the test."""
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        assert options is not None
        stages = plan(options.shape, options.num_users or 1, options.stages, options.stage_time)
        now = stage_at(stages, self.get_run_time())
        if now is None:
            return None
        stage, users = now
        plugin_of(self.runner.environment).enter_stage(stage.name)
        # Start users as fast as Locust can, because the plan defines how fast the load grows.
        return users, float(max(users, 1))


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add the options of shapes, which the web form also shows."""
    add_to_group(parser, LOAD, SHAPE_OPTIONS)
