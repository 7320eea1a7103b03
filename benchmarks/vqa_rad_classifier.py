"""How much a picture can add on VQA-RAD: a classifier of answers that reads the whole question, with and without the
features of DINOv2. It is no method of this project; it says what there is to be seen with this tower.

    python benchmarks/vqa_rad_classifier.py --questions "raw/vqa_rad/VQA_RAD Dataset Public.json" \\
        --images raw/vqa_rad/VQA_RAD_Image_Folder --tower data/parts/dinov2

Kernel ridge regression on one-hot answers. The kernel of two questions is the cosine of their words and pairs of words
to the power p; with pictures it is times 1 + c exp(4 g (s - 1)), where s is the cosine of their features (class token,
mean and maximum of the patches at 224 x 224 pixels). p, g and the ridge are chosen for each c by cross-validation on
the training questions in five parts: `known`, drawn question by question, so that a picture is in several parts, and
`new`, drawn picture by picture. Test questions are those as published, whose pictures are nearly all in training.
"""

import argparse
import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel

from data_prep.plan import Planned
from data_prep.vqa_rad import plan_rows
from dsmemvp.data.sample import SampleError

MEAN, STD, PIXELS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224
WEIGHTS = (0.0, 0.3, 1.0, 3.0)
POWERS, SHARPNESS, RIDGES = (1, 2, 3), (0.0, 1.0, 4.0), (0.1, 0.3, 1.0, 3.0)
PARTS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--tower", type=Path, required=True)
    given = parser.parse_args()
    train, test = (_rows(given.questions, split) for split in ("train", "test"))
    rows = [*train, *test]
    words = _words([row.fields["question"] for row in rows], len(train))
    names = sorted({str(row.image) for row in rows})
    seen = _features([given.images / name for name in names], given.tower)[
        [names.index(str(row.image)) for row in rows]
    ]
    asked, alike = words @ words.T, seen @ seen.T
    answers = [row.fields["answer"].strip(" .") for row in rows]
    known = {answer: n for n, answer in enumerate(dict.fromkeys(answers[: len(train)]))}
    right = np.array([known.get(answer, -1) for answer in answers])
    wanted = np.eye(len(known))[right[: len(train)]]

    def predicted(settings: tuple, seen_in: np.ndarray, asked_of: np.ndarray) -> np.ndarray:
        weight, power, sharpness, ridge = settings
        kernel = asked[:, seen_in] ** power * (1 + weight * np.exp(4 * sharpness * (alike[:, seen_in] - 1)))
        square = kernel[seen_in] + ridge * (1 + weight) * np.eye(len(seen_in))
        return (kernel[asked_of] @ np.linalg.solve(square, wanted[seen_in])).argmax(1)

    rng, everything = np.random.default_rng(0), np.arange(len(train))
    drawn = {"known": rng.integers(PARTS, size=len(train))}
    of_pictures = dict(zip(names, rng.integers(PARTS, size=len(names)), strict=True))
    drawn["new"] = np.array([of_pictures[str(row.image)] for row in train])
    print("| parts | c | cross-validated | test | test less c = 0, paired |\n|---|---:|---:|---:|---:|")
    for how, part in drawn.items():
        alone = None
        for weight in WEIGHTS:
            sharp = SHARPNESS if weight else SHARPNESS[:1]
            scores = {}
            for settings in itertools.product([weight], POWERS, sharp, RIDGES):
                hits = [predicted(settings, everything[part != n], everything[part == n]) for n in range(PARTS)]
                wrong = sum((own != right[everything[part == n]]).sum() for n, own in enumerate(hits))
                scores[settings] = 1 - wrong / len(train)
            best = max(scores, key=scores.__getitem__)
            ok = predicted(best, everything, np.arange(len(train), len(rows))) == right[len(train) :]
            alone = ok if alone is None else alone
            apart = ok.astype(float) - alone
            half = 1.96 * apart.std(ddof=1) / len(apart) ** 0.5
            print(
                f"| {how} | {weight:g} | {100 * scores[best]:.1f} | {100 * ok.mean():.1f} |"
                f" {100 * apart.mean():.1f} ± {100 * half:.1f} |",
                flush=True,
            )


def _rows(questions: Path, split: str) -> list[Planned]:
    """Raises SampleError for a damaged one."""
    rows = []
    for row in plan_rows(questions, split):
        if isinstance(row, SampleError):
            raise row
        rows.append(row)
    return rows


def _words(questions: list[str], fitted: int) -> np.ndarray:
    """[N, W] unit rows: words and pairs of words that at least two of the first `fitted` questions have."""
    texts = [re.findall(r"[a-z0-9]+", question.lower()) for question in questions]
    terms = [{*text, *itertools.pairwise(text)} for text in texts]
    counts = Counter(itertools.chain.from_iterable(terms[:fitted]))
    place = {term: n for n, term in enumerate(term for term, count in counts.items() if count > 1)}
    rows = np.zeros((len(terms), len(place)))
    for row, own in zip(rows, terms, strict=True):
        row[[place[term] for term in own if term in place]] = 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9)


@torch.no_grad()
def _features(pictures: list[Path], tower: Path) -> np.ndarray:
    """[N, 3 v] unit rows, each feature standardised."""
    model = AutoModel.from_pretrained(tower, dtype=torch.float32).eval()
    found = []
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BICUBIC))
        image = torch.tensor((pixels / 255.0 - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1)
        hidden = model(image[None]).last_hidden_state[0]
        found.append(torch.cat([hidden[0], hidden[1:].mean(0), hidden[1:].amax(0)]))
    rows = torch.stack(found).double().numpy()
    rows = (rows - rows.mean(0)) / rows.std(0).clip(1e-6)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
