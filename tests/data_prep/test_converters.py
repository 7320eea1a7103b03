"""VQAv2, GQA, COCO captions and LLaVA in their published layouts -> samples; what is wrong is told with its place."""

import json

import pytest
from making import picture
from prepared import here, keys, samples

from data_prep import coco_captions, gqa, llava, vqa_rad, vqav2
from dsmemvp.data.sample import DESCRIBE


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Runs a converter over images/ into out/."""
    (tmp_path / "images").mkdir()

    def convert(converter, *options):
        given = ["--images", tmp_path / "images", "--out", tmp_path / "out", *options]
        return here(converter, monkeypatch, capsys, *given)

    return convert


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def images(tmp_path, *names):
    for number, name in enumerate(names):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(colour=(number, 0, 0)))


def vqa_annotation(question_id, answer):
    answers = [{"answer": f"{answer}{i}", "answer_confidence": "yes", "answer_id": i} for i in range(10)]
    kinds = {"question_type": "what is", "answer_type": "other", "image_id": 9}
    return {"question_id": question_id, "multiple_choice_answer": answer, "answers": answers, **kinds}


def test_vqav2(convert, tmp_path):
    images(tmp_path, "COCO_train2014_000000000009.jpg", "COCO_train2014_000000581929.jpg")
    asked = [(9, 9000), (9, 9001), (581929, 581929002)]
    questions = [{"image_id": i, "question": f"What is {q}?", "question_id": q} for i, q in asked]
    annotations = {"annotations": [vqa_annotation(q, f"thing {q}") for _, q in reversed(asked)]}
    given = ["--questions", write(tmp_path / "q.json", {"questions": questions})]
    given += ["--annotations", write(tmp_path / "a.json", annotations)]
    code, out, err = convert(vqav2, *given)
    assert (code, err) == (0, "") and out.startswith("3 samples")
    first, second, third = samples(tmp_path / "out")
    assert keys(tmp_path / "out") == ["9000", "9001", "581929002"]
    assert (first.question, first.answer, first.choices, first.image) == (
        "What is 9000?",
        "thing 9000",
        (),
        picture(colour=(0, 0, 0)),
    )
    assert second.image == first.image and third.image == picture(colour=(1, 0, 0))
    assert first.scores == {
        "id": "9000",
        "task": "vqa",
        "answers": [f"thing 9000{i}" for i in range(10)],
        "question_type": "what is",
        "answer_type": "other",
    }

    code, _, err = convert(vqav2, *given, "--image-name", "COCO_val2014_{:012d}.jpg")
    assert code == 1 and "COCO_val2014_000000000009.jpg does not exist" in err
    assert "--image-name: 'x.jpg' does not hold a place" in convert(vqav2, *given, "--image-name", "x.jpg")[2]
    assert "--image-name: '{:q}' does not hold a place" in convert(vqav2, *given, "--image-name", "{:q}")[2]
    write(tmp_path / "a.json", {"annotations": annotations["annotations"][1:]})
    code, _, err = convert(vqav2, *given)
    assert code == 1 and f"q.json, question_id 581929002: has no answer in {tmp_path / 'a.json'}" in err
    write(tmp_path / "q.json", {"questions": [{"question": "?"}]})
    assert "q.json, question 0: has no 'question_id'" in convert(vqav2, *given)[2]
    write(tmp_path / "a.json", {"questions": questions})
    assert "a.json: has no 'annotations'" in convert(vqav2, *given)[2]
    write(tmp_path / "a.json", {"annotations": [3]})
    assert "a.json, annotation 0: is not an object" in convert(vqav2, *given)[2]


def gqa_question(image, answer):
    types = {"structural": "verify", "semantic": "attr", "detailed": "verifyAttr"}
    more = {"fullAnswer": f"It is {answer}.", "isBalanced": True, "groups": {"global": None}, "semantic": []}
    return {"imageId": image, "question": "Is it red?", "answer": answer, "types": types, **more}


def test_gqa(convert, tmp_path):
    images(tmp_path, "2354786.jpg", "n1.jpg")
    b = write(tmp_path / "b.json", {"201": gqa_question("2354786", "no")})
    a = write(tmp_path / "a.json", {"07": gqa_question("n1", "yes"), "05": gqa_question("2354786", "no")})
    code, _, err = convert(gqa, "--questions", b, a)
    assert (code, err) == (0, "") and keys(tmp_path / "out") == ["07", "05", "201"]
    first, second, _ = samples(tmp_path / "out")
    assert (first.question, first.answer, first.image) == ("Is it red?", "yes", picture(colour=(1, 0, 0)))
    assert second.image == picture(colour=(0, 0, 0))
    assert first.scores == {
        "id": "07",
        "task": "vqa",
        "full_answer": "It is yes.",
        "structural_type": "verify",
        "semantic_type": "attr",
    }
    write(b, {"07": gqa_question("n1", "yes")})
    assert "b.json, question 07: key '07' stands twice" in convert(gqa, "--questions", a, b)[2]
    write(b, {"9": {"imageId": "n1", "question": "Why?"}})
    assert "b.json, question 9: has no 'answer'" in convert(gqa, "--questions", b)[2]
    write(b, {"9": gqa_question("../secret", "yes")})
    assert "b.json, question 9: image '../secret.jpg' lies outside" in convert(gqa, "--questions", b)[2]
    assert "none.json does not exist" in convert(gqa, "--questions", b, tmp_path / "none.json")[2]


def test_coco_captions_as_published(convert, tmp_path):
    images(tmp_path, "COCO_train2014_000000000009.jpg", "b.jpg")
    content = {
        "info": {},
        "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}, {"id": 25, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 7, "image_id": 25, "caption": "A giraffe."},
            {"id": 8, "image_id": 9, "caption": " Food on a tray.\n"},
            {"id": 6, "image_id": 9, "caption": "A meal."},
        ],
    }
    path = write(tmp_path / "captions.json", content)
    assert convert(coco_captions, "--captions", path)[0] == 0
    assert keys(tmp_path / "out") == ["9-8", "9-6", "25-7"]
    found = samples(tmp_path / "out")
    assert [s.answer for s in found] == ["Food on a tray.", "A meal.", "A giraffe."]
    assert {s.question for s in found} == {DESCRIBE} and all(s.free for s in found)
    assert [s.image for s in found] == [picture(colour=(n, 0, 0)) for n in (0, 0, 1)]

    assert convert(coco_captions, "--captions", path, "--references")[0] == 0
    first, second = samples(tmp_path / "out")
    assert keys(tmp_path / "out") == ["9", "25"] and first.answer == "Food on a tray."
    assert first.scores == {"id": "9", "task": "caption", "references": ["Food on a tray.", "A meal."]}
    assert second.scores["references"] == ["A giraffe."]

    content["images"].append({"id": 26, "file_name": "b.jpg"})
    content["annotations"].append({"id": 9, "image_id": 25})
    write(path, content)
    code, out, _ = convert(coco_captions, "--captions", path, "--on-bad-row", "skip")
    assert code == 0 and "annotation 3: has no 'caption'" in out and "image 26: has no caption" in out
    write(path, {"images": [], "annotations": 1})
    assert "captions.json: annotations is not a list: 1" in convert(coco_captions, "--captions", path)[2]


def test_coco_captions_in_karpathys_splits(convert, tmp_path):
    images(tmp_path, "val2014/a.jpg", "train2014/b.jpg", "val2014/c.jpg")
    rows = [("val2014", "a", "test", 1), ("train2014", "b", "train", 2), ("val2014", "c", "restval", 3)]
    entries = []
    for folder, name, split, number in rows:
        sentences = [{"raw": f"{name} {i}", "sentid": number * 10 + i, "tokens": []} for i in range(2)]
        place = {"filepath": folder, "filename": f"{name}.jpg", "split": split, "cocoid": number}
        entries.append({**place, "sentences": sentences, "imgid": 0})
    path = write(tmp_path / "dataset_coco.json", {"images": entries, "dataset": "coco"})
    assert convert(coco_captions, "--captions", path, "--karpathy", "train", "restval")[0] == 0
    assert keys(tmp_path / "out") == ["2-20", "2-21", "3-30", "3-31"]
    assert [s.answer for s in samples(tmp_path / "out")] == ["b 0", "b 1", "c 0", "c 1"]
    assert convert(coco_captions, "--captions", path, "--karpathy", "test", "--references")[0] == 0
    (only,) = samples(tmp_path / "out")
    assert only.scores["references"] == ["a 0", "a 1"] and only.image == picture(colour=(0, 0, 0))
    for options in ([], ["--karpathy", "dev"]):
        code, _, err = convert(coco_captions, "--captions", path, *options)
        assert code == 1 and f"splits of {path}: restval, test, train" in err
    del entries[0]["cocoid"]
    write(path, {"images": entries})
    assert "image entry 0: has no 'cocoid'" in convert(coco_captions, "--captions", path, "--karpathy", "test")[2]


def talk(*values, first="human"):
    speakers = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    return [{"from": speakers[i % 2], "value": value} for i, value in enumerate(values)]


def test_llava(convert, tmp_path):
    images(tmp_path, "coco/train2017/33471.jpg")
    picture_talk = talk("<image>\nWhat is this?", "A bus.", "Which colour?", "Red.\n")
    entries = [
        {"id": "000000033471", "image": "coco/train2017/33471.jpg", "conversations": picture_talk},
        {"id": "000000033471", "image": "coco/train2017/33471.jpg", "conversations": talk("Where?\n<image>", "There.")},
        {"id": "a/b.c_0", "conversations": talk("Hello?", "Hi.")},
        {"conversations": talk("Welcome!", "And now?", "This.", "Last?", first="gpt")},
    ]
    path = write(tmp_path / "talks.json", entries)
    code, _, err = convert(llava, "--conversations", path)
    assert (code, err) == (0, "")
    assert keys(tmp_path / "out") == [
        "000000033471-0000000-0",
        "000000033471-0000000-1",
        "000000033471-0000001-0",
        "a_b_c_0-0000002-0",
        "0000003-0",
    ]
    first, second, third, fourth, fifth = samples(tmp_path / "out")
    assert (first.question, first.answer, first.context) == ("What is this?", "A bus.", "")
    assert (second.question, second.answer) == ("Which colour?", "Red.")
    assert second.context == "Question: What is this?\nResponse: A bus."
    assert first.image == second.image == third.image == picture(colour=(0, 0, 0)) and fourth.image is None
    assert (third.question, third.answer, third.free) == ("Where?", "There.", True)
    assert (fifth.question, fifth.answer) == ("And now?", "This.")
    assert first.scores == {"id": "000000033471-0000000-0", "task": "conversation"}


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ({"id": "x"}, "conversation 1: has no 'conversations'"),
        ({"conversations": []}, "is not made of turns of human and gpt"),
        ({"conversations": talk("a", "b") * 2 + talk("c", "d", first="gpt")}, "is not made of turns of human and gpt"),
        ({"conversations": [{"from": "system", "value": "a"}]}, "is not made of turns of human and gpt"),
        ({"conversations": [{"from": "human"}]}, "has no 'value'"),
        ({"conversations": talk("<image>", "b")}, "conversation 1, answer 0: has no question"),
        ({"conversations": talk("a", "b"), "image": ["x", "y"]}, "has more than one image"),
        (7, "conversation 1: is not an object"),
    ],
)
def test_a_bad_conversation_is_named_or_left_out(convert, tmp_path, entry, part):
    good = {"id": "g", "conversations": talk("a", "b")}
    path = write(tmp_path / "talks.json", [good, entry])
    code, _, err = convert(llava, "--conversations", path)
    assert code == 1 and f"{path}, conversation 1" in err and part in err and err.count("\n") == 1
    code, out, _ = convert(llava, "--conversations", path, "--on-bad-row", "skip")
    assert code == 0 and "1 sample in 1 shard" in out and part in out


def rad_question(qid, phrase_type="freeform", **fields):
    question = {"qid": qid, "phrase_type": phrase_type, "image_name": "synpic1.jpg", "question": "Is it clear? "}
    return (
        question
        | {"answer": "Yes ", "answer_type": "CLOSED ", "question_type": "PRES", "image_organ": "CHEST"}
        | fields
    )


def test_vqa_rad(convert, tmp_path):
    images(tmp_path, "synpic1.jpg", "synpic2.jpg")
    asked = [
        rad_question("0"),
        rad_question(7, "test_para"),
        rad_question(8, "para", answer=3, image_name="synpic2.jpg"),
    ]
    given = ["--questions", write(tmp_path / "q.json", asked)]
    assert convert(vqa_rad, *given, "--split", "test")[0] == 0
    assert keys(tmp_path / "out") == ["7"]
    assert convert(vqa_rad, *given, "--split", "train")[0] == 0
    first, second = samples(tmp_path / "out")
    assert keys(tmp_path / "out") == ["0", "8"]
    assert (first.question, first.answer, first.choices) == ("Is it clear?", "yes", ())
    assert (second.answer, second.image) == ("3", picture(colour=(1, 0, 0)))
    assert (first.scores["answer_type"], first.scores["image_organ"]) == ("CLOSED", "CHEST")


@pytest.mark.parametrize(
    ("question", "part"),
    [
        ({"qid": None}, "question 1: qid is not a text or a number: None"),
        ({"phrase_type": 1}, "question 1: phrase_type is not text: 1"),
        ({"image_name": None}, "question 1: image_name is not text: None"),
        ({"answer": " "}, "question 1: "),
        ({"answer": None}, "question 1: answer is not a text or a number: None"),
        ({"image_name": ""}, "question 1: image_name is empty"),
    ],
)
def test_a_bad_question_of_vqa_rad_is_told_with_its_place(convert, tmp_path, question, part):
    given = ["--questions", write(tmp_path / "q.json", [rad_question("0") | question]), "--split", "train"]
    code, _, err = convert(vqa_rad, *given)
    assert code == 1 and part in err


def test_vqa_rad_has_three_splits(convert, tmp_path):
    for given, said in (
        (("--split", "val"), "--split: must be train, validation, test, not 'val'"),
        (("--split", "validation"), "--held-out: give a share for validation"),
        (("--split", "train", "--held-out", "1"), "below 1, not 1.0"),
    ):
        code, _, err = convert(vqa_rad, "--questions", write(tmp_path / "q.json", []), *given)
        assert code == 1 and said in err


@pytest.mark.parametrize("by", ["picture", "question"])
def test_questions_of_vqa_rad_are_held_out_by_picture_or_one_by_one(convert, tmp_path, by):
    names = [f"synpic{i}.jpg" for i in range(20)]
    images(tmp_path, *names)
    asked = [rad_question(f"{i}-{n}", image_name=name) for i, name in enumerate(names) for n in range(2)]
    asked += [rad_question("t", "test_freeform", image_name=names[0])]
    found = {}
    for split in ("train", "validation", "test"):
        given = ["--questions", write(tmp_path / "q.json", asked), "--split", split, "--held-out", "0.3"]
        assert convert(vqa_rad, *given, "--held-out-by", by)[0] == 0
        found[split] = keys(tmp_path / "out")
    assert found["test"] == ["t"] and sorted(found["train"] + found["validation"]) == sorted(
        q["qid"] for q in asked[:-1]
    )
    pictures = {split: {key.partition("-")[0] for key in own} for split, own in found.items()}
    assert pictures["train"].isdisjoint(pictures["validation"]) == (by == "picture")
    assert 2 <= len(pictures["validation"]) <= 15
