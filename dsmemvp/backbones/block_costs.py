"""What a policy of gradient checkpointing keeps of a decoder layer, and what it computes again: counts that follow from
the sizes, per token. decoder.py says how the values follow from each other; plan's trace is the test of these counts.
"""

from typing import Any

from dsmemvp.backbones.recompute import KEPT, Policy


def kept_bytes(config: Any, policy: Policy, item: int) -> int:
    """Bytes that a layer keeps per token, `item` per element, its input included; the policy is not `none`."""
    width, heads, shared, head = attention_sizes(config)
    queries, keys = heads * head * item, shared * head * item
    sizes = {"query": queries, "key": keys, "value": keys, "mixed": queries, "log_sums": 4 * heads}
    if config.model_type == "qwen3":  # norms of the heads
        sizes |= {"raw_query": queries, "raw_key": keys}
    sizes |= {"middle": width * item, **dict.fromkeys(("gate", "up"), config.intermediate_size * item)}
    return width * item + sum(size for name, size in sizes.items() if name in KEPT[policy])


def recomputed_flops(config: Any, policy: Policy) -> int:
    """FLOPs of a layer's products with frozen weights that are computed again per token; attention itself, whose FLOPs
    grow with the text, is not counted."""
    width, heads, shared, head = attention_sizes(config)
    projections = 2 * width * (heads + 2 * shared) * head
    kept = KEPT[policy]
    flops = 0
    if "query" not in kept:
        flops += projections
    if "mixed" not in kept:
        flops += 2 * heads * head * width
    if "gate" not in kept:
        flops += 2 * 2 * width * config.intermediate_size
    return flops


def layer_flops(config: Any) -> int:
    """FLOPs of a layer's products with frozen weights per token: forward, and backward to their input."""
    width, heads, shared, head = attention_sizes(config)
    weights = 2 * width * (heads + shared) * head + 3 * width * config.intermediate_size
    return 4 * weights


def attention_sizes(config: Any) -> tuple[int, int, int, int]:
    """(width, heads, key/value heads, width of a head)"""
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.hidden_size, heads, getattr(config, "num_key_value_heads", None) or heads, head
