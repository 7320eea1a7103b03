"""What is said beside the scores of an evaluation: answers that were cut, and those that name no choice."""

from collections import Counter
from collections.abc import Sequence

from dsmemvp.evaluation.scores import Prediction


def cut_answers(predictions: Sequence[Prediction]) -> int:
    return sum(bool(prediction.cut) for prediction in predictions)


def unread_choices(predictions: Sequence[Prediction]) -> int:
    """Answers to multiple-choice questions that name none of the choices. They count as wrong."""
    return sum(prediction.kind == "choice" and not prediction.predicted for prediction in predictions)


def remarks(name: str, predictions: Sequence[Prediction]) -> list[str]:
    """Lines below the table, about the evaluation `name`; none if there is nothing to say."""
    about = f"{name}: " if name else ""
    choices = sum(prediction.kind == "choice" for prediction in predictions)
    cut = Counter(prediction.cut for prediction in predictions if prediction.cut)
    said = [
        f"{about}{number} of {len(predictions) - choices} answers were cut at {setting}"
        for setting, number in sorted(cut.items())
    ]
    if unread := unread_choices(predictions):
        said.append(f"{about}{unread} of {choices} answers name none of their choices")
    return said
