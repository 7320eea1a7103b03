"""The order of the house: imports inside the package point only backwards along the pipeline, and test files have names
of their own."""

import ast
from collections import Counter
from pathlib import Path

import dsmemvp

ROOT = Path(dsmemvp.__file__).parent
ORDER = [
    "errors",
    "json_text",
    "counting",
    "atomic_files",
    "dtypes",
    "host_values",
    "dropout",
    "log",
    "markdown",
    "progress",
    "distributed",
    "config",
    "data",
    "backbones",
    "prompts",
    "model",
    "building",
    "stages",
    "inputs",
    "convert",
    "planning",
    "data_tools",
    "fault_tolerance",
    "checkpoints",
    "training",
    "generation",
    "inspection",
    "evaluation",
    "comparison",
    "export",
    "submit",
    "doctor",
    "cli",
    "__main__",
]


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imported_rooms(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "dsmemvp":
            modules |= {f"dsmemvp.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return {m.split(".")[1] for m in modules if m.startswith("dsmemvp.")}


def test_imports_point_only_backwards():
    files = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]
    assert len(files) > 30
    for path in files:
        later = ORDER[ORDER.index(_room(path)) + 1 :]
        assert not _imported_rooms(path) & set(later), path


def test_only_the_rooms_of_ranks_and_training_import_deepspeed():
    for path in ROOT.rglob("*.py"):
        if _room(path) not in ("distributed", "training", "__init__"):
            tree = ast.parse(path.read_text())
            names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            assert not any(name.split(".")[0] == "deepspeed" for name in names), path


def test_no_two_files_of_tests_have_the_same_name():
    """pytest would not collect one of them."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert not [name for name, files in names.items() if files > 1]
