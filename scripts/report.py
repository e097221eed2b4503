"""Print a run's summary again, and make its summary.json anew from its records."""

import sys

from asr_load.results.report import main

if __name__ == "__main__":
    sys.exit(main())
