"""Start the embedded server: see --help."""

from asr_server.main import main

if __name__ == "__main__":
    main()
