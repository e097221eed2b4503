"""The messages between the master and the workers of a fleet, over Locust's connection.

Locust loses data at the end of a distributed test. These messages prevent that:

    master                                  worker
    FleetTest, in Locust's spawn   ──────▶  starts the test with its share
    message
                                   ◀──────  Report, in each of Locust's reports: records, and its health
                                   ◀──────  ShareDone, if the number of requests is limited
                                   ◀──────  TimeQuestion
    TimeAnswer                     ──────▶  estimates its clock's offset
    ArrivalPlan, in an open loop   ──────▶  sends its own arrivals from now on, at this rate
    Stop                           ──────▶  stops its users, and drains
    Cut, on Ctrl-C                 ──────▶  cuts off requests in flight
                                   ◀──────  last Report, then Done
    waits for all of that before Locust's own stop, which would not wait

Instead of starting a test that it cannot take part in, a worker sends a Refusal.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import msgspec
from locust.runners import MasterRunner, WorkerRunner

from asr_load.errors import InputError
from asr_load.results.runfile import WorkerInfo
from asr_load.schedule.loop import Stage

REPORT = "asr_load"
"""The key of a Report in Locust's reports."""

TEST = "asr_fleet"
"""The internal option that carries a FleetTest to workers."""


class FleetMessage(msgspec.Struct):
    """A message with a type among Locust's messages."""

    type: ClassVar[str]


class ArrivalPlan(FleetMessage):
    """Who sends which arrivals of an open loop, and their rate. A closed loop does not use it."""

    type: ClassVar[str] = "asr_plan"
    assignment: list[tuple[int, list[int]]]
    """The plan of an ArrivalAssignment."""
    stages: list[Stage]
    """The announced stages of a search from the beginning on; empty for the rate of the options."""


class FleetTest(msgspec.Struct):
    """A test, and the part of each worker in it."""

    id: str
    folder: str
    """The master's results folder."""
    manifests: dict[str, str]
    """The SHA-256 of each user class's manifest."""
    trace_sha256: str
    workers: int
    """Number of workers at the start."""
    numbers: dict[str, int]
    """Each worker's number by its id in Locust."""
    begins_ns: int
    """When an open loop's arrivals begin, in nanoseconds since the epoch on the master's clock."""
    plan: ArrivalPlan
    headers: list[str]
    """Names of the headers that requests need; workers have the values."""
    model: str
    """The server's only model, if the options name none."""
    dialect: str
    """The realtime dialect that the server accepted, if the options leave it open."""


class Report(msgspec.Struct):
    """A worker's new records, each as a line of JSON, and its state."""

    worker: WorkerInfo
    records: list[bytes]


class TimeQuestion(FleetMessage):
    """A worker asks for the master's time at `sent`, in nanoseconds on its own clock."""

    type: ClassVar[str] = "asr_time"
    sent: int


class TimeAnswer(FleetMessage):
    """The time on the master's clock in nanoseconds, and the plan, in case the worker missed its announcement while it
    started."""

    type: ClassVar[str] = "asr_time"
    sent: int
    """The question's."""
    answered: int
    plan: ArrivalPlan


class ShareDone(FleetMessage):
    """A worker has records of all requests of its share."""

    type: ClassVar[str] = "asr_share_done"


class Refusal(FleetMessage):
    """A worker cannot take part in the test."""

    type: ClassVar[str] = "asr_refuse"
    reason: str


class Stop(FleetMessage):
    """The master asks a worker to end its part of the test."""

    type: ClassVar[str] = "asr_stop"


class Cut(FleetMessage):
    """The master asks its workers to cut off requests in flight."""

    type: ClassVar[str] = "asr_cut"


class Done(FleetMessage):
    """A worker has sent its final report, or never took part."""

    type: ClassVar[str] = "asr_done"


Content = TypeVar("Content", bound=msgspec.Struct)


def encode(content: msgspec.Struct) -> Any:
    """The plain dict of a message, as Locust's messages need it."""
    return msgspec.to_builtins(content, builtin_types=(bytes,))


def decode(data: object, kind: type[Content]) -> Content:
    """The message in a dict. Raises msgspec.ValidationError if it is malformed."""
    return msgspec.convert(data, kind)


def send_to_master(runner: WorkerRunner, content: FleetMessage) -> None:
    """Send a message to the master of this worker."""
    runner.send_message(content.type, encode(content))


def send_to_workers(runner: MasterRunner, content: FleetMessage, worker: str | None = None) -> None:
    """Send a message to a worker, by its id in Locust; None: to all."""
    runner.send_message(content.type, encode(content), client_id=worker)


def id_of_test(options: Mapping[str, Any]) -> str:
    """The id of the test in options from a master; empty without one."""
    return str((options.get(TEST) or {}).get("id", ""))


def fleet_test(options: Namespace) -> FleetTest | None:
    """The test in options from a master; None without one. Raises InputError if it is malformed."""
    data = getattr(options, TEST, None)
    try:
        return None if data is None else decode(data, FleetTest)
    except msgspec.ValidationError as error:
        raise InputError(f"the master sent a malformed test ({error}): install the same version on both") from None
