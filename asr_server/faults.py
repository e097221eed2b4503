"""The ways to misbehave on demand, and which request gets which."""

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
    "redirect": "307 to a path that answers well",
    "refuse": "this connection is reset and new ones are refused for 1 s",
    "hang": "no answer at all",
    "slow-headers": "everything --slow-s later",
    "error": "an error under HTTP 200, before any text",
    "error-midstream": "an error under HTTP 200, after some text",
    "early-end": "the connection is closed (FIN) in the middle of the chunked body",
    "reset": "the connection is reset (RST) in the middle of the body",
    "stall": "a few chunks, then nothing for ever",
    "no-done": "no [DONE]",
    "no-end": "neither finish_reason nor [DONE]",
    "half-event": "the body ends properly in the middle of an event's JSON",
    "bad-utf8": "an event that is not UTF-8",
    "bad-json": "an event that is not JSON",
    "giant-event": "an event of 4 MiB",
    "empty": "ends properly without any text",
    "abort": "finish_reason abort after a few chunks",
    "no-usage": "no usage chunk although one was asked for",
    "multi": "four tokens in a chunk",
    "reasoning": "the first deltas are reasoning_content",
    "json": "one plain JSON answer although a stream was asked for",
    "ws-403": "realtime: the handshake is refused",
    "ws-404": "realtime: the handshake is refused",
    "ws-close-1009": "realtime: closed after some text",
    "ws-close-1011": "realtime: closed after some text",
    "ws-cut": "realtime: the connection is reset after some text",
    "ws-error": "realtime: an error after some text, then nothing",
    "ws-failed": "realtime: an item that failed, then nothing",
    "ws-stall": "realtime: nothing more after some text",
    "ws-no-final": "realtime: closed in place of a final text",
    "ws-late-final": "realtime: the final text is 2 s late",
    "ws-double-final": "realtime: the final event comes twice",
    "ws-late-repeat": "realtime: the final event comes again 150 ms later",
    "ws-spaced-final": "realtime: the final text has other white space than the texts before it",
    "ws-reordered": "realtime: the first item is completed after the second (sglang, openai)",
    "ws-own-commit": "realtime: the client's commit is empty, as the server has just committed (sglang, openai)",
    "ws-empty": "realtime: ends properly without any text",
    "ws-empty-deltas": "realtime: an empty text before each other",
    "ws-replaced": "realtime: each text has a word that the next takes back (omni)",
    "ws-unknown-events": "realtime: events that nobody knows, with fields of any type",
    "ws-no-updated": "realtime: the configuration is not answered",
    "ws-slow-reader": "realtime: half a second passes before a message is read",
    "ws-impatient": "realtime: pings each 50 ms, closed with 1011 where the pong takes 200 ms",
    "ws-bad-json": "realtime: an event that is not JSON",
    "ws-binary": "realtime: a binary frame",
    "ws-giant": "realtime: an event of 2 MiB",
}
"""Name → what it does. Those from `error` on change a stream; a plain answer is given as if they were not there, and so
is any over HTTP with those from `ws-403` on."""

HTTP_FAULTS = {name: int(name) for name in FAULTS if name.isdigit()}
FEW = 3
"""Content chunks before a fault in the middle of a stream, or fewer if the text is shorter."""

_SPEC = re.compile(r"(?P<name>[^=@]+)(?:=(?P<rate>.*)|@(?P<clip>.+))?", re.DOTALL)


def check_name(name: str) -> str:
    """Give the name back.

    Raises:
        ValueError: there is no such fault; the message lists them.
    """
    if name not in FAULTS:
        raise ValueError(f"unknown fault {name!r}; there are: {', '.join(FAULTS)}")
    return name


class FaultPlan:
    """Says which fault a request gets: by its X-Fault header, else by its clip, else by chance (seeded)."""

    def __init__(self, specs: list[str], seed: int) -> None:
        """`specs`: NAME (every request), NAME=SHARE or NAME@CLIP-ID.

        Raises:
            ValueError: an unknown name, or shares that are no numbers from 0 to 1 or add up to more than 1.
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
            RequestError: its header names an unknown one.
        """
        dice = self._random.random()  # drawn for every request, so that other requests' headers change nothing
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
