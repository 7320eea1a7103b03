"""How the right answer to a sample is shown to people."""

from dsmemvp.data.sample import Sample, label_text


def right_answer(sample: Sample) -> str:
    """As in "B (blue)", or an open answer's text, or numbers of classes."""
    if sample.labels is not None:
        return label_text(sample.labels)
    return f"{sample.letter} ({sample.choices[int(sample.answer)]})" if sample.choices else str(sample.answer)
