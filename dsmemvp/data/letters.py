"""The letters of choices as tokens: what stands behind "The answer is" if a choice is the answer.

For LLaMA's tokenizers a letter is one token, " B". A tokenizer without capital letters among its pieces writes them in
bytes or characters, and so in several tokens.
"""

from dsmemvp.data.text import LEAD_IN, letter
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.errors import UserError


def letter_tokens(tokenizer: Tokenizer, name: str) -> tuple[int, ...]:
    """The tokens of " B" in "The answer is B.". Raises UserError if the tokenizer cannot write it there."""
    joined, tokens = _written(tokenizer, name)
    if joined:
        raise UserError(
            f"evaluation.protocol: the tokenizer joins {LEAD_IN!r} with the letter after it, so letters cannot be"
            " compared by likelihood; take generate"
        )
    return tokens


def longest_letter(tokenizer: Tokenizer, choices: int) -> int:
    """Most tokens that the letter of one of so many choices takes. Raises UserError if the tokenizer cannot write
    one of them."""
    return max(len(_written(tokenizer, letter(choice))[1]) for choice in range(choices))


def _written(tokenizer: Tokenizer, name: str) -> tuple[bool, tuple[int, ...]]:
    """Whether the lead-in's last tokens are others in front of the letter; the tokens from the first other one to the
    one that completes the letter. Raises UserError."""
    lead, whole = tokenizer.encode(LEAD_IN), tokenizer.encode(f"{LEAD_IN} {name}.")
    same = next((i for i, (a, b) in enumerate(zip(lead, whole, strict=False)) if a != b), min(len(lead), len(whole)))
    for end in range(same + 1, len(whole) + 1):
        if name in tokenizer.decode(whole[same:end]):
            return same < len(lead), tuple(whole[same:end])
    raise UserError(f"model.tokenizer: cannot write the letter {name}, so no choice can be answered with it")
