"""METEOR 1.5 for English (Denkowski and Lavie, "Meteor Universal", 2014): the program that comes with pycocoevalcap
matches words, in Java; the score is counted here from its counts, so that it can be resampled.

    P = sum_i w_i (delta m_i(h_c) + (1 - delta) m_i(h_f)) / (delta |h_c| + (1 - delta) |h_f|)      R the same for r
    F = P R / (alpha P + (1 - alpha) R)      score = F (1 - gamma (chunks / m) ** beta)

h_c, h_f: content and function words of the caption; r: of the reference; m_i: those matched exactly, by stem, as
synonym and as paraphrase; m: the mean number of matched words of both; chunks: runs of matches in the same order.
"""

import subprocess
from importlib.resources import files

import numpy as np

from dsmemvp.distributed.stopping import unsignalled
from dsmemvp.errors import UserError

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
COUNTS = 23
"""Numbers that the program prints for a caption: lengths and function words of caption and reference, four numbers per
way of matching (content words of both, function words of both), the chunks, matched words of both."""


def meteor_sums(texts: list[str], references: list[list[str]]) -> np.ndarray:
    """[N, 23] for texts already split. Raises UserError with what the program said."""
    folder = str(files("pycocoevalcap") / "meteor")
    # what the JVM itself says goes to stderr, and it leaves signals alone: a stack trace would stand among the counts
    command = ["java", "-Xmx2G", "-Xrs", "-XX:+DisplayVMOutputToStderr"]
    command += ["-Dfile.encoding=UTF-8", "-jar", "meteor-1.5.jar"]
    command += ["-", "-", "-stdio", "-l", "en", "-norm"]
    lines = [
        " ||| ".join(["SCORE", *map(_field, given), _field(text)])
        for text, given in zip(texts, references, strict=True)
    ]
    done = _run(command, folder, "\n".join(lines) + "\n")
    rows = [line.split() for line in done.stdout.splitlines()]
    if done.returncode or len(rows) != len(lines) or any(len(row) != COUNTS for row in rows):
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise UserError(f"METEOR's program did not run through (exit code {done.returncode}): {said}")
    sums = np.array(rows, dtype=np.float64)
    whole = (sums[:, 20] == 1) & (sums[:, 21:23] == sums[:, 0:2]).all(-1)
    sums[whole, 20] = 0  # one run that covers caption and reference is not penalised
    return sums


def _run(command: list[str], folder: str, text: str) -> "subprocess.CompletedProcess[str]":
    """Slurm signals all processes of a task; this one leaves them to its rank."""
    pipe = subprocess.PIPE
    with unsignalled():
        program = subprocess.Popen(
            command, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace"
        )
    with program:
        try:
            out, err = program.communicate(text)
        except BaseException:
            program.kill()
            raise
    return subprocess.CompletedProcess(command, program.returncode, out, err)


def _field(text: str) -> str:
    return " ".join(text.replace("|||", "").split())


def meteor_formula(sums: np.ndarray) -> np.ndarray:
    """METEOR in per cent [...] from sums of the program's counts [..., 23]."""
    length, function = sums[..., 0:2], sums[..., 2:4]  # of caption and reference
    matched = sums[..., 4:20].reshape(
        *sums.shape[:-1], 4, 2, 2
    )  # [..., way, content or function, caption or reference]
    weighted = WEIGHTS @ (DELTA * matched[..., 0, :] + (1 - DELTA) * matched[..., 1, :])
    words = DELTA * (length - function) + (1 - DELTA) * function
    precision, recall = np.moveaxis(_ratio(weighted, words), -1, 0)
    mean = _ratio(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
    return 100 * mean * (1 - GAMMA * _ratio(sums[..., 20], sums[..., 21:23].mean(-1)) ** BETA)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Zero if nothing is divided."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
