"""What a run is: the schema of a recipe, with a sentence under every field, its range, and the rules between fields.

A recipe is one YAML file of the same shape as `Recipe`. `config/reading.py` reads it; nothing here does I/O.
Add a setting by adding a field with its range and its sentence; add a rule between fields to `Recipe.check`. The
settings of a visual prompting method stand in the method's own file.
"""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dsmemvp.config.fields import (
    CONFIG,
    FROM_TEXT,
    Epochs,
    Factor,
    Fraction,
    Loggers,
    Samples,
    Seconds,
    Steps,
    Text,
    Texts,
    Tokens,
)
from dsmemvp.config.methods import method_settings
from dsmemvp.counting import counted
from dsmemvp.errors import UserError

PILLOW_PIXELS = 178_956_970
"""Twice Pillow's Image.MAX_IMAGE_PIXELS, where it raises DecompressionBombError."""
NAME_BYTES = 100
"""Most bytes of a run's name: files beside its folder have longer names, file systems end at 255."""
START = "start_from"
DTYPES = Literal["bf16", "fp32"]


@dataclass(config=CONFIG)
class Model:
    language_model: Text = ""
    """Folder with a LLaMA, Mistral, Qwen2 or Qwen3, or for `mitp_encoders` a BERT, in Hugging Face layout (config.json
    and safetensors). Also hf://org/name on the Hugging Face hub, with @REVISION or without."""
    language_shape: Text = ""
    """Name of a published shape (backbones/shapes.py); the folder must agree with it. Enough to count and to plan."""
    vision_tower: Text = ""
    """Folder with a vision tower (CLIP, SigLIP, DINOv2 or ViT) in Hugging Face layout, or as above on the hub."""
    vision_shape: Text = ""
    """Name of a published shape of the vision tower, as above."""
    tokenizer: Text = ""
    """File of a sentencepiece model, such as LLaMA's tokenizer.model, or a Hugging Face tokenizer.json (LLaMA 3), or
    on the hub hf://org/name, with /FILE or without."""
    dtype: DTYPES = "bf16"
    """Compute type of all modules; the optimizer always keeps float32 master weights."""
    quantize: Literal["none", "int8", "nf4", "fp8"] = "none"
    """How the frozen linear layers of the language model's blocks are stored and multiplied: `int8` halves and `nf4`
    quarters their memory and traffic, computing in `dtype`; `fp8` halves it and multiplies in float8, on GPUs that
    can."""
    nf4_scales: Literal["fitted", "largest"] = "fitted"
    """How `nf4` scales a block of 64 weights: so that it loses least of them, or, as QLoRA and bitsandbytes have it, by
    the largest one."""


@dataclass(config=CONFIG)
class Vision:
    adapter_dim: Annotated[int, Field(ge=0, le=2**16)] = 12
    """Width of the bottleneck adapters beside the MLP of every vision block; 0 leaves the tower as it is."""
    adapter_scale: Factor = 0.1
    """Factor on an adapter's output."""
    adapter_dropout: Fraction = 0.1
    """Dropout inside the adapters."""
    statistics: Literal["imagenet", "clip", "half", "auto"] = "imagenet"
    """Pixel mean and deviation. The published runs use ImageNet's, not CLIP's. `auto`: imagenet for CLIP and DINOv2,
    half for SigLIP and ViT."""
    resolution: Annotated[int, Field(ge=0, le=2**14)] = 0
    """Height and width that images are squashed to, a multiple of the tower's patches: its positions are interpolated.
    0 for the tower's own."""
    max_pixels: Annotated[int, Field(ge=1, le=PILLOW_PIXELS)] = 50_000_000
    """An image with more pixels than this is refused before it is decoded."""
    cache_features: Text = ""
    """Name of a folder beside the shards of data.train and data.validation for the tower's features: computed once,
    read in the place of pixels, so that training runs no tower. Needs adapter_dim 0. Empty: the tower looks at every
    picture in every epoch."""


@dataclass(config=CONFIG)
class Data:
    train: Texts = field(default_factory=list)
    """Folders of WebDataset shards with a dataset.json manifest, to train on; a single one may stand without brackets.
    Also a URL (https, s3, gs, hf), or `pipe:` and a command with {name} in it for the file name."""
    passes: list[Annotated[float, Field(gt=0, le=10**6), FROM_TEXT]] = field(default_factory=list)
    """How often each folder of `train` is gone through in one epoch; none given: once each."""
    validation: Text = ""
    """Folder of shards whose loss is measured beside every checkpoint of `checkpoint_epochs` and the last one; none if
    empty."""
    test: Text = ""
    """Folder of shards to evaluate on."""
    search: Text = ""
    """Folder of shards that `dsmemvp search` scores on: neither those of training, nor of validation or test."""
    captions: bool = False
    """Put each sample's image caption into the context while training (the published runs do not)."""
    max_length: Tokens = 512
    """Most text tokens in a sample, target included; the context of a longer one is cut."""
    on_bad_sample: Literal["fail", "skip"] = "fail"
    """What a sample that cannot be used does: end the run, or be left out, counted and reported at the end."""
    most_bad_in_a_row: Annotated[int, Field(ge=1, le=10**9)] = 100
    """If bad samples are left out, so many of them in a row end the run all the same: then it is not the samples."""
    block_shards: Annotated[int, Field(ge=1, le=10**6)] = 16
    """Samples are shuffled within blocks of this many shards."""
    last_batch: Literal["drop", "repeat"] = "drop"
    """What becomes of an epoch's last samples when they are no whole global batch: left out (others in each epoch), or
    completed with the first samples of the same epoch."""
    workers: Annotated[int, Field(ge=0, le=256)] = 1
    """Processes per rank that read and decode."""
    record_order: bool = False
    """Write the samples of every global batch to RUN/order.jsonl, to check or to find what a step has seen."""
    cache: Text = ""
    """Folder of your own on a local disk for shards of remote locations; may be shared by all your processes of a
    node."""
    cache_gib: Annotated[float, Field(gt=0, le=10**6), FROM_TEXT] = 100.0
    """Size that this cache is kept to."""
    allow_pipe: bool = False
    """Allow `pipe:` locations, which run a shell command."""
    remote_timeout: Seconds = 60.0
    """Seconds without a byte from a remote location after which it is asked again; `pipe:` included."""


@dataclass(config=CONFIG)
class Training:
    epochs: Epochs = 20.0
    """Passes over the training set; also a part of one, such as 0.25, rounded to whole steps."""
    warmup_epochs: Annotated[float, Field(ge=0, le=10**5), FROM_TEXT] = 2.0
    """The learning rate rises linearly from zero over these, step by step, then falls as `schedule` says."""
    schedule: Literal["cosine", "linear", "steps"] = "cosine"
    """How the learning rate falls to `min_learning_rate` by the last step: along half a cosine or a straight line; or
    how it falls otherwise: by `step_factor` at each of `step_epochs`."""
    step_epochs: list[Annotated[float, Field(gt=0, le=10**5), FROM_TEXT]] = field(default_factory=list)
    """Under `schedule: steps`, the epochs at whose end the learning rate falls."""
    step_factor: Annotated[float, Field(gt=0, le=1), FROM_TEXT] = 0.1
    """What it is multiplied by there."""
    learning_rate: Annotated[float, Field(gt=0, le=1000), FROM_TEXT] = 1.125e-3
    """Peak learning rate at this recipe's global batch."""
    scaled_tensors: Texts = field(default_factory=list)
    """Beginnings of the names of trained tensors that have another learning rate: it times `scaled_rate`."""
    scaled_rate: Factor = 1.0
    """Of `scaled_tensors` alone."""
    min_learning_rate: Annotated[float, Field(ge=0, le=1000), FROM_TEXT] = 0.0
    """Where the cosine or the line ends."""
    betas: list[Fraction] = field(default_factory=lambda: [0.9, 0.95])
    """Adam's decay rates."""
    weight_decay: Annotated[float, Field(ge=0, le=1000), FROM_TEXT] = 0.02
    """AdamW's decay of tensors with two or more dimensions; biases and other vectors are not decayed."""
    gradient_clipping: Annotated[float, Field(ge=0, le=10**9), FROM_TEXT] = 0.0
    """Largest norm of the global gradient; 0 clips nothing."""
    global_batch: Samples = 32
    """Samples per optimizer step over all ranks."""
    micro_batch: Samples = 4
    """Samples per rank and forward, on average: global_batch / (micro_batch x ranks) micro-steps, rounded up, are
    accumulated, and samples are spread over ranks and micro-steps by what they cost."""
    micro_tokens: Annotated[int, Field(ge=0, le=2**20)] = 0
    """Most tokens per rank and forward, reserved places included; as few micro-steps are accumulated as keep to it. A
    longer sample stands alone. 0: micro_batch decides."""
    recompute: Literal["none", "elementwise", "qkv", "attention", "mlp", "qkv+mlp", "full", "auto"] = "elementwise"
    """Gradient checkpointing: of every decoder layer's activations `elementwise` keeps the results of matrix products
    and of attention; `qkv`, `attention`, `mlp` or `qkv+mlp` of these are computed again in the backward pass as well;
    `full` keeps a layer's input alone, in the vision tower too. `none` keeps all that torch's operations save.
    `auto` takes for each micro-batch the mixture over layers that computes least again within `activation_budget`."""
    activation_budget: Annotated[float, Field(ge=0, le=10**6), FROM_TEXT] = 0.0
    """GiB that a micro-step's activations may take under `recompute: auto`. 0, on a GPU: what is free of it."""
    deepspeed: Text = "ds_configs/zero3.json"
    """DeepSpeed configuration; `auto` in it is filled from this recipe."""
    log_every: Annotated[int, Field(ge=1, le=10**9)] = 10
    """Steps between two lines in the log and points in the loggers."""
    loggers: Loggers = field(default_factory=lambda: ["tensorboard"])
    """Where numbers and recipe go beside the run's metrics.jsonl; `wandb` and `mlflow` need their packages."""
    checkpoint_epochs: Annotated[int, Field(ge=1, le=10**5)] = 1
    """Epochs between checkpoints; the run always ends with one."""
    checkpoint_steps: Steps = 0
    """Steps between further checkpoints within an epoch; 0 for none."""
    keep_last: Steps = 3
    """Checkpoints to keep, the latest ones; 0 keeps all."""
    keep_best: Steps = 0
    """Beside these, so many of the best ones, by `best_by`."""
    best_by: Literal["loss", "score"] = "loss"
    """Measure by which checkpoints are compared: the lowest loss on data.validation, or the highest score of an
    evaluation on it, which is then made beside every checkpoint of `checkpoint_epochs` with the first of
    `evaluation.captions`."""
    most_not_finite: Steps = 3
    """Steps of the run whose loss or gradient may be infinite or not a number: they update nothing. One more ends the
    run."""
    spike: Annotated[float, Field(ge=0, le=10**6), FROM_TEXT] = 0.0
    """Report steps whose loss lies so many standard deviations above the mean of the 100 steps before; 0 for none."""
    silence_timeout: Seconds = 120.0
    """Seconds without a sign of life from a rank after which the run ends, to be started again."""
    standstill_timeout: Seconds = 1800.0
    """Seconds without progress of a rank, loading of weights included, after which it is taken for hanging."""
    most_fruitless_starts: Annotated[int, Field(ge=1, le=10**6)] = 5
    """A Slurm job that was requeued and started as often from the same step ends as an error."""
    stop_at_step: Steps = 0
    """End with a checkpoint after this step of the run, from which the same command without it resumes; 0 for the
    recipe's whole length. Schedule and order are those of the whole run."""

    def micro_steps(self, ranks: int) -> int:
        """Micro-batches of a rank in one optimizer step, as micro_batch says it. Raises UserError if there are more
        ranks than samples."""
        if ranks > self.global_batch:
            raise UserError(
                f"training.global_batch: {counted(self.global_batch, 'sample')} cannot be shared by"
                f" {counted(ranks, 'rank')}; take fewer ranks, or a larger global batch"
            )
        return -(-self.global_batch // (self.micro_batch * ranks))


@dataclass(config=CONFIG)
class Search:
    """What `dsmemvp search` does. Every step trains with a random value of the setting, then scores some values on
    data.search and makes the better ones more likely."""

    epochs: Epochs = 2.0
    """Passes over the training set, or a part of one."""
    learning_rate: Annotated[float, Field(gt=0, le=1000), FROM_TEXT] = 1e-4
    """The same in all steps. All else is trained as `training` says."""
    rule: Literal["corrected", "published"] = "corrected"
    """How scores move the preferences: by the gradient of the expected score, each score against the mean of the
    others, or as DVP's code has it."""
    rate: Annotated[float, Field(gt=0, le=10**6), FROM_TEXT] = 0.02
    """Step size of the preferences. The published code has 0.005, and 10 on ScienceQA."""
    draws: Annotated[int, Field(ge=2, le=10**4)] = 10
    """Values drawn and scored after every step."""
    score: Literal["likelihood", "accuracy"] = "likelihood"
    """In percent: exp(-loss) of the answers' tokens, or how many answers are the likeliest tokens throughout."""
    batch: Annotated[int, Field(ge=0, le=2**20)] = 0
    """Samples of data.search that they are scored on, others after every step; 0: half of training.global_batch."""


@dataclass(config=CONFIG)
class Evaluation:
    batch: Samples = 16
    """Samples per forward. Part of what the scores follow from, by rounding; the number of ranks is not."""
    protocol: Literal["generate", "likelihood"] = "generate"
    """How a multiple-choice question is answered: by the letter that the model writes, or by the likeliest of the
    letters of its choices. All else is written by the model either way."""
    captions: list[bool] = field(default_factory=lambda: [False, True])
    """Evaluate with captions left out of the context, put into it, or both."""
    max_new_tokens: Tokens = 10
    """Most tokens decoded for an open answer, which ends sooner at its full stop; a multiple-choice answer takes as
    many as the tokenizer writes its letter in."""
    caption_tokens: Tokens = 40
    """Most tokens decoded for a caption or a turn of a conversation."""


@dataclass(config=CONFIG)
class Recipe:
    name: Text = ""
    """Name of the run; its folder is output/name, and so it is one component of a path."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initial values, order of samples and dropout."""
    output: Text = "runs"
    """Folder for run folders."""
    model: Model = field(default_factory=Model)
    vision: Vision = field(default_factory=Vision)
    method: Any = field(default_factory=method_settings)
    """Settings of the visual prompting method: those of its `Settings` (config/methods.py)."""
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    search: Search = field(default_factory=Search)
    stages: dict[str, Any] = field(default_factory=dict)
    """Of a method that trains in several stages: a stage's name, and what is other in it of `data` and `training`
    (config/stages.py). `start_from`: a run or a checkpoint that it starts from, instead of the stage before, which is
    then not trained."""

    def check(self) -> None:
        """The rules between fields. Raises UserError naming the key and what to do."""
        if problem := _no_folder(self.name):
            raise UserError(f"name: give the run a name that can be a folder, such as scienceqa-13b; {problem}")
        if self.model.quantize == "fp8" and self.model.dtype != "bf16":
            raise UserError(f"model.quantize: fp8 computes in model.dtype=bf16, not in {self.model.dtype}")
        if len(self.training.betas) != 2:
            raise UserError(f"training.betas: two numbers, not {self.training.betas}")
        if self.training.min_learning_rate > self.training.learning_rate:
            raise UserError(
                f"training.min_learning_rate: {self.training.min_learning_rate} is more than"
                f" training.learning_rate = {self.training.learning_rate}"
            )
        if self.training.warmup_epochs > self.training.epochs:
            raise UserError(
                f"training.warmup_epochs: {self.training.warmup_epochs} is more than"
                f" training.epochs = {self.training.epochs}"
            )
        if (self.training.schedule == "steps") != bool(self.training.step_epochs):
            raise UserError(
                "training.step_epochs: name the epochs at which the learning rate falls, which training.schedule ="
                " steps needs and no other schedule reads"
            )
        if self.training.micro_batch > self.training.global_batch:
            raise UserError(
                f"training.micro_batch: {self.training.micro_batch} is more than"
                f" training.global_batch = {self.training.global_batch}"
            )
        if self.data.passes and len(self.data.passes) != len(self.data.train):
            raise UserError(
                f"data.passes: {counted(len(self.data.passes), 'number')} for the"
                f" {counted(len(self.data.train), 'folder')} of data.train"
            )
        if self.training.keep_best and not self.data.validation:
            raise UserError("training.keep_best: give data.validation, on which is measured which is best")
        if self.training.best_by == "score" and not self.data.validation:
            raise UserError("training.best_by: give data.validation, on which the score is measured")
        if self.method.classifies() and self.evaluation.protocol == "likelihood":
            raise UserError(
                f"evaluation.protocol: likelihood is for answers in words; {self.method.name} classifies, take generate"
            )
        if self.vision.cache_features and self.vision.adapter_dim:
            raise UserError(
                "vision.cache_features: features change while adapters are trained; set vision.adapter_dim=0, or leave"
                " it out"
            )
        if self.vision.cache_features and (problem := _no_folder(self.vision.cache_features)):
            raise UserError(f"vision.cache_features: give a name that can be a folder, such as features; {problem}")
        if len(self.evaluation.captions) != max(1, len(set(self.evaluation.captions))):
            raise UserError("evaluation.captions: name false, true or both, each once")


def _no_folder(name: str) -> str:
    """Why this cannot be the name of a run's folder; empty if it can."""
    if not name:
        return "it has none"
    if "/" in name or name[0] in ".-":
        return f"{name[:40]!r} has a slash, or begins with a dot or a hyphen"
    if name != name.strip() or not name.isprintable():
        return f"{name[:40]!r} has characters that are not printable, or a space at an end"
    size = len(name.encode())
    return f"{name[:40] + '...'!r} has {size} bytes, more than {NAME_BYTES}" if size > NAME_BYTES else ""
