"""Run the command line as ``python -m mixoff``."""

from mixoff.cli import main

main()
