"""Print runs' summaries, and recompute their summary.json and report.html from their records."""

import sys

from asr_load.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("report"))
