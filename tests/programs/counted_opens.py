"""The command `dsmemvp`, with every file that this process opens named in opens-RANK below a folder.

Arguments: the folder, then the command's own.
"""

import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    given = next(i for i, word in enumerate(sys.argv) if i and not word.startswith("--local_rank"))
    folder = Path(sys.argv.pop(given))
    file = os.open(folder / f"opens-{os.environ['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def count(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | Path):
            os.write(file, f"{arguments[0]}\n".encode())  # at once: the command ends without clean-up

    sys.addaudithook(count)
    runpy.run_module("dsmemvp", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
