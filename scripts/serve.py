"""Start the embedded server: see `python scripts/serve.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from asr_server.main import main

if __name__ == "__main__":
    main()
