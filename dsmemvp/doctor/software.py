"""Versions of libraries, and the C++ compiler for what DeepSpeed builds."""

import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from dsmemvp.doctor.finding import Finding, Here, fail, ok

LIBRARIES = ("torch", "deepspeed", "transformers", "webdataset")


def versions(required: list[str]) -> list[Finding]:
    """`required`: a package's requirements, as its metadata lists them."""
    found = {name: _version(name) for name in LIBRARIES}
    text = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    wrong = []
    for line in required:
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            version = found[wanted.name] if wanted.name in found else _version(wanted.name)
            if not version or not wanted.specifier.contains(version, prereleases=True):
                wrong.append(f"{wanted.name}{wanted.specifier} is wanted, here is {version or 'none'}")
    python = f"python {sysconfig.get_python_version()}, {text}"
    if wrong:
        return [fail("versions", f"{python}: {', '.join(wrong)}", "install what requirements.lock names")]
    return [ok("versions", python)]


def requirements() -> list[str]:
    """This package's own."""
    try:
        return metadata.requires("dsmemvp") or []
    except metadata.PackageNotFoundError:
        return []


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def compiler(here: Here, environment: Mapping[str, str]) -> list[Finding]:
    """DeepSpeed builds its collective for CPU ranks with it at the first start; on GPUs nothing is built."""
    wrong = _compiler_problem(environment)
    if not wrong:
        return [ok("C++ compiler", f"{environment.get('CXX', 'c++')} and ninja")]
    if here.on_gpus:
        return [ok("C++ compiler", f"{wrong}; not needed on GPUs")]
    return [fail("C++ compiler", wrong, "CPU ranks need it: install g++, ninja and Python's headers, or mend PATH")]


def _compiler_problem(environment: Mapping[str, str]) -> str:
    """Empty where a shared library with OpenMP can be made."""
    program = environment.get("CXX", "c++")
    path = environment.get("PATH", "")
    for name in (program, "ninja"):
        if not shutil.which(name, path=path):
            return f"no {name} in PATH"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return f"no Python.h in {sysconfig.get_path('include')}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <omp.h>\n#include <vector>\nint threads() { return omp_get_max_threads(); }\n")
        command = [program, "-shared", "-fPIC", "-fopenmp", str(source), "-o", str(source.with_suffix(".so"))]
        try:
            done = subprocess.run(command, env=dict(environment), capture_output=True, text=True)
        except OSError as error:
            return f"{program} cannot be run ({error.strerror})"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return (
            f"{program} cannot make a shared library with OpenMP ({next((x for x in lines if 'error' in x), lines[0])})"
        )
    return ""
