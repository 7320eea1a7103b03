"""How the right answer to a sample is shown to people."""

from dsmemvp.data.sample import Sample


def right_answer(sample: Sample) -> str:
    """As in "B (blue)", or an open answer's text."""
    return f"{sample.letter} ({sample.choices[int(sample.answer)]})" if sample.choices else str(sample.answer)
