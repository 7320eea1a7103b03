"""The checkpoint format, which one to take, and what may resume from it."""
