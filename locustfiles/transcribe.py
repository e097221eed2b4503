"""Streamed transcription as a Locust load: each user takes the next clip, posts it, reads the stream, leaves a record.

    locust --headless -u 4 --requests 15      in the checkout: the sample, against http://127.0.0.1:30000

Copy this file and change it as you like: a wait_time, several tasks, other weights.
"""

from locust import HttpUser, constant, task
from locust.env import Environment

from asr_load.load.lifecycle import current_run
from asr_load.load.wire import Wire


class SpeechUser(HttpUser):
    """A person who sends one recording after the other, over one connection."""

    wait_time = constant(0)

    def __init__(self, environment: Environment) -> None:
        self.wire = Wire()
        self.pool_manager = self.wire.pool_manager
        super().__init__(environment)

    def on_start(self) -> None:
        self.test = current_run()
        self.number = self.test.add_user()

    @task
    def transcribe(self) -> None:
        request = self.test.next_request(self.number)
        self.test.send(self.client, self.wire, request)
