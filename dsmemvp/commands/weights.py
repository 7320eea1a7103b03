"""import: weights of others into this package's layout."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("import", help="convert published LLaMA, CLIP and MemVP weights")
    command.set_defaults(run=_import)
    command.add_argument("source", type=Path, help="a .safetensors or .pth file")
    command.add_argument("--out", type=Path, required=True, help="folder to write to")
    command.add_argument("--language-heads", type=int, default=32, help="attention heads of the language model")
    command.add_argument("--vision-heads", type=int, default=16, help="attention heads of the vision tower")
    command.add_argument("--norm-eps", type=float, default=1e-6, help="epsilon of the language model's norms")


def _import(given: argparse.Namespace) -> None:
    from dsmemvp.models.published import import_published

    for line in import_published(given.source, given.out, given.language_heads, given.vision_heads, given.norm_eps):
        print(line)
