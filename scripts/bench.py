"""Prepare a data set if needed, send every clip once, and print the summary. See --help."""

import sys

from asr_load.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("bench"))
