"""A new method is one new file in dsmemvp/prompts/, and nothing else: counted, trained, scored, exported, planned."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

TOY = '''
"""A toy: places in front and behind the question, hidden in the first block, scaled on leaving it, and a loss."""

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from dsmemvp.config.fields import CONFIG, Width
from dsmemvp.config.methods import MethodSettings
from dsmemvp.data.layout import Reserved
from dsmemvp.prompts.interface import VisualPrompt


@dataclass(config=CONFIG)
class Settings(MethodSettings):
    hidden: Width = 4
    """Width in the middle."""


class Method(VisualPrompt):
    description = "a toy"

    @classmethod
    def build(cls, settings, sizes):
        return cls(settings, sizes)

    @classmethod
    def describe(cls, settings):
        return {"toy": f"hidden {settings.hidden}"}

    def __init__(self, settings, sizes):
        super().__init__()
        self.down = nn.Linear(sizes.vision_width, settings.hidden)
        self.up = nn.Linear(settings.hidden, sizes.language_width)

    def reserved(self):
        return (Reserved("front", 2), Reserved("behind", 1, "after_question"))

    def finish(self, tower, output, state, batch):
        if tower == "decoder":
            return state
        seen_Id = self.up(torch.tanh(self.down(output.mean(1))))
        has_B = (batch.image_of >= 0)[:, None]
        return state | {"seen": seen_Id, "row": seen_Id[batch.image_of.clamp(min=0)] * has_B}

    def enter(self, site, hidden, state, batch):
        if site != ("decoder", 0) or "seen" not in state:
            return hidden
        hidden = hidden + 0.0 * state["seen"].sum()
        rows = state["row"][[b for b, row in enumerate(batch.image_rows) if row >= 0]]
        for name, count in (("front", 2), ("behind", 1)):
            if batch.places[name].numel():
                own = rows.repeat_interleave(count, 0).to(hidden.dtype)
                hidden = hidden.index_copy(1, batch.places[name], own[None])
        return hidden

    def visible(self, site):
        return ("front",) if site.block == 0 else None

    def leave(self, site, hidden, state, batch):
        if site != ("decoder", 0):
            return hidden
        lengths = torch.tensor(batch.lengths, device=hidden.device)
        row_Td = state["row"].repeat_interleave(lengths, 0, output_size=sum(batch.lengths))
        return hidden + 0.1 * row_Td[None].to(hidden.dtype)

    def losses(self, state, batch):
        return {"size": state["row"].float().square().sum()}

    def loss_counts(self, batch):
        return {"size": batch.size}

    def decoding(self, state, batch):
        return {"row": state["row"]}
'''


@pytest.mark.slow
@pytest.mark.ranks
def test_a_method_is_one_file(recipe_path, repository, tmp_path):
    package = tmp_path / "copy" / "dsmemvp"
    shutil.copytree(repository / "dsmemvp", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "prompts" / "toy.py").write_text(TOY)
    recipe = yaml.safe_load(recipe_path.read_text())
    recipe["method"] = {"name": "toy", "hidden": 3}
    recipe["training"]["deepspeed"] = str(repository / "ds_configs" / "replicated.json")
    recipe_path.write_text(yaml.safe_dump(recipe))
    run = tmp_path / "runs" / "tiny"
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(package.parent)}

    def dsmemvp(*arguments) -> str:
        command = [sys.executable, "-m", "dsmemvp", *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    trained = 3 * (32 + 1) + 32 * (3 + 1) + 2 * 2 * 4 * 32  # down, up, and two blocks' adapters
    assert f"{trained:,}" in dsmemvp("count", recipe_path)
    dsmemvp("train", recipe_path)
    dsmemvp("evaluate", recipe_path, "evaluation.protocol=generate")
    assert json.loads((run / "evaluation.json").read_text())["accuracy"]
    dsmemvp("export", "--run", run, "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Method: a toy." in card and "hidden 3" in card
    dsmemvp("plan", recipe_path, "--gpus", "2")
