"""What this machine can be trusted with as a client. See --help."""

import sys

from asr_load.selftest.calibrate import main

if __name__ == "__main__":
    sys.exit(main())
