"""The benchmarks run; what they measure is in benchmarks/RESULTS.md, never here."""

import os
import subprocess
import sys


def test_the_loader_s_benchmark_compares_with_webdataset_and_checks_what_was_delivered(repository, tmp_path):
    command = [sys.executable, str(repository / "benchmarks" / "loader.py"), "--quick", "--only", "throughput"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command += ["--folder", str(tmp_path)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[:3] == ["loader", "this loader", "webdataset"]


def test_the_generation_benchmark_compares_both_methods(repository):
    command = [sys.executable, str(repository / "benchmarks" / "generate.py"), "--shape", "tiny", "--batch", "2"]
    command += ["--batches", "1", "--rounds", "1", "--lengths", "1", "3", "--questions", "1", "2"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    rows = [line.split("|")[1:3] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [[int(cell) for cell in row] for row in rows[1:]] == [[1, 1], [1, 3], [2, 1], [2, 3]]


def test_the_benchmark_of_loading_reads_what_it_loads(repository, tmp_path):
    command = [sys.executable, str(repository / "benchmarks" / "load.py"), "--small", "--work", str(tmp_path)]
    command += ["--ranks", "1", "--only", "ours"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    rows = [line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in rows[-1][:2]] == ["1", "this loader"]
    written = sum(path.stat().st_size for path in (tmp_path / "small").glob("*.safetensors"))
    assert 0.99 * written < float(rows[-1][3]) * 1e6 < 1.01 * written


def test_the_benchmark_of_growth_goes_through_all_its_sizes(repository, tmp_path):
    command = [sys.executable, str(repository / "benchmarks" / "growth.py"), "--quick", "--work", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    rows = [line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in row[:2]] for row in rows[1:3]] == [["1,000", "10"], ["10,000", "100"]]
    assert [row[0].strip() for row in rows[4:]] == ["metrics.jsonl", "order.jsonl", "skipped.jsonl"]


def test_the_slowest_rank_computes_little_more_than_its_share():
    """With the real lengths where they are at hand, and always with those fitted to them."""
    from benchmarks.step_costs import AT_MOST, fitted, lengths, table

    for known in (lengths(), fitted()):
        for (ranks, batch, *found), most in zip(table(known), AT_MOST, strict=True):
            assert all(share <= most + 1e-9 for share in found), (ranks, batch, found)
