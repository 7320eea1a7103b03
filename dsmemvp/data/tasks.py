"""What a sample's task is called, and whether it is one of ScienceQA's."""

from dsmemvp.data.sample import Sample

SCIENCEQA = ("subject", "grade")
"""ScienceQA's fields, by which its scores are counted."""


def is_scienceqa(sample: Sample) -> bool:
    return any(sample.scores.get(field) not in (None, "") for field in SCIENCEQA)


def task_name(sample: Sample) -> str:
    """The sample's task, if it names one. Shards that data_prep.folder wrote before call every multiple-choice question
    "scienceqa"."""
    task = str(sample.scores.get("task") or "")
    if sample.choices and task == "scienceqa" and not is_scienceqa(sample):
        task = ""
    if not task and sample.labels is not None:
        return "several classes" if sample.several else "class"
    return task or ("multiple choice" if sample.choices else "open answer")
