"""P-Former (Jian et al., NeurIPS 2023, arXiv 2307.07063): prompts that a frozen language model wants are learned from
text alone, then the Q-Former's prompts of a picture are pulled towards those of its caption.

    text        p_hat = P-Former(caption)       L_LM(caption | p_hat) + L_contrast + L_vocabulary
    align       p = Wproj Q-Former(image)       ITC + ITM + ITG + w1 align(p, p_hat)      no language model
    generate                                    L_LM(caption | p) + w2 align(p, p_hat)
    finetune                                    L_LM(answer | p, question)

P-Former is frozen after the first stage and takes no part in inference. T tokens in the pack, B samples, N of them
pairs, I images, P image tokens, v width of the vision tower, n prompts, H width of BERT, d width of the language model.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from dsmemvp.backbones.linear import Linear
from dsmemvp.data.batch import Batch, Captions
from dsmemvp.data.captions import CaptionText
from dsmemvp.data.layout import Reserved
from dsmemvp.dropout import image_keys
from dsmemvp.errors import UserError
from dsmemvp.host_values import from_host
from dsmemvp.prompts.interface import Site, Sizes, Stage, State, Tower, VisualPrompt
from dsmemvp.prompts.pformer.bert import Noise
from dsmemvp.prompts.pformer.contrast import Gathering, caption_contrast
from dsmemvp.prompts.pformer.pairs import PairHeads, Pairs, alignment, likeness, pair_losses
from dsmemvp.prompts.pformer.published import Published
from dsmemvp.prompts.pformer.qformer import QFormer, TextBranch
from dsmemvp.prompts.pformer.settings import Settings
from dsmemvp.prompts.pformer.text import PFormer, corrupted, rows_of, variances, vocabulary_losses
from dsmemvp.prompts.pformer.weights import begin, check_vocabulary, text_config, text_tokenizer

PLACES = "prompts"
CAPTION_LOSSES, PAIR_LOSSES = ("contrast", "vocabulary"), ("itc", "itm", "itg")


class Method(VisualPrompt):
    description = (
        "P-Former (Jian et al., NeurIPS 2023, arXiv 2307.07063; re-implementation from the published description and"
        " the authors' released code): a Q-Former's prompts of a picture, trained towards those that the language model"
        " wants for its caption"
    )

    acts_in_tower = False
    published = Published()

    @classmethod
    def describe(cls, settings: Settings) -> dict[str, str]:
        weights = {name: settings.weight(name) for name in settings.stages}
        aligned = ", ".join(f"{weight:g} in {name}" for name, weight in weights.items() if weight)
        where = "behind BOS" if settings.layout == "bos_prompts" else "before BOS"
        return {
            "prompts": f"{settings.prompts} {where}",
            "stages": ", ".join(settings.stages) + (", cheap" if settings.schedule == "cheap" else ""),
            "alignment": f"{settings.alignment}, {aligned}" if aligned else "none",
        }

    @classmethod
    def build(cls, settings: Settings, sizes: Sizes) -> "Method":
        return cls(settings, sizes)

    def __init__(self, settings: Settings, sizes: Sizes):
        """Raises UserError for a BERT that does not fit."""
        super().__init__()
        config = text_config(settings.text_encoder, settings.text_shape)
        if settings.text_length > config.max_position_embeddings:
            raise UserError(
                f"method.text_length: {settings.text_length} tokens are more than the {config.max_position_embeddings}"
                " positions of the text encoder"
            )
        self.settings, self.begin_token = settings, config.vocab_size
        prompts, width, features = settings.prompts, config.hidden_size, settings.features
        self.pformer = PFormer(config, prompts, sizes.language_width, features, settings.temperature)
        self.qformer = QFormer(config, prompts, sizes.vision_width, settings.cross_every)
        self.text = TextBranch(config, config.vocab_size + 1)
        self.pairs = PairHeads(width, features, settings.temperature)
        self.projection = Linear(width, sizes.language_width)
        begin(self.pformer.encoder, self.qformer, self.text, config, settings.text_encoder)
        self.begin_stage(self.stages()[-1])

    def stages(self) -> Sequence[Stage]:
        return self.settings.run_stages()

    def teacher(self, stage: Stage) -> nn.Module | None:
        return self.pformer if stage.losses.get("align") else None

    def begin_stage(
        self, stage: Stage, teacher: nn.Module | None = None, vocabulary_Vd: torch.Tensor | None = None
    ) -> None:
        self.stage = stage
        # in tuples: neither is the method's to shard or to save
        self._teacher: tuple[nn.Module, ...] = () if teacher is None else (teacher,)
        self._vocabulary: tuple[torch.Tensor, ...] = () if vocabulary_Vd is None else (vocabulary_Vd,)

    def caption_vectors(self, captions: Captions) -> torch.Tensor:
        teacher: Any = self._teacher[0]
        return teacher.encoder(captions.tokens_BL, captions.mask_BL, Noise())

    def captions(self) -> CaptionText | None:
        """Raises UserError for a tokenizer that is not the BERT's."""
        settings, stage, of = self.settings, self.stage.name, self.settings.align_text
        if stage == "finetune" and of == "none":
            return None
        tokenizer = text_tokenizer(settings)
        check_vocabulary(tokenizer, self.begin_token)
        if stage == "finetune" and of != "none":
            return CaptionText(tokenizer, settings.text_length, of=of)
        return CaptionText(
            tokenizer,
            settings.text_length,
            mask=settings.masked if stage == "text" else 0.0,
            target=True,
            supervise_bos=settings.layout == "prompts_bos",
        )

    def reserved(self) -> Sequence[Reserved]:
        anchor: Literal["start", "front"] = "front" if self.settings.layout == "bos_prompts" else "start"
        return (Reserved(PLACES, self.settings.prompts, anchor, without_image=self.stage.name == "text"),)

    def schedule(self, depths: Mapping[Tower, int]) -> list[Site]:
        """The towers that the stage has."""
        left_out = ("vision",) if self.stage.name == "text" else () if self.stage.decoder else ("decoder",)
        return [site for site in super().schedule(depths) if site.tower not in left_out]

    def begin(self, batch: Batch) -> State:
        """Of the stage `text`: `prompts` [B, n, d], and their class vectors."""
        if self.stage.name != "text":
            return {}
        captions = _given(batch)
        tokens_BL = corrupted(captions)
        vector_BH = self.pformer.encoder(tokens_BL, captions.mask_BL, self._noise(batch, "text", tokens_BL.shape[1]))
        return {"vector": vector_BH, "prompts": self.pformer.head(vector_BH)}

    def taught(self, batch: Batch) -> State:
        rows = [b for b, image in enumerate(batch.image_rows) if image >= 0] or [0]
        return {"prompts": self._teacher[0](rows_of(_given(batch), rows), Noise())}

    def finish(self, tower: Tower, output: torch.Tensor, state: State, batch: Batch) -> State:
        """Of the vision tower: `seen` [max(I, 1), n, d], the prompts, and in the stage `align` its losses."""
        if tower == "decoder":
            return state
        noise = self._image_noise(batch, len(output))
        queries_InH, past = self.qformer.look(output, noise)
        if not self.stage.losses.keys() & set(PAIR_LOSSES):
            return state | {"seen": self.projection(queries_InH)}
        rows, images, weight = self._pairs(batch)
        own = {"seen": self.projection(queries_InH)} if self.stage.losses.get("align") else {}
        captions = _given(batch)
        pairs = Pairs(
            output[images],
            queries_InH[images],
            [(key[images], value[images]) for key, value in past],
            captions.tokens_BL[rows],
            captions.mask_BL[rows].sum(1),
            image_keys(batch.sample_ids[rows], 1, batch.dropout_seed + 1)[:, 0],
            noise.of(images),
            self._noise(batch, "pairs", captions.tokens_BL.shape[1]).of(rows),
        )
        gathering = Gathering.of(len(rows) if weight else 0, output.device)
        losses = pair_losses(
            pairs, gathering, self.qformer, self.text, self.pairs, self.begin_token, self.settings.smoothing
        )
        return state | own | {name: loss * weight for name, loss in losses.items()}

    def enter(self, site: Site, hidden: torch.Tensor, state: State, batch: Batch) -> torch.Tensor:
        """Prompts take their places on entering the decoder. Later steps of decoding find them in the cache."""
        if site != ("decoder", 0) or not state.keys() & {"prompts", "seen"}:
            return hidden
        places = batch.places[PLACES]
        prompts = state["prompts"] if "prompts" in state else state["seen"]
        if places.numel() == 0:
            return hidden + 0.0 * prompts.sum()  # they enter the graph with weight zero
        if "seen" in state:
            prompts = prompts[[row for row in batch.image_rows if row >= 0]]
        return hidden.index_copy(1, places, prompts.flatten(0, 1).to(hidden.dtype)[None])

    def losses(self, state: State, batch: Batch) -> dict[str, torch.Tensor]:
        if self.stage.name == "text":
            return self._caption_losses(state, batch)
        found = {name: state[name] for name in PAIR_LOSSES if name in state}
        if not self._teacher or "seen" not in state or batch.captions is None:
            return found
        rows, images, weight = self._pairs(batch)
        captions = batch.captions
        noise = Noise()
        if self.settings.target_dropout:
            noise = self._noise(batch, "teacher", captions.tokens_BL.shape[1]).of(rows)
        with torch.no_grad():
            reference_Nnd = self._teacher[0](rows_of(captions, rows), noise)
        prompts_Nnd = state["seen"][images]
        scaled = self.settings.alignment == "scaled"
        found["align"] = weight * alignment(prompts_Nnd, reference_Nnd, scaled).sum()
        found["cosine"] = weight * likeness(prompts_Nnd, reference_Nnd).sum()
        return found

    def loss_counts(self, batch: Batch) -> dict[str, int]:
        captions = batch.captions
        if captions is None:
            return {}
        if self.stage.name == "text":
            counted = dict.fromkeys(("contrast", "vocabulary", "variance", "distance"), _real(captions))
            return counted | {"reconstructed": _real(captions), "token_accuracy": batch.targets.shape[0]}
        rows, _, weight = self._pairs(batch)
        pairs = len(rows) if weight else 0
        written = sum(captions.lengths[row] - 1 for row in rows) if weight else 0
        return {"itc": pairs, "itm": 3 * pairs, "itg": written, "align": pairs, "cosine": pairs}

    def _caption_losses(self, state: State, batch: Batch) -> dict[str, torch.Tensor]:
        """Of the stage `text`. All ranks call it together."""
        captions, pformer, settings = _given(batch), self.pformer, self.settings
        real = _real(captions)
        vectors = [state["vector"]]
        if settings.views == 2:
            tokens_BL = corrupted(captions)
            noise = self._noise(batch, "second view", tokens_BL.shape[1])
            vectors.append(pformer.encoder(tokens_BL, captions.mask_BL, noise))
        views = [pformer.contrast(vector_BH) for vector_BH in vectors]
        gathering = Gathering.of(real, batch.tokens.device)
        contrast = caption_contrast(views, pformer.contrast.temperature, gathering, settings.smoothing)
        found = {"contrast": contrast, "variance": variances(state["prompts"]).sum()}
        if self._vocabulary:
            squares_B, distances_B = vocabulary_losses(state["prompts"], self._vocabulary[0])
            found |= {"vocabulary": squares_B.sum(), "distance": distances_B.sum()}
        if "logits" in state:
            right_S = state["logits"].argmax(-1) == batch.targets
            found |= {"reconstructed": _all_right(right_S, batch), "token_accuracy": right_S.sum().float()}
        return {name: value * float(real > 0) for name, value in found.items()}

    def _pairs(self, batch: Batch) -> tuple[list[int], list[int], float]:
        """Samples with a caption and an image, the rows of their images, and 1; or any one, and weight 0."""
        lengths = batch.captions.lengths if batch.captions is not None else ()
        rows = [b for b, length in enumerate(lengths) if length and batch.image_rows[b] >= 0]
        return (rows, [batch.image_rows[b] for b in rows], 1.0) if rows else ([0], [0], 0.0)

    def _noise(self, batch: Batch, place: str, length: int) -> Noise:
        """Of a caption's tokens."""
        if not self.training or not self.settings.dropout:
            return Noise()
        return Noise(self.settings.dropout, image_keys(batch.sample_ids, length, batch.dropout_seed)).at(place)

    def _image_noise(self, batch: Batch, images: int) -> Noise:
        """Of an image's queries."""
        if not self.training or not self.settings.dropout:
            return Noise()
        return Noise(self.settings.dropout, batch.image_dropout(images, self.settings.prompts).keys).at("queries")


def _given(batch: Batch) -> Captions:
    assert batch.captions is not None, "the stage reads captions, and the batch has none"
    return batch.captions


def _all_right(right_S: torch.Tensor, batch: Batch) -> torch.Tensor:
    """How many samples have all of their supervised tokens right: each is then the likeliest one behind its true
    beginning, so that greedy decoding writes the sample's text."""
    counts = from_host(batch.supervised_counts, right_S.device)
    sample_S = torch.arange(batch.size, device=right_S.device).repeat_interleave(counts, output_size=len(right_S))
    wrong_B = torch.zeros(batch.size, device=right_S.device).index_add(0, sample_S, (~right_S).float())
    return (wrong_B == 0).sum().float()


def _real(captions: Captions) -> int:
    """Captions in the batch; of a lone token none."""
    return sum(length > 0 for length in captions.lengths)
