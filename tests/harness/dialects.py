"""Responses of SGLang 0.5.23 and vLLM 0.32, with the fields that their sources write and made-up text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

WORDS = ("The", " ferry", " crosses", " tw", "ice", " a", " day", ".")
PROMPT, AUDIO = 161, 143
"""Prompt tokens, and how many of them are audio."""


def sse(*events: dict[str, Any]) -> bytes:
    """A stream's body with these events and [DONE]."""
    texts = [json.dumps(event, separators=(",", ":"), ensure_ascii=False) for event in events]
    return "".join(f"data: {text}\n\n" for text in (*texts, "[DONE]")).encode()


def sglang_chat(words: Sequence[str] = WORDS, *, usage: str = "end", finish: str = "stop") -> bytes:
    """A chat stream; `usage` is `end`, `continuous` (also in each chunk), or empty for none."""
    head = {"id": "0" * 32, "object": "chat.completion.chunk", "created": 1795000000, "model": "default"}

    def choice(**delta: Any) -> list[dict[str, Any]]:
        delta = {"reasoning_content": None, **delta}
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, "matched_stop": None}]

    def count(tokens: int, details: dict[str, int] | None) -> dict[str, Any]:
        counts = {"prompt_tokens": PROMPT, "total_tokens": PROMPT + tokens, "completion_tokens": tokens}
        more = {"reasoning_tokens": 0, "completion_tokens_details": None}
        return {"usage": {**counts, "prompt_tokens_details": details, **more}}

    events: list[dict[str, Any]] = [{**head, "choices": choice(role="assistant", content="")}]
    for number, word in enumerate(words, 1):
        events.append({**head, "choices": choice(content=word)})
        if usage == "continuous":
            events[-1] |= count(number, None)
    last = choice()
    last[0]["finish_reason"] = finish
    events.append({**head, "choices": last})
    if usage:
        events.append({**head, "choices": [], **count(len(words), {"cached_tokens": 0, "audio_tokens": AUDIO})})
    return sse(*events)


def sglang_transcription(words: Sequence[str] = WORDS) -> bytes:
    head = {"id": "trsc-" + "0" * 32, "object": "transcription.chunk", "created": 1795000000, "model": "default"}

    def event(content: str | None, finish: str | None) -> dict[str, Any]:
        delta = {"role": None, "content": content, "reasoning_content": None, "tool_calls": None}
        return {**head, "choices": [{"delta": delta, "finish_reason": finish}], "usage": None}

    return sse(*(event(word, None) for word in words), event(None, "stop"))


def vllm_chat(words: Sequence[str] = WORDS, *, usage: str = "end", finish: str = "stop") -> bytes:
    """A chat stream. The finish_reason comes with the last word, and the version with the last event."""
    head = {"id": "chatcmpl-" + "0" * 16, "object": "chat.completion.chunk", "created": 1795000000, "model": "default"}

    def count(tokens: int, **more: None) -> dict[str, Any]:
        counts = {"prompt_tokens": PROMPT, "total_tokens": PROMPT + tokens, "completion_tokens": tokens}
        return {"usage": {**counts, **more}}

    def so_far(tokens: int) -> dict[str, Any]:
        return count(tokens, completion_tokens_details=None) if usage == "continuous" else {}

    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    events: list[dict[str, Any]] = [
        {**head, "choices": [role], **so_far(0), "prompt_token_ids": None, "prompt_text": None}
    ]
    for number, word in enumerate(words, 1):
        end = {"finish_reason": finish, "stop_reason": None} if number == len(words) else {"finish_reason": None}
        choice = {"index": 0, "delta": {"content": word}, "logprobs": None, **end, "token_ids": None}
        events.append({**head, "choices": [choice], **so_far(number)})
    if usage:
        events.append({**head, "choices": [], **count(len(words))})
    events[-1]["system_fingerprint"] = "vllm-0.32.0"
    return sse(*events)


def vllm_transcription(words: Sequence[str] = WORDS, *, finish: str = "stop") -> bytes:
    head = {
        "id": "transcribe-" + "0" * 16,
        "object": "transcription.chunk",
        "created": 1795000000,
        "model": "default",
    }
    end = {"delta": {"content": ""}, "finish_reason": finish, "stop_reason": None}
    usage = {"prompt_tokens": PROMPT, "total_tokens": PROMPT + len(words), "completion_tokens": len(words)}
    return sse(
        *({**head, "choices": [{"delta": {"content": word}}]} for word in words),
        {**head, "choices": [end]},
        {**head, "choices": [], "usage": usage},
    )


def sglang_error(message: str, code: int = 400) -> bytes:
    """A flat error, as in SGLang's HTTP errors."""
    error = {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": code}
    return json.dumps(error, separators=(",", ":")).encode()


def vllm_error(message: str, code: int = 400) -> bytes:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": code}
    return json.dumps({"error": error}, separators=(",", ":")).encode()
