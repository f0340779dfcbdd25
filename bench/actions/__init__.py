"""The psring commands, a function each that returns an exit code and imports what it needs."""

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
