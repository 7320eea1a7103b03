"""What a run has trained, to hand on: a folder for this package, a file for the published code."""
