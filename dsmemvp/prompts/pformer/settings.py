"""P-Former's keys under `method:`, and the stages that they make."""

from dataclasses import field, replace
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from dsmemvp.config.fields import CONFIG, FROM_TEXT, Factor, Fraction, Text, Width
from dsmemvp.config.methods import MethodSettings, VisionFeatures
from dsmemvp.prompts.interface import Stage

Name = Literal["text", "align", "generate", "finetune"]
ORDER: tuple[Name, ...] = ("text", "align", "generate", "finetune")
PUBLISHED = {"raw": (10.0, 100.0), "scaled": (0.2, 2.0)}
"""Weights of the alignment in the stages `align` and `generate`. The scaled ones are the published ones times 0.02, the
variance of the authors' prompts as far as it is known: their alignment alone begins at a loss of 2.12 / 100."""
QUERY_SIDE, TEXT_SIDE = ("qformer", "projection"), ("text", "pairs")


@dataclass(config=CONFIG)
class Settings(MethodSettings):
    stages: list[Name] = field(default_factory=lambda: ["text", "align", "generate"])
    """What the run goes through, in this order: `text`, P-Former on captions alone; `align`, the Q-Former on pairs of
    image and caption, without a language model; `generate`, its prompts into the language model; `finetune`, the same
    on questions."""
    schedule: Literal["full", "cheap"] = "full"
    """`cheap`, for small budgets: `align` has the alignment as its only loss, and `generate` the language model's."""
    prompts: Width = 32
    """Prompt tokens, which are as many as the Q-Former's queries. The published code takes the length of the padded
    caption for it."""
    layout: Literal["bos_prompts", "prompts_bos"] = "bos_prompts"
    """Whether prompts stand behind the token that begins a sequence, which LLaMA expects first, or in front of all, as
    in the published code (there that token is written, too)."""
    text_encoder: Text = ""
    """Folder with the BERT that P-Former and the Q-Former begin from, in Hugging Face layout. None given: from random
    values, of the shape `text_shape`."""
    text_shape: Text = "bert-base"
    """Published shape of the BERT (backbones/shapes.py), if no folder is given. Enough to count and to plan."""
    text_tokenizer: Text = ""
    """File of its tokenizer, a vocab.txt or tokenizer.json; vocab.txt or tokenizer.json in `text_encoder` if none is
    given."""
    text_length: Annotated[int, Field(ge=3, le=2**12)] = 32
    """Tokens to which captions are padded for BERT; a longer one is a bad sample."""
    masked: Fraction = 0.25
    """Probability with which a token of P-Former's input becomes [MASK] in the stage `text`, [CLS] apart."""
    views: Annotated[int, Field(ge=1, le=2)] = 1
    """Of the contrast in the stage `text`: 1, a caption's vector with itself as in the published code, so that it only
    pushes captions apart; 2, with that of a second pass under other dropout, as in SimCSE."""
    features: Width = 256
    """Width in which captions and images are compared."""
    temperature: Annotated[float, Field(gt=0, le=1000), FROM_TEXT] = 0.07
    """Initial value of the two trained temperatures, of P-Former's contrast and the pairs'."""
    smoothing: Fraction = 0.1
    """Label smoothing of contrasts and of writing captions in the stage `align`."""
    cross_every: Annotated[int, Field(ge=1, le=1000)] = 2
    """Every so many layers of the Q-Former look at the image, the first one included."""
    dropout: Fraction = 0.1
    """Dropout in BERT's places, while it is trained."""
    contrast_weight: Factor = 1.0
    """Of the contrast in the stage `text`."""
    vocabulary_weight: Factor = 1.0
    """Of the loss there that pulls prompts towards the nearest rows of the language model's vocabulary."""
    alignment: Literal["scaled", "raw"] = "scaled"
    """Form of the alignment with the reference prompts: the mean squared difference as published (`raw`), or divided by
    the variance of the caption's own reference prompts, which does not depend on a language model's scale."""
    align_weight: Factor | None = None
    """Of the alignment in the stage `align`; 0 for BLIP-2's way. None: 10 if raw, as published, 0.2 if scaled."""
    generate_weight: Factor | None = None
    """Of the alignment in the stage `generate`; 0 for BLIP-2's way. None: 100 if raw, as published, 2 if scaled."""
    stored_vectors: bool = False
    """Store the class vector of every caption beside the shards, once, so that later stages run P-Former's head alone.
    Not with `target_dropout`. A run's own text stage makes them anew: its P-Former is another one."""
    reference_steps: Annotated[int, Field(ge=0, le=10**9)] = 100
    """Every so many steps of the stage `generate`, if it has an alignment, the language model's loss with P-Former's
    prompts in the place of the Q-Former's is recorded: as far as the alignment can lead. 0: never."""
    target_dropout: bool = False
    """Leave dropout on in the frozen P-Former while others are trained, as the published runs did, not meaning to."""
    align_text: Literal["none", "answer", "question+answer"] = "none"
    """What P-Former reads in the stage `finetune`, where by default there is no alignment. With `generate_weight`."""
    feature_layer: Annotated[int, Field(ge=-1000, le=0)] = 0
    """Block of the vision tower that the image tokens come from, counted from its last as -1; 0 for the one that all
    methods take if nothing is said (of CLIP the last but one, as in BLIP-2)."""

    @field_validator("stages")
    @classmethod
    def _in_order(cls, stages: list[Name]) -> list[Name]:
        if not stages or stages != [name for name in ORDER if name in stages]:
            raise ValueError(f"must be of {', '.join(ORDER)}, each at most once and in this order")
        return stages

    @model_validator(mode="after")
    def _some_loss(self) -> "Settings":
        if self.schedule == "cheap" and not self.weight("align"):
            raise ValueError("align_weight: 0 leaves stage align without a loss under schedule: cheap; give a weight")
        return self

    def vision_features(self) -> VisionFeatures:
        """BLIP-2's: all tokens, before the tower's last norm."""
        return VisionFeatures(self.feature_layer, class_token=True, norm=False)

    def weight(self, stage: str) -> float:
        """Of the alignment in this stage."""
        align, generate = PUBLISHED[self.alignment]
        if stage == "align":
            return align if self.align_weight is None else self.align_weight
        if stage == "text" or (stage == "finetune" and self.align_text == "none"):
            return 0.0
        if stage == "generate" and self.schedule == "cheap":
            return 0.0
        return generate if self.generate_weight is None else self.generate_weight

    def stage_names(self) -> tuple[str, ...]:
        return tuple(self.stages)

    def known_stages(self) -> tuple[str, ...]:
        return ORDER

    def run_stages(self) -> tuple[Stage, ...]:
        made = {"text": self._text, "align": self._align, "generate": self._generate, "finetune": self._finetune}
        return tuple(made[name]() for name in self.stages)

    def _text(self) -> Stage:
        return Stage(
            "text",
            trains=_trained("pformer"),
            losses={"contrast": self.contrast_weight, "vocabulary": self.vocabulary_weight},
            modules=("pformer",),
            vocabulary=True,
            vision=False,
            measures=("variance", "distance", "reconstructed", "token_accuracy"),
        )

    def _align(self) -> Stage:
        weight, cheap = self.weight("align"), self.schedule == "cheap"
        alone = () if cheap else TEXT_SIDE
        # without an alignment nothing reads the projection
        modules = (*(QUERY_SIDE if weight else QUERY_SIDE[:1]), *alone)
        losses = {} if cheap else {"itc": 1.0, "itm": 1.0, "itg": 1.0}
        return Stage(
            "align",
            trains=(*_trained(*modules), "vision."),
            losses=losses | ({"align": weight} if weight else {}),
            language_loss=0.0,
            decoder=False,
            modules=modules,
            measures=("cosine",) if weight else (),
            vectors=self._stores(weight),
        )

    def _stores(self, weight: float) -> bool:
        return bool(weight) and self.stored_vectors and not self.target_dropout

    def _generate(self) -> Stage:
        stage = self._prompting("generate")
        return replace(stage, reference_every=self.reference_steps if stage.losses else 0)

    def _finetune(self) -> Stage:
        return self._prompting("finetune")

    def _prompting(self, name: Name) -> Stage:
        weight = self.weight(name)
        return Stage(
            name,
            trains=(*_trained(*QUERY_SIDE), "vision."),
            losses={"align": weight} if weight else {},
            modules=QUERY_SIDE,
            measures=("cosine",) if weight else (),
            vectors=self._stores(weight),
        )


def _trained(*modules: str) -> tuple[str, ...]:
    return tuple(f"method.{module}." for module in modules)
