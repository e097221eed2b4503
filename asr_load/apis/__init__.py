"""How each API is asked for a transcript, and each family of models. A new API is a file here, and a name in APIS."""

from __future__ import annotations

from asr_load.apis.api import Api
from asr_load.apis.chat import Chat, ChatInputAudio
from asr_load.apis.realtime import Realtime
from asr_load.apis.transcriptions import Transcriptions

APIS: dict[str, type[Api]] = {api.name: api for api in (Chat, ChatInputAudio, Transcriptions, Realtime)}
"""The APIs by the value of --api."""
