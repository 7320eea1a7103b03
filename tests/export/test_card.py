"""The model card: its lines run, and it says what the export is and how it scored."""

import hashlib
import json
import re

from making import picture

import dsmemvp
from dsmemvp.config.reading import as_dict
from dsmemvp.export.export import export


def test_the_cards_lines_answer_as_the_run_itself_does(run, recipe, tmp_path, capsys):
    (run / "recipe.json").write_text(json.dumps(as_dict(recipe)))
    (tmp_path / "a.png").write_bytes(picture())
    export(run, tmp_path / "out")
    [lines] = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.S)
    named = {
        "this folder": tmp_path / "out",
        "cat.png": tmp_path / "a.png",
        "LLaMA's tokenizer.model": recipe.model.tokenizer,
    }
    named |= {"LLaMA's folder": recipe.model.language_model, "CLIP's folder": recipe.model.vision_tower}
    for placeholder, place in named.items():
        assert f'"{placeholder}"' in lines
        lines = lines.replace(placeholder, str(place))
    exec(lines, {})
    model = dsmemvp.load(run)
    answer = model.answer("What is in the picture?", model.see(tmp_path / "a.png"))
    assert answer and capsys.readouterr().out == f"{answer}\n"


def test_the_card_says_what_it_is_and_how_it_scored(run, trained, tmp_path):
    scores = {"captions off": {"NAT": 91.234, "Avg": 90.5}, "captions on": {"Avg": 95.0}}
    about = {"data": str(tmp_path / "test"), "protocol": "generate", "samples": 48, "left_out": 2}
    about |= {"interval": {row: {name: [80.0, 99.0] for name in values} for row, values in scores.items()}}
    about |= {"counted": {row: dict.fromkeys(values, 46) for row, values in scores.items()}}
    [folder] = (run / "checkpoints").iterdir()
    digest = hashlib.sha256((folder / "trained.safetensors").read_bytes()).hexdigest()
    (run / "evaluation.json").write_text(json.dumps({"checkpoint": digest, "accuracy": scores, **about}))
    other = {"checkpoint": "1f", "epoch": 2, "step": 12, "accuracy": {"blind": {"Avg": 11.11}}}
    (run / "evaluation-blind.json").write_text(json.dumps(other))
    export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    number = sum(t.numel() for t in trained.values())
    for part in (
        "# tiny",
        f"{number:,} trained parameters",
        "MemVP",
        'dsmemvp.load("',
        "24 slots",
        "0.01, 1.0 epochs of warm-up",
    ):
        assert part in card, part
    assert "On the 48 samples, 2 of them left out of `test`, protocol generate" in card
    assert "| captions off |  91.23 | 90.50 ±9.50 |" in card and "| captions on  |      - | 95.00 ±9.50 |" in card
    assert "11.11" not in card  # of another checkpoint
