"""SGLang's wire format: requests, the exact JSON of chunks, and errors.

Checked against bytes captured from SGLang 0.5. Only the content differs between the chunks of a stream, so everything
before and after it is encoded once per stream.
"""

import time
from typing import Any, NamedTuple, Protocol

import msgspec

from asr_server.engine import Audio, RequestError

DONE = b"data: [DONE]\n\n"
ERROR_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}
_json = msgspec.json.Encoder().encode


class _AudioUrl(msgspec.Struct):
    url: msgspec.Raw  # a string of megabytes: copying it twice would take longer than the rest of the request


class _InputAudio(msgspec.Struct):
    data: msgspec.Raw
    format: str = "wav"


class _Part(msgspec.Struct):
    type: str
    audio_url: _AudioUrl | None = None
    input_audio: _InputAudio | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class _ChatBody(msgspec.Struct):
    messages: list[_Message]
    model: str = "default"
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


_decoder = msgspec.json.Decoder(_ChatBody)


class SpeechRequest(NamedTuple):
    """A request of either API."""

    audio: Audio
    model: str
    stream: bool
    max_tokens: int | None
    include_usage: bool = False
    continuous_usage: bool = False


def parse_chat(body: bytes) -> SpeechRequest:
    """Read the body of a chat completion.

    Raises:
        RequestError: malformed JSON, a negative token limit, not exactly one audio, or audio outside of the body.
    """
    try:
        chat = _decoder.decode(body)
        audio = _only_audio(chat.messages, escapes=b"\\" in body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"The request body cannot be read: {error}") from None
    options = chat.stream_options or _StreamOptions()
    return SpeechRequest(
        audio=audio,
        model=chat.model,
        stream=chat.stream,
        max_tokens=check_max_tokens(chat.max_completion_tokens or chat.max_tokens),
        include_usage=options.include_usage,
        continuous_usage=options.continuous_usage_stats,
    )


def check_max_tokens(limit: int | None) -> int | None:
    """Return a valid token limit.

    Raises:
        RequestError: the limit is negative.
    """
    if limit is not None and limit < 0:
        raise RequestError(f"max_new_tokens must be at least 0, got {limit}.")
    return limit


def _only_audio(messages: list[_Message], *, escapes: bool) -> Audio:
    parts = [part for message in messages if isinstance(message.content, list) for part in message.content]
    found = []
    for part in parts:
        if part.audio_url:
            found.append(_from_data_url(_string(part.audio_url.url, escapes=escapes)))
        elif part.input_audio:
            data = _string(part.input_audio.data, escapes=escapes)
            found.append(
                _from_data_url(data) if bytes(data[:5]) == b"data:" else Audio(data, _short(data), base64=True)
            )
    if len(found) != 1:
        raise RequestError(f"A request must have exactly one audio_url or input_audio; this one has {len(found)}.")
    return found[0]


def _string(raw: msgspec.Raw, *, escapes: bool) -> memoryview:
    """The content of a JSON string, copied only if the body has escapes."""
    inside = memoryview(raw)
    if escapes or bytes(inside[:1]) != b'"':
        return memoryview(msgspec.json.decode(raw, type=str).encode())
    return inside[1:-1]


def _from_data_url(url: memoryview) -> Audio:
    head = bytes(url[:256])
    scheme = head[:64].partition(b":")[0].decode(errors="replace")
    if scheme != "data":
        raise RequestError(f"Only data: URLs are supported, not {scheme[:16]!r}: this server downloads nothing.")
    comma = head.find(b",")
    if comma < 0 or not head[:comma].endswith(b";base64"):
        raise RequestError("The data URL of the audio must have the form data:audio/...;base64,...")
    return Audio(url[comma + 1 :], _short(url), base64=True)


def _short(text: memoryview) -> str:
    return bytes(text[:64]).decode(errors="replace") + ("..." if len(text) > 64 else "")


class Usage(NamedTuple):
    """Token counts of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    audio_tokens: int = 0
    reasoning_tokens: int = 0

    def as_dict(self, *, details: bool = True) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": self.audio_tokens} if details else None,
            "reasoning_tokens": self.reasoning_tokens,
            "completion_tokens_details": None,
        }


class Events(Protocol):
    """Encodes the server-sent events of one stream, each as bytes with its closing blank line."""

    id: str

    def opening(self) -> bytes: ...
    def content_frame(self) -> tuple[bytes, bytes]:
        """The bytes before and after the JSON text in an event with content and without usage."""

    def content(self, text: str, usage: Usage | None = None) -> bytes: ...
    def reasoning(self, text: str) -> bytes: ...
    def finish(self, reason: str) -> bytes: ...
    def usage(self, usage: Usage) -> bytes: ...


class ChatEvents:
    """Events of `chat.completion.chunk`."""

    def __init__(self, request_id: str, model: str) -> None:
        self.id = request_id
        head = {"id": request_id, "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
        self._base = b"data: " + _json(head)[:-1] + b',"choices":['
        self._delta = self._base + b'{"index":0,"delta":{"reasoning_content":null'
        self._content = self._delta + b',"content":'
        self._tail = b'},"logprobs":null,"finish_reason":null,"matched_stop":null}]'
        self._close = self._tail + b"}\n\n"

    def opening(self) -> bytes:
        return self._delta + b',"role":"assistant","content":""' + self._close

    def content_frame(self) -> tuple[bytes, bytes]:
        return self._content, self._close

    def content(self, text: str, usage: Usage | None = None) -> bytes:
        if usage is None:
            return self._content + _json(text) + self._close
        usage_json = _json(usage.as_dict(details=False))
        return b"".join((self._content, _json(text), self._tail, b',"usage":', usage_json, b"}\n\n"))

    def reasoning(self, text: str) -> bytes:
        return self._base + b'{"index":0,"delta":{"reasoning_content":' + _json(text) + b',"content":null' + self._close

    def finish(self, reason: str) -> bytes:
        return self._delta + self._close.replace(b'"finish_reason":null', b'"finish_reason":"%s"' % reason.encode())

    def usage(self, usage: Usage) -> bytes:
        return self._base + b'],"usage":' + _json(usage.as_dict()) + b"}\n\n"


class TranscriptionEvents:
    """Events of `transcription.chunk`, which has no role chunk, index or usage."""

    def __init__(self, request_id: str, model: str) -> None:
        self.id = "trsc-" + request_id
        head = {"id": self.id, "object": "transcription.chunk", "created": int(time.time()), "model": model}
        self._head = b"data: " + _json(head)[:-1] + b',"choices":[{"delta":{"role":null,"content":'

    def _after(self, reasoning: bytes = b"null", finish: bytes = b"null") -> bytes:
        delta_end = b',"reasoning_content":' + reasoning + b',"tool_calls":null},"finish_reason":' + finish
        return delta_end + b'}],"usage":null}\n\n'

    def opening(self) -> bytes:
        return b""

    def content_frame(self) -> tuple[bytes, bytes]:
        return self._head, self._after()

    def content(self, text: str, usage: Usage | None = None) -> bytes:  # noqa: ARG002 - the API has no usage
        return self._head + _json(text) + self._after()

    def reasoning(self, text: str) -> bytes:
        return self._head + b"null" + self._after(reasoning=_json(text))

    def finish(self, reason: str) -> bytes:
        return self._head + b"null" + self._after(finish=b'"%s"' % reason.encode())

    def usage(self, usage: Usage) -> bytes:  # noqa: ARG002 - the API has no usage
        return b""


def error_body(message: str, status: int) -> dict[str, Any]:
    """SGLang's flat error body."""
    kind = ERROR_TYPES.get(status, "Error")
    return {"object": "error", "message": message, "type": kind, "param": None, "code": status}


def error_event(message: str, status: int) -> bytes:
    """An error within a stream with HTTP status 200."""
    return b"data: " + _json({"error": error_body(message, status)}) + b"\n\n"


def chat_completion(request_id: str, model: str, text: str, finish: str, usage: Usage) -> dict[str, Any]:
    """The plain response of the chat API."""
    message = {"role": "assistant", "content": text, "reasoning_content": None, "tool_calls": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish, "matched_stop": None}
    return {
        "id": request_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": usage.as_dict(),
        "metadata": {"weight_version": "default"},
    }


def transcription(text: str, seconds: float) -> dict[str, Any]:
    """The plain response of the transcription API; its usage is the audio's length in seconds, rounded up."""
    return {"text": text, "usage": {"type": "duration", "seconds": -int(-seconds // 1)}}
