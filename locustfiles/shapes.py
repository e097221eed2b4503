"""Loads that change during the test: ramp, steps and spike, chosen with --shape or in the web form.

    locust -f locustfiles/transcribe.py,locustfiles/shapes.py --headless --shape steps -u 40 --stages 4 --stage-time 30

The number of users (-u) is the peak. This is a separate file, because Locust uses any shape that it finds.
"""

from locust import events

from asr_load.load.shapes import Shape, add_shape_options

__all__ = ["Shape"]

events.init_command_line_parser.add_listener(add_shape_options)
