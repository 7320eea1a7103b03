"""Which settings a DeepSpeed file may hold: the same answer for training, evaluation, planning and submitting."""

import json
from pathlib import Path

import pytest

from dsmemvp.cli.main import main
from dsmemvp.errors import UserError
from dsmemvp.planning.deepspeed_file import SETTINGS, WHY, ZERO, read_settings
from dsmemvp.planning.sharding import read_sharding

ROOT = Path(__file__).parent.parent.parent
ZERO3 = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())


@pytest.fixture
def file(tmp_path):
    """Writes zero3.json with other settings, those of zero_optimization under `zero`."""

    def file(zero=None, **settings) -> Path:
        content = {**ZERO3, **settings, "zero_optimization": ZERO3["zero_optimization"] | (zero or {})}
        (tmp_path / "s.json").write_text(json.dumps(content))
        return tmp_path / "s.json"

    return file


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_file_is_read_as_it_is(path):
    assert read_settings(path) == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"optimizer": {"type": "Adam"}}, "optimizer: the recipe's training.learning_rate"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler: the learning rate follows training.warmup_epochs"),
        ({"amp": {"enabled": True}}, "amp: the recipe's model.dtype"),
        ({"fp16": {"enabled": "auto"}}, "fp16: the recipe's model.dtype"),
        ({"wandb": {"enabled": True}}, "wandb: a run writes TensorBoard's events"),
        ({"elasticity": {"enabled": True}}, "elasticity: the recipe's training.global_batch"),
        ({"sparse_gradients": True}, "sparse_gradients: no gradient here is sparse"),
        ({"zero": {"offload_optimizer": {"device": "cpu"}}}, "zero_optimization.offload_optimizer: what is trained"),
        ({"zero": {"zero_quantized_weights": True}}, "zero_optimization.zero_quantized_weights: weights and"),
        ({"zero": {"offload_param": {"device": "nvme"}}}, "offload_param.device must be none or cpu"),
        ({"zero": {"offload_param": "cpu"}}, "zero_optimization.offload_param must be a group of keys, not 'cpu'"),
        ({"zero": {"zero_hpz_partition_size": 0}}, "zero_hpz_partition_size must be a whole number, at least 1"),
        ({"zero": {"zero_hpz_partition_size": -2}}, "zero_hpz_partition_size must be a whole number, at least 1"),
        ({"zero": {"zero_hpz_partition_size": 2.5}}, "zero_hpz_partition_size must be a whole number, at least 1"),
        ({"zero": {"zero_hpz_partition_size": "2"}}, """at least 1 or "auto", not '2'"""),
        ({"zero": {"zero_hpz_partition_size": True}}, "zero_hpz_partition_size must be a whole number, at least 1"),
        ({"zero": {"zero_hpz_partition_size": 2, "stage": 1}}, "zero_hpz_partition_size goes with stage 3"),
        ({"zero": {"stage": True}}, "zero_optimization.stage must be 1, 2 or 3, not True"),
        ({"zero": {"stage": "auto"}}, "zero_optimization.stage must be 1, 2 or 3, not 'auto'"),
        ({"zero": {"stage3_max_live_parameters": float("nan")}}, "stage3_max_live_parameters must be a whole number"),
        ({"zero": {"stage3_max_live_parameters": 10**400}}, "stage3_max_live_parameters must be a whole number"),
        ({"zero": {"reduce_bucket_size": 0}}, "reduce_bucket_size must be a whole number, at least 1"),
        ({"zero": {"overlap_com": True}}, "did you mean zero_optimization.overlap_comm?"),
        ({"zero": {"stage3_prefetch_buckets_size": 1}}, "did you mean zero_optimization.stage3_prefetch_bucket_size?"),
        ({"gradient_cliping": 1.0}, "unknown key 'gradient_cliping'; did you mean gradient_clipping?"),
        ({"steps_per_print": "auto"}, "steps_per_print must be a whole number, at least 1, not 'auto'"),
        ({"wall_clock_breakdown": "yes"}, "wall_clock_breakdown must be true or false, not 'yes'"),
        ({"communication_data_type": "int3"}, "communication_data_type must be fp32 or bf16, not 'int3'"),
        ({"dance\n" * 100: 1}, "unknown key 'dance"),
    ],
    ids=range(29),
)
def test_what_is_decided_elsewhere_or_makes_no_sense_is_refused_by_all_alike(file, settings, part, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    path = file(**settings)
    with pytest.raises(UserError) as caught:
        read_sharding(path)
    assert str(caught.value).startswith(f"training.deepspeed: {path}: ") and part in str(caught.value)
    recipe, given = str(ROOT / "recipes" / "demo.yaml"), f"training.deepspeed={path}"
    for command in (["train"], ["evaluate"], ["plan", "--gpus", "8"], ["submit", "--cpu-ranks-per-node", "2"]):
        assert main([command[0], recipe, given, *command[1:]]) == 1
        out, err = capsys.readouterr()
        assert (out, err) == ("", f"dsmemvp {command[0]}: error: {caught.value}\n")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"gradient_clipping": 2.5}, "sets gradient_clipping to 2.5, the recipe decides 1.0; write auto"),
        ({"bf16": {"enabled": True}}, "sets bf16 to {'enabled': True}, the recipe decides {'enabled': False}"),
        ({"zero": {"zero_hpz_partition_size": 3}}, "zero_hpz_partition_size 3 does not divide 2 ranks"),
    ],
)
def test_what_contradicts_the_recipe_is_refused_before_a_job_waits(file, settings, part, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = [f"training.deepspeed={file(**settings)}", "training.gradient_clipping=1", "model.dtype=fp32"]
    given += ["model.language_shape=llama-tiny", "model.vision_shape=clip-tiny", "method.slots=80"]
    for command in (["plan", "--gpus", "2"], ["submit", "--cpu-ranks-per-node", "2", "--print"]):
        assert main([command[0], "recipes/demo.yaml", *given, *command[1:]]) == 1
        out, err = capsys.readouterr()
        assert out == "" and part in err and err.count("\n") == 1


def test_what_is_off_needs_no_leaving_out(file):
    path = file({"offload_optimizer": {"device": "none"}}, fp16={"enabled": False})
    assert read_settings(path) == ZERO3
    with pytest.raises(
        ValueError, match=r"stage3_gather_16bit_weights_on_model_save: a run has checkpoints of its own"
    ):
        read_settings(file({"stage3_gather_16bit_weights_on_model_save": True}))


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    (tmp_path / "s.json").write_text('{"zero_optimization": {"stage": 3}, "zero_optimization": {"stage": 1}}')
    with pytest.raises(UserError, match=r"s\.json is not JSON: 'zero_optimization' is given twice"):
        read_settings(tmp_path / "s.json")


def test_whole_numbers_may_be_written_with_an_exponent(file):
    path = file({"stage3_max_live_parameters": 1e8, "stage3_max_reuse_distance": "auto"})
    assert read_settings(path)["zero_optimization"]["stage3_max_live_parameters"] == 100_000_000
    assert (read_sharding(path).max_live, read_sharding(path).max_reuse) == (100_000_000, 1_000_000_000)


def test_a_file_that_nests_deeply_or_never_ends_is_refused(tmp_path):
    (tmp_path / "deep.json").write_text('{"zero_optimization":' * 40_000)
    with pytest.raises(UserError, match=r"training\.deepspeed: .*deep\.json is not usable JSON: it is nested"):
        read_settings(tmp_path / "deep.json")
    (tmp_path / "long.json").write_text(" " * (2 << 20))
    with pytest.raises(UserError, match=r"training\.deepspeed: .*long\.json has 2097152 bytes"):
        read_settings(tmp_path / "long.json")
    with pytest.raises(UserError, match="is not a regular file"):
        read_settings(Path("/dev/zero"))


def test_every_allowed_key_is_one_of_deepspeeds():
    from deepspeed.runtime import constants
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    assert ZERO.keys() <= fields.keys() | {field.alias for field in fields.values()}
    named = {value for value in vars(constants).values() if isinstance(value, str)}
    assert SETTINGS.keys() - named <= {"zero_optimization", "comms_logger"}
    assert not WHY.keys() & (SETTINGS.keys() | ZERO.keys())


def test_every_allowed_key_is_named_in_the_readme_beside_the_files():
    text = (ROOT / "ds_configs" / "README.md").read_text(encoding="utf-8")
    inner = {inner for known in (*SETTINGS.values(), *ZERO.values()) if isinstance(known, dict) for inner in known}
    assert not [key for key in (SETTINGS.keys() | ZERO.keys() | inner) if f"`{key}`" not in text]
