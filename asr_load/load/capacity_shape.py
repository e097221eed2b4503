"""Search for the highest number of streams, or the highest request rate, at which all SLOs hold.

    locust -f locustfiles/capacity.py --headless -u 64 --slo ttft:p95:500 --slo errors:rate:0.01
    locust -f locustfiles/capacity.py --headless -u 200 --request-rate 50 --slo ttft:p95:500

-u is the maximum number of streams to try. With --request-rate, that is the maximum rate, and -u limits the requests in
flight.
"""

from __future__ import annotations

from typing import ClassVar

from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser

from asr_load.load.plugin import plugin_of
from asr_load.options.parser import LOAD, add_to_group
from asr_load.options.table import SEARCH_OPTIONS


class CapacityShape(LoadTestShape):
    """Lets a search control the load."""

    use_common_options: ClassVar[bool] = True  # keep the form's field for users, which is the maximum
    searches_capacity: ClassVar[bool] = True

    def tick(self) -> tuple[int, float] | None:
        """Called by Locust once a second. Returns users and users to start per second; None ends the test."""
        assert self.runner is not None
        return plugin_of(self.runner.environment).search_tick(self.runner.user_count)


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add the options of the search, which the web form also shows."""
    add_to_group(parser, LOAD, SEARCH_OPTIONS)
