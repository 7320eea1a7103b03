import os
from pathlib import Path

import pytest
from mounting import tmpfs

from dsmemvp.doctor.storage import run_folder


def test_a_folder_that_takes_files_is_left_as_it_was(tmp_path):
    (found,) = run_folder(tmp_path)
    assert found.level in ("ok", "warning") and "MB/s" in found.found
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_yet_is_not_made(tmp_path):
    (found,) = run_folder(tmp_path / "runs" / "name")
    assert found.level in ("ok", "warning") and f"not there yet; {tmp_path}" in found.found
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_would_fail_and_is_left_empty(tmp_path):
    with tmpfs(tmp_path / "disk", 32) as folder:
        (found,) = run_folder(folder / "runs")
        assert found.level == "FAIL" and "No space left on device" in found.found
        assert list(folder.iterdir()) == []


def test_little_space_is_told(tmp_path):
    with tmpfs(tmp_path / "disk", 256) as folder:
        (found,) = run_folder(folder)
        assert found.level == "warning" and "192 MiB free" in found.found


def test_a_file_in_the_way_would_fail(tmp_path):
    (tmp_path / "runs").write_text("")
    (found,) = run_folder(tmp_path / "runs" / "name")
    assert found.level == "FAIL" and "Not a directory" in found.found and "output=" in found.todo


def test_a_folder_that_must_not_be_written_would_fail(tmp_path):
    (tmp_path / "runs").mkdir(mode=0o500)
    if os.access(tmp_path / "runs", os.W_OK):
        if not os.path.isdir("/sys/kernel"):
            pytest.skip("root may write everywhere")
        (found,) = run_folder(Path("/sys/kernel"))
    else:
        (found,) = run_folder(tmp_path / "runs")
    assert found.level == "FAIL" and "output=" in found.todo
