"""The harness: launches, trains, measures and reports; `strategies` holds what it compares."""
