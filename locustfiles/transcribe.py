"""Streamed transcription as a Locust load: each user takes the next clip, posts it, reads the stream, leaves a record.

    locust --headless -u 4 --requests 15      in the checkout: the sample, against http://127.0.0.1:30000

Copy this file and change it as you like: docs/locustfile.md.
"""

from locust import constant

import asr_load


class SpeechUser(asr_load.SpeechUser):
    """A person who sends one recording after the other."""

    wait_time = constant(0)
