"""Runs the command line: `python -m sepwise`."""

from sepwise.cli import main

if __name__ == "__main__":
    main()
