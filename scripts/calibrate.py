"""Measure how many streams this machine can handle as a load generator. See --help."""

import sys

from asr_load.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("calibrate"))
