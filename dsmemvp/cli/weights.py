"""convert, export: weights of others in, trained tensors out."""

import argparse
from pathlib import Path
from typing import Any

from dsmemvp.config.reading import read_recipe
from dsmemvp.errors import UserError


def add(commands: Any) -> None:
    about = "read weights in the layouts of others, and write what a recipe can name"
    command = commands.add_parser("convert", help=about, description=about)
    command.set_defaults(run=_convert)
    command.add_argument(
        "source",
        type=Path,
        help="a folder of Meta's or with pytorch_model.bin; a .pth, .pt or .safetensors file; a LLaMA in GGUF, a DINOv2"
        " in ONNX, or a wheel (.whl) with one of both inside",
    )
    command.add_argument("--out", type=Path, required=True, help="folder to write to")
    command.add_argument(
        "--dtype",
        choices=("keep", "bf16", "fp16", "fp32"),
        default="keep",
        help="type to write (default: keep the source's; what GGUF quantises becomes fp32)",
    )
    command.add_argument("--shard-size", default="5GB", help="largest size of a safetensors file (default: 5GB)")
    command.add_argument(
        "--language-heads", type=int, default=32, help="attention heads of a LLaMA without params.json (default: 32)"
    )
    command.add_argument(
        "--norm-eps", type=float, default=1e-6, help="norms' epsilon of a LLaMA without params.json (default: 1e-6)"
    )
    command.add_argument(
        "--vision-heads", type=int, default=0, help="attention heads of the vision tower (default: width / 64)"
    )

    about = "write what a run has trained as a small folder, for use with any copy of its base"
    command = commands.add_parser("export", help=about, description=about)
    command.set_defaults(run=_export)
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", dest="run_folder", type=Path, help="the run's folder, runs/NAME")
    source.add_argument("--recipe", type=Path, help="instead, for a --checkpoint that `dsmemvp convert` has written")
    command.add_argument("--checkpoint", type=Path, help="a checkpoint's folder instead of the run's newest")
    command.add_argument("--out", type=Path, help="folder to write")
    command.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="type of the folder's tensors (default: fp32)"
    )
    command.add_argument("--published", type=Path, metavar="FILE.pth", help="also, or only: MemVP's published layout")
    command.add_argument("--peft", type=Path, metavar="DIR", help="also, or only: input_space's LoRA as peft loads it")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        help="with --recipe: another value of a key; repeatable",
    )


def _convert(given: argparse.Namespace) -> None:
    from dsmemvp.convert.convert import Options, convert
    from dsmemvp.planning.cluster import quantity

    size = int(quantity(given.shard_size, "--shard-size"))
    options = Options(given.dtype, size, given.language_heads, given.vision_heads, given.norm_eps)
    print(*convert(given.source, given.out, options), sep="\n")


def _export(given: argparse.Namespace) -> None:
    recipe = read_recipe(given.recipe, given.set) if given.recipe else None

    from dsmemvp.export.export import export, export_file

    if recipe:
        if not given.checkpoint or not given.out or given.published or given.peft:
            raise UserError("--recipe goes with --checkpoint FILE and --out DIR, without --published and --peft")
        print(export_file(recipe, given.checkpoint, given.out, given.dtype))
        return
    if given.set:
        raise UserError("--set goes with --recipe; what a run was trained with cannot be set")
    print(*export(given.run_folder, given.out, given.published, given.checkpoint, given.dtype, given.peft), sep="\n")
