"""What a user can mend. Every other exception is a bug, or the machine's doing, and keeps its traceback."""


class UserError(ValueError):
    """One line: what is wrong, where (file and line, or the recipe's key), and what to do. A command ends with it on
    stderr and exit code 1, and is not requeued: the same again would fail again."""
