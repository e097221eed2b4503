"""Start the embedded server: see --help."""

import sys

from asr_server.main import main

if __name__ == "__main__":
    sys.exit(main())
