"""The errors that end a command with one line for the user."""

from __future__ import annotations


class BadInput(Exception):
    """Bad input; its text is one line that says what is wrong, where, and how to fix it."""


class AgreedBadInput(BadInput):
    """BadInput that every rank of a run raises alike: one rank prints it for all."""


class DiskFull(Exception):
    """The file system is full; files that were written are complete."""
