"""The embedded server: an OpenAI-compatible speech endpoint to test against.

It is independent of asr_load and uses SGLang's wire format. It has two engines: a real recogniser (`moonshine`) and
text on a fixed schedule (`scripted`). Both can simulate faults (`faults`).
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (pip and make check this too, but another Python can run a script)
    print(f"error: asr-load needs Python 3.11 or newer, but this is {sys.version.split()[0]}", file=sys.stderr)
    sys.exit(2)
