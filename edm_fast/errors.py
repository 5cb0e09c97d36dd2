"""Exceptions that are ours; wrong arguments raise the built-in ValueError and TypeError."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint is truncated, damaged, hostile or of an unknown kind; the message says what and where."""


class DataError(ValueError):
    """Training data are missing, damaged or do not fit together; the message names the file and the reason."""
