"""Types of a recipe's fields: what YAML gives -> the field's type, and the ranges that many fields share.

pydantic converts and checks. A field's range stands in its type, `Annotated[int, Field(ge=1, le=256)]`, and its
sentence under it; a float has `FROM_TEXT` behind it. `CONFIG` is strict: true, 3.0 and "3" are no whole numbers.
"""

import unicodedata
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

CONFIG = ConfigDict(strict=True, use_attribute_docstrings=True, allow_inf_nan=False)
"""Of every group of a recipe."""
MOST_TEXT = 4096
"""Characters of a text: of a path, or of a command that writes a shard."""


def _number(value: Any) -> Any:
    """YAML 1.1 reads 9e-3 as text."""
    try:
        return value if isinstance(value, bool) or not isinstance(value, int | str) else float(value)
    except (ValueError, OverflowError):
        return value


def _text(value: Any) -> Any:
    if value is None:  # `data.test=`
        return ""
    if not isinstance(value, str):
        return value
    if len(value) > MOST_TEXT or any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise PydanticCustomError(
            "characters", f"must be text of at most {MOST_TEXT:,} characters without control characters"
        )
    return value


def _several(value: Any) -> Any:
    if isinstance(value, str):
        return [value] if value else []
    return value


def _increasing(blocks: list[int]) -> list[int]:
    if any(behind <= before for before, behind in pairwise(blocks)):
        raise ValueError(f"must be increasing, not {', '.join(map(str, blocks[:20]))}")
    return blocks


FROM_TEXT = BeforeValidator(_number)
"""Of every float, behind its range."""
Text = Annotated[str, BeforeValidator(_text)]
Texts = Annotated[list[Text], BeforeValidator(_several, json_schema_input_type=str | list[str])]
"""A single text may stand without brackets."""
Loggers = Annotated[list[Literal["tensorboard", "wandb", "mlflow"]], BeforeValidator(_several)]
Blocks = Annotated[list[Annotated[int, Field(ge=0, le=1000)]], AfterValidator(_increasing)]
"""Of a tower, from 0, increasing."""
Width = Annotated[int, Field(ge=1, le=2**16)]
ClassLoss = Literal["cross_entropy", "multi_label"]
"""One class for each sample, or any number of them."""
Factor = Annotated[float, Field(ge=0, le=1000), FROM_TEXT]
Fraction = Annotated[float, Field(ge=0, lt=1), FROM_TEXT]
Seconds = Annotated[float, Field(gt=0, le=30 * 24 * 3600), FROM_TEXT]
Epochs = Annotated[float, Field(gt=0, le=10**5), FROM_TEXT]
Steps = Annotated[int, Field(ge=0, le=10**9)]
Samples = Annotated[int, Field(ge=1, le=2**20)]
Tokens = Annotated[int, Field(ge=1, le=2**20)]
