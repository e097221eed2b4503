"""Load shapes for locustfiles: ramp, steps and spike, and the search for capacity.

A locustfile imports the one that it uses, because Locust uses any shape that it finds.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

from locust import LoadTestShape
from locust.argument_parser import LocustArgumentParser
from locust.runners import Runner

from asr_load.load.registry import plugin_of
from asr_load.options.parser import LOAD, add_to_group
from asr_load.options.table import SEARCH_OPTIONS, SHAPE_OPTIONS

if TYPE_CHECKING:
    from asr_load.load.plugin import Plugin


class UserRamp(NamedTuple):
    """A part of the test, in seconds from its start, in which users change linearly from `first` to `last`."""

    name: str
    begins: float
    ends: float
    first: int
    last: int


def plan(shape: str, peak: int, stages: int, stage_time: float) -> list[UserRamp]:
    """The stages of a shape, each of `stage_time` seconds.

    ramp: linearly to the peak within `stages` stages, and one stage at the peak. steps: `stages` equal steps up to the
    peak. spike: a tenth of the peak, the peak, and a tenth again; always three stages.
    """
    if shape == "ramp":
        top = stages * stage_time
        return [UserRamp("ramp", 0, top, 1, peak), UserRamp("peak", top, top + stage_time, peak, peak)]
    if shape == "steps":
        levels = [max(1, round(peak * step / stages)) for step in range(1, stages + 1)]
    else:
        base = max(1, round(peak / 10))
        levels = [base, peak, base]
    times = [number * stage_time for number in range(len(levels) + 1)]
    return [
        UserRamp(f"{users} users", begins, ends, users, users)
        for (begins, ends), users in zip(pairwise(times), levels, strict=True)
    ]


def stage_at(stages: list[UserRamp], time: float) -> tuple[UserRamp, int] | None:
    """The stage at a time and its number of users; None after the last."""
    for stage in stages:
        if time < stage.ends:
            done = (time - stage.begins) / (stage.ends - stage.begins)
            return stage, round(stage.first + (stage.last - stage.first) * done)
    return None


class _PluginShape(LoadTestShape):
    """A shape that uses the plugin of its environment."""

    abstract: ClassVar[bool] = True
    use_common_options: ClassVar[bool] = True  # keep the form's field for users, which is the maximum

    @property
    def plugin(self) -> Plugin:
        return plugin_of(cast(Runner, self.runner).environment)  # Locust sets the runner before the first tick


class Shape(_PluginShape):
    """Follows the plan of the options. The number of users (-u) is the peak."""

    option: ClassVar[str] = "shape"
    """The option that chooses this shape, or none."""

    def tick(self) -> tuple[int, float] | None:
        """Called by Locust once a second. Returns users and users to start per second; None ends the test."""
        options = self.plugin.options
        stages = plan(options.shape, options.num_users or 1, options.stages, options.stage_time)
        now = stage_at(stages, self.get_run_time())
        if now is None:
            return None
        stage, users = now
        self.plugin.enter_stage(stage.name)
        # Start users as fast as Locust can, because the plan defines how fast the load grows.
        return users, float(max(users, 1))


class CapacityShape(_PluginShape):
    """Lets a search control the load. The number of users (-u) is the maximum."""

    searches_capacity: ClassVar[bool] = True

    def tick(self) -> tuple[int, float] | None:
        """Called by Locust once a second. Returns users and users to start per second; None ends the test."""
        return self.plugin.search_tick(cast(Runner, self.runner).user_count)


def add_shape_options(parser: LocustArgumentParser) -> None:
    """Add the options of Shape, which the web form also shows."""
    add_to_group(parser, LOAD, SHAPE_OPTIONS)


def add_search_options(parser: LocustArgumentParser) -> None:
    """Add the options of CapacityShape, which the web form also shows."""
    add_to_group(parser, LOAD, SEARCH_OPTIONS)
