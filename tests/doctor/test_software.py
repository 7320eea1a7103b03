from importlib import metadata

from dsmemvp.doctor.software import requirements, versions


def test_a_library_out_of_bounds_would_fail():
    (found,) = versions(["torch<2", "pyyaml>=6", "no-such-package>=1", 'ruff>=99 ; extra == "dev"'])
    assert found.level == "FAIL" and metadata.version("torch") in found.found
    assert "torch<2 is wanted" in found.found and "no-such-package>=1 is wanted, here is none" in found.found
    assert "pyyaml" not in found.found and "ruff" not in found.found


def test_what_is_installed_here_is_what_the_package_asks_for():
    assert requirements() and [f.level for f in versions(requirements())] == ["ok"]
