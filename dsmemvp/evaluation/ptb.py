"""Captions split into words as the COCO evaluation does it, without Java.

The official evaluation runs Stanford's PTBTokenizer (CoreNLP 3.4.1, Penn Treebank conventions) in lower case and drops
punctuation. This is the part of those conventions that English captions use, written from what the program prints;
tests/golden/ptb.jsonl holds what it printed. It does not follow the program into words glued together by several marks
("jr.-etc.", "dog/5.00"), and a caption that ends in a single letter ("a plan B.") always loses its full stop, where the
program looks at the first letter of the next caption.
"""

import re

DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""The official list. It also names brackets, but in upper case, where the text is in lower case by then: they stay."""
WRITTEN = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{'"': "''", "«": "``", "»": "''", "\u2013": "--", "\u2014": "--", "…": "..."},
    **{"½": "1/2", "¼": "1/4", "¾": "3/4", "£": "#", "€": "$", "¢": "cents"},
    **{"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me"},
    **{"lemme": "lem me", "'tis": "'t is", "'twas": "'t was"},
}
"""How tokens are written that are not written as they stand."""
TYPOGRAPHIC = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
ABBREVIATIONS = (
    "mr|mrs|ms|dr|st|mt|jr|sr|vs|etc|ave|blvd|rd|inc|co|corp|ltd|bldg|sgt|lt|gov|dept|"
    "ft|rev|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thurs|fri|"
    "prof|capt|sen|rep|gen|hon|pres|col|bros|sq|ste|calif|mich|ariz|fla|ga|va|ala|ct|ph\\.d"
)
LETTER = r"[^\W\d_½¼¾]"
SIGN = r"[^\W_½¼¾]"
"""A letter or a digit."""
TOKEN = re.compile(
    rf"""
      (?:https?://|www\.) [^\s"<>()]* [^\s"<>().,;:!?']
    | [\w.+-]+ @ [\w-]+ (?:\.[\w-]+)+
    | (?:{LETTER}\.){{2,}}                                          # u.s.a.
    | (?:{ABBREVIATIONS}) \. (?!\w)
    | (?-i:Tex|Wash|Mass|Ill|Pa|Miss|Ore) \. (?!\w)                 # a state, but not to be ill.
    | (?:in|oz|lbs|no|sun|sat|art|fig|pop|mag|miss|ore|tex|wash|mass|ill|pa) \. (?=[,;:])  |  no \. (?=\s*\d)
    | (?<![\w'-]) {LETTER} \. (?! \w | \s*$ | (?-i:\s+[A-Z][a-z]))  # an initial
    | ' (?:em|n'|n|\d0s|til|cause|tis|twas) (?!\w)
    | ' (?:s|m|d|ll|re|ve) (?!\w)                                   # what contractions end in
    | {LETTER}+? (?=n't(?!\w))  |  n't (?!\w)
    | y' (?=all\b)  |  ol' (?!\w)  |  ' \d\d (?!\S)
    | (?-i:[A-Z]+&[A-Z]+) (?!\w)                                    # AT&T, but not b&w
    | \d+ (?::\d+)+  |  \d*\.\d+ (?=[ap]m\b)                        # a time, without the pm behind it
    | \d+\s+\d+/\d+ (?!{SIGN})                                      # 1 1/2 is one word
    | [+-]? (?:\d+[.,/-])* \d+ (?! [-/]?{SIGN})  |  [.,]\d+
    | [#@] {LETTER}\w*  |  <{LETTER}+>
    | {SIGN} (?: {SIGN} | [-_](?={SIGN}) | (?<=[a-z0-9])/(?=[a-z0-9]) | \.(?={LETTER})
               | (?<=\b[odlcs])'(?={LETTER}) | (?<=ma)'(?=am) )*
    | [:;]-?[()dp] (?!\w)                                           # a smile
    | \.{{3,}}  |  --+  |  [!?]+  |  \*+
    | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


def split_caption(text: str) -> str:
    """The words of a caption, in lower case, with one space between them."""
    tokens = [_written(token.lower()) for token in TOKEN.findall(text.translate(TYPOGRAPHIC))]
    return " ".join(word for word in " ".join(tokens).split(" ") if word not in DROPPED)


def _written(token: str) -> str:
    if token in WRITTEN:
        return WRITTEN[token]
    token = re.sub(r"[()]", lambda bracket: WRITTEN[bracket[0]], token)
    token = re.sub(r"^(\.\.\.|--)[.-]+$", r"\1", token)
    return re.sub(r"\s+", "\xa0", token)  # the program writes this space inside a word
