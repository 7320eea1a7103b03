"""Small random models whose method matters to what they say, prompts for them, and decoding without a cache."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from dsmemvp.backbones.configs import Configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Item, MicroBatch
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.generation.decoder import Decoder
from dsmemvp.model import VisualLanguageModel

VOCABULARY, RESOLUTION, EOS = 60, 16, 2
SETTINGS = {
    "memvp": {"hidden": 8, "slots": 7, "visual_scale": 1.0, "output_scale": 1.0},
    "separable": {
        "name": "memvp",
        "hidden": 8,
        "slots": 21,
        "visual_scale": 1.0,
        "output_scale": 0.05,
        "scores": "separable",
        "dropout": 0.0,
    },
    "input_space": {"hidden": 8},
    "dvp": {"layer": 1, "width": 8, "heads": 2, "adapter_ratio": 8, "train_norms": True, "query_norm": True},
    "none": {},
}
METHODS = tuple(SETTINGS)
TEXTS = [[1, 5, 9, 3, 7, 30, 41], [1, 8, 4], [1], [1, 7, 7, 50, 12]]
PICTURES = (True, False, True, True)


def configs(**language) -> Configs:
    sizes = {"intermediate_size": 64, "num_attention_heads": 4}
    own = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, **sizes, **language}
    return Configs(
        LlamaConfig(**own),
        CLIPVisionConfig(hidden_size=16, num_hidden_layers=3, image_size=RESOLUTION, patch_size=8, **sizes),
    )


def recipe(method: str) -> Recipe:
    made = Recipe(name="x")
    own = dict(SETTINGS[method])
    made.method = method_settings(own.pop("name", method), **own)
    made.vision.adapter_dim = 4
    return made


def model(method: str, seed: int = 0, **language) -> VisualLanguageModel:
    torch.manual_seed(seed)
    made = build_frozen(recipe(method), configs(**language))
    add_trainables(made, recipe(method), configs(**language))
    enliven(made)
    return made.eval()


def enliven(made: VisualLanguageModel) -> None:
    """Weights large enough that neighbouring tokens and pictures change the answer."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1:
            scale = 2.0 if "embed_tokens" in name or "positions" in name else 3.0 / parameter.shape[-1] ** 0.5
            if "method.attention.key" in name:  # else one patch takes all of the attention
                scale /= 10
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)


def pictures(number: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return list(torch.randint(256, (number, 3, RESOLUTION, RESOLUTION), generator=generator).to(torch.uint8))


def prompts(made: VisualLanguageModel, texts=TEXTS, images=PICTURES, answered: int = 0) -> MicroBatch:
    """`images`: whether each sample has one (the i-th of `pictures`), or the tensors themselves. The last `answered`
    tokens of each are the beginning of its answer."""
    rows = zip(texts, _tensors(images), strict=True)
    items = [Item(i, EncodedText(text, len(text) - answered, False), image) for i, (text, image) in enumerate(rows)]
    return make_batch(items, RESOLUTION, made.method.reserved(), last_only=True)


def _tensors(images) -> list[torch.Tensor | None]:
    drawn = pictures(len(images))
    return [(drawn[i] if image else None) if isinstance(image, bool) else image for i, image in enumerate(images)]


def decoder(made: VisualLanguageModel, eos: int = EOS) -> Decoder:
    return Decoder(made.language.config, lambda *given: made(*given), torch.device("cpu"), eos, in_step=False)


@torch.no_grad()
def without_cache(
    made: VisualLanguageModel, steps: int, texts=TEXTS, images=PICTURES, eos: int = EOS
) -> list[list[int]]:
    """Each sample by itself, the whole text computed again for every token, through the forward of training."""
    answers = []
    for text, image in zip(texts, _tensors(images), strict=True):
        new: list[int] = []
        while len(new) < steps:
            logits, _ = made(prompts(made, [[*text, *new]], [image], len(new)).batch)
            token = int(logits[0].argmax())
            if token == eos:
                break
            new.append(token)
        answers.append(new)
    return answers
