"""Fixtures of all tests of plans."""

from support.plans import checkpoint, planned  # noqa: F401 - fixtures
