"""What this machine can be trusted with as a client. See --help."""

import sys

from asr_load.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("calibrate"))
