"""Token counts of samples and answers, compared with the recipe's limits."""

import sys
from dataclasses import replace

from dsmemvp.data.collator import Collator
from dsmemvp.data.sample import Sample, SampleError
from dsmemvp.data.text import encode_for_answer, encode_for_training, lead_in, target_text
from dsmemvp.data.tokenizer import Tokenizer

PROMPT_END = "Response:"


def least_length(collator: Collator, tokenizer: Tokenizer, sample: Sample) -> int:
    """The smallest data.max_length with which the sample can be used: its tokens without any context, which alone may
    be cut. Raises SampleError for other reasons why it cannot be."""
    encode = encode_for_answer if collator.answers else encode_for_training
    return len(encode(tokenizer, replace(sample, context="", caption=""), False, sys.maxsize).tokens)


def too_long(collator: Collator, tokenizer: Tokenizer, sample: Sample) -> int:
    """The data.max_length that the sample needs and does not have; 0 if it has, or if it cannot be used at all."""
    try:
        least = least_length(collator, tokenizer, sample)
    except SampleError:
        return 0
    encode = encode_for_answer if collator.answers else encode_for_training
    try:
        if least > collator.max_length:  # nor with its context, which may be shorter than the "N/A" without one
            encode(tokenizer, sample, collator.captions, collator.max_length)
    except SampleError:
        return least
    return 0


def answer_length(tokenizer: Tokenizer, sample: Sample) -> int:
    """Tokens that a model must write for the right answer to an open question, to its full stop; of a caption or a turn
    of a conversation, to the end of the text."""
    asked = tokenizer.encode(PROMPT_END + lead_in(sample))
    whole = tokenizer.encode(PROMPT_END + target_text(sample))
    return len(whole) - len(asked) + sample.free
