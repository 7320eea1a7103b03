"""Scores of captions as the COCO evaluation counts them: CIDEr(-D), BLEU-4, METEOR and ROUGE-L.

CIDEr, BLEU and ROUGE-L are those of pycocoevalcap, the official scorers (`pip install 'dsmemvp[captions]'`), on texts
split by ptb.py. METEOR (meteor.py) also needs Java, and is left out if there is none. Nothing of the package is
copied here: it names no licence, and its file that counts BLEU forbids commercial use. SPICE is left out: it needs Java
and parsers that are downloaded at run time, and the libraries that count it without Java count something else.

Intervals (confidence.py): BLEU-4 and METEOR are scores of a corpus, so the sums that they are made of are resampled;
CIDEr and ROUGE-L are means over captions, CIDEr's with the document frequencies of all references held fixed.
"""

import importlib.util
import shutil
import warnings
from collections.abc import Sequence

import numpy as np

from dsmemvp.evaluation.confidence import Score, mean_score, score_of_sums
from dsmemvp.evaluation.meteor import meteor_formula, meteor_sums
from dsmemvp.evaluation.ptb import split_caption

CAPTION_COLUMNS = ("CIDEr", "BLEU-4", "METEOR", "ROUGE-L")
ORDER = 4
"""The longest n-grams of BLEU-4."""
SMALL, TINY = 1e-9, 1e-15
"""What the official scorer adds below and above the line, so that nothing is divided by zero."""


def missing() -> list[str]:
    """What scores of captions cannot be counted here, and what to install; nothing if all can."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return [
            f"captions: {', '.join(CAPTION_COLUMNS)} need the package pycocoevalcap: pip install 'dsmemvp[captions]'; "
            "then score the predictions again, without a model: dsmemvp score predictions.jsonl"
        ]
    if shutil.which("java") is None:
        return [
            "captions: METEOR needs Java, and there is no java on PATH (Debian: apt-get install default-jre-headless); "
            "then score the predictions again, without a model: dsmemvp score predictions.jsonl"
        ]
    return []


def caption_scores(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    """One caption and its references per image, in CIDEr's and per cent's usual units (times 100). All images are
    scored together: CIDEr weighs words by how many images' references have them. Without the package, nothing;
    without Java, or if it fails (a warning says how), all but METEOR."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return {}
    texts = [split_caption(text) for text in predicted]
    given = [[split_caption(text) for text in several] for several in references]
    scores = {
        "CIDEr": mean_score(_cider(texts, given)),
        "BLEU-4": score_of_sums(_bleu_sums(texts, given), lambda sums, n: bleu_formula(sums)),
    }
    if shutil.which("java") is not None:
        try:
            scores["METEOR"] = score_of_sums(meteor_sums(texts, given), lambda sums, n: meteor_formula(sums))
        except (ValueError, OSError) as error:  # hours of decoding must not end without the other scores
            warnings.warn(f"captions: METEOR is left out: {error}", stacklevel=2)
    scores["ROUGE-L"] = mean_score(_rouge(texts, given))
    return scores


def _cider(texts: list[str], references: list[list[str]]) -> np.ndarray:
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer()
    for text, given in zip(texts, references, strict=True):
        scorer += (text, given)
    return np.asarray(scorer.compute_score()[1])


def _rouge(texts: list[str], references: list[list[str]]) -> np.ndarray:
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    return np.array([scorer.calc_score([text], given) for text, given in zip(texts, references, strict=True)])


def _bleu_sums(texts: list[str], references: list[list[str]]) -> np.ndarray:
    """Per image [N, 10]: the caption's length, the closest reference's, n-grams in the caption (1 to 4), and those of
    them that a reference has."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=ORDER)
    for text, given in zip(texts, references, strict=True):
        scorer += (text, given)
    rows = []
    for counts in scorer.ctest:
        length = counts["testlen"]
        closest = min((abs(other - length), other) for other in counts["reflen"])[1]
        rows.append([length, closest, *counts["guess"], *counts["correct"]])
    return np.array(rows, dtype=np.float64)


def bleu_formula(sums: np.ndarray) -> np.ndarray:
    """BLEU-4 in per cent [...] from sums of _bleu_sums's rows [..., 10]: the geometric mean of the four precisions,
    times exp(1 - references' length / captions' length) if captions are shorter (Papineni et al., 2002)."""
    length, closest = sums[..., 0], sums[..., 1]
    guessed, correct = sums[..., 2 : 2 + ORDER], sums[..., 2 + ORDER :]
    mean = np.prod((correct + TINY) / (guessed + SMALL), axis=-1) ** (1 / ORDER)
    ratio = (length + TINY) / (closest + SMALL)
    # a corpus of empty captions has a ratio near zero, and exp of a number that is far below what can be written
    return 100 * mean * np.exp(np.minimum(0, 1 - 1 / ratio))
