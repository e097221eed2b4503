"""Convert a data set into a folder of shards. See --help, and asr_data/README.md for the format."""

import sys

from asr_load.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("prepare"))
