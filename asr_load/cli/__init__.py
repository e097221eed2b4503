"""The command `asr-load` and its verbs."""
