"""Stages of other parts: without a language model, with a teacher, on captions, each with its own recipe; by the toy
method in real runs."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from launch import launch, run_on_ranks
from safetensors.torch import load_file

from data_prep.shards import Row, write_shards
from dsmemvp.data.captions import WordPieces

PROGRAMS = Path(__file__).parents[1] / "programs"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "ball", "box", "is", "near", "green"]
WORDS, MATCH, WRITE = 3, 9, 18
"""The last steps of the stages."""
FIRST, SECOND = ({f"method.{module}.{name}" for name in ("weight", "bias")} for module in ("first", "second"))


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> tuple[Path, list[str]]:
    """48 captions in 4 shards, and a vocab.txt beside them."""
    folder, rng = tmp_path_factory.mktemp("captions"), random.Random("captions of the toy")
    texts = [" ".join(rng.choices(PIECES[5:], k=rng.randint(3, 12))) for _ in range(48)]
    write_shards((Row(f"c{i:02d}", {"caption": text}) for i, text in enumerate(texts)), folder / "train", "train", 12)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return folder, texts


@pytest.fixture
def staged(recipe_path, captions) -> Path:
    folder, _ = captions
    content = yaml.safe_load(recipe_path.read_text())
    content["method"] = {"name": "toy", "pieces": str(folder / "vocab.txt")}
    content["training"] |= {"epochs": 1, "warmup_epochs": 0, "keep_last": 1, "checkpoint_steps": 1}
    content["data"]["record_order"] = True
    text = {"train": str(folder / "train"), "max_length": 40}
    content["stages"] = {
        "words": {"data": text, "training": {"global_batch": 16, "learning_rate": 2e-2}},
        "match": {"data": text, "training": {"micro_batch": 4}},
    }
    recipe_path.write_text(yaml.safe_dump(content))
    return recipe_path


def _runs(staged: Path, *runs: list) -> str:
    path = staged.with_suffix(".json")
    path.write_text(json.dumps([[str(staged), *run] for run in runs]))
    return str(path)


def _trained(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "trained.safetensors")


def _rows(run: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def _initial(seed: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of both modules as the method draws them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.empty(width, width).normal_(std=0.02), torch.empty(width, width).normal_(std=0.02)


def test_each_stage_has_its_parts_its_data_and_its_recipe(staged, captions, tmp_path, tiny_models):
    said = run_on_ranks(PROGRAMS / "toy_run.py", 1, _runs(staged, [[f"output={tmp_path}"]]))
    run = tmp_path / "tiny"
    for text in ("words: steps 1 to 3", "match: steps 4 to 9", "write: steps 10 to 18"):
        assert f"stage {text}" in said
    metrics, order = _rows(run, "metrics"), _rows(run, "order")
    assert [row["stage"] for row in metrics] == ["words"] * 3 + ["match"] * 6 + ["write"] * 9
    assert [len(row["samples"]) for row in order] == [16] * 3 + [8] * 15
    assert [row["training/learning_rate"] for row in metrics if row["step"] in (1, 4, 10)] == [2e-2, 1e-2, 1e-2]

    # what is loaded, counted and recorded
    for row in metrics:
        decoder = row["stage"] != "match"
        assert ("speed/tokens_per_second" in row, "speed/tflops" in row) == (decoder, decoder)
        assert ("loss/language" in row, "loss/pull" in row) == (row["stage"] == "write", False)
        assert ("measure/embedded" in row, "measure/far" in row) == (row["stage"] == "words", row["stage"] == "match")
    embeddings = load_file(tiny_models / "language_model" / "model.safetensors")["model.embed_tokens.weight"]
    for row in metrics[:WORDS]:
        assert row["measure/embedded"] == pytest.approx(embeddings.abs().mean().item(), rel=1e-5)
        assert 0 < row["measure/drawn"] < 12
    assert metrics[MATCH - 1]["loss/train"] < metrics[WORDS]["loss/train"]

    # the last checkpoint of each stage stays, with what took part in it
    folders = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert folders == [f"step-{step:08d}" for step in (WORDS, MATCH, WRITE)]
    assert set(_trained(run, WORDS)) == FIRST and set(_trained(run, MATCH)) == set(_trained(run, WRITE)) == SECOND
    stages = [json.loads((run / "checkpoints" / name / "state.json").read_text())["stage"] for name in folders]
    assert stages == ["words", "match", "write"]

    # the teacher is what the first stage has trained: the first loss of the second one follows from it
    _, texts = captions
    pieces = WordPieces(captions[0] / "vocab.txt")
    teacher, (drawn, second) = _trained(run, WORDS), _initial(0, 32)
    assert not torch.equal(teacher["method.first.weight"], drawn)
    losses = []
    for number in order[WORDS]["samples"]:
        tokens = pieces.encode(texts[number])
        x = torch.zeros(32, dtype=torch.float64)
        x[:16] = torch.tensor(tokens + [0] * (16 - len(tokens))) / 10
        wanted = x @ teacher["method.first.weight"].double().T + teacher["method.first.bias"].double()
        losses.append(((x @ second.double().T - wanted) ** 2).mean().item())
    assert metrics[WORDS]["loss/train"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_tensorboard_keeps_the_stages_apart(staged, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs = [[[f"output={tmp_path}", "training.stop_at_step=4"]]]
    run_on_ranks(PROGRAMS / "toy_run.py", 1, _runs(staged, *runs))
    board = EventAccumulator(str(tmp_path / "tiny"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {"loss/words/train", "loss/match/train", "measure/match/far", "speed/words/tflops"} <= tags
    assert "loss/train" not in tags and "speed/match/tflops" not in tags


@pytest.mark.ranks
def test_between_stages_nothing_stays_of_the_model_before(staged):
    assert "as wanted" in run_on_ranks(PROGRAMS / "stage_parts.py", 2, str(staged))


@pytest.mark.ranks
def test_one_and_two_ranks_draw_the_same_places_and_take_the_same_samples(staged, tmp_path):
    losses = []
    for ranks in (1, 2):
        run_on_ranks(PROGRAMS / "toy_run.py", ranks, _runs(staged, [[f"output={tmp_path / str(ranks)}"]]))
        rows = _rows(tmp_path / str(ranks) / "tiny", "metrics")
        losses.append([(row["loss/train"], row.get("measure/drawn")) for row in rows])
    one, two = losses
    assert len(two) == WRITE
    for (loss, drawn), (other, same) in zip(one, two, strict=True):
        assert loss == pytest.approx(other, rel=1e-4) and drawn == same


def test_one_stage_starts_from_the_one_before_or_from_a_named_checkpoint(staged, tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    named = ["stages.match.start_from=" + str(first / "tiny"), f"output={other}"]
    runs = [[[f"output={first}"], "words"], [[f"output={first}"], "match"]]
    runs += [[named, "match"], [named]]
    run_on_ranks(PROGRAMS / "toy_run.py", 1, _runs(staged, *runs))
    assert [row["stage"] for row in _rows(first / "tiny", "metrics")] == ["words"] * 3 + ["match"] * 6
    metrics = _rows(other / "tiny", "metrics")
    assert [row["step"] for row in metrics] == list(range(WORDS + 1, WRITE + 1))
    # its first one was of the stage match in that run: it goes on from there, with the teacher of the stage before
    assert metrics[0]["loss/train"] < _rows(first / "tiny", "metrics")[WORDS]["loss/train"]
    assert set(_trained(other / "tiny", WRITE)) == SECOND


@pytest.mark.parametrize(
    ("only", "changed", "message"),
    [
        ("match", [], "--stage: match starts from the end of words, step 3, and "),
        ("mach", [], "--stage: the method has no stage 'mach'; did you mean 'match'?"),
        ("match", ["stages.match.start_from=nowhere"], "stages.match.start_from: nowhere"),
        ("", ["stages.wrds.training.epochs=2"], "stages.wrds: method toy has no such stage; did you mean 'words'?"),
    ],
)
def test_a_start_that_is_not_there_is_told_in_one_line(staged, tmp_path, only, changed, message):
    done = launch(PROGRAMS / "toy_run.py", 1, _runs(staged, [[f"output={tmp_path}", *changed], only]))
    assert done.returncode != 0 and message in done.stdout, done.stdout


def test_a_stage_refuses_what_was_trained_on_another_base_or_by_another_method(staged, tmp_path, tiny_models):
    run_on_ranks(PROGRAMS / "toy_run.py", 1, _runs(staged, [[f"output={tmp_path}"], "words"]))
    changed = tmp_path / "changed"
    shutil.copytree(tiny_models / "language_model", changed)
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    state = tmp_path / "tiny" / "checkpoints" / f"step-{WORDS:08d}"
    start = f"stages.match.start_from={state}"
    other = [[f"output={tmp_path / 'b'}", start, f"model.language_model={changed}"], "match"]
    done = launch(PROGRAMS / "toy_run.py", 1, _runs(staged, other))
    assert (
        done.returncode != 0 and "model.language_model" in done.stdout and "was trained on another one" in done.stdout
    )
    content = yaml.safe_load(staged.read_text())
    own = {"name": "memvp", "slots": 24, "hidden": 16}
    renamed = content | {"method": own, "stages": {"train": {"start_from": str(state)}}}
    staged.write_text(yaml.safe_dump(renamed))
    done = launch(PROGRAMS / "toy_run.py", 1, _runs(staged, [[f"output={tmp_path / 'c'}"]]))
    assert done.returncode != 0 and "method.name: is memvp, but" in done.stdout


def test_stored_vectors_take_the_place_of_the_teachers_and_are_made_once(staged, captions, tmp_path):
    texts = captions[1]
    data = tmp_path / "captions"
    shutil.copytree(captions[0] / "train", data)
    own = [f"stages.words.data.train={data}", f"stages.match.data.train={data}", "training.stop_at_step=6"]
    runs = [[[*own, f"output={tmp_path / 'online'}"]]]
    runs += [[[*own, f"output={tmp_path / name}", "method.vectors=true"]] for name in ("stored", "again")]
    said = run_on_ranks(PROGRAMS / "toy_run.py", 1, _runs(staged, *runs))
    assert said.count("storing the vectors of 48 captions") == 1
    (path,) = data.glob("vectors-*.npy")
    assert not list(data.glob("vectors-*.parts")) and not list(data.glob("partial-*"))
    losses = [
        [row["loss/train"] for row in _rows(tmp_path / name / "tiny", "metrics")]
        for name in ("online", "stored", "again")
    ]
    assert losses[1] == losses[2] and losses[0] == pytest.approx(losses[1], rel=1e-6)

    # in the order of samples, by a float64 formula
    teacher, pieces = _trained(tmp_path / "stored" / "tiny", WORDS), WordPieces(captions[0] / "vocab.txt")
    vectors = np.load(path)
    for number in (0, 13, 47):
        tokens = pieces.encode(texts[number])
        x = torch.zeros(32, dtype=torch.float64)
        x[:16] = torch.tensor(tokens + [0] * (16 - len(tokens))) / 10
        wanted = x @ teacher["method.first.weight"].double().T + teacher["method.first.bias"].double()
        np.testing.assert_allclose(vectors[number], wanted.numpy(), rtol=1e-5, atol=1e-6)

    # a damaged file is told
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again = [[[*own, f"output={tmp_path / 'damaged'}", "method.vectors=true"]]]
    done = launch(PROGRAMS / "toy_run.py", 1, _runs(staged, *again))
    assert done.returncode != 0 and f"{path} is damaged" in done.stdout
