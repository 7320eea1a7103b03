"""README.md and docs/: every command is run or at least parsed, every key, option and link exists."""

import argparse
import contextlib
import importlib
import io
import re
import runpy
import shlex
from pathlib import Path

import pytest
from documents import CLUSTER, LANGUAGES, NEEDS, ONE_PROCESS, Block, anchors, blocks, links, pages, prose
from test_house import ORDER

from dsmemvp.cli import main as cli
from dsmemvp.config.reading import read_recipe
from dsmemvp.errors import UserError
from dsmemvp.planning.deepspeed_file import read_settings

REPOSITORY = Path(__file__).resolve().parents[1]

README_LINES = 150
BLOCKS = blocks(REPOSITORY)
SHELL = [block for block in BLOCKS if block.language == "bash"]
OTHERS = {
    "pip",
    "git",
    "cd",
    "head",
    "tail",
    "docker",
    "apptainer",
    "salloc",
    "squeue",
    "for",
    "done",
    "module",
    "source",
    "exec",
}
"""Programs and words of the shell whose arguments are not looked at here."""
OPTIONS_OF_OTHERS = {"--help", "--allow-run-as-root", "--ntasks-per-node", "--gpus-per-node", "--signal"}
METHODS = ("memvp", "input_space", "dvp", "mitp", "mitp_encoders", "pformer")


def _name(block: Block) -> str:
    return f"{block.page}:{block.line}"


def test_the_readme_fits_a_page(repository):
    assert len((repository / "README.md").read_text().splitlines()) <= README_LINES


def test_every_page_of_docs_is_named_in_the_readme(repository):
    linked = set(links((repository / "README.md").read_text()))
    assert {f"docs/{path.name}" for path in (repository / "docs").glob("*.md")} <= linked


@pytest.mark.parametrize("page", pages(REPOSITORY), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in links(page.read_text()):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file.read_text()), link


@pytest.mark.parametrize("page", pages(REPOSITORY), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_commands_stand_in_fenced_blocks_only(page):
    rest = prose(page.read_text())
    assert "```" not in rest
    assert not re.findall(r"^    \S.*$", rest, re.M)


@pytest.mark.parametrize("block", BLOCKS, ids=_name)
def test_every_block_is_accounted_for(block, repository):
    assert block.language in LANGUAGES
    if block.language == "text":
        return
    assert block.said, "say above it what runs it: <!-- test: ... -->"
    if block.said in (ONE_PROCESS, CLUSTER) or block.said.startswith(NEEDS):
        return
    file = repository / block.said
    assert file.is_file(), block.said
    if file.suffix == ".md":
        there = {line for other in BLOCKS if other.page == block.said for line in other.commands()}
        assert set(block.commands()) <= there
    elif file.name == "run":
        assert all(re.search(rf"^{_make(line)}\b", file.read_text(), re.M) for line in block.commands() if _make(line))
    else:
        text, words = file.read_text(), {word for line in block.commands() for word in shlex.split(line)}
        assert block.page in text or words & {"sbatch", "srun", "mpirun", "deepspeed"}, "nothing there reads this page"


def _make(line: str) -> str:
    """The target of make that CI runs for a line; `install` is part of each."""
    found = re.search(r"\bmake .*?(\w[\w-]*)$", line)
    return "make " + found[1].replace("install", "demo") if found else ""


def test_the_rooms_are_explained_in_their_order(repository):
    text = (repository / "docs" / "contributing.md").read_text()
    rooms = re.findall(r"`dsmemvp/(\w+)`", text[text.index("| room |") : text.index("`ds_configs/`, `slurm/`")])
    assert rooms == [room for room in ORDER if room != "__main__"]


# ---- every command is parsed by what will parse it


class _Parsed(BaseException):
    pass


@pytest.fixture
def parses(monkeypatch, repository):
    """Parsers parse and refuse as always; what would run afterwards does not."""
    seen: list[argparse.Namespace] = []
    known, whole = argparse.ArgumentParser.parse_known_args, argparse.ArgumentParser.parse_args

    def parse_known_args(self, *given):
        namespace, rest = known(self, *given)
        namespace.run = seen.append
        return namespace, rest

    def parse_args(self, *given):
        whole(self, *given)
        raise _Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.chdir(repository)

    def parse(words: list[str]) -> None:
        if words[0] == "dsmemvp":
            assert cli.main(words[1:]) == 0
            _read(seen.pop())
            return
        monkeypatch.setattr("sys.argv", words)
        with contextlib.suppress(_Parsed):
            if words[0].endswith(".py"):
                assert Path(words[0]).is_file(), words
                if len(words) > 1:
                    monkeypatch.syspath_prepend(Path(words[0]).parent)  # as Python does for a file that it runs
                    runpy.run_path(words[0], run_name="__main__")
                    pytest.fail(f"{words} was run, not parsed")
            else:
                importlib.import_module(words[0]).main()
                pytest.fail(f"{words} was run, not parsed")

    return parse


def _read(given: argparse.Namespace) -> None:
    """The recipe and the settings of a command line, as a run would read them."""
    if isinstance(recipe := getattr(given, "recipe", None), Path):
        read_settings(Path(read_recipe(recipe, getattr(given, "overrides", ())).training.deepspeed))


def _program(words: list[str]) -> list[str] | None:
    """The words from dsmemvp, data_prep.NAME or a benchmark's file on; None if there is none of them."""
    for i, word in enumerate(words):
        if re.fullmatch(r"slurm/\w+\.sbatch", word):
            started = {"train": ["dsmemvp", "train"], "evaluate": ["dsmemvp", "evaluate"]}.get(Path(word).stem)
            if started:
                return [*started, *words[i + 1 :]]
            if word == "slurm/prepare.sbatch":
                return [f"data_prep.{words[i + 1]}", *words[i + 2 :]]
            assert (REPOSITORY / word).is_file(), word
            return None
        module = i > 0 and words[i - 1] in ("-m", "--module")
        if (word == "dsmemvp" and (module or i == 0 or words[0] == "srun")) or (
            module and word.startswith("data_prep.")
        ):
            return words[i:]
        if re.fullmatch(r"benchmarks/\w+\.py", word):
            return words[i:]
    return None


@pytest.mark.parametrize("block", SHELL, ids=_name)
def test_every_command_is_one_that_its_program_takes(block, parses, repository):
    for line in block.commands():
        words = shlex.split(line)
        while re.match(r"\w+=", words[0]):
            words = words[1:]
        words = [word.replace("$split", "train") for word in words]
        if program := _program(words):
            parses(program)
        elif "make" in words:
            target = next(word for word in words[words.index("make") + 1 :] if "=" not in word)
            assert re.search(rf"^{target}:", (repository / "Makefile").read_text(), re.M), line
        else:
            assert words[0] in OTHERS or "slurm/" in line, line


# ---- what the prose names


def _help(*words: str) -> str:
    with contextlib.redirect_stdout(text := io.StringIO()), contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    return text.getvalue()


def _commands() -> list[str]:
    found = re.search(r"\{([\w,]+)\}", _help())
    assert found
    return found[1].split(",")


def test_every_command_is_named_in_the_readme_and_in_the_reference(repository):
    for page in ("README.md", "docs/reference.md"):
        text = (repository / page).read_text()
        assert not [command for command in _commands() if f"`dsmemvp {command}" not in text], page


def _spans() -> list[tuple[str, str]]:
    return [
        (str(page.relative_to(REPOSITORY)), span.replace("\n", " ").replace("\\|", "|"))
        for page in pages(REPOSITORY)
        for span in re.findall(r"`([^`]+)`", prose(page.read_text()))
    ]


def test_commands_and_options_in_the_prose_exist():
    helps: dict[str, str] = {}
    for page, span in _spans():
        words = re.findall(r"[^\s\[\]|]+", span)
        if words[0] != "dsmemvp" or len(words) < 2 or not words[1].islower():
            continue
        command = words[1:3] if words[1] == "data" else words[1:2]
        assert command[0] in _commands(), (page, span)
        text = helps.setdefault(" ".join(command), _help(*command))
        for option in re.findall(r"--[a-z][\w-]*", span):
            assert re.search(rf"{option}\b", text), (page, span)


def test_options_that_stand_alone_in_the_prose_exist():
    programs = [
        path.read_text() for folder in ("dsmemvp/cli", "data_prep") for path in (REPOSITORY / folder).glob("*.py")
    ]
    options = set(re.findall(r'"(--[a-z][\w-]*)"', "".join(programs))) | OPTIONS_OF_OTHERS
    for page, span in _spans():
        if re.match(r"--[a-z]", span):
            assert re.split(r"[ =]", span)[0] in options, (page, span)


def test_recipe_keys_in_the_prose_exist(tmp_path):
    recipe = tmp_path / "bare.yaml"
    recipe.write_text("name: bare\n")
    groups = "model|vision|method|data|training|evaluation"
    for page, span in _spans():
        for key in re.findall(rf"(?:^|\s)((?:{groups})\.[a-z_]+)(?==|: |$)", span):
            if not key.endswith(".json"):
                assert any(_is_key(recipe, key, method) for method in METHODS), (page, span)


def _is_key(recipe: Path, key: str, method: str) -> bool:
    """Whether a recipe with this method has such a key."""
    try:
        read_recipe(recipe, [f"method.name={method}", f"{key}=0"])
    except UserError as error:
        return "unknown key" not in str(error)
    return True
