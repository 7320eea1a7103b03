"""The language model as a tower: transformers' own parts under transformers' names, stepped block by block:
`start` -> `blocks[i]` -> `finish` -> `head`. Without anything added the logits are transformers' own, bit for bit.

Parameter names are transformers' without the leading "model.". T tokens in the pack, d width, S supervised tokens,
V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dsmemvp.backbones import elementwise
from dsmemvp.backbones.attention import Packing, attend
from dsmemvp.backbones.families import decoder_family
from dsmemvp.backbones.fused import RmsNorm, rotate, silu_mul
from dsmemvp.backbones.linear import Linear, with_own_linears
from dsmemvp.backbones.recompute import KEPT, BlockValues, Policy, Rule
from dsmemvp.dropout import Dropout

Branch = Callable[[torch.Tensor], torch.Tensor | None]
"""The feed-forward's normed input [1, T, d] -> what is added to its output, or None."""
Rotary = tuple[torch.Tensor, torch.Tensor]


def no_branch(x: torch.Tensor) -> None:
    return None


class DecoderBlock(nn.Module):
    """A decoder layer of the family, whose parts it takes over, with a branch beside the feed-forward.

    It is a list of rules by which values follow from each other: hidden -> normed -> query, key, value -> mixed ->
    middle -> normed_middle -> gate, up -> the block's output. A policy says which of them are kept for the backward;
    by the same rules the others are computed again (recompute.py)."""

    def __init__(self, config: Any, index: int):
        super().__init__()
        layer: Any = with_own_linears(decoder_family(config).block(config, index))
        self.self_attn: Any = layer.self_attn
        self.mlp: Any = layer.mlp
        self.input_layernorm = RmsNorm(layer.input_layernorm)
        self.post_attention_layernorm = RmsNorm(layer.post_attention_layernorm)
        self.head_norms = hasattr(self.self_attn, "q_norm")
        if self.head_norms:
            self.self_attn.q_norm, self.self_attn.k_norm = (
                RmsNorm(layer.self_attn.q_norm),
                RmsNorm(layer.self_attn.k_norm),
            )
        self.index = index
        # transformers keeps it in the layer if layers differ in it, else in the configuration
        self.window: int | None = getattr(self.self_attn, "sliding_window", getattr(config, "sliding_window", None))
        self.replaced: set[str] = set()
        """Names of the linear layers that a method has put its own in place of."""

    def forward(
        self,
        hidden_1Td: torch.Tensor,
        rotary: Rotary,
        packing: Packing,
        branch: Branch = no_branch,
        dropout: Dropout | None = None,
        policy: Policy = "none",
        rows_S: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """-> [1, T, d]. `dropout` is that of the replaced linear layers; None: without. `rows_S`: indices into T of the
        places whose result is wanted, [1, S, d]; keys and values are made of all, and the rest of these places alone
        (the branch gets [1, S, d])."""
        plain = policy == "none" or not torch.is_grad_enabled()
        rules = self._rules(rotary, packing, dropout, rows_S, fused=not plain)
        if plain:
            return self._run(hidden_1Td, rules, branch, _of_rows(dropout, rows_S))
        with BlockValues(KEPT[policy], rules, hidden=hidden_1Td) as values:
            return self._run(hidden_1Td, rules, branch, _of_rows(dropout, rows_S), values)

    def _run(
        self,
        hidden_1Td: torch.Tensor,
        rules: Sequence[Rule],
        branch: Branch,
        dropout: Dropout | None,
        values: BlockValues | None = None,
    ) -> torch.Tensor:
        found = {"hidden": hidden_1Td}
        for rule in rules:
            made = rule(found)
            if values is not None:
                values.put(made)
            found |= made
        gated = silu_mul(found["gate"], found["up"]) if values is not None else F.silu(found["gate"]) * found["up"]
        out_1Td = self._linear(self.mlp, "down_proj", gated, dropout)
        added = branch(found["normed_middle"])
        if added is not None:
            out_1Td = out_1Td.add_(added)
        return out_1Td.add_(found["middle"])

    def _rules(
        self, rotary: Rotary, packing: Packing, dropout: Dropout | None, rows_S: torch.Tensor | None, fused: bool
    ) -> tuple[Rule, ...]:
        """`fused`: in the form that keeps nothing but inputs; the values are the same."""
        attention = self.self_attn
        turn = rotate if fused else elementwise.rotate
        behind = _of_rows(dropout, rows_S)

        def norm(hidden):
            return (self.input_layernorm(hidden, fused),)

        def project(normed):
            projected = (self._linear(attention, name, normed, dropout) for name in ("q_proj", "k_proj", "v_proj"))
            query, key, value = (t.unflatten(-1, (-1, attention.head_dim)) for t in projected)
            return query, key, value.transpose(1, 2)

        def position(raw_query, raw_key):
            if self.head_norms:
                raw_query, raw_key = attention.q_norm(raw_query, fused), attention.k_norm(raw_key, fused)
            return tuple(turn(t.transpose(1, 2), *rotary) for t in (raw_query, raw_key))

        def attended(query, key, value):
            return attend(query, key, value, packing, attention.scaling, self.index, self.window)

        def add(hidden, mixed):
            mixed = mixed.flatten(-2)
            if rows_S is not None:
                hidden, mixed = hidden[:, rows_S], mixed[:, rows_S]
            return (self._linear(attention, "o_proj", mixed, behind).add_(hidden),)

        def norm_middle(middle):
            return (self.post_attention_layernorm(middle, fused),)

        def widen(normed_middle):
            return tuple(self._linear(self.mlp, name, normed_middle, behind) for name in ("gate_proj", "up_proj"))

        return (
            Rule(("normed",), ("hidden",), norm),
            Rule(("raw_query", "raw_key", "value"), ("normed",), project),
            Rule(("query", "key"), ("raw_query", "raw_key"), position),
            Rule(("mixed", "log_sums"), ("query", "key", "value"), attended),
            Rule(("middle",), ("hidden", "mixed"), add),
            Rule(("normed_middle",), ("middle",), norm_middle),
            Rule(("gate", "up"), ("normed_middle",), widen),
        )

    def _linear(self, parent: Any, name: str, x: torch.Tensor, dropout: Dropout | None) -> torch.Tensor:
        linear = getattr(parent, name)
        if name not in self.replaced:
            return linear(x)
        return linear(x, dropout.at(self.index, name) if dropout is not None else None)


def _of_rows(dropout: Dropout | None, rows_S: torch.Tensor | None) -> Dropout | None:
    return dropout if dropout is None or rows_S is None else Dropout(dropout.keys[rows_S])


class DecoderTower(nn.Module):
    def __init__(self, config: Any):
        """`config` is of one of the families (families.py); raises UserError for another."""
        super().__init__()
        family = decoder_family(config)
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers: Any = nn.ModuleList(DecoderBlock(config, i) for i in range(config.num_hidden_layers))
        self.norm = RmsNorm(family.norm(config.hidden_size, eps=config.rms_norm_eps))
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    @property
    def depth(self) -> int:
        return len(self.layers)

    def norms(self) -> Iterator[RmsNorm]:
        """All of the hidden states, those of heads left out."""
        for layer in self.layers:
            yield from (layer.input_layernorm, layer.post_attention_layernorm)
        yield self.norm

    def start(self, tokens_T: torch.Tensor) -> torch.Tensor:
        """-> [1, T, d]"""
        return self.embed_tokens(tokens_T)[None]

    def rotary(self, positions_T: torch.Tensor, dtype: torch.dtype) -> Rotary:
        """cos and sin, [1, T, head width] each. Made anew each time (a few thousand numbers), since a module's buffer
        would be cast to 16 bits with the model."""
        with torch.device(positions_T.device):
            embedding = decoder_family(self.config).rotary(self.config)
            return embedding(torch.empty(0, dtype=dtype), positions_T[None])

    def finish(self, hidden_Sd: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden_Sd)

    def head(self, normed_Sd: torch.Tensor) -> torch.Tensor:
        """-> float32 logits [S, V]"""
        return self.lm_head(normed_Sd).float()

    def replace_linears(self, replacement: Callable[[str, nn.Linear], nn.Linear | None]) -> None:
        """Put a method's own linear layers (LoRA) in place of a block's: `replacement(name, linear)` gives one, which
        is called with its input and a Dropout or None, or None to keep the old."""
        for layer in self.layers:
            for parent in (layer.self_attn, layer.mlp):
                for name, child in list(parent.named_children()):
                    new = replacement(name, child) if isinstance(child, nn.Linear) else None
                    if new is not None:
                        setattr(parent, name, new)
                        layer.replaced.add(name)
