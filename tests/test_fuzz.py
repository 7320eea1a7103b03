"""Every reader of files that others make, against files that are damaged or made to harm (fuzz/run.py has the rule)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "fuzz" / "run.py"
CASES = 8
"""For each reader: half a minute in all. `make fuzz N=1000` runs more."""
SETTINGS, DATA = ("recipe", "deepspeed", "config", "weights", "sentencepiece", "tokenizer.json"), ("sample", "tar")
SHARDS, IMAGES = ("manifest", "index", "shard", "features"), ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
RUNS = ("checkpoint", "exported", "predictions", "starts.jsonl", "run's lines")
SOURCES = (
    "Meta's pieces",
    "params.json",
    "CLIP",
    "published",
    "pytorch_model.bin",
    "bin's config",
    "safetensors source",
    "GGUF",
    "ONNX",
)


@pytest.fixture(scope="module")
def complaints() -> dict[str, list[str]]:
    """By the reader's name."""
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--cases", str(CASES)], env=environment, stdout=subprocess.PIPE, text=True
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row["reader"]: row["complaints"] for row in rows}


@pytest.mark.parametrize("reader", [*SETTINGS, *DATA, *SHARDS, *IMAGES, *RUNS, *SOURCES])
def test_damaged_files_are_read_as_meant_or_refused_in_one_line_in_little_time_and_memory(complaints, reader):
    assert not complaints[reader], "\n".join(complaints[reader][:3])


def test_every_reader_has_its_test(complaints):
    assert complaints.keys() == {*SETTINGS, *DATA, *SHARDS, *IMAGES, *RUNS, *SOURCES}
