"""`python -m dsmemvp`, which is also what the deepspeed launcher starts."""

import sys

from dsmemvp.cli import main

sys.exit(main())
