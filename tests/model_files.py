"""GGUF and ONNX files as llama.cpp and torch write them, of tiny models."""

from pathlib import Path

import gguf
import numpy as np
import onnx
from transformers import Dinov2Model, LlamaForCausalLM

HEADS, KEYS = 4, 2
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}


LINEAR = {"q_proj": "attention/query", "k_proj": "attention/key", "v_proj": "attention/value", "o_proj": "output/dense"}


def _pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's convert_hf_to_gguf.py reorders queries and keys."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: LlamaForCausalLM, quantised="F32", vocabulary=None, **changed):
    config = model.config
    writer = gguf.GGUFWriter(str(path), changed.pop("arch", "llama"))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(50000.0)
    for name, value in changed.items():
        writer.add_string(name.replace("__", "."), value)
    (vocabulary or byte_level)(writer, config.vocab_size)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        values = tensor.float().numpy()
        if "attn_q" in name or "attn_k" in name:
            values = np.ascontiguousarray(_pairs(values, HEADS if "attn_q" in name else KEYS))
        kind = gguf.GGMLQuantizationType[quantised if values.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


PIECES = ["<|endoftext|>", "<|im_end|>", *(chr(c) for c in range(33, 123)), "Ġ", "Ġa", "12", "ab"]


def byte_level(writer, size):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(PIECES)
    writer.add_token_types([3, 3] + [1] * (len(PIECES) - 2))
    writer.add_token_merges(["Ġ a", "1 2", "a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)


def write_onnx(path: Path, tower: Dinov2Model, without: str = ""):
    initializers, nodes = [], []

    def add(name, tensor):
        if without not in name or not without:
            initializers.append(onnx.numpy_helper.from_array(tensor.detach().numpy().copy(), name))

    for name, tensor in tower.state_dict().items():
        if name == "embeddings.mask_token":
            continue
        if name == "embeddings.position_embeddings":
            add("onnx::Concat_7", tensor[:, :1])
            add("onnx::Reshape_9", tensor[:, 1:])
        elif tensor.dim() == 2 and name.startswith("encoder"):
            path_of = name.removesuffix(".weight").replace("layer.", "layer@").replace(".", "/").replace("@", ".")
            for ours, theirs in LINEAR.items():
                path_of = path_of.replace(ours, theirs)
            add(f"onnx::MatMul_{len(initializers)}", tensor.T)
            nodes.append(
                onnx.helper.make_node(
                    "MatMul", ["x", f"onnx::MatMul_{len(initializers) - 1}"], ["y"], name=f"/net/{path_of}/MatMul"
                )
            )
        else:
            for ours, theirs in LINEAR.items():
                name = name.replace(f"attention.{ours}", f"attention.{theirs.replace('/', '.')}")
            add(f"net.{name}", tensor)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], initializers)), str(path))
