"""The seed's own line: prepares a data set if need be, sends every clip once, prints the summary. See --help."""

import sys

from asr_load.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("bench"))
