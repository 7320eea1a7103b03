"""The benchmarks run; what they measure is in benchmarks/RESULTS.md, never here."""

import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

pytestmark = pytest.mark.slow


def test_the_loader_s_benchmark_compares_with_webdataset_and_checks_what_was_delivered(repository, tmp_path):
    command = [sys.executable, str(repository / "benchmarks" / "loader.py"), "--quick", "--only", "throughput"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command += ["--folder", str(tmp_path)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[:3] == ["loader", "this loader", "webdataset"]


def test_the_generation_benchmark_compares_both_methods(repository):
    command = [sys.executable, str(repository / "benchmarks" / "generate.py"), "--shape", "tiny", "--batch", "2"]
    command += ["--batches", "1", "--rounds", "1", "--lengths", "1", "3", "--questions", "1", "2"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    rows = [line.split("|")[1:3] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [[int(cell) for cell in row] for row in rows[1:]] == [[1, 1], [1, 3], [2, 1], [2, 3]]


def test_the_benchmark_of_loading_reads_what_it_loads(repository, tmp_path):
    command = [sys.executable, str(repository / "benchmarks" / "load.py"), "--small", "--work", str(tmp_path)]
    command += ["--ranks", "1", "--only", "ours"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    rows = [line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in rows[-1][:2]] == ["1", "this loader"]
    written = sum(path.stat().st_size for path in (tmp_path / "small").glob("*.safetensors"))
    assert 0.99 * written < float(rows[-1][3]) * 1e6 < 1.01 * written


def test_the_benchmark_of_policies_weighs_what_each_keeps(repository):
    command = [sys.executable, str(repository / "benchmarks" / "policies.py"), "--policies", "elementwise", "full"]
    command += ["--steps", "1", "--rounds", "1", "--global-batch", "2", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    rows = [
        [c.strip() for c in line.strip("|").split("|")] for line in done.stdout.splitlines() if line.startswith("|")
    ]
    (light, *kept), (heavy, *computed) = rows[2:]
    assert (light, heavy) == ("elementwise", "full")
    assert float(computed[0]) < 0.6 * float(kept[0]) and float(computed[2]) < float(kept[2])


def test_the_benchmark_of_quantised_bases_weighs_their_bytes(repository):
    command = [sys.executable, str(repository / "benchmarks" / "quantized.py"), "--small", "--forms", "none", "int8"]
    command += ["--steps", "1", "--rounds", "1", "--global-batch", "2"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    rows = [
        [c.strip() for c in line.strip("|").split("|")] for line in done.stdout.splitlines() if line.startswith("| `")
    ]
    # 56.6 M of 105.8 M elements are in the layers' products, each then 1 byte and for every 64 of them 2 of a scale;
    # the rest, embedding and head, is as it was
    expected = (56.6 * (1 + 2 / 64) + 49.2 * 2) / (105.8 * 2)
    assert [row[0] for row in rows] == ["`none`", "`int8`"] and float(rows[1][7]) == pytest.approx(expected, abs=0.005)


def test_the_benchmark_of_losses_compares_forms(repository, recipe_path, tmp_path):
    """Without training, and over a step of it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *"abcdefgh"])}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=9, **sizes)).save_pretrained(tmp_path)
    (tmp_path / "text").write_text("a b c d " * 20)
    (tmp_path / "rows").write_text('{"question": "a b", "answer": "c"}\n')

    def rows(*arguments: str) -> list[list[str]]:
        command = [sys.executable, str(repository / "benchmarks" / "quantized_losses.py"), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
        lines = [line for line in done.stdout.splitlines() if line.startswith("| `")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    forms, largest = ["--forms", "none", "int8", "nf4"], "nf4,model.nf4_scales=largest"
    files = ["--model", str(tmp_path), "--text", str(tmp_path / "text"), "--rows", str(tmp_path / "rows")]
    found = rows("base", *forms, largest, *files)
    errors = [float(row[1].removesuffix(" %")) for row in found]
    assert errors[0] == 0 < errors[1] < 1 < errors[2] < 0.95 * errors[3] < 10  # of random weights nf4 takes 9 %
    (trained,) = rows("training", str(recipe_path), "--forms", "none", "--steps", "1", "--seeds", "0")
    assert trained[0] == "`none`" and trained[2:] == ["+0.0 %", "+0.0 %"] and float(trained[1]) > 0


def test_the_benchmark_of_the_alignment_takes_turns_in_both_stages(repository):
    command = [sys.executable, str(repository / "benchmarks" / "alignment.py"), "--small", "--online"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command += ["--rounds", "1", "--pairs", "2"]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300, cwd=repository
    )
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in done.stdout.splitlines() if line[:2] == "| "]
    names = ("without", "with", "online")
    assert [row[:2] for row in rows[1:]] == [[stage, name] for stage in ("align", "generate") for name in names]
    assert all(row[3] == row[5] == "1.000" for row in rows[1::3])


def test_the_benchmark_of_growth_goes_through_all_its_sizes(repository, tmp_path):
    command = [sys.executable, str(repository / "benchmarks" / "growth.py"), "--quick", "--work", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    rows = [line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in row[:2]] for row in rows[1:3]] == [["1,000", "10"], ["10,000", "100"]]
    assert [row[0].strip() for row in rows[4:]] == ["metrics.jsonl", "order.jsonl", "skipped.jsonl"]


def test_the_slowest_rank_computes_little_more_than_its_share():
    """With the real lengths where they are at hand, and always with those fitted to them."""
    from benchmarks.step_costs import AT_MOST, fitted, lengths, table

    for known in (lengths(), fitted()):
        for (ranks, batch, *found), most in zip(table(known), AT_MOST, strict=True):
            assert all(share <= most + 1e-9 for share in found), (ranks, batch, found)


def test_the_published_structure_computes_the_same_loss_and_gradients(monkeypatch, repository):
    """What rivals.py compares with is the same method: with the same weights, without dropout, in float32."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    from rivals_contenders import Ours, PublishedStructure, Shape, samples

    shape = Shape(vocabulary=50, width=64, layers=2, image=28, slots=7, vision_width=64, vision_layers=3)
    drawn = samples(shape, 5)
    assert {sample.image is None for sample in drawn} == {True, False}
    ours, published = Ours(shape, torch.float32), PublishedStructure(shape, torch.float32)
    with torch.no_grad():
        for parameter in ours.model.parameters():
            parameter.normal_(std=0.3)
    published.model.load_state_dict(ours.model.state_dict())
    losses = []
    for contender in (ours, published):
        contender.model.eval()
        losses.append(contender.loss(contender.lay_out(drawn)).value)
        losses[-1].backward()
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    expected = {name: p.grad for name, p in ours.model.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in published.model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-3, atol=1e-5 * float(expected[name].abs().max())
        )


def test_the_benchmark_beside_rivals_trains_the_same_samples_with_all(repository):
    pytest.importorskip("peft", reason="pip install 'dsmemvp[peft]'")
    command = [sys.executable, str(repository / "benchmarks" / "rivals.py"), "--vocabulary", "100", "--width", "64"]
    command += ["--layers", "1", "--image", "28", "--slots", "4", "--batch", "4", "--steps", "1", "--rounds", "1"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    head, *rows = ([c.strip() for c in line.strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line)
    found = [dict(zip(head, row, strict=True)) for row in rows[1:]]
    assert [row["contender"] for row in found] == ["dsmemvp", "published structure", "Llava + peft"]
    places = [int(row["places/sample"]) for row in found]
    assert all(fewer < more for fewer, more in pairwise(places)), "packed, padded, padded with places for the image"


@pytest.mark.parametrize("name", ["decoders", "step_costs"])
def test_help_measures_nothing(name, repository):
    command = [sys.executable, str(repository / "benchmarks" / f"{name}.py"), "--help"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    assert "--help" in done.stdout and "| " not in done.stdout
