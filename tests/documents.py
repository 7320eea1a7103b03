"""README.md and docs/ as data: code blocks with the comments that say what runs them, links and headings."""

import re
from dataclasses import dataclass
from pathlib import Path

ONE_PROCESS, CLUSTER, NEEDS = "one process", "cluster", "needs "
FENCE = re.compile(
    r"^(?:[ ]*<!-- test: (?P<said>[^\n]+) -->\n)?"
    r"(?P<indent>[ ]*)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)
LANGUAGES = {"bash", "python", "text"}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    said: str
    """What the comment above says: ONE_PROCESS, CLUSTER, NEEDS and a reason, a file that runs it, a page that has the
    same lines; empty if there is none."""
    text: str

    def commands(self) -> list[str]:
        """The lines of the shell, without comments, those of a loop included."""
        lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in self.text.replace("\\\n", "").splitlines())
        return [line for line in lines if line]


def pages(repository: Path) -> list[Path]:
    """What a reader may be sent to; benchmarks/RESULTS.md is a log of what was run."""
    folders = [repository / name / "README.md" for name in ("slurm", "ds_configs")]
    return [repository / "README.md", *sorted((repository / "docs").glob("*.md")), *folders]


def blocks(repository: Path) -> list[Block]:
    found = []
    for path in pages(repository):
        text = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            inside = re.sub(f"^{match['indent']}", "", match["text"], flags=re.M)
            line = text[: match.start("indent")].count("\n") + 1
            found.append(Block(str(path.relative_to(repository)), line, match["language"], match["said"] or "", inside))
    return found


def run_by(repository: Path, kind: str) -> dict[str, list[Block]]:
    """Page -> its blocks of this kind, in their order."""
    chosen: dict[str, list[Block]] = {}
    for block in blocks(repository):
        if block.said == kind:
            chosen.setdefault(block.page, []).append(block)
    return chosen


def prose(text: str) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))
