"""What users type: one file per group of commands."""
