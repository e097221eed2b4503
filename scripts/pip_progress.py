"""Shorten the output of `pip install`: count the packages, name large downloads and print errors. pip's --log has the
rest."""

from __future__ import annotations

import argparse
import sys

EVERY = 20
"""Packages between two lines, unless a terminal shows the count in place."""


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    in_place = "\r\033[K" if sys.stdout.isatty() else ""
    found = 0
    for line in sys.stdin:
        first, _, rest = line.strip().partition(" ")
        if first in ("Collecting", "Processing"):
            found += 1
            if in_place:
                print(f"{in_place}  {found} found: {rest.split()[0]}", end="", flush=True)
            elif found % EVERY == 0:
                print(f"  {found} found", flush=True)
        elif first == "Downloading" and rest.endswith("MB)"):
            print(f"{in_place}  downloading {rest}", end="" if in_place else "\n", flush=True)
        elif first == "Installing":
            print(f"{in_place}  installing {rest.count(',') + 1} …", flush=True)
        elif first == "ERROR:":
            print(f"{in_place}{line.strip()}", flush=True)


if __name__ == "__main__":
    main()
