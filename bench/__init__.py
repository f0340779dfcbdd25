"""The harness: knows GPTs, clocks, launchers and tables."""
