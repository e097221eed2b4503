"""A real recogniser: Moonshine tiny-en, run with ONNX Runtime on CPU threads, one token at a time.

The weights and the tokenizer come from the moonshine-voice wheel. Its library is not used, because it returns whole
lines, but a stream needs each token when it is decoded.
"""

import asyncio
import codecs
import os
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asr_server.audio import RATE, cut_at_pauses, decode
from asr_server.engine import Audio, Clip, Piece, Samples

# ONNX Runtime reads this when it is loaded. Otherwise it writes a device ID below ~/.cache and contacts a host.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

LONGEST = 25 * RATE
"""Maximum samples of a segment. The model fails beyond about 30 s."""
SHORTEST = RATE // 4
"""Minimum samples of a segment, to which shorter audio is padded, because the encoder's convolutions need them."""
TOKENS_PER_SECOND = 6.5
"""Faster than any speech: a segment with more tokens (plus SPARE_TOKENS) is a repetition loop and is ended."""
SPARE_TOKENS = 10
_START, _END = 1, 2
_FIRST_PLAIN = 3  # ids below are <unk>, <s>, </s>
_HEADS, _HEAD_WIDTH = 8, 36


class ModelMissingError(Exception):
    """The wheel with the weights is not installed, or has another release."""


def model_folder() -> Path:
    """The folder of moonshine-voice's model. Only locates the package, because importing it loads sound devices.

    Raises:
        ModelMissingError: the model is not installed.
    """
    spec = find_spec("moonshine_voice")
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "assets" / "tiny-en"
        if (folder / "tokenizer.bin").is_file():
            return folder
    raise ModelMissingError("moonshine_voice")


def read_vocabulary(data: bytes) -> list[bytes]:
    """Read tokenizer.bin: per token its length (one byte, or two from 128 on) and its bytes; `▁` becomes a space."""
    tokens = []
    at = 0
    while at < len(data):
        length = data[at]
        at += 1
        if length >= 128:
            length += 128 * (data[at] - 1)
            at += 1
        tokens.append(data[at : at + length].replace("▁".encode(), b" "))
        at += length
    return tokens


class Recogniser:
    """The model. One instance serves any number of threads: a session keeps no state between runs."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a request runs only on the thread of its slot
        options.inter_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self._encoder = onnxruntime.InferenceSession(folder / "encoder_model.ort", options, providers=providers)
        self._decoder = onnxruntime.InferenceSession(folder / "decoder_model_merged.ort", options, providers=providers)
        self.vocabulary = read_vocabulary((folder / "tokenizer.bin").read_bytes())
        self._all_outputs = [output.name for output in self._decoder.get_outputs()]
        # The audio's keys and values do not change after the first step.
        self._step_outputs = [name for name in self._all_outputs if ".encoder." not in name]
        self._past = [entry.name for entry in self._decoder.get_inputs() if entry.name.startswith("past")]

    def encode(self, samples: Samples) -> npt.NDArray[np.float32]:
        """Encode samples to hidden states, shape (1, frames, 288), about 41.7 frames a second."""
        audio = samples[None]
        hidden: npt.NDArray[np.float32] = self._encoder.run(
            None, {"input_values": audio, "attention_mask": np.ones(audio.shape, np.int64)}
        )[0]
        return hidden

    def decode(self, hidden: npt.NDArray[np.float32], n_samples: int) -> Iterator[int]:
        """Yield token ids, greedily, up to the end of the text (which is not yielded)."""
        feed = {name: np.zeros((1, _HEADS, 0, _HEAD_WIDTH), np.float32) for name in self._past}
        feed["encoder_hidden_states"] = hidden
        feed["encoder_attention_mask"] = np.ones((1, n_samples), np.int64)  # over samples, not frames
        token, names = _START, self._all_outputs
        while True:
            feed["input_ids"] = np.array([[token]], np.int64)
            feed["use_cache_branch"] = np.array([names is not self._all_outputs])
            outputs = self._decoder.run(names, feed)
            token = int(outputs[0][0, -1].argmax())
            if token == _END:
                return
            yield token
            past = (name.replace("present", "past_key_values") for name in names[1:])
            feed.update(zip(past, outputs[1:], strict=True))
            names = self._step_outputs


class MoonshineEngine:
    """Transcribes with `slots` threads; `prompt_tokens` are the encoder's frames."""

    name = "moonshine"

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._model = Recogniser(model_folder())
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="moonshine")

    async def prepare(self, audio: Audio) -> Clip:
        samples = await asyncio.to_thread(decode, audio)
        return Clip(seconds=len(samples) / RATE, prompt_tokens=0, samples=samples)

    def script(self, max_tokens: int | None) -> None:  # noqa: ARG002 - the text is not known in advance
        return None

    async def generate(self, clip: Clip, max_tokens: int | None, start: float) -> AsyncGenerator[Piece, None]:  # noqa: ARG002
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        gone = threading.Event()

        def emit(piece: Piece) -> bool:
            """Pass a piece from the slot's thread to the loop. Returns False if the client has disconnected."""
            if not gone.is_set():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            return not gone.is_set()

        work = loop.run_in_executor(self._threads, self._transcribe, clip, max_tokens, emit)
        work.add_done_callback(lambda _: pieces.put_nowait(None))  # wake the reader even if the work failed
        try:
            while piece := await pieces.get():
                yield piece
            work.result()
        finally:
            gone.set()
            work.cancel()  # if it has not started

    def _transcribe(self, clip: Clip, max_tokens: int | None, emit: Callable[[Piece], bool]) -> None:
        assert clip.samples is not None
        left = max_tokens
        started = False
        for segment in cut_at_pauses(clip.samples, LONGEST):
            if left == 0 or not emit(Piece("", 0)):
                break
            if not segment.any():  # for zeros, the model would hallucinate a text
                continue
            audio = np.pad(segment, (0, max(0, SHORTEST - len(segment))))
            hidden = self._model.encode(audio)
            clip.prompt_tokens += hidden.shape[1]
            guard = int(len(audio) / RATE * TOKENS_PER_SECOND) + SPARE_TOKENS
            text = _SegmentText(joined=started)
            for count, token in enumerate(self._model.decode(hidden, len(audio)), start=1):
                piece = text.add(self._model.vocabulary[token] if token >= _FIRST_PLAIN else b"")
                left = None if left is None else left - 1
                if not emit(Piece(piece, 1)):
                    return
                if left == 0 or count >= guard:
                    break
            if rest := text.add(b"", final=True):
                emit(Piece(rest, 0))
            started = started or text.started
        emit(Piece("", 0, "length" if left == 0 else "stop"))


class _SegmentText:
    """Converts tokens to text: whole characters only, with a single space after an earlier segment."""

    def __init__(self, *, joined: bool) -> None:
        self.started = False
        self._joined = joined
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: bytes, *, final: bool = False) -> str:
        text = self._utf8.decode(token, final)
        if self.started or not text:
            return text
        text = text.lstrip(" ")
        if not text:
            return ""
        self.started = True
        return " " + text if self._joined else text
