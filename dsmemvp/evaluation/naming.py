"""Names of an evaluation's files. All by which two evaluations of one run may differ stands in them, so that none
overwrites another's: the checkpoint, the split, captions, the protocol, whether it was blind, and other data than those
that the file without it is of."""

import json
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


def data_name(file: Path, fingerprint: str) -> str:
    """ "data-1a2b3c4d" if `file`, an evaluation.json, is of other data than those of this fingerprint; nothing if it is
    not there, or does not tell. Raises OSError."""
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return ""
    before = content.get("data_fingerprint") if isinstance(content, dict) else None
    return f"data-{fingerprint[:8]}" if before not in (None, fingerprint) else ""
