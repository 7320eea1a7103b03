import os
import shutil
from importlib import metadata

import pytest

from dsmemvp.doctor.finding import Here
from dsmemvp.doctor.software import compiler, requirements, versions

CPU = Here(on_gpus=False)


def test_a_library_out_of_bounds_would_fail():
    (found,) = versions(["torch<2", "pyyaml>=6", "no-such-package>=1", 'ruff>=99 ; extra == "dev"'])
    assert found.level == "FAIL" and metadata.version("torch") in found.found
    assert "torch<2 is wanted" in found.found and "no-such-package>=1 is wanted, here is none" in found.found
    assert "pyyaml" not in found.found and "ruff" not in found.found


def test_what_is_installed_here_is_what_the_package_asks_for():
    assert requirements() and [f.level for f in versions(requirements())] == ["ok"]


@pytest.fixture
def programs(tmp_path):
    """A PATH with links to the named programs."""

    def programs(*names: str) -> dict[str, str]:
        for name in names:
            (tmp_path / name).symlink_to(shutil.which(name) or pytest.skip(f"there is no {name} here"))
        return {"PATH": str(tmp_path)}

    return programs


def test_a_compiler_that_works_is_ok():
    environment = {key: value for key, value in os.environ.items() if key != "CXX"}
    assert [(f.level, f.found) for f in compiler(CPU, environment)] == [("ok", "c++ and ninja")]


@pytest.mark.parametrize(("there", "missing"), [("ninja", "no c++ in PATH"), ("c++", "no ninja in PATH")])
def test_without_compiler_or_ninja_cpu_ranks_would_fail_and_gpus_not(programs, there, missing):
    path = programs(there)
    (found,) = compiler(CPU, path)
    assert (found.level, found.found) == ("FAIL", missing)
    assert [f.level for f in compiler(Here(on_gpus=True), path)] == ["ok"]


def test_a_compiler_that_cannot_link_would_fail(programs):
    """The real one, where it finds neither assembler nor linker."""
    (found,) = compiler(CPU, {**programs("c++", "ninja"), "GCC_EXEC_PREFIX": "/nowhere/", "COMPILER_PATH": "/nowhere"})
    assert found.level == "FAIL" and "cannot make a shared library with OpenMP" in found.found


def test_the_compiler_named_in_cxx_is_asked(programs):
    (found,) = compiler(CPU, {**programs("c++", "ninja"), "CXX": "my-compiler"})
    assert (found.level, found.found) == ("FAIL", "no my-compiler in PATH")
