"""tokenizer.json: the tokens that transformers reads with it, and those of the sentencepiece model it was made from."""

import json
import random
from dataclasses import replace

import pytest
import sentencepiece
import tokenizers
from making import sample
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dsmemvp.data.sample import SampleError
from dsmemvp.data.text import encode_for_answer, encode_for_training, lead_in, prompt_text, target_text
from dsmemvp.data.tokenizer import PADDED, Tokenizer
from dsmemvp.errors import UserError

TEXTS = (
    "Question: What colour is the star?\nContext: N/A\nOptions: (A) red (B) blue\nResponse:The answer is B.",
    "Ünïcode 漢字 🙂?",
    "  two spaces, 1234567 digits\n\n",
    "<|end_of_text|> and </s> in a text are text",
    "x: y",
)
LLAMA3 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
LLAMA3 += "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
COLOURS = {"question": "What colour is the star?", "choices": ("red", "blue", "green"), "answer": 1}
EOS = "<|end_of_text|>"


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A byte-level BPE in LLaMA 3's manner; its texts hold "Response:The" so often that ":The" is one piece."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([TEXTS[0]] * 50, trainer)
    path = tmp_path_factory.mktemp("byte-level") / "tokenizer.json"
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder with a sentencepiece model, and the tokenizer.json made from it."""
    folder = tmp_path_factory.mktemp("pair")
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter([*TEXTS] * 20),
            model_writer=file,
            model_type="bpe",
            vocab_size=370,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            num_threads=1,
            minloglevel=2,
        )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    names = {pieces.IdToPiece(i): i for i in range(pieces.GetPieceSize())}
    # sentencepiece joins the pair whose piece comes first; the same order as merges is a tokenizer.json
    halves = [(names[n], n[:k], n[k:]) for n in names for k in range(1, len(n)) if n[:k] in names and n[k:] in names]
    merges = [(a, b) for _, a, b in sorted(halves, key=lambda row: row[0])]
    model = tokenizers.Tokenizer(models.BPE(names, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model.save(str(folder / "tokenizer.json"))
    return folder


def test_a_byte_level_json_gives_the_tokens_that_transformers_gives(byte_level):
    ours = Tokenizer(byte_level)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(byte_level), split_special_tokens=True)
    for text in TEXTS:
        tokens = ours.encode(text)
        assert tokens == [0, *theirs.encode(text, add_special_tokens=False)]
        assert ours.decode([*tokens, ours.eos]) == text
        assert not {0, 1} & set(tokens[1:])
    assert (ours.bos, ours.eos, ours.vocabulary) == (0, 1, len(theirs))


def test_a_json_made_from_a_sentencepiece_model_gives_the_same_tokens(pair):
    one, other = Tokenizer(pair / "tokenizer.model"), Tokenizer(pair / "tokenizer.json")
    assert (one.bos, one.eos, one.vocabulary) == (other.bos, other.eos, other.vocabulary) == (1, 2, 370)
    for text in TEXTS:
        tokens = one.encode(text)
        assert other.encode(text) == tokens
        assert other.decode(tokens) == one.decode(tokens) == text
        assert other.decode(tokens[5:]).strip() == one.decode(tokens[5:]).strip()


def test_what_the_tokenizer_joins_is_encoded_one_by_one(byte_level):
    tokenizer = Tokenizer(byte_level)
    one = sample(**COLOURS)
    prompt = prompt_text(one, captions=False)
    assert tokenizer.encode(prompt + "The")[: len(tokenizer.encode(prompt))] != tokenizer.encode(prompt)
    trained = encode_for_training(tokenizer, one, captions=False, most=512)
    asked = encode_for_answer(tokenizer, one, captions=False, most=512)
    assert trained.tokens[: trained.prompt] == tokenizer.encode(prompt)
    assert trained.tokens[: len(asked.tokens)] == asked.tokens and trained.tokens[-1] == tokenizer.eos
    assert tokenizer.decode(trained.tokens) == f"{prompt}The answer is B."
    assert tokenizer.decode(asked.tokens) == f"{prompt}The answer is"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"bos_token": "A", "eos_token": {"content": "B", "special": True}}),
        ("special_tokens_map.json", {"bos_token": {"content": "A"}, "eos_token": "B"}),
        ("config.json", {"bos_token_id": 34, "eos_token_id": [35, 1]}),
    ],
)
def test_bos_and_eos_are_those_that_the_folder_names(byte_level, tmp_path, file, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(byte_level.read_bytes())
    assert (Tokenizer(path).bos, Tokenizer(path).eos) == (0, 1)
    (tmp_path / file).write_text(json.dumps(content))
    named = tokenizers.Tokenizer.from_file(str(path))
    assert (named.token_to_id("A"), named.token_to_id("B")) == (34, 35)
    assert (Tokenizer(path).bos, Tokenizer(path).eos) == (34, 35)


def test_a_json_whose_config_says_that_there_is_no_bos_has_none(byte_level, tmp_path):
    """As Qwen2's: its config.json has a bos_token_id all the same."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(byte_level.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 34, "eos_token_id": 34}))
    for config in ({"bos_token": None, "eos_token": EOS}, {"add_bos_token": False, "bos_token": "A", "eos_token": EOS}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = Tokenizer(path)
        assert (tokenizer.bos, tokenizer.eos, tokenizer.front) == (None, 1, [])
        assert tokenizer.encode("red") == Tokenizer(byte_level).encode("red")[1:]
        text = encode_for_training(tokenizer, sample(**COLOURS), captions=False, most=512)
        assert text.bos == 0 and tokenizer.decode(text.tokens).startswith("Question: What")


@pytest.mark.parametrize("eos", ["<|endoftext|>", "<|im_end|>"])
def test_qwen_s_names_are_known_without_a_config(tmp_path, eos):
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(models.BPE({"a": 0, eos: 1}, [])).save(str(path))
    assert (Tokenizer(path).bos, Tokenizer(path).eos) == (None, 1)


def test_a_json_that_names_no_eos_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(models.BPE({"<s>": 0, "a": 1}, [])).save(str(path))
    with pytest.raises(ValueError, match=r"tokenizer\.json has no EOS piece; name it in a tokenizer_config"):
        Tokenizer(path)


PIECES = ["a", "word", "", "The", "漢字", "é", "e\u0301", "🙂", "\n", ":", "12345", "x" * 30, "star", "\t", "of"]


def some_text(rng: random.Random, most: int) -> str:
    return " ".join(rng.choice(PIECES) for _ in range(rng.randint(0, most)))


def drawn(rng: random.Random):
    """Any task, with and without a context, of signs that tokenizers treat in their own ways."""
    given = {"question": f"q {some_text(rng, 8)}", "context": some_text(rng, rng.choice([0, 5, 60]))}
    if rng.random() < 0.5:
        return sample(**given, choices=("red", some_text(rng, 3)), answer=1)
    answer = some_text(rng, 5).strip() or "The"
    return sample(**given, choices=(), answer=answer, scores={"task": rng.choice(["caption", "conversation", "open"])})


def by_itself(tokenizer, one, rest: str, end: list[int], most: int):
    """(tokens, of the prompt) with prompt and whole encoded one by one, and one word of the context after the other
    taken away; None if nothing fits."""
    words = [word for word in one.context.strip().split(" ") if word]
    for number in range(len(words), -1, -1):
        kept = words[len(words) - number :] if one.scores.get("task") == "conversation" else words[:number]
        prompt = prompt_text(replace(one, context=" ".join(kept)), False)
        first, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + rest)
        if whole[: len(first)] != first:
            whole = [*first, *tokenizer.encode(rest)[len(tokenizer.front) :]]
        if len(whole) + len(end) <= most:
            return [*whole, *end], len(first), number < len(words)
    return None


class Counting(Tokenizer):
    """Counts the texts that it encodes."""

    def __init__(self, path):
        super().__init__(path)
        self.calls = 0

    def encode(self, text):
        self.calls += 1
        return super().encode(text)

    def encode_spans(self, text):
        self.calls += 1
        return super().encode_spans(text)


@pytest.mark.parametrize("kind", ["sentencepiece", "its json", "byte level", "demo"])
def test_a_prompt_encoded_once_is_what_prompt_and_whole_encoded_one_by_one_are(kind, pair, byte_level, tokenizer_path):
    paths = {"sentencepiece": pair / "tokenizer.model", "its json": pair / "tokenizer.json", "byte level": byte_level}
    tokenizer, rng = Counting(paths.get(kind, tokenizer_path)), random.Random(kind)
    fitting = {"cut": 0, "whole": 0, "neither": 0}
    for _ in range(300):
        one, most = drawn(rng), rng.choice([60, 120, 200, 400, 10_000])
        wanted = by_itself(tokenizer, one, target_text(one), [tokenizer.eos], most)
        tokenizer.calls = 0
        try:
            found = encode_for_training(tokenizer, one, captions=False, most=most)
        except SampleError:
            assert wanted is None
            fitting["neither"] += 1
            continue
        assert (found.tokens, found.prompt, found.cut) == wanted
        fitting["cut" if found.cut else "whole"] += 1
        if kind != "byte level":  # which joins ":" and "The" of the target: both are then encoded one by one
            assert tokenizer.calls <= (6 if found.cut else 1)
        asked = encode_for_answer(tokenizer, one, captions=False, most=len(found.tokens))
        if not found.cut:
            assert asked.tokens == by_itself(tokenizer, one, lead_in(one), [], 10_000)[0]
    assert min(fitting.values()) > 5


@pytest.mark.parametrize("content", ["{}", "{", '{"bos_token": "<s>"}'])
def test_a_json_that_is_no_tokenizer_is_named(tmp_path, content):
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(UserError, match=r"odd\.json is not a tokenizer\.json \("):
        Tokenizer(tmp_path / "odd.json")


def test_meta_s_tiktoken_file_is_told_from_a_damaged_one(tmp_path):
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\nIw== 2\n")
    with pytest.raises(UserError, match=r"tokenizer\.model is a tiktoken file.*give the tokenizer\.json"):
        Tokenizer(tmp_path / "tokenizer.model")


def test_a_model_may_have_padding_behind_the_pieces_and_no_more(tokenizer):
    pieces = tokenizer.vocabulary
    for rows in (pieces, pieces + 1, pieces + PADDED):
        tokenizer.check_fits(rows, "t.model")
    for rows in (pieces - 1, pieces + PADDED + 1):
        with pytest.raises(
            ValueError, match=rf"^model\.tokenizer: t\.model has {pieces} pieces, the language model {rows};"
        ):
            tokenizer.check_fits(rows, "t.model")
    red = tokenizer.encode("red")
    assert tokenizer.decode([*red, pieces + 3]) == "red"
