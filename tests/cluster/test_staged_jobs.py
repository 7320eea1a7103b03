"""A run of several stages as one batch job on two nodes: preempted in the second one, it goes on there."""

import json
import re

import pytest
from cluster.jobs import Job

pytestmark = pytest.mark.cluster

TEXT, ALIGN, GENERATE, END = 3, 33, 36, 42
"""The last steps of the stages."""


def test_a_run_of_stages_that_is_preempted_in_one_goes_on_there_to_the_same_losses(
    slurm, repository, pformer_run, tmp_path
):
    given = [*pformer_run, "stages.align.training.epochs=10", "data.record_order=true", "evaluation.captions=[false]"]
    script = repository / "slurm" / "train.sbatch"
    whole, job = (Job(slurm, script, given, tmp_path / name, "pformer") for name in ("whole", "preempted"))
    whole.submit().until_done(400)
    assert list(whole.losses()) == list(range(1, END + 1)) and whole.starts() == [0]

    job.submit().until_step(TEXT + 5, 240)
    slurm.run("scancel", "--signal=USR2", "--batch", job.number)
    assert job.until_done(400)["Restarts"] == "1"
    began, again = job.starts()
    assert began == 0 and TEXT < again < ALIGN, job.text()
    before, after = job.text().split("requeued (exit code 75)")
    assert f"step {again}: ended as asked" in before and f"resuming after step {again}" in after
    begun = {part: re.findall(r"stage (\w+): steps (\d+) to", text) for part, text in (("b", before), ("a", after))}
    assert begun["b"] == [("text", "1"), ("align", str(TEXT + 1))]
    assert begun["a"] == [("align", str(TEXT + 1)), ("generate", str(ALIGN + 1)), ("finetune", str(GENERATE + 1))]

    assert job.losses() == whole.losses() and job.order() == whole.order()
    for name in ("evaluation-captions-off.json", f"checkpoints/step-{END:08d}/trained.safetensors"):
        assert (job.run / name).read_bytes() == (whole.run / name).read_bytes(), name
    assert json.loads((job.run / "evaluation-captions-off.json").read_text())["epoch"] == 1 + 10 + 1 + 1
