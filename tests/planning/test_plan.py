"""From a recipe to the table: sizes, batch sizes, which sharding is recommended, errors."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dsmemvp.backbones.recompute import KEPT
from dsmemvp.backbones.weights import configs_of_shapes
from dsmemvp.cli.main import main
from dsmemvp.comparison.costs import reserved_places
from dsmemvp.config.reading import read_recipe
from dsmemvp.errors import UserError
from dsmemvp.planning.budget import activation_budget
from dsmemvp.planning.cluster import Cluster, clusters, quantity
from dsmemvp.planning.gathers import simulate
from dsmemvp.planning.memory import RESERVE
from dsmemvp.planning.plan import compare, with_batch_for
from dsmemvp.planning.sharding import Sharding, read_sharding
from dsmemvp.planning.table import lines, recommendation
from dsmemvp.planning.trace import trace

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "recipes" / "scienceqa-13b.yaml"
TINY = ["model.language_shape=llama-tiny", "model.vision_shape=clip-tiny"]


@pytest.fixture
def shardings(tmp_path) -> Path:
    """A folder with one file of each kind."""
    settings = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    kinds = {"flat": {}, "hpz": {"zero_hpz_partition_size": 8}, "offload": {"offload_param": {"device": "cpu"}}}
    for name, more in {**kinds, "replicated": {"stage": 1}}.items():
        changed = {**settings, "zero_optimization": settings["zero_optimization"] | more}
        (tmp_path / f"{name}.json").write_text(json.dumps(changed))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "number"),
    [("80GiB", 80 * 2**30), ("400Gb", 50e9), ("400Gb/s", 50e9), ("400Gbps", 50e9), ("450GB", 450e9), ("1.5T", 1.5e12)],
)
def test_sizes_are_read_with_their_units(text, number):
    assert quantity(text, "--x") == number


@pytest.mark.parametrize("text", ["", "much", "80 bananas", "-3GB", "1.2.3GB", "80"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match=r"^--x: .* is no size"):
        quantity(text, "--x")


def test_clusters_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="12 GPUs do not fill nodes of 8"):
        Cluster(12, 8)
    with pytest.raises(UserError, match="must be at least 1"):
        Cluster(0, 8)
    with pytest.raises(UserError, match="--gpus: a number"):
        clusters("8,x", 8, "80GiB", "400Gb", "450GB", "1P")
    assert (Cluster(4, 8).nodes, Cluster(4, 8).on_node, Cluster(16, 8).nodes) == (1, 4, 2)


@pytest.mark.parametrize(
    ("gpus", "global_batch", "micro_batch", "note"),
    [
        (8, 32, 4, None),
        (1, 32, 4, None),
        (16, 32, 2, None),
        (12, 32, 3, None),
        (64, 64, 1, "training.global_batch=64, which needs training.learning_rate=0.00225"),
    ],
)
def test_batches_are_made_to_fit_and_it_is_said(gpus, global_batch, micro_batch, note):
    recipe, notes = with_batch_for(read_recipe(RECIPE), gpus, 200)
    assert (recipe.training.global_batch, recipe.training.micro_batch) == (global_batch, micro_batch)
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


@pytest.mark.slow
def test_the_fastest_that_fits_is_recommended_and_a_gpu_that_is_too_small_takes_another(shardings):
    recipe = read_recipe(RECIPE, [f"training.deepspeed={shardings}/flat.json", "training.micro_batch=1"])
    large, small, tiny = compare(recipe, [Cluster(16, 8, gpu_memory=gib * 2**30) for gib in (80, 20, 5)], 200)
    assert large.best.sharding.name == "replicated"
    assert f"training.deepspeed={shardings}/replicated.json training.recompute=elementwise" in recommendation(large)
    # 26 GB of weights do not fit; inside the node they are gathered faster than between nodes
    assert small.best.sharding.name == "hpz"
    assert small.best.memory.gpu + RESERVE <= 20 * 2**30
    assert tiny.best is None
    assert "nothing fits; offload comes closest" in recommendation(tiny)
    by_name = {c.sharding.name: c for c in large.choices}
    assert by_name["replicated"].memory.weights == pytest.approx(2 * (13.0e9 + 0.3e9), rel=0.01)
    assert by_name["offload"].memory.host_per_node == pytest.approx(2 * 13.3e9 / 2, rel=0.01)
    assert by_name["flat"].traffic.across_nodes_per_node() > 50 * by_name["hpz"].traffic.across_nodes_per_node()


def test_gaps_of_pinned_host_memory_are_counted_and_said(monkeypatch):
    monkeypatch.chdir(ROOT)
    (plan,) = compare(read_recipe(RECIPE), [Cluster(8, 8)], 200)
    offload = next(c.memory for c in plan.choices if c.sharding.name == "zero3_offload")
    weights = offload.host_per_node - offload.host_gaps
    assert weights == pytest.approx(2 * 13.3e9, rel=0.01)
    # nearly all of LLaMA-13B: matrices of 5,120 x 5,120 and 13,824 x 5,120, an eighth of each in blocks of 8 and 32 MiB
    matrices = 40 * (4 * 8 + 3 * 32) * 2**20 * 8
    assert matrices < offload.host_per_node < 1.08 * matrices
    assert any("powers of two" in note and "zero3_offload" in note for note in plan.notes)


def test_activations_that_do_not_fit_are_recomputed(shardings):
    recipe = read_recipe(RECIPE, [*TINY, f"training.deepspeed={shardings}/flat.json", "training.micro_batch=32"])
    plan = compare(recipe, [Cluster(1, 8)], 200)[0]
    own = plan.choices[0]
    assert own.recompute == recipe.training.recompute
    activations = {policy: trace(plan.recipe, configs_of_shapes(recipe), 200, policy).peak for policy in KEPT}
    enough = own.memory.gpu - own.memory.activations + activations["full"] + RESERVE
    plan = compare(recipe, [Cluster(1, 8, gpu_memory=enough)], 200)[0]
    assert plan.choices[0].recompute == "full" and plan.choices[0].fits(plan.cluster)


def test_the_command_prints_a_row_per_cluster_and_sharding(shardings, capsys):
    given = ["--gpus", "8,16", *TINY, f"training.deepspeed={shardings}/flat.json"]
    assert main(["plan", str(RECIPE), *given]) == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.startswith("|")]) == 2 + 2 * 4
    for part in ("200 text tokens", "an estimate", "16 GPUs: take"):
        assert part in out


def _table(text: str) -> list[dict[str, str]]:
    head, _, *rows = (line.strip("| ").split("|") for line in text.splitlines() if line.startswith("|"))
    return [{name.strip(): cell.strip() for name, cell in zip(head, row, strict=True)} for row in rows]


def test_a_small_recipe_is_planned_in_units_that_suit_it(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["plan", str(RECIPE), *TINY, "--gpus", "2"]) == 0
    out = capsys.readouterr().out
    rows = _table(out)
    assert {"weights MiB", "trained MiB", "activations MiB", "GPU MiB", "sent/GPU MB"} <= rows[0].keys()
    for row in rows:
        none = {name for name, cell in row.items() if name not in ("GPUs", "sharding", "recompute") and cell == "0"}
        assert {name.split()[0] for name in none} <= {"host/node", "out/node"}, row
        assert not any(part in ("0.0", "0.00", "0.000") for cell in row.values() for part in cell.split(" / "))
    step = next(name for name in rows[0] if name.startswith("step "))
    best = next(row for row in rows if row["sharding"] == "replicated")
    assert (
        f"with {best['GPU MiB']} MiB and a reserve of 4.00 GiB of 80.0 GiB and about {best[step]} {step[5:]} per" in out
    )


@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_the_simplest_of_equally_fast_ways_is_recommended(gpus, monkeypatch):
    """On one node a second partition gains nothing that an estimate could tell."""
    monkeypatch.chdir(ROOT)
    (plan,) = compare(read_recipe(RECIPE, TINY), [Cluster(gpus, 8)], 200)
    assert plan.best.sharding.name == "replicated"
    fastest = min(choice.duration.step for choice in plan.choices)
    assert plan.best.duration.step <= max(1.05 * fastest, fastest + 1e-3)


def test_one_gpu_is_written_as_one(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["plan", str(RECIPE), *TINY, "--gpus", "1"]) == 0
    out = capsys.readouterr().out
    assert "\n1 GPU: take" in out and "1 GPUs" not in out


def test_thousands_of_micro_steps_are_counted_in_bounded_time():
    """All but the first few are the same."""
    recipe = read_recipe(RECIPE, [*TINY, f"training.deepspeed={ROOT}/ds_configs/zero3.json", "training.micro_batch=1"])
    found = trace(recipe, configs_of_shapes(recipe), 50, "none")
    sharding = Sharding("x", 3, persistence=0, prefetch=10_000, max_live=100_000, max_reuse=100_000)
    few, many = simulate(found, sharding, 8), simulate(found, sharding, 9_000)
    assert len(many.micro_steps) == 9_000 and set(many.micro_steps) == set(few.micro_steps)
    assert many.micro_steps[:7] == few.micro_steps[:7] and many.live_bytes == few.live_bytes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--gpus", "9" * 5000], "--gpus: a number, or up to 32"),
        (["--gpus", ",".join(["8"] * 100)], "--gpus: a number, or up to 32"),
        (["--gpus", "9999999"], "--gpus: 9999999 GPUs are more than 1,000,000"),
        (["--gpus", "8", "--gpu-memory", "0GiB"], "--gpu-memory: '0GiB' must be above 0"),
        (["--gpus", "8", "--interconnect", "0Gb"], "--interconnect: '0Gb' must be above 0"),
        (["--gpus", "8", "--gpu-flops", "9" * 400 + "T"], "must be above 0 and below 1e+21"),
        (["--gpus", "8", "--tokens", "1000000000"], "--tokens: 1000000000 x training.micro_batch = 4 are over"),
        (
            ["--gpus", "1", "training.global_batch=1000000", "training.micro_batch=1"],
            "1000000 micro-steps on 1 GPU with",
        ),
        (["--gpus", "many"], "--gpus: a number"),
        (["--gpus", "8", "--gpu-memory", "large"], "'large' is no size"),
        (["--gpus", "8", "--tokens", "8"], "--tokens: 8"),
        (["--gpus", "8", "method.name=none"], "no training to plan"),
        (["--gpus", "8", "training.deepspeed=nowhere.json"], "nowhere.json does not exist"),
    ],
)
def test_mistakes_end_in_one_line(given, message, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert main(["plan", str(RECIPE), *given]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_other_stages_are_left_out_and_named_unless_they_are_the_recipes_own(shardings):
    (shardings / "two.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    with pytest.raises(UserError, match=r"two\.json: ZeRO stage 2 cannot be planned"):
        read_sharding(shardings / "two.json")
    recipe = read_recipe(RECIPE, [*TINY, f"training.deepspeed={shardings}/flat.json"])
    plan = compare(recipe, [Cluster(8, 8)], 200)[0]
    assert len(plan.choices) == 4
    assert "two.json: ZeRO stage 2" in "\n".join(lines([plan], 200))


def test_values_left_to_deepspeed_have_its_defaults(tmp_path):
    (tmp_path / "bare.json").write_text('{"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}')
    bare = read_sharding(tmp_path / "bare.json")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    theirs = DeepSpeedZeroConfig(stage=3)
    assert bare.persistence == theirs.param_persistence_threshold
    assert bare.prefetch == theirs.prefetch_bucket_size
    assert (bare.max_live, bare.max_reuse) == (theirs.max_live_parameters, theirs.max_reuse_distance)
    assert bare.reduce_bucket == theirs.reduce_bucket_size
    assert not bare.hpz and not bare.offload


def test_a_limit_in_tokens_says_how_many_samples_a_micro_batch_holds():
    recipe, notes = with_batch_for(read_recipe(RECIPE, ["training.micro_tokens=450"]), 8, 200)
    assert (recipe.training.micro_batch, recipe.training.micro_steps(8), notes) == (2, 2, [])


def test_places_that_a_method_reserves_count_towards_the_limit_in_tokens(shardings):
    """input_space has as many as patches: one sample more would be over 2 x (100 + patches)."""
    given = [*TINY, "method={name: input_space}", f"training.deepspeed={shardings}/flat.json"]
    recipe = read_recipe(RECIPE, given)
    places = 100 + reserved_places(recipe, configs_of_shapes(recipe))
    assert places > 110
    for limit, samples in ((2 * places, 2), (2 * places - 1, 1)):
        training = replace(recipe.training, micro_tokens=limit)
        (plan,) = compare(replace(recipe, training=training), [Cluster(1, 1)], 100)
        assert plan.recipe.training.micro_batch == samples


@pytest.mark.slow
def test_under_auto_a_plan_has_the_mixture_that_a_run_takes(shardings):
    """For its budget, or for what the cluster's GPUs leave."""
    settings = [*TINY, f"training.deepspeed={shardings}/flat.json", "training.recompute=auto", "method.slots=80"]
    configs = configs_of_shapes(read_recipe(RECIPE, settings))
    most = trace(read_recipe(RECIPE, settings), configs, 100, "elementwise").peak
    found, tight = {}, 0.9 * most / 2**30
    for gib in (0.0, tight, 1000.0):
        recipe = read_recipe(RECIPE, [*settings, f"training.activation_budget={gib}"])
        (plan,) = compare(recipe, [Cluster(8, 8)], 100)
        assert {choice.recompute for choice in plan.choices} == {"auto"}
        (found[gib],) = {choice.memory.activations for choice in plan.choices if choice.sharding.name == "flat"}
    assert found[0.0] == found[1000.0] == most
    mixture = activation_budget(recipe, configs, int(tight * 2**30)).choose(4 * 100, 4)
    assert found[tight] == trace(recipe, configs, 100, mixture).peak < most
    assert "training.recompute=auto" in recommendation(plan)
