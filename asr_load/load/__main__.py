"""Run Locust with signals caught from the first line on. Verbs of asr-load become `python -m asr_load.load`."""

import sys
from typing import Any

from asr_load import signals
from asr_load.load import BEFORE_TEST


def main() -> None:
    """Run Locust with this process's command line. A missing locustfile prints one line and exits with code 2."""
    signals.catch()
    signals.on_signal(signals.leave, BEFORE_TEST)
    # Late: importing Locust takes most of a second.
    import locust.main
    from locust.argument_parser import parse_locustfile_option

    from asr_load.errors import InputError
    from asr_load.settings.commandline import check_locustfiles

    sys.argv[0] = "locust"
    asked: Any = parse_locustfile_option()  # Locust annotates the wrong type
    try:
        check_locustfiles(asked.locustfile)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    locust.main.main()


if __name__ == "__main__":
    main()
