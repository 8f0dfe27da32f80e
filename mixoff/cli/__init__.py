"""The command line: commands, their options, and what a terminal shows."""

from mixoff.cli.commands import app, main

__all__ = ["app", "main"]
