"""Make a folder of shards from a data set: see --help, and asr_data/README.md for the format."""

import sys

from asr_load.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("prepare"))
