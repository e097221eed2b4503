"""The command `asr-load`: a verb for each thing that the harness does by itself."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from asr_load.errors import exits_on_bad_input
from asr_load.repeats import become_locust
from asr_load.shipped import shipped

VERBS = {
    "prepare": ("asr_load.audio.prepare", "make shards from a data set of speech"),
    "run": ("locustfiles/transcribe.py,locustfiles/shapes.py", "locust, with our locustfile and all its options"),
    "capacity": ("locustfiles/capacity.py", "the most streams, or requests a second, within --slo"),
    "bench": ("asr_load.bench", "send every clip of a data set once"),
    "report": ("asr_load.report", "make a run's summary and its page again"),
    "calibrate": ("asr_load.selftest.calibrate", "find out what this machine can be trusted with"),
    "serve": ("asr_server.main", "a server to test against"),
    "options": ("asr_load.load.options_page", "the options that the harness adds to Locust's"),
}
"""By their names: the module whose main() does it, or the locustfiles; and what it is."""


@exits_on_bad_input
def main() -> int:
    """Command line of asr-load. A verb's own options are its own: asr-load VERB --help."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        print("usage: asr-load VERB [options]\n")
        print("\n".join(f"  {name:10} {what}" for name, (_, what) in VERBS.items()))
        return 0
    if verb not in VERBS:
        print(f"error: there is no verb {verb!r}; there are: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    home = VERBS[verb][0]
    if home.endswith(".py"):
        files = ",".join(str(shipped(file)) for file in home.split(","))
        # Locust reads a locust.conf that is here; where none is, ours is what it would have in a checkout.
        config = [] if Path("locust.conf").exists() else ["--config", str(shipped("locust.conf"))]
        # A later -f takes our place.
        return become_locust([*config, "-f", files, *sys.argv[2:]])
    sys.argv[:2] = [f"asr-load {verb}"]
    # Late: each verb needs packages that others do not.
    code: int = importlib.import_module(home).main()
    return code


if __name__ == "__main__":
    sys.exit(main())
