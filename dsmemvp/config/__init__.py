"""The recipe: its schema, reading it from YAML and overrides. A method's settings live beside the method."""
