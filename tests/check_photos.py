"""After `make photos PHOTOS=FOLDER HELD_OUT=200` on the 1,200 photographs of shared/data/flowers: at least 80 % of the
held-out ones are named, and at least 50 points more than without looking."""

import json
import sys
from pathlib import Path

RUN = Path(__file__).parent.parent / "runs" / "photos"

seeing = json.loads((RUN / "evaluation-captions-off.json").read_text())["accuracy"]["captions off"]["Avg"]
blind = json.loads((RUN / "evaluation-captions-off-blind.json").read_text())["accuracy"]["captions off, blind"]["Avg"]
print(f"photos: {seeing:.2f}, blind {blind:.2f}")
sys.exit(0 if seeing >= max(80, blind + 50) else "photos: 80 % and 50 points over blind are not reached")
