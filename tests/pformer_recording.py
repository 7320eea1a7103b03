"""P-Former as its authors' modules have computed it (pformer_reference.safetensors), under our names."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BertConfig, CLIPVisionConfig, LlamaConfig

from dsmemvp.backbones.configs import Configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Batch, Captions, Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.model import VisualLanguageModel
from dsmemvp.prompts.pformer.published import pformer_names, stage_names
from dsmemvp.prompts.pformer.qformer import TextBranch

FILE = Path("reference") / "pformer_reference.safetensors"


class Recording:
    def __init__(self, shared: Path, folder: Path):
        """`folder` receives the BERT in Hugging Face layout."""
        self.tensors = load_file(shared / FILE)
        with safe_open(shared / FILE, "pt") as file:
            self.sizes = json.loads(file.metadata()["config"])
        self.ids, self.bert = self.sizes["ids"], folder / "bert"
        sizes = self.sizes["bert"]
        self.bert.mkdir(parents=True, exist_ok=True)
        self.config = BertConfig(
            vocab_size=sizes["vocab"],
            hidden_size=sizes["hidden"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            intermediate_size=sizes["inter"],
            max_position_embeddings=sizes["max_pos"],
        )
        self.config.save_pretrained(self.bert)
        own = {name.removeprefix("pf."): t for name, t in self.tensors.items() if name.startswith("pf.e")}
        save_file(own, self.bert / "model.safetensors")

    def model(self, **settings) -> VisualLanguageModel:
        """In evaluation mode, its last stage begun."""
        sizes = self.sizes["llm"]
        recipe = Recipe(name="x")
        recipe.vision.adapter_dim = 0
        given = {"layout": "prompts_bos", "alignment": "raw", "text_length": 8, "features": self.sizes["embed"]}
        given |= {"prompts": self.sizes["num_prompts"], "text_encoder": str(self.bert)}
        recipe.method = method_settings("pformer", **given | settings)
        language = LlamaConfig(
            vocab_size=sizes["vocab"],
            hidden_size=self.sizes["d_llm"],
            intermediate_size=sizes["inter"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            rms_norm_eps=sizes["rms_eps"],
        )
        width = self.sizes["qformer"]["encoder_width"]
        vision = CLIPVisionConfig(
            hidden_size=width, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
        )
        model = build_frozen(recipe, Configs(language, vision))
        add_trainables(model, recipe, Configs(language, vision))
        # the recorded vocabulary has its [DEC] among BERT's own pieces
        model.method.text, model.method.begin_token = TextBranch(self.config, self.config.vocab_size), 4
        self.fill(model)
        return model.eval()

    @torch.no_grad()
    def fill(self, model: VisualLanguageModel) -> None:
        """Every parameter of the method, and the language model's."""
        named = dict(model.named_parameters())
        left = {name for name in named if not name.startswith("vision.")}
        for theirs, tensor in self.tensors.items():
            ours = self.our_name(theirs)
            if ours is not None:
                named[ours].copy_(tensor.reshape(named[ours].shape))
                left.remove(ours)
        assert not left, left

    def our_name(self, theirs: str) -> str | None:
        part, _, name = theirs.partition(".")
        if part == "pf":
            return f"method.pformer.{pformer_names(name)}"
        if part == "llm":
            return f"language.{name.removeprefix('model.')}"
        ours = stage_names(name) if part == "s1w" else None
        return None if ours is None else f"method.{ours}"

    def captions(self, rows: list[int], masked: bool) -> Captions:
        mask_BL = self.tensors["in.bert_mask"][rows].bool()
        drawn_BL = self.tensors["s0.bernoulli_mask"][rows].bool()
        drawn_BL &= mask_BL & (self.tensors["in.bert_ids"][rows] != self.ids["cls"])
        return Captions(
            self.tensors["in.bert_ids"][rows],
            mask_BL,
            drawn_BL if masked else torch.zeros_like(drawn_BL),
            tuple(mask_BL.sum(1).tolist()),
            self.ids["mask"],
        )

    def batch(self, model: VisualLanguageModel, rows: list[int], masked: bool = False, images: bool = True) -> Batch:
        """[prompts; BOS; text; end], BOS among the targets, each with a picture of its own unless there are none."""
        items = []
        for b in rows:
            count = int(self.tensors["in.llm_mask"][b].sum())
            tokens = self.tensors["in.llm_ids"][b, :count].tolist()
            picture = torch.full((3, 16, 16), b, dtype=torch.uint8) if images else None
            items.append(Item(b, EncodedText(tokens, 0, False, 0), picture))
        batch = make_batch(items, 16, model.method.reserved()).batch
        return replace(batch, captions=self.captions(rows, masked))
