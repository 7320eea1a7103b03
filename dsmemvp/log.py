"""Lines for people, by the standard logger "dsmemvp": `from dsmemvp.log import log`, then `log.info("text")`.

The first rank's lines look like "12:34:56  text"; of the other ranks only warnings are shown, with the rank in front:
"12:34:56  rank 3: text". They go to stdout, above a progress bar if there is one. A log that nobody reads any more, or
that has no room, is no reason to end a run.
"""

import logging
import sys
from contextlib import suppress

from tqdm import tqdm

log = logging.getLogger("dsmemvp")


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()


def configure(rank: int = 0) -> None:
    """Called when a process knows its rank; until then it counts as the first."""
    lines = _Lines()
    lines.setFormatter(logging.Formatter(f"%(asctime)s  {f'rank {rank}: ' * bool(rank)}%(message)s", "%H:%M:%S"))
    log.handlers[:] = [lines]
    log.setLevel(logging.WARNING if rank else logging.INFO)
    log.propagate = False


configure()
