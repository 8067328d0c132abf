"""scripts/eval: published question files become manifests, captions become submissions and scores; all by hand here."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import openpyxl
import pytest
from eval_files import JPEG, PNG, SHORT, Bench, llava, run, write_gqa, write_json, write_lines

LETTER = "\nAnswer with the option's letter from the given choices directly."


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Bench]:
    return lambda name, *questions: Bench(name, list(questions), tmp_path, capsys)


# --- VQAv2


def test_vqav2_from_either_file(tmp_path: Path, bench: Callable[..., Bench]) -> None:
    """The benchmark's file gives the rows that LLaVA's gives; images of test-dev are those of test."""
    image = "COCO_test2015_000000000042.jpg"
    own = write_lines(tmp_path / "llava_vqav2.jsonl", [llava(420, image, "Is it red?" + SHORT)])
    question = {"image_id": 42, "question": "Is it red?", "question_id": 420}
    official = write_json(tmp_path / "q.json", {"data_subtype": "test-dev2015", "questions": [question]})
    expected = [{"id": "420", "image": f"../images/{image}", "prompt": "Is it red?" + SHORT, "family": "vqav2"}]
    assert bench("vqav2", own).imported(image) == bench("vqav2", official).imported(image) == expected


def test_vqav2_submission(tmp_path: Path, bench: Callable[..., Bench]) -> None:
    """Normalised, with an empty answer where there is none: test-dev's captions fill test's file."""
    own = write_lines(tmp_path / "llava.jsonl", [llava(i, "a.jpg", "Q?" + SHORT) for i in (420, 7)])
    assert json.loads(bench("vqav2", own).exported({"420": "Two dogs."})) == [
        {"question_id": 420, "answer": "2 dogs"},
        {"question_id": 7, "answer": ""},
    ]


def test_vqav2_with_annotations(tmp_path: Path, bench: Callable[..., Bench]) -> None:
    question = {"image_id": 9, "question": "How many?", "question_id": 90}
    questions = write_json(tmp_path / "q.json", {"data_subtype": "val2014", "questions": [question]})
    answers = [{"answer": "3", "answer_id": i} for i in range(8)] + [{"answer": "4", "answer_id": i} for i in (8, 9)]
    annotations = write_json(tmp_path / "a.json", {"annotations": [{"question_id": 90, "answers": answers}]})
    task = bench("vqav2", questions, annotations)
    (row,) = task.imported("COCO_val2014_000000000009.jpg")
    assert row["answers"] == ["3"] * 8 + ["4"] * 2
    assert (row["answer"], row["metric"]) == ("3", "soft")
    assert task.scored({"90": "three"}) == {"questions": 1, "accuracy": 100.0}
    assert task.scored({"90": "Four."}) == {"questions": 1, "accuracy": 60.0}
    assert task.scored({}) == {"questions": 1, "accuracy": 0.0}


# --- GQA


@pytest.fixture
def gqa(tmp_path: Path) -> Path:
    return write_gqa(tmp_path)


def test_gqa(tmp_path: Path, gqa: Path, bench: Callable[..., Bench]) -> None:
    expected = [{
        "id": "2013", "image": "../images/n16.jpg", "prompt": "Is it overcast?" + SHORT, "family": "gqa",
        "metric": "exact", "answers": ["no"], "answer": "No",
    }]  # fmt: skip
    own = write_lines(tmp_path / "llava_gqa.jsonl", [llava("2013", "n16.jpg", "Is it overcast?" + SHORT)])
    assert bench("gqa", gqa).imported("n16.jpg") == bench("gqa", own, gqa).imported("n16.jpg") == expected
    assert json.loads(bench("gqa", gqa).exported({"2013": "No."})) == [{"questionId": "2013", "prediction": "no"}]
    assert bench("gqa", gqa).scored({"2013": "No."}) == {"questions": 1, "accuracy": 100.0}
    assert bench("gqa", gqa).scored({"2013": "no clouds"}) == {"questions": 1, "accuracy": 0.0}


# --- VizWiz


def test_vizwiz(tmp_path: Path, bench: Callable[..., Bench]) -> None:
    prompt = "What is this? and why?\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT
    own = write_lines(tmp_path / "llava_test.jsonl", [llava(0, "VizWiz_test_00000000.jpg", prompt)])
    official = write_json(tmp_path / "test.json", [{"image": "VizWiz_test_00000000.jpg", "question": "What is this? And why?"}])
    rows = [bench("vizwiz", file).imported("VizWiz_test_00000000.jpg") for file in (own, official)]
    image = "VizWiz_test_00000000.jpg"
    assert rows[0] == rows[1] == [{"id": image, "image": f"../images/{image}", "prompt": prompt, "family": "vizwiz"}]
    assert json.loads(bench("vizwiz", own).exported({image: "The Unanswerable"})) == [{"image": image, "answer": "unanswerable"}]


def test_vizwiz_val_can_be_scored(tmp_path: Path, bench: Callable[..., Bench]) -> None:
    answers = [{"answer": text, "answer_confidence": "yes"} for text in ["unanswerable"] * 3 + ["soup"] * 7]
    val = write_json(tmp_path / "val.json", [{"image": "v.jpg", "question": "What?", "answers": answers, "answerable": 1}])
    task = bench("vizwiz", val)
    assert task.imported("v.jpg")[0]["answer"] == "Soup"
    assert task.scored({"v.jpg": "Unanswerable"}) == {"questions": 1, "accuracy": 90.0}


# --- TextVQA


def test_textvqa(tmp_path: Path, bench: Callable[..., Bench]) -> None:
    """LLaVA's question_id is the image's, so two questions about one image share it; the answers are found by text."""
    ocr = "\nReference OCR token: DAKOTA, DIGITAL"
    texts = [f"What brand is it?{ocr}{SHORT}", f"Is it new?{ocr}{SHORT}"]
    own = write_lines(tmp_path / "llava.jsonl", [llava("00a8", "00a8.jpg", text) for text in texts])
    data = [
        {"question_id": 2, "image_id": "00a8", "question": "is it new?", "answers": ["yes"] * 10},
        {"question_id": 1, "image_id": "00a8", "question": "what brand is it?", "answers": ["dakota"] * 9 + ["nous"]},
    ]
    val = write_json(tmp_path / "TextVQA_0.5.1_val.json", {"data": data})
    task = bench("textvqa", own, val)
    rows = task.imported("00a8.jpg")
    assert [(row["id"], row["prompt"], row["answers"][0]) for row in rows] == [
        ("00a8-1", texts[0], "dakota"), ("00a8-2", texts[1], "yes"),
    ]  # fmt: skip
    assert task.scored({"00a8-1": "Nous", "00a8-2": "Yes"}) == {"questions": 2, "accuracy": 65.0}
    answers = [json.loads(line) for line in task.exported({"00a8-1": "Dakota", "00a8-2": "No"}).splitlines()]
    assert [(a["question_id"], a["prompt"], a["text"]) for a in answers] == [
        ("00a8", texts[0], "Dakota"), ("00a8", texts[1], "No"),
    ]  # fmt: skip
    alone = bench("textvqa", val)
    prompts = [row["prompt"] for row in alone.imported("00a8.jpg")]
    assert {json.loads(line)["question_id"] for line in alone.exported({}).splitlines()} == {"00a8"}
    assert prompts == ["Is it new?" + SHORT, "What brand is it?" + SHORT]


# --- POPE


@pytest.fixture
def pope(tmp_path: Path) -> list[Path]:
    """Two categories with five questions each; ids start anew in each."""
    files = []
    for category, labels in (("popular", "yyynn"), ("random", "yynnn")):
        rows = [
            {"question_id": i, "image": "c.jpg", "text": f"Is there a {i} in the image?", "label": "yes" if label == "y" else "no"}
            for i, label in enumerate(labels, 1)
        ]
        files.append(write_lines(tmp_path / f"coco_pope_{category}.json", rows))
    return files


def test_pope(tmp_path: Path, pope: list[Path], bench: Callable[..., Bench]) -> None:
    rows = bench("pope", *pope).imported("c.jpg")
    assert rows[5] == {
        "id": "random-1", "image": "../images/c.jpg", "prompt": "Is there a 1 in the image?" + SHORT,
        "family": "pope-random", "metric": "exact", "answers": ["yes"], "answer": "Yes",
    }  # fmt: skip
    own = [llava(n * 1000 + i, "c.jpg", f"Is there a {i} in the image?" + SHORT, category)
           for n, category in enumerate(("popular", "random")) for i in range(1, 6)]  # fmt: skip
    both = bench("pope", *pope, write_lines(tmp_path / "llava_pope_test.jsonl", own))
    assert both.imported("c.jpg") == rows
    exported = [json.loads(line)["question_id"] for line in both.exported({}).splitlines()]
    assert sorted(exported) == sorted(row["question_id"] for row in own)  # not POPE's own, which repeat
    alone = bench("pope", *pope)
    output = tmp_path / "refused.jsonl"
    assert run("export", "pope", "--questions", *pope, "--captions", alone.captions({}), "--output", output) == 2
    assert not output.exists()


def test_pope_scores(pope: list[Path], bench: Callable[..., Bench]) -> None:
    """popular: 2 hits, 1 false alarm, 1 miss; random: sentences, and one question without a caption, which was a yes."""
    said = ["Yes", "Yes", "No", "Yes", "No"], ["Yes, there is.", None, "There is no dog.", "It is not. Yes", "No"]
    captions = {
        f"{category}-{i}": text
        for category, texts in zip(("popular", "random"), said, strict=True)
        for i, text in enumerate(texts, 1)
        if text is not None
    }
    assert bench("pope", *pope).scored(captions) == {
        "questions": 10,
        "f1": 66.6667,
        "pope-popular": {"questions": 5, "f1": 66.6667, "accuracy": 60.0, "precision": 66.6667, "recall": 66.6667, "yes": 60.0},
        "pope-random": {"questions": 5, "f1": 66.6667, "accuracy": 80.0, "precision": 100.0, "recall": 50.0, "yes": 20.0},
    }


# --- ScienceQA


def test_scienceqa(tmp_path: Path, bench: Callable[..., Bench]) -> None:
    def problem(key: str, text: str, answer: str, **more: object) -> dict[str, object]:
        return {"id": key, "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]} | more

    asked = "Context: A map.\nWhich is north?\nA. Maine\nB. Kansas"
    file = write_json(tmp_path / "llava_test_CQM-A.json", [
        problem("4", "No picture.\nA. x\nB. y", "B"),
        problem("5", "<image>\n" + asked, "A", image="5/image.png"),
        problem("6", "<image>\nWhat?\nA. x\nB. y", "B", image="6/image.png"),
    ])  # fmt: skip
    task = bench("scienceqa", file)
    rows = task.imported("5/image.png", "6/image.png")
    assert [row["id"] for row in rows] == ["5", "6"]
    assert (rows[0]["image"], rows[0]["prompt"], rows[0]["answers"]) == ("../images/5/image.png", asked + LETTER, ["A"])
    assert task.scored({"5": "A", "6": "y"}) == {"questions": 2, "accuracy": 50.0}
    assert task.scored({"5": "A. Maine", "6": "The answer is B."}) == {"questions": 2, "accuracy": 100.0}
    answer = json.loads(task.exported({"5": "A", "6": "B"}).splitlines()[0])
    assert (answer["question_id"], answer["text"], answer["prompt"]) == ("5", "A", "<image>\n" + asked + LETTER)


# --- MMBench

HEAD = "index question hint A B C D answer category image source l2-category comment split".split()


def mmbench_file(path: Path, rows: list[list[str]]) -> Path:
    """index, question, hint, options, answer, image."""
    filled = [[*row[:8], "logic", row[8], "s", "l", "nan", "dev"] for row in rows]
    path.write_text("".join("\t".join(row) + "\n" for row in [HEAD, *filled]) + "\n", "utf-8")
    return path


@pytest.fixture
def mmbench(tmp_path: Path) -> Path:
    png, jpeg = base64.b64encode(PNG).decode(), base64.b64encode(JPEG).decode()
    return mmbench_file(tmp_path / "mmbench_dev.tsv", [
        ["7", "Which?", "A\u2028hint.", "red", "blue", "nan", "", "B", png],
        ["8", "Who?", "nan", "Ann", "Na", "Cid", "Dan", "D", jpeg],  # a name, and the sign of sodium
        ["1000007", "Which?", "A hint.", "blue", "red", "nan", "", "A", "7"],  # the image is row 7's
        ["1000008", '"Who\n""he""?"', "nan", "Na", "Cid", "Dan", "Ann", "C", jpeg],
    ])  # fmt: skip


def test_mmbench(mmbench: Path, bench: Callable[..., Bench]) -> None:
    rows = bench("mmbench", mmbench).imported()
    assert [(row["id"], row["group"], row["answers"]) for row in rows] == [  # by image: it is encoded once
        ("7", "7", ["B"]), ("1000007", "7", ["A"]), ("8", "8", ["D"]), ("1000008", "8", ["C"]),
    ]  # fmt: skip
    assert rows[0]["prompt"] == "A\u2028hint.\nWhich?\nA. red\nB. blue" + LETTER
    assert rows[2]["prompt"] == "Who?\nA. Ann\nB. Na\nC. Cid\nD. Dan" + LETTER
    assert rows[3]["prompt"].startswith('Who\n"he"?\nA. Na')
    assert rows[0]["image"] == rows[1]["image"] != rows[2]["image"] == rows[3]["image"]
    assert [row["image"].split(".")[-1] for row in rows[1:3]] == ["png", "jpg"]
    chinese = bench("mmbench-cn", mmbench).imported()[0]
    assert chinese["prompt"] == "A\u2028hint.\nWhich?\nA. red\nB. blue\n请直接回答选项字母。" and chinese["family"] == "mmbench-cn"


def test_mmbench_is_circular(mmbench: Path, bench: Callable[..., Bench]) -> None:
    """A question is right where all turns of its options are."""
    task = bench("mmbench", mmbench)
    assert task.scored({"7": "B", "1000007": "A. blue", "8": "D", "1000008": "D"}) == {"questions": 2, "accuracy": 50.0}
    assert task.scored({"7": "B", "8": "D", "1000008": "C"}) == {"questions": 2, "accuracy": 50.0}


def test_mmbench_submission(mmbench: Path, bench: Callable[..., Bench]) -> None:
    """Columns as LLaVA's upload has them; texts come back from the workbook as they were."""
    data = bench("mmbench", mmbench).exported({"7": "B", "8": "<D> & \x0bco", "1000007": "A"})
    sheet = ElementTree.fromstring(zipfile.ZipFile(io.BytesIO(data)).read("xl/worksheets/sheet1.xml"))
    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    table = [["".join(cell.itertext()) for cell in row] for row in sheet.iter(space + "row")]
    assert table[0] == ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]
    assert [row[6] for row in table[1:]] == ["B", "<D> & co", "A", ""]
    assert table[2] == ["8", "Who?", "Ann", "Na", "Cid", "Dan", "<D> & co", "D", "dev"]
    assert bench("mmbench", mmbench).exported({"7": "B", "8": "<D> & \x0bco", "1000007": "A"}) == data
    read = openpyxl.load_workbook(io.BytesIO(data))["Sheet1"]
    assert [cell.value for cell in read[2]] == [7, "Which?", "red", "blue", None, None, "B", "B", "dev"]


def test_mmbench_without_answers(tmp_path: Path, bench: Callable[..., Bench]) -> None:
    file = mmbench_file(tmp_path / "t.tsv", [["7", "Q", "nan", "x", "y", "", "", "", base64.b64encode(PNG).decode()]])
    assert "answers" not in bench("mmbench", file).imported()[0]
    assert run("score", "mmbench", "--questions", file, "--captions", file) == 2


# --- LLaVA-Bench, MM-Vet


def test_llava_bench(tmp_path: Path, bench: Callable[..., Bench]) -> None:
    file = write_lines(tmp_path / "questions.jsonl", [llava(i, "001.jpg", f"Tell {i}", "conv") for i in (0, 1)])
    task = bench("llava-bench", file)
    row = {"id": "1", "image": "../images/001.jpg", "prompt": "Tell 1", "family": "llava-bench"}
    assert task.imported("001.jpg")[1] == row
    assert [json.loads(line) for line in task.exported({"1": "b", "0": "a"}).splitlines()] == [
        {"question_id": i, "prompt": f"Tell {i}", "text": text, "answer_id": str(i), "model_id": "lvpipe", "metadata": {}}
        for i, text in enumerate("ab")
    ]


def test_mm_vet(tmp_path: Path, bench: Callable[..., Bench]) -> None:
    own = write_lines(tmp_path / "llava-mm-vet.jsonl", [llava(0, "v1_0.png", "What is x?", "conv")])
    official = write_json(tmp_path / "mm-vet.json", {"v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "1"}})
    expected = [{"id": "v1_0", "image": "../images/v1_0.png", "prompt": "What is x?", "family": "mm-vet"}]
    assert bench("mm-vet", own).imported("v1_0.png") == bench("mm-vet", official).imported("v1_0.png") == expected
    assert json.loads(bench("mm-vet", official).exported({"v1_0": "It is 1."})) == {"v1_0": "It is 1."}
