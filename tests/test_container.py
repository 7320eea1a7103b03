"""The container recipes: what they copy is there, their bases are pinned, and they install as the Makefile does, with a
Python that the package takes. They are built if Docker or Apptainer can be used here."""

import fnmatch
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

PINNED = re.compile(r"[a-z0-9./-]+:\d+\.\d+\.\d+-[a-z0-9.-]+")
"""An image by name and a tag with a whole version."""


def instructions(repository: Path) -> list[tuple[str, str]]:
    """(instruction, what follows it) of the Dockerfile."""
    text = (repository / "container" / "Dockerfile").read_text()
    lines = [line for line in re.sub(r"\\\n", " ", text).splitlines() if line and not line.startswith("#")]
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines)]


def sections(repository: Path) -> dict[str, list[str]]:
    """The definition of Apptainer by its sections; "" is the header."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    text = re.sub(r"\\\n", " ", (repository / "container" / "dsmemvp.def").read_text())
    for line in text.splitlines():
        if line.startswith("%"):
            name = line[1:]
            found[name] = []
        elif line.strip() and not line.startswith("#"):
            found[name].append(" ".join(line.split()))
    return found


def of(repository: Path, instruction: str) -> list[str]:
    return [rest for word, rest in instructions(repository) if word == instruction]


def bases(repository: Path) -> list[str]:
    own = [rest.split()[0] for rest in of(repository, "FROM") if not rest.startswith("$")]
    return [*own, *(line.removeprefix("From: ") for line in sections(repository)[""] if line.startswith("From: "))]


def test_bases_are_pinned_and_every_kind_has_one(repository):
    assert len(bases(repository)) == 3 and all(PINNED.fullmatch(base) for base in bases(repository))
    named = {rest.split(" AS ")[1] for rest in of(repository, "FROM") if " AS " in rest}
    assert (
        named == {"cpu", "gpu"} and "DEVICE=cpu" in of(repository, "ARG") and of(repository, "FROM")[-1] == "${DEVICE}"
    )


def test_what_is_copied_is_there_goes_to_its_place_and_is_not_ignored(repository):
    kept = [line[1:] for line in (repository / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = set()
    for *sources, to in map(str.split, of(repository, "COPY")):
        assert to == "./" or [to] == sources
        copied |= set(sources)
    assert copied == set(kept)
    given = [line.split() for line in sections(repository)["files"]]
    assert all(to == f"/opt/dsmemvp/{source}" for source, to in given)
    assert {source for source, _ in given} == copied - {"ds_configs", "recipes"}  # which a user's folder has
    assert all((repository / source).exists() for source in copied)


def test_what_the_package_is_made_of_is_copied(repository):
    """The packages that setuptools finds, and what links in them lead to."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {path.parent.name for path in repository.glob("*/__init__.py")}
    wanted = {name for name in packages if any(fnmatch.fnmatch(name, pattern) for pattern in include)}
    wanted |= {
        link.resolve().relative_to(repository.resolve()).parts[0]
        for link in repository.glob("dsmemvp/*/*")
        if link.is_symlink()
    }
    copied = {source for line in of(repository, "COPY") for source in line.split()[:-1]}
    assert wanted <= copied and project["project"]["readme"] in copied


def test_both_install_as_the_makefile_does_with_a_python_that_the_package_takes(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    makefile = (repository / "Makefile").read_text()
    post = sections(repository)["post"]
    lines = [line for line in (*of(repository, "RUN"), *post) if line.startswith("make ")]
    assert lines == ["make PYTHON=python3.12 install"] * 2 and re.search(r"^install:", makefile, re.M)
    everything = " ".join([*bases(repository), *of(repository, "RUN"), *post])
    versions = set(re.findall(r"python[:]?(3\.\d+)", everything))
    assert versions == {"3.12"} and all(version in SpecifierSet(project["requires-python"]) for version in versions)
    paths = [*of(repository, "ENV"), *(line.removeprefix("export ") for line in sections(repository)["environment"])]
    assert paths == ["PATH=/opt/dsmemvp/.venv/bin:$PATH"] * 2 and of(repository, "WORKDIR") == ["/opt/dsmemvp"]


def test_the_packages_of_debian_are_the_same_for_gpus(repository):
    def asked(lines: list[str]) -> list[set[str]]:
        found = [re.search(r"--no-install-recommends ([^&]*)", line) for line in lines]
        return [set(match[1].split()) for match in found if match]

    cpu, gpu = asked(of(repository, "RUN"))
    assert asked(sections(repository)["post"]) == [gpu] and cpu < gpu


@pytest.mark.parametrize(
    "program",
    [
        ["docker", "info"],
        ["apptainer", "version"],
    ],
    ids=lambda program: program[0],
)
def test_an_image_is_built_and_runs(repository, tmp_path, program):
    if not shutil.which(program[0]) or subprocess.run(program, capture_output=True).returncode:
        pytest.skip(f"{program[0]} cannot be used here")
    if program[0] == "docker":
        build = ["docker", "build", "-q", "-f", "container/Dockerfile", "-t", "dsmemvp-test", "."]
        start = ["docker", "run", "--rm", "dsmemvp-test"]
    else:
        image = str(tmp_path / "dsmemvp.sif")
        build = ["apptainer", "build", image, "container/dsmemvp.def"]
        start = ["apptainer", "exec", image]
    subprocess.run(build, cwd=repository, check=True, timeout=3600)
    done = subprocess.run([*start, "dsmemvp", "recipe", "--schema"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "cache_features" in done.stdout
