"""What ends a command with one line for the user."""

from __future__ import annotations


class BadInput(Exception):
    """What the user asked for cannot be done: one line that says what, where, and how to mend it."""


class AgreedBadInput(BadInput):
    """BadInput that every rank of a run raises alike: one rank prints it for all."""


class DiskFull(Exception):
    """Nothing more can be written; what was written is whole."""
