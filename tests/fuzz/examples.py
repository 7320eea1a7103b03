"""A small whole example for every reader of files that others make, and the door that it is read through."""

import hashlib
import io
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import torch
import yaml
from fuzz.cases import Reader
from making import as_json, fields, good_shards
from model_files import HEADS, KEYS, PIECES, write_gguf, write_onnx
from PIL import Image
from safetensors.torch import save_file
from stand_ins import openai_tensors, write_meta, write_torchscript
from tokenizers import Tokenizer as JsonTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

from data_prep.tokenizer import train_tokenizer
from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.checkpoints.adapter import open_adapter
from dsmemvp.checkpoints.checkpoint import State, save_checkpoint
from dsmemvp.checkpoints.choosing import newest_checkpoint
from dsmemvp.config.reading import as_dict, read_recipe
from dsmemvp.config.recipe import Recipe
from dsmemvp.convert.convert import convert
from dsmemvp.data.feature_cache import CachedFeatures
from dsmemvp.data.feature_files import Settings, distinct, write_shard
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.index import index_shard
from dsmemvp.data.manifest import read_manifest
from dsmemvp.data.sample import BadSample, EncodedSample, read_sample
from dsmemvp.data.stream import read_all
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.errors import UserError
from dsmemvp.evaluation.rescore import rescore
from dsmemvp.export.export import export
from dsmemvp.fault_tolerance.restart_limit import count_start
from dsmemvp.planning.deepspeed_settings import deepspeed_settings
from dsmemvp.prompts.memvp.published import Published
from dsmemvp.stages import count
from dsmemvp.training.monitor import Monitor

TEXT = "Question: What colour is the circle? 42 Ünïcode"
WORDS = ["Which number is it?", "The answer is B.", "What colour is the circle?", "red blue green", TEXT] * 60
IMAGES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
REPOSITORY = Path(__file__).parents[2]


def readers(folder: Path) -> Iterator[Reader]:
    """Their examples lie in `folder`."""
    torch.manual_seed(0)
    base = _models(folder / "base")
    yield from _of_settings(folder, base)
    yield from _of_data(folder)
    yield from _of_runs(folder, base)
    yield from _of_sources(folder, base)


def _models(folder: Path) -> Path:
    sizes = {"hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=320, **sizes)).save_pretrained(folder / "language")
    tower = CLIPVisionConfig(image_size=16, patch_size=8, hidden_act="quick_gelu", **sizes)
    CLIPVisionModel(tower).save_pretrained(folder / "vision")
    train_tokenizer(WORDS, folder / "tokenizer.model", vocabulary=300)
    return folder


def _recipe(base: Path) -> Recipe:
    recipe = Recipe(name="x")
    recipe.model.language_model, recipe.model.vision_tower = str(base / "language"), str(base / "vision")
    recipe.model.tokenizer, recipe.model.dtype = str(base / "tokenizer.model"), "fp32"
    recipe.method.slots, recipe.method.hidden, recipe.vision.adapter_dim = 4, 4, 2
    recipe.data.train = "nowhere"
    return recipe


def _digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _of_settings(folder: Path, base: Path) -> Iterator[Reader]:
    made = folder / "settings"
    made.mkdir()
    text = yaml.safe_dump({"name": "x", "model": {"language_shape": "llama-tiny", "vision_shape": "clip-tiny"}})
    (made / "recipe.yaml").write_text(text + "training:\n  learning_rate: 1.0e-3\n  epochs: 2\n")
    shutil.copy(REPOSITORY / "ds_configs" / "zero3_hpz.json", made / "ds.json")

    def recipe(place: Path) -> str:
        found = read_recipe(place / "recipe.yaml")
        return str(count(found, read_configs(found)))

    def deepspeed(place: Path) -> str:
        found = Recipe(name="x")
        found.training.deepspeed = str(place / "ds.json")
        return json.dumps(deepspeed_settings(found, 1))

    def weights(place: Path) -> str:
        found = _recipe(place)
        configs = read_configs(found)
        fingerprint(Base(found))
        with torch.device("meta"):
            count(found, configs)
        model = build_frozen(found, configs)
        Base(found).load(model)
        return "loaded"

    yield Reader("recipe", made, ("recipe.yaml",), recipe, False)
    yield Reader("deepspeed", made, ("ds.json",), deepspeed, False)
    for name, kind in (("config", "config.json"), ("weights", "model.safetensors")):
        yield Reader(name, base, (f"language/{kind}", f"vision/{kind}"), weights, False)
    yield from _of_tokenizers(folder, base)


def _of_tokenizers(folder: Path, base: Path) -> Iterator[Reader]:
    made = folder / "json"
    made.mkdir()
    model = JsonTokenizer(models.BPE())
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False)
    model.train_from_iterator(WORDS, trainer)
    model.save(str(made / "tokenizer.json"))
    (made / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))

    def tokens(name: str, place: Path) -> str:
        tokenizer = Tokenizer(place / name)
        tokenizer.check_fits(320, name)
        return str(tokenizer.decode(tokenizer.encode(TEXT)))

    yield Reader("sentencepiece", base, ("tokenizer.model",), partial(tokens, "tokenizer.model"), False)
    files = ("tokenizer.json", "tokenizer.json", "tokenizer_config.json")
    yield Reader("tokenizer.json", made, files, partial(tokens, "tokenizer.json"), False)


def _of_data(folder: Path) -> Iterator[Reader]:
    shards = folder / "shards"
    good_shards(shards, 6, 3)
    tar, (index, *_) = "000000.tar", (path.name for path in sorted(shards.glob("000000.tar.*")))

    def samples(place: Path) -> str:
        found = []
        for sample in read_all(read_manifest(place)):
            if isinstance(sample, BadSample):
                raise sample.error
            found.append(str(read_sample(sample).question))
        return str(found)

    yield _cached_features(folder)
    yield Reader("manifest", shards, ("dataset.json",), samples, False)
    yield Reader("index", shards, (index,), samples, True)
    yield Reader("shard", shards, (tar,), samples, True)
    yield Reader("tar", shards, (tar,), lambda place: str(index_shard(place / tar).samples), False)
    made = folder / "samples"
    made.mkdir()
    (made / "a.json").write_bytes(as_json(fields(3, context="x")))
    (made / "a.txt").write_text("A caption.")

    def sample(place: Path) -> str:
        for name in ("json", "txt"):
            read_sample(EncodedSample({name: (place / f"a.{name}").read_bytes()}, "here", 0))
        return "read"

    yield Reader("sample", made, ("a.json", "a.txt"), sample, False)
    noise = Image.frombytes("RGB", (20, 14), random.Random(0).randbytes(20 * 14 * 3))
    for format in IMAGES:
        picture = folder / format
        picture.mkdir()
        noise.save(picture / "image", format, **({"compression": "tiff_lzw"} if format == "TIFF" else {}))
        yield Reader(format, picture, ("image",), _pixels, False)


def _cached_features(folder: Path) -> Reader:
    made, name = folder / "features", "f"
    good_shards(made, 6, 3)
    images = [
        read_sample(sample).image for sample in read_all(read_manifest(made)) if isinstance(sample, EncodedSample)
    ]
    encoded = [image for image in images if image is not None]
    settings = Settings("tower", 16, (0.5,), (0.5,), 2, False, True, "fp32", 4, 8)
    rows = [(digest, torch.full((4, 8), float(i))) for i, (digest, _) in enumerate(distinct(encoded))]
    for shard in range(2):
        write_shard(read_manifest(made), name, shard, settings, rows)

    def features(place: Path) -> str:
        found = CachedFeatures(ImageTransform(16, 1 << 20), settings, name, (read_manifest(place),))
        return str([found(image, "here").sum().item() for image in encoded])

    (file,) = (made / name).glob("000000.tar.*.features")
    return Reader("features", made, (f"{name}/000000.tar.json", f"{name}/{file.name}"), features, True)


def _pixels(place: Path) -> str:
    return str(ImageTransform(16, 50_000_000)((place / "image").read_bytes(), "here").shape)


def _of_runs(folder: Path, base: Path) -> Iterator[Reader]:
    run, recipe = folder / "run", _recipe(base)
    model = build_frozen(recipe, read_configs(recipe))
    add_trainables(model, recipe, read_configs(recipe))
    values = {name: p.detach() for name, p in model.trainables().items()}
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    moments = {f"{name}.{m}": value.clone() for name, value in values.items() for m in ("exp_avg", "exp_avg_sq")}
    save_checkpoint(run, State(step=3, recipe=as_dict(recipe), base=fingerprint(Base(recipe))), values, moments)
    (run / "starts.jsonl").write_text('{"from": 3, "job": "7", "restart": 0, "time": "2026-01-01 00:00:00"}\n' * 3)
    for name, row in (("metrics", {"loss/train": 0.5}), ("order", {"samples": [4, 2]}), ("skipped", {"sample": "x"})):
        lines = [json.dumps({"step": step, **row}) for step in range(1, 6)]
        (run / f"{name}.jsonl").write_text("\n".join(lines) + "\n")

    def checkpoint(place: Path) -> str:
        found, complaints = newest_checkpoint(place)
        if found is None:
            raise UserError(complaints[0])
        found.moments(shapes)
        return str(found.state) + str(sorted((n, t.sum().item()) for n, t in found.values(shapes).items()))

    def starts(place: Path) -> str:
        count_start(place, 3, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, 5)
        return "noted"

    def lines(place: Path) -> str:
        monitor = Monitor(place, True, 10, 3)
        monitor.written("skipped")
        monitor.close()
        return "written"

    state = [
        f"checkpoints/step-00000003/{name}" for name in ("state.json", "trained.safetensors", "optimizer.safetensors")
    ]
    yield Reader("checkpoint", run, tuple(state), checkpoint, True)
    yield Reader("starts.jsonl", run, ("starts.jsonl",), starts, False)
    yield Reader("run's lines", run, ("metrics.jsonl", "order.jsonl", "skipped.jsonl"), lines, False)
    export(run, folder / "exported")

    def adapter(place: Path) -> str:
        places = [f"model.language_model={base / 'language'}", f"model.vision_tower={base / 'vision'}"]
        found, trained = open_adapter(place, [*places, f"model.tokenizer={base / 'tokenizer.model'}"])
        tensors = sorted((n, t.sum().item()) for n, t in trained.values(shapes).items())
        return f"{found.method} {tensors}"

    yield Reader("exported", folder / "exported", ("adapter.json", "trained.safetensors"), adapter, True)
    made = folder / "predictions"
    made.mkdir()
    row = {"id": "a", "kind": "choice", "text": "A", "predicted": "A", "answers": ["A"], "classes": ["NAT"]}
    rows = [json.dumps({"evaluation": "captions off", "index": index, **row}) for index in range(6)]
    (made / "p.jsonl").write_text("\n".join(rows) + "\n")
    yield Reader("predictions", made, ("p.jsonl",), lambda place: rescore([place / "p.jsonl"]), False)
    _write_sources(folder / "sources", base, values)


def _write_sources(folder: Path, base: Path, trained: dict[str, torch.Tensor]) -> None:
    language = LlamaForCausalLM.from_pretrained(base / "language")
    vision = CLIPVisionModel.from_pretrained(base / "vision")
    for name in ("clip", "published", "bin", "plain"):
        (folder / name).mkdir(parents=True)
    write_meta(language, folder / "meta", pieces=2)
    small = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": HEADS}
    for name in ("GGUF", "ONNX"):
        (folder / name).mkdir()
    config = LlamaConfig(vocab_size=len(PIECES), num_key_value_heads=KEYS, **small)
    write_gguf(folder / "GGUF" / "source.gguf", LlamaForCausalLM(config), "Q8_0")
    tower = Dinov2Config(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=14, patch_size=7)
    write_onnx(folder / "ONNX" / "source.onnx", Dinov2Model(tower))
    write_torchscript(openai_tensors(vision), folder / "clip" / "source.pt")
    content = {"model": Published().published_names(trained), "epoch": 3}
    torch.save(content, folder / "published" / "source.pth")
    torch.save(language.state_dict(), folder / "bin" / "pytorch_model.bin")
    shutil.copy(base / "language" / "config.json", folder / "bin")
    save_file(
        {f"module.{name}": t for name, t in openai_tensors(vision).items()}, folder / "plain" / "source.safetensors"
    )


def _of_sources(folder: Path, base: Path) -> Iterator[Reader]:
    def converted(name: str, place: Path) -> str:
        out = place.parent / "out"
        with redirect_stdout(io.StringIO()):
            convert(place / name, out)
        return _digest(*sorted(path for path in out.rglob("*.safetensors")))

    made = folder / "sources"
    pieces = ("consolidated.00.pth", "consolidated.01.pth")
    yield Reader("Meta's pieces", made / "meta", pieces, partial(converted, ""), True)
    yield Reader("params.json", made / "meta", ("params.json",), partial(converted, ""), False)
    yield Reader("CLIP", made / "clip", ("source.pt",), partial(converted, "source.pt"), True)
    yield Reader("published", made / "published", ("source.pth",), partial(converted, "source.pth"), True)
    yield Reader("pytorch_model.bin", made / "bin", ("pytorch_model.bin",), partial(converted, ""), True)
    yield Reader("bin's config", made / "bin", ("config.json",), partial(converted, ""), False)
    plain = ("source.safetensors",)
    for name, file in (("GGUF", "source.gguf"), ("ONNX", "source.onnx")):
        yield Reader(name, made / name, (file,), partial(converted, file), False)
    yield Reader("safetensors source", made / "plain", plain, partial(converted, plain[0]), False)
