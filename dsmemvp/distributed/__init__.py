"""The processes of a launch: launchers, signals, rendezvous, ranks. Knows nothing of models or data."""
