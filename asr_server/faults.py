"""The faults that the server can simulate, and the choice of a request's fault."""

import random
import re
from collections.abc import Mapping
from urllib.parse import unquote

from asr_server.engine import RequestError

FAULTS = {
    "400": "HTTP error",
    "401": "HTTP error",
    "404": "HTTP error",
    "429": "HTTP error with Retry-After: 1",
    "500": "HTTP error",
    "503": "HTTP error",
    "redirect": "307 to a path that works",
    "refuse": "this connection is reset and new ones are refused for 1 s",
    "hang": "no response at all",
    "slow-headers": "the response is --slow-s late",
    "error": "an error under HTTP 200, before any text",
    "error-midstream": "an error under HTTP 200, after some text",
    "early-end": "the connection is closed (FIN) in the middle of the chunked body",
    "reset": "the connection is reset (RST) in the middle of the body",
    "stall": "a few chunks, then nothing",
    "no-done": "no [DONE]",
    "no-end": "neither finish_reason nor [DONE]",
    "half-event": "the body ends properly in the middle of an event's JSON",
    "bad-utf8": "an event that is not UTF-8",
    "bad-json": "an event that is not JSON",
    "giant-event": "an event of 4 MiB",
    "empty": "ends properly without any text",
    "abort": "finish_reason abort after a few chunks",
    "no-usage": "no usage chunk although it was requested",
    "multi": "four tokens in a chunk",
    "reasoning": "the first deltas are reasoning_content",
    "json": "a plain JSON response although a stream was requested",
    "ws-403": "realtime: the handshake is refused",
    "ws-404": "realtime: the handshake is refused",
    "ws-close-1009": "realtime: closed after some text",
    "ws-close-1011": "realtime: closed after some text",
    "ws-cut": "realtime: the connection is reset after some text",
    "ws-error": "realtime: an error after some text, then nothing",
    "ws-failed": "realtime: a failed item, then nothing",
    "ws-stall": "realtime: nothing after some text",
    "ws-no-final": "realtime: closed instead of a final text",
    "ws-late-final": "realtime: the final text is 2 s late",
    "ws-double-final": "realtime: the final event is sent twice",
    "ws-late-repeat": "realtime: the final event is repeated after 150 ms",
    "ws-spaced-final": "realtime: the final text has different white space than the texts before it",
    "ws-reordered": "realtime: the first item is completed after the second (sglang, openai)",
    "ws-own-commit": "realtime: the client's commit is empty, because the server has just committed (sglang, openai)",
    "ws-empty": "realtime: ends properly without any text",
    "ws-empty-deltas": "realtime: an empty text before each other text",
    "ws-replaced": "realtime: each text has a word that the next one withdraws (omni)",
    "ws-unknown-events": "realtime: unknown events, with fields of any type",
    "ws-no-updated": "realtime: no response to the configuration",
    "ws-slow-reader": "realtime: reads a message only every half a second",
    "ws-impatient": "realtime: a ping every 50 ms, closed with 1011 if a pong takes 200 ms",
    "ws-bad-json": "realtime: an event that is not JSON",
    "ws-binary": "realtime: a binary frame",
    "ws-giant": "realtime: an event of 2 MiB",
}
"""Faults by name. Those from `error` on only affect streams, and those from `ws-403` on only realtime sessions."""

HTTP_FAULTS = {name: int(name) for name in FAULTS if name.isdigit()}
FEW = 3
"""Content chunks before a fault in the middle of a stream, or fewer if the text is shorter."""

_SPEC = re.compile(r"(?P<name>[^=@]+)(?:=(?P<rate>.*)|@(?P<clip>.+))?", re.DOTALL)


def check_name(name: str) -> str:
    """Return the name of a known fault.

    Raises:
        ValueError: there is no such fault; the message lists all.
    """
    if name not in FAULTS:
        raise ValueError(f"unknown fault {name!r}; use one of {', '.join(FAULTS)}")
    return name


class FaultPlan:
    """Chooses the fault of a request: by its X-Fault header, else by its clip, else at random (seeded)."""

    def __init__(self, specs: list[str], seed: int) -> None:
        """Make a plan from specs: NAME (every request), NAME=SHARE or NAME@CLIP-ID.

        Raises:
            ValueError: an unknown name, or shares that are not from 0 to 1 or add up to more than 1.
        """
        self._by_clip: dict[str, str] = {}
        self._shares: list[tuple[str, float]] = []
        self._random = random.Random(seed)
        for spec in specs:
            match = _SPEC.fullmatch(spec)
            name = check_name(match["name"] if match else spec)
            if match and match["clip"]:
                self._by_clip[match["clip"]] = name
            else:
                self._shares.append((name, _share(spec, match["rate"] if match else None)))
        if sum(share for _, share in self._shares) > 1 + 1e-9:
            raise ValueError("the shares of the faults add up to more than 1")

    def choose(self, headers: Mapping[str, str]) -> str | None:
        """The fault of the next request.

        Raises:
            RequestError: its header names an unknown fault.
        """
        dice = self._random.random()  # drawn for every request, so that headers of requests do not affect others
        if named := headers.get("x-fault"):
            try:
                return check_name(named)
            except ValueError as error:
                raise RequestError(str(error)) from None
        if clip_fault := self._by_clip.get(unquote(headers.get("x-clip-id", ""))):
            return clip_fault
        for name, share in self._shares:
            if dice < share:
                return name
            dice -= share
        return None


def _share(spec: str, text: str | None) -> float:
    if text is None:
        return 1.0
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"--fault {spec}: the share must be a number from 0 to 1")
    return share
