"""Tables as lines of Markdown that can be read as they stand."""

from collections.abc import Sequence


def table(columns: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    """The first cell of each column is its head. The first `left` columns are set to the left, the others to the
    right."""
    widths = [max(map(len, column)) for column in columns]
    padded = [
        [cell.ljust(width) if i < left else cell.rjust(width) for cell in column]
        for i, (column, width) in enumerate(zip(columns, widths, strict=True))
    ]
    head, *rows = ("| " + " | ".join(row) + " |" for row in zip(*padded, strict=True))
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i < left else ":") for i, w in enumerate(widths)) + "|"
    return [head, rule, *rows]
