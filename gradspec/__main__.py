"""Lets `python -m gradspec` stand for the `gradspec` command."""

import sys

from gradspec.cli import main

if __name__ == "__main__":
    sys.exit(main())
