"""A load test for speech recognition behind OpenAI-compatible endpoints. DESIGN of the data's way: README.md."""

from importlib.metadata import version

__version__ = version("asr-load")
