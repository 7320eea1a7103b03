"""After `make demo`: image questions must be answered at least 30 points better than by the blind model."""

import json
import sys
from pathlib import Path

RUN = Path(__file__).parent.parent / "runs" / "demo"

seeing = json.loads((RUN / "evaluation.json").read_text())["accuracy"]["captions off"]["IMG"]
blind = json.loads((RUN / "evaluation-blind.json").read_text())["accuracy"]["captions off, blind"]["IMG"]
print(f"demo: image questions {seeing:.2f}, blind {blind:.2f}")
sys.exit(0 if seeing >= blind + 30 else "demo: seeing does not help by 30 points")
