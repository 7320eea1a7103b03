"""Why bytes did not come, and what follows from it."""

from dsmemvp.errors import UserError


class TransferError(Exception):
    """A transfer that failed. Says whether another attempt may help, and how long to wait before it."""

    def __init__(
        self, why: str, kind: type[UserError | OSError] = ConnectionError, again: bool = True, wait: float = 0
    ):
        """`kind` is the error that it is if no attempt helps: ConnectionError or TimeoutError if it passes without the
        user's changing anything, else UserError. `wait` in seconds: the least that the server has asked for."""
        super().__init__(why)
        self.kind, self.again, self.wait = kind, again, wait
