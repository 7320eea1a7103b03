"""Small stand-ins for what others publish, in their layouts: Meta's LLaMA, OpenAI's CLIP, ScienceQA.
Weights are written from transformers' models by rules of their own, not by the package's."""

import io
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import CLIPVisionModel, LlamaForCausalLM

COLUMNS = ("wo", "w2")
WHOLE = ("attention_norm", "ffn_norm", "norm")


def pairs_from_halves(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Row i of a head becomes row 2i, row i + half becomes row 2i + 1."""
    out = torch.empty_like(weight)
    half = head_dim // 2
    for head in range(0, weight.shape[0], head_dim):
        for i in range(half):
            out[head + 2 * i], out[head + 2 * i + 1] = weight[head + i], weight[head + half + i]
    return out


def meta_tensors(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Under Meta's names, with rope.freqs beside them; without the output's where embeddings are tied."""
    state, head_dim = model.state_dict(), model.config.head_dim
    out = {"tok_embeddings.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"]}
    if not model.config.tie_word_embeddings:
        out["output.weight"] = state["lm_head.weight"]
    for i in range(model.config.num_hidden_layers):
        theirs, ours = f"model.layers.{i}.", f"layers.{i}."
        for letter in "qk":
            turned = pairs_from_halves(state[f"{theirs}self_attn.{letter}_proj.weight"], head_dim)
            out[f"{ours}attention.w{letter}.weight"] = turned
        for letter in "vo":
            out[f"{ours}attention.w{letter}.weight"] = state[f"{theirs}self_attn.{letter}_proj.weight"]
        for number, name in (("1", "gate"), ("2", "down"), ("3", "up")):
            out[f"{ours}feed_forward.w{number}.weight"] = state[f"{theirs}mlp.{name}_proj.weight"]
        out[f"{ours}attention_norm.weight"] = state[f"{theirs}input_layernorm.weight"]
        out[f"{ours}ffn_norm.weight"] = state[f"{theirs}post_attention_layernorm.weight"]
    return out | {"rope.freqs": torch.ones(head_dim // 2)}


def write_meta(model: LlamaForCausalLM, folder: Path, pieces: int = 1, cut_vocabulary: bool = False, **params: Any):
    """consolidated.NN.pth and params.json; `params` beside or instead of the model's."""
    folder.mkdir(parents=True)
    config = model.config
    cut: list[dict[str, torch.Tensor]] = [{} for _ in range(pieces)]
    for name, tensor in meta_tensors(model).items():
        part = name.split(".")[-2]
        if part in WHOLE or name == "rope.freqs":
            chunks = [tensor] * pieces
        elif part in ("wk", "wv") and pieces > config.num_key_value_heads:
            heads = tensor.chunk(config.num_key_value_heads)
            chunks = [heads[i * config.num_key_value_heads // pieces] for i in range(pieces)]
        else:
            columns = part in COLUMNS or (part == "tok_embeddings" and not cut_vocabulary)
            chunks = list(tensor.chunk(pieces, 1 if columns else 0))
        for piece, chunk in zip(cut, chunks, strict=True):
            piece[name] = chunk.clone()
    for i, piece in enumerate(cut):
        torch.save(piece, folder / f"consolidated.{i:02d}.pth")
    known = {"dim": config.hidden_size, "n_layers": config.num_hidden_layers, "n_heads": config.num_attention_heads}
    known |= {"norm_eps": config.rms_norm_eps, "vocab_size": -1, "multiple_of": config.intermediate_size}
    if config.num_key_value_heads != config.num_attention_heads:
        known["n_kv_heads"] = config.num_key_value_heads
    (folder / "params.json").write_text(json.dumps(known | params))


def openai_tensors(model: CLIPVisionModel) -> dict[str, torch.Tensor]:
    """The tower under OpenAI's names, with some of the text tower beside it."""
    state = {name.removeprefix("vision_model."): t for name, t in model.state_dict().items()}
    out = {
        "visual.class_embedding": state["embeddings.class_embedding"],
        "visual.positional_embedding": state["embeddings.position_embedding.weight"],
        "visual.conv1.weight": state["embeddings.patch_embedding.weight"],
        "visual.proj": torch.ones(model.config.hidden_size, 4),
        "positional_embedding": torch.ones(5, 4),
        "transformer.resblocks.0.ln_1.weight": torch.ones(4),
        "token_embedding.weight": torch.ones(9, 4),
        "logit_scale": torch.tensor(1.0),
        "input_resolution": torch.tensor(model.config.image_size),
    }
    for kind in ("weight", "bias"):
        out[f"visual.ln_pre.{kind}"] = state[f"pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = state[f"post_layernorm.{kind}"]
        for i in range(model.config.num_hidden_layers):
            theirs, ours = f"encoder.layers.{i}.", f"visual.transformer.resblocks.{i}."
            packed = torch.cat([state[f"{theirs}self_attn.{letter}_proj.{kind}"] for letter in "qkv"])
            out[f"{ours}attn.in_proj_{kind}"] = packed
            out[f"{ours}attn.out_proj.{kind}"] = state[f"{theirs}self_attn.out_proj.{kind}"]
            out[f"{ours}mlp.c_fc.{kind}"] = state[f"{theirs}mlp.fc1.{kind}"]
            out[f"{ours}mlp.c_proj.{kind}"] = state[f"{theirs}mlp.fc2.{kind}"]
            for n in "12":
                out[f"{ours}ln_{n}.{kind}"] = state[f"{theirs}layer_norm{n}.{kind}"]
    return out


class _Holder(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def write_torchscript(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """A TorchScript archive whose modules and parameters have these dotted names, as ViT-L-14.pt is one."""
    root = _Holder()
    for name, tensor in tensors.items():
        module, (*parents, last) = root, name.split(".")
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, _Holder())
            module = module.get_submodule(parent)
        if tensor.is_floating_point() and tensor.dim():
            module.register_parameter(last, nn.Parameter(tensor))
        else:
            module.register_buffer(last, tensor)
    torch.jit.save(torch.jit.trace(root, torch.ones(1)), path)


def write_scienceqa(folder: Path, number: int) -> Path:
    """`number` problems of "train" and one of "val" in the official layout. Two in three have an image, in turns PNG,
    JPEG under the name of a PNG, palette with a transparent colour, grey, and with transparency."""
    problems = {str(i): problem(i, "train") for i in range(1, number + 1)} | {"9000": problem(9000, "val")}
    for name, row in problems.items():
        if row["image"]:
            path = folder / "images" / row["split"] / name / "image.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(_image(int(name)))
    splits = {"train": [n for n in problems if n != "9000"], "val": ["9000"], "minival": ["9000"]}
    captions = {"captions": {name: f"caption {name}" for name, row in problems.items() if row["image"]}}
    for name, content in (("problems", problems), ("pid_splits", splits), ("captions", captions)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def problem(number: int, split: str) -> dict[str, Any]:
    return {
        "question": f"Which number is {number}?",
        "choices": ["none", str(number), "all"][: 2 + number % 2],
        "answer": number % 2,
        "hint": "Count." if number % 4 == 0 else "",
        "image": "image.png" if number % 3 else None,
        "task": "closed choice",
        "grade": f"grade{number % 12 + 1}",
        "subject": ("natural science", "language science", "social science")[number % 3],
        "topic": "numbers",
        "category": "Counting",
        "skill": "Count",
        "lecture": "One, two, three. " * 5,
        "solution": "Counting shows it.",
        "split": split,
    }


def _image(number: int) -> bytes:
    size = (40 + number % 7, 30 + number % 5)
    image = Image.linear_gradient("L").resize(size)
    out = io.BytesIO()
    match number // 3 % 5:
        case 0:
            Image.merge("RGB", (image, image, image.rotate(90).resize(size))).save(out, "PNG")
        case 1:
            image.convert("RGB").save(out, "JPEG")
        case 2:
            image.convert("P").save(out, "PNG", transparency=number % 256)
        case 3:
            image.save(out, "PNG")
        case _:
            Image.merge("RGBA", (image, image, image, image)).save(out, "PNG")
    return out.getvalue()
