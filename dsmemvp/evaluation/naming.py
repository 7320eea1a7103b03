"""Names of an evaluation's files. All by which two evaluations of one run may differ stands in them, so that none
overwrites another's: the checkpoint, the split, captions, the protocol, and whether it was blind."""

from collections.abc import Sequence
from pathlib import Path


def file_suffix(which: str, split: str, captions: Sequence[bool], protocol: str, blind: bool) -> str:
    """What stands behind "evaluation" and "predictions", such as "-best-validation-blind"; nothing for the newest
    checkpoint on the test data, with captions off and on, by letters that are generated. `which`: checkpoint_name's."""
    parts = [
        which,
        split * (split != "test"),
        "" if len(captions) > 1 else f"captions-{'on' if captions[0] else 'off'}",
        protocol * (protocol != "generate"),
        "blind" * blind,
    ]
    return "".join(f"-{part}" for part in parts if part)


def checkpoint_name(run: Path, checkpoint: Path | None, best: bool, digest: str) -> str:
    """Nothing for the newest checkpoint of the run, "best", or the name of the given one. One from elsewhere has the
    beginning of its digest behind its name: others may have the same name, and be called "best"."""
    if checkpoint is None:
        return "best" * best
    path = checkpoint.resolve()
    if path.parent == (run / "checkpoints").resolve():
        return path.name
    return f"{path.stem if path.is_file() else path.name}-{digest[:8]}"
