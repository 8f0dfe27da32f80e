"""The command line: commands, their options and their output.

Knows what is typed and printed; the work is done in other rooms. Read `commands.py` first.
"""

from mixoff.cli.commands import app, main

__all__ = ["app", "main"]
