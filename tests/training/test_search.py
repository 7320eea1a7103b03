"""`dsmemvp search` in real runs: killed in the middle, it goes on to the same preferences bit for bit; what it writes,
and what it refuses."""

import json
import random
from pathlib import Path

import pytest
import yaml
from faulty import Ranks, numbers, run
from launch import run_on_ranks
from making import good_shards
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_prep.demo import sample
from data_prep.shards import write_shards
from dsmemvp.cli.main import main
from dsmemvp.config.reading import read_recipe
from dsmemvp.distributed.ranks import leave_ranks

MODULE = ["--module", "dsmemvp"]


@pytest.fixture(scope="session")
def search_shards(tmp_path_factory) -> Path:
    rng = random.Random("a split of its own for the search")
    rows = (sample(rng, f"s{i:03d}", with_picture=i % 2 == 0) for i in range(24))
    folder = tmp_path_factory.mktemp("search") / "search"
    write_shards(rows, folder, "search", per_shard=6)
    return folder


@pytest.fixture
def command(recipe_path, search_shards, demo_shards) -> list[str]:
    """A search over the tiny model's two layers; 6 steps per epoch."""
    recipe = yaml.safe_load(recipe_path.read_text())
    recipe["method"] = {"name": "dvp", "layer": 1, "width": 16, "heads": 4, "adapter_ratio": 8, "train_norms": True}
    recipe["data"] |= {"search": str(search_shards), "test": ""}
    recipe["search"] = {"epochs": 2, "learning_rate": 1e-3, "draws": 4, "rate": 0.5}
    recipe_path.write_text(yaml.safe_dump(recipe))
    return ["search", str(recipe_path)]


def _callback(output: Path, step: int) -> dict:
    state = json.loads((output / "tiny-search" / "checkpoints" / f"step-{step:08}" / "state.json").read_text())
    return state["callbacks"][-1]


@pytest.mark.slow
@pytest.mark.ranks
def test_a_search_killed_in_the_middle_goes_on_to_the_same_preferences(command, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run([*command, f"output={whole}"], tmp_path / "logs")
    assert done.codes == [0, 0] and "method.layer: " in done.said[0] and "controls: " in done.said[0], done.text
    killed = [*command, f"output={parts}", "training.checkpoint_steps=4", "data.workers=1"]
    with Ranks(killed, tmp_path / "logs") as ranks:
        ranks.until_said(0, "step 4: saved")
    assert not (parts / "tiny-search" / "recipes").exists()
    assert run([*command, f"output={parts}"], tmp_path / "logs").codes == [0, 0]
    assert _callback(parts, 12) == _callback(whole, 12)
    for name in ("search/score", "search/entropy", "loss/train"):
        assert numbers(parts / "tiny-search", name) == numbers(whole / "tiny-search", name)
    found = _callback(whole, 12)
    assert any(found["alpha"]) and sum(found["trained"]) == 12 and sum(found["scored"]) == 48

    # what it ends with
    best = max(range(2), key=lambda arm: found["alpha"][arm])
    names = {path.stem: read_recipe(path) for path in (parts / "tiny-search" / "recipes").iterdir()}
    assert names.keys() == {"tiny-layer-0", "tiny-layer-1"}
    assert names[f"tiny-layer-{best}"].method.layer == best
    given = yaml.safe_load(Path(command[1]).read_text())
    assert names["tiny-layer-1"].training.learning_rate == given["training"]["learning_rate"]

    # and what it shows
    board = EventAccumulator(str(whole / "tiny-search")).Reload()
    assert len(board.Scalars("search/entropy")) == len(board.Scalars("search pi/value 001")) == 12
    assert board.Images("search/pi over the steps")

    # the search belongs to its settings, and its checkpoints to searches
    refused = run([*command, f"output={whole}", "search.rule=published"], tmp_path / "logs")
    assert refused.codes == [1, 1] and "search.rule: is published, but this search began with corrected" in refused.text
    refused = run(["train", command[1], f"output={whole}", "name=tiny-search", "training.epochs=4"], tmp_path / "logs")
    assert refused.codes == [1, 1] and "is of a search, and this is none" in refused.text


@pytest.mark.ranks
def test_an_unfinished_search_refuses_other_settings_and_data_and_keeps_its_recipe(command, tmp_path):
    stopped = [*command, "training.stop_at_step=1", "training.deepspeed=ds_configs/replicated.json"]
    run_on_ranks(MODULE, 1, *stopped)
    folder = Path(yaml.safe_load(Path(command[1]).read_text())["output"]) / "tiny-search"
    recipe = (folder / "recipe.json").read_bytes()
    good_shards(tmp_path / "other")
    for setting, message in (
        ("search.draws=3", "search.draws: is 3, but this search began with 4"),
        (f"data.search={tmp_path / 'other'}", "other has other samples than"),
    ):
        refused = run([*stopped, "training.stop_at_step=2", setting], tmp_path / "logs", ranks=1)
        assert refused.codes == [1] and message in refused.text
        assert (folder / "recipe.json").read_bytes() == recipe


@pytest.fixture
def said(capsys, monkeypatch):
    """Runs a command in this process -> its error, in one line."""
    monkeypatch.delenv("DSMEMVP_TRACEBACK", raising=False)

    def said(*arguments: str) -> str:
        code = main(list(arguments))
        leave_ranks()
        err = capsys.readouterr().err.strip()
        assert code == 1 and len(err.splitlines()) == 1, err
        return err

    return said


BAD = [
    (["data.search="], "data.search: give the folder of shards to score on"),
    (["method.name=memvp"], "method.name: memvp has no setting to search for"),
    (["method.layer=2"], "method.layer: there is no layer 2 in the language model"),
    (["data.search={train}"], "data.search: has the samples of"),
    (["data.test={search}"], "data.search: has the samples of"),
    (["data.validation={search}"], "data.search: has the samples of"),
    (["search.draws=1"], "search.draws: must be at least 2"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_what_cannot_be_searched_is_one_line(command, settings, message, demo_shards, search_shards, said):
    settings = [text.format(train=demo_shards, search=search_shards) for text in settings]
    assert message in said(*command, *settings)


@pytest.mark.ranks
def test_a_checkpoint_of_one_layer_is_not_taken_for_another(command, demo_shards, tmp_path, said):
    run_on_ranks(MODULE, 1, "train", command[1], "training.stop_at_step=1", f"output={tmp_path}")
    checkpoint = tmp_path / "tiny" / "checkpoints" / "step-00000001"
    given = ["evaluate", command[1], f"output={tmp_path}", f"data.test={demo_shards}", "method.layer=0"]
    for more in ((), ("--checkpoint", str(checkpoint))):
        assert "method.layer: is 0, but" in (err := said(*given, *more)) and "was trained with 1" in err
