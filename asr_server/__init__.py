"""The embedded server: an OpenAI-compatible speech endpoint to test against.

It stands on its own (nothing here imports the harness) and answers in SGLang's wire format with one of two engines: a
real recogniser (`moonshine`) or text on a fixed schedule (`scripted`). Either can be told to misbehave (`faults`).
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (pip and make check this too, but another Python can run a script)
    print(f"error: asr-load needs Python 3.11 or newer, but this is {sys.version.split()[0]}", file=sys.stderr)
    sys.exit(2)
