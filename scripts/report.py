"""Print runs' summaries again, and make their summary.json and report.html anew from their records."""

import sys

from asr_load.report import main

if __name__ == "__main__":
    sys.exit(main())
