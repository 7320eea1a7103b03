"""The process around the commands: `python -m dsmemvp`, the console command, and what the deepspeed launcher starts."""

import atexit
import os
import sys

from dsmemvp.distributed.stopping import take_charge


def run() -> None:
    """Run one command and end the process without tearing the interpreter down: with process groups still referenced,
    C++ threads of torch now and then abort there ("terminate called without an active exception"), and a launcher
    takes a finished run for a failed one."""
    take_charge()
    from dsmemvp.cli.main import main  # signals that come meanwhile are held

    try:
        code = main()
    except SystemExit as ended:  # argparse has printed help or a usage error
        code = ended.code if isinstance(ended.code, int) else 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
