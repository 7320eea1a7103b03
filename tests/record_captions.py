"""Records what the official programs say about the captions in tests/golden, for tests/evaluation/test_captions.py:

    python tests/record_captions.py

It needs pycocoevalcap and Java. captions.json: captions with their references, and the scores of the official
evaluation (the classes that COCOEvalCap calls, in its order). ptb.jsonl: texts and the words that its tokeniser leaves.
"""

import json
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

GOLDEN = Path(__file__).parent / "golden"


def main() -> None:
    path = GOLDEN / "captions.json"
    images = json.loads(path.read_text(encoding="utf-8"))["images"]
    split = PTBTokenizer()
    references = split.tokenize({i: [{"caption": c} for c in image["references"]] for i, image in enumerate(images)})
    captions = split.tokenize({i: [{"caption": image["caption"]}] for i, image in enumerate(images)})
    bleu = Bleu(4).compute_score(references, captions, verbose=0)[0]
    meteor = Meteor()
    official = {
        "CIDEr": float(Cider().compute_score(references, captions)[0]),
        "BLEU-4": bleu[3],
        "METEOR": meteor.compute_score(references, captions)[0],
        "ROUGE-L": float(Rouge().compute_score(references, captions)[0]),
    }
    counts = [list(map(float, meteor._stat(captions[i][0], references[i]).split())) for i in captions]
    rows = [json.dumps(image, ensure_ascii=False) for image in images]
    path.write_text(
        '{"images": [\n'
        + ",\n".join(rows)
        + '\n], "official": '
        + json.dumps(official)
        + ',\n"meteor_counts": [\n'
        + ",\n".join(map(json.dumps, counts))
        + "\n]}\n",
        encoding="utf-8",
    )

    path = GOLDEN / "ptb.jsonl"
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    words = split.tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    lines = [json.dumps({"text": t, "words": words[i][0]}, ensure_ascii=False) for i, t in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
