"""Versions of libraries."""

import sysconfig
from importlib import metadata

from packaging.requirements import Requirement

from dsmemvp.doctor.finding import Finding, fail, ok

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
