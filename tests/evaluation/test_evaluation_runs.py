"""Whole evaluations: the same to the byte for any number of ranks, and after whatever has interrupted them."""

import json
import random
import shutil

import pytest
from faulty import numbers, run, steps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_prep.demo import sample
from data_prep.shards import Row, write_shards

KILLED = -9
SAMPLES = 23
NAMES = ["captions off, likelihood", "captions on, likelihood"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Multiple-choice questions, with and without a picture; of every third one an open question or a caption."""
    rng = random.Random("mixed shards")
    rows = []
    for i in range(SAMPLES):
        row = sample(rng, f"m{i:02d}", with_picture=i % 2 == 0)
        if i % 3 == 2:
            task = {"task": "caption"} if i % 2 else {}
            fields = {**row.fields, "answer": row.fields["choices"][row.fields["answer"]], "choices": [], **task}
            row = Row(row.key, fields, row.image)
        rows.append(row)
    folder = tmp_path_factory.mktemp("mixed") / "test"
    write_shards(iter(rows), folder, "test", per_shard=9)
    return folder


@pytest.fixture(scope="module")
def evaluate(small_run, uninterrupted, mixed, tmp_path_factory):
    """Evaluates the trained run; the folder's name tells the cases apart."""

    def start(name, *settings, fault="", on=0, ranks=2, sharding="zero3"):
        folder = tmp_path_factory.getbasetemp() / f"evaluations-{name}"
        if not folder.exists():
            shutil.copytree(uninterrupted, folder / "demo")
        arguments = ["evaluate", *small_run, f"output={folder}", f"data.test={mixed}", "evaluation.batch=2"]
        arguments += [f"training.deepspeed=ds_configs/{sharding}.json", "evaluation.protocol=likelihood", *settings]
        return folder / "demo", run(arguments, folder / "logs", fault, on, ranks=ranks)

    return start


def written(run):
    """Of its only evaluation."""
    (predictions,), (scores,) = run.glob("predictions*.jsonl"), run.glob("evaluation*.json")
    return [predictions.read_bytes(), scores.read_bytes()]


@pytest.fixture(scope="module")
def alone(evaluate):
    """What one rank writes in one go."""
    folder, ended = evaluate("alone", ranks=1)
    assert ended.codes == [0], ended.text
    return folder


@pytest.mark.ranks
@pytest.mark.parametrize("sharding", ["zero3", pytest.param("replicated", marks=pytest.mark.slow)])
def test_the_number_of_ranks_changes_no_byte(evaluate, alone, sharding):
    for ranks in (2, 3):
        folder, ended = evaluate(f"{sharding}-{ranks}", ranks=ranks, sharding=sharding)
        assert ended.codes == [0] * ranks, ended.text
        assert written(folder) == written(alone)
        assert not (folder / "evaluation").exists()


@pytest.mark.slow
@pytest.mark.ranks
def test_nor_where_letters_and_sentences_are_written(evaluate):
    """In 16 bits, where one token computed in another way is soon another one."""
    settings = ["evaluation.protocol=generate", "model.dtype=bf16", "evaluation.captions=[false]", "evaluation.batch=1"]
    folders = []
    for ranks in (1, 2):
        folder, ended = evaluate(f"written-{ranks}", *settings, ranks=ranks)
        assert ended.codes == [0] * ranks, ended.text
        folders.append(folder)
    rows = [json.loads(line) for line in (folders[0] / "predictions-captions-off.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"choice", "caption", "open"} and written(folders[0]) == written(folders[1])


def test_what_is_written(alone):
    rows = [json.loads(line) for line in (alone / "predictions-likelihood.jsonl").read_text().splitlines()]
    assert [(row["evaluation"], row["index"]) for row in rows] == [(name, i) for name in NAMES for i in range(SAMPLES)]
    for row in rows:
        kind = ("choice", "choice", "caption" if row["index"] % 2 else "open")[row["index"] % 3]
        assert row["kind"] == kind and row["question"]
        likelihoods = row.get("log_likelihoods")
        assert (likelihoods is not None) == (kind == "choice")
        if likelihoods:
            assert len(likelihoods) == len(set(likelihoods)) and max(likelihoods) < 0
            assert row["predicted"] == row["text"] == "ABCDE"[likelihoods.index(max(likelihoods))]
    scores = json.loads((alone / "evaluation-likelihood.json").read_text())
    assert scores["accuracy"].keys() == scores["interval"].keys() == set(NAMES)
    assert (scores["step"], scores["epoch"], scores["samples"], scores["protocol"]) == (12, 2, SAMPLES, "likelihood")
    board = EventAccumulator(str(alone)).Reload()
    (point,) = board.Scalars(f"score/evaluation/{NAMES[0]}/Avg")
    assert point.step == 12 and point.value == pytest.approx(scores["accuracy"][NAMES[0]]["Avg"])
    groups = sorted({name.partition("/")[0] for name in board.Tags()["scalars"]})
    assert groups[:2] == ["loss", "score"] and len(groups) > 4  # as TensorBoard shows them
    (text,) = board.Tensors(f"evaluation/{NAMES[0]}/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert text.step == 12 and all(f"**{rows[i]['id']}**: {rows[i]['question']}" in shown for i in (0, 5, 11, 17))


@pytest.mark.slow
@pytest.mark.ranks
def test_an_interrupted_one_goes_on_with_another_number_of_ranks(evaluate, alone):
    """12 batches of each of two evaluations. What was answered before the end is never computed again."""
    folder, ended = evaluate("interrupted", fault="evaluation:KILL:3", on=1, ranks=3)
    assert KILLED in ended.codes and not (folder / "evaluation-likelihood.json").exists(), ended.text
    kept = [json.loads(line)["batch"] for line in _partial(folder, "off").read_text().splitlines()[1:]]
    assert kept == list(range(6))
    with _partial(folder, "off").open("a") as file:
        file.write('{"batch": 6, "rows": [{"ind')  # half a line, as a killed rank leaves it

    folder, ended = evaluate("interrupted", fault="evaluation:USR2:4", on=1, ranks=2)
    assert ended.codes == [75, 75], ended.text
    assert f"{NAMES[0]}: resuming after 12 of 23 samples" in ended.said[0]
    assert f"{NAMES[1]}: 4 of 23 samples are kept" in ended.said[0]

    folder, ended = evaluate("interrupted", ranks=1)
    assert ended.codes == [0], ended.text
    assert f"{NAMES[0]}: resuming after 23 of 23" in ended.said[0]
    assert f"{NAMES[1]}: resuming after 4 of 23" in ended.said[0]
    assert written(folder) == written(alone) and not (folder / "evaluation").exists()


@pytest.mark.slow
@pytest.mark.ranks
def test_inside_training_the_best_by_score_is_kept_and_training_is_none_the_wiser(
    small_run, uninterrupted, mixed, tmp_path
):
    arguments = [*small_run, f"output={tmp_path}", f"data.validation={mixed}", "evaluation.batch=4"]
    arguments += ["evaluation.protocol=likelihood"]
    scored = [*arguments, "training.best_by=score", "training.keep_best=1", "training.keep_last=1"]
    # 2 steps of the loss, then the second of the score, after the first epoch: it is owed when the run resumes
    ended = run(["train", *scored], tmp_path / "logs", "evaluation:TERM:2", 0)
    assert ended.codes == [75, 75] and "step 6: ended as asked" in ended.text, ended.text
    ended = run(["train", *scored], tmp_path / "logs")
    assert ended.codes == [0, 0], ended.text
    folder = tmp_path / "demo"
    assert numbers(folder) == numbers(uninterrupted)
    scores = numbers(folder, "score/validation")
    assert list(scores) == [6, 12] and scores == numbers(folder, "score/validation/Avg")
    best = 6 if scores[6] >= scores[12] else 12
    assert steps(folder) == sorted({best, 12})
    state = json.loads((folder / "checkpoints" / f"step-{best:08d}" / "state.json").read_text())
    assert state["validation_score"] == scores[best]

    ended = run(["evaluate", *scored, "--best", "--split", "validation", "evaluation.captions=[false]"], tmp_path / "e")
    assert ended.codes == [0, 0], ended.text
    found = json.loads((folder / "evaluation-best-validation-captions-off-likelihood.json").read_text())
    assert found["step"] == best and found["accuracy"][NAMES[0]]["Avg"] == scores[best]
    assert len(list(folder.glob("evaluation*.json"))) == 1  # none of the newest one
    ended = run(["evaluate", *arguments, "--best", "training.best_by=loss", "output=nowhere"], tmp_path / "f", ranks=1)
    assert ended.codes == [1] and "holds no checkpoint with a loss on data.validation" in ended.text


def _partial(folder, captions):
    return folder / "evaluation" / f"captions-{captions}-likelihood.jsonl"
