"""scripts/eval: how answers are compared, and what is said of files that are not as they must be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from eval_files import SHORT, llava, run, write_gqa, write_lines

from scripts.eval.scoring import choice, normalise, soft

COLUMNS = "index\tquestion\timage\tA\tB\tC\tD"


@pytest.fixture
def gqa(tmp_path: Path) -> Path:
    return write_gqa(tmp_path)


@pytest.mark.parametrize(("equal", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_soft_accuracy(equal: int, score: float) -> None:
    assert soft("Yes.", tuple(["yes"] * equal + ["no"] * (10 - equal))) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("A dog", "dog"),
        ("Two, the other.", "2 other"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("dog's", "dog 's"),
        ("1,000", "1000"),
        ("3.5 ft.", "3.5 ft"),
        ("10:30", "10:30"),
        ("t-shirt", "t shirt"),
        ("black - white", "black white"),
        ("Is it?\tYes\n", "is it yes"),
        ("", ""),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), (" B ", "B"), ("B. Paris", "B"), ("The answer is C.", "C"), ("B.", ""), ("Paris", ""), ("", ""), ("AB", "")],
)
def test_choice(text: str, letter: str) -> None:
    assert choice(text) == letter


# --- What can be wrong


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gqa", "{", "q.json, line 1: not JSON"),
        ("gqa", "[]", "q.json: not one of the files wanted here: LLaVA's questions, testdev_balanced_questions.json"),
        ("gqa", '{"1": {"imageId": "n", "question": "Q"}}', 'q.json, entry 1: no field "answer"'),
        ("gqa", '{"1": {"imageId": "n", "question": 5, "answer": "a"}}', 'q.json, entry 1: "question" must be a text'),
        ("vqav2", '{"questions": [{"question_id": 1}]}', 'q.json: no field "data_subtype"'),
        ("vqav2", '{"data_subtype": "x", "questions": [{"image_id": "1"}]}', 'q.json, entry 1: "image_id" must be a whole number'),
        ("vqav2", '{"data_subtype": "x", "questions": []}', "q.json: no question in it"),
        ("vizwiz", '[{"image": "a", "question": "q", "answers": [1]}]', 'q.json, entry 1, "answers", entry 1: not a JSON object'),
        ("vizwiz", '[{"image": "a", "question": "q"}, {"image": "a", "question": "q"}]', "q.json, entry 2: the id a was there before"),
        ("pope", '{"image": "a", "text": "q", "label": "maybe"}', 'q.json, entry 1: "label" must be yes or no'),
        ("scienceqa", '[{"id": "1", "conversations": []}]', '"conversations" must hold a question and an answer'),
        ("textvqa", '{"data": [{"image_id": "a", "question": "q", "answers": "x"}]}', '"answers" must be a list of texts'),
        ("mmbench", "index\tquestion\n", "q.json, line 1: no column image, A, B, C, D"),
        ("mmbench", f"{COLUMNS}\n1\tq\n", "q.json, line 2: 2 columns where line 1 names 7"),
        ("mmbench", f"{COLUMNS}\n1\tq\t5\tx\ty\t\t\n", 'q.json, line 2: "image" is neither a picture nor the index of a row'),
        ("mmbench", f"{COLUMNS}\nx\tq\t{'QUJD' * 20}\tx\ty\t\t\n", 'q.json, line 2: "index" must be a whole number'),
        ("mmbench", f"{COLUMNS}\n1\tq\t{'=' * 80}\tx\ty\t\t\n", 'q.json, line 2: "image" is not base64'),
        ("mmbench", f"{COLUMNS}\n1\tq\t{'QUJD' * 20}\tx\ty\t\t\n", "neither JPEG, PNG nor WebP"),
    ],
)
def test_bad_questions(name: str, content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.json").write_text(content)
    images = ("--images", tmp_path)
    assert run("import", name, "--questions", tmp_path / "q.json", *images, "--output", tmp_path / "task") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "task" / "questions.jsonl").exists()


def test_files_that_are_not_there(tmp_path: Path, gqa: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ("--output", tmp_path / "task")
    assert run("import", "gqa", "--questions", tmp_path / "gone.json", "--images", tmp_path, *task) == 2
    assert f"{tmp_path}/gone.json: No such file" in capsys.readouterr().err
    assert run("import", "gqa", "--questions", gqa, *task) == 2
    assert "--images is missing" in capsys.readouterr().err
    assert run("import", "gqa", "--questions", gqa, "--images", tmp_path, *task) == 2
    assert f"--images {tmp_path}: 1 of 1 images are not there, the first is n16.jpg" in capsys.readouterr().err
    assert run("import", "coco", "--questions", gqa, "--images", tmp_path, *task) == 2


def test_answers_to_other_questions(tmp_path: Path, gqa: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write_lines(tmp_path / "llava_gqa.jsonl", [llava("99", "n16.jpg", "Q?" + SHORT)])
    assert run("score", "gqa", "--questions", own, gqa, "--captions", own) == 2
    assert f"{own}, entry 1: no answer to this question in the other files" in capsys.readouterr().err


def test_bad_captions(tmp_path: Path, gqa: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = {"id": "2013", "caption": "no"}
    for rows, message in (
        ([{"id": "1", "caption": "x"}], "entry 1: its id 1 is none of --questions"),
        ([{"id": "2013"}], 'entry 1: no field "caption"'),
        ([answer | {"greedy_tokens": 1}], "entry 1: a right answer that was scored"),
        ([answer, answer], "entry 2: a second answer to 2013"),
    ):
        captions = write_lines(tmp_path / "captions.jsonl", rows)
        assert run("score", "gqa", "--questions", gqa, "--captions", captions) == 2
        assert f"{captions}, {message}" in capsys.readouterr().err


def test_missing_captions_are_counted(tmp_path: Path, gqa: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = write_lines(tmp_path / "captions.jsonl", [])
    assert run("score", "gqa", "--questions", gqa, "--captions", captions) == 0
    assert "1 of 1 questions have no caption, the first is 2013" in capsys.readouterr().err


def test_judged_by_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write_lines(tmp_path / "llava-mm-vet.jsonl", [llava(0, "v1_0.png", "What is x?", "conv")])
    assert run("score", "mm-vet", "--questions", own, "--captions", own) == 2
    assert "export the captions" in capsys.readouterr().err


def test_as_a_program() -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "scripts.eval"]
    usage = subprocess.run([*command, "--help"], cwd=root, check=True, capture_output=True, text=True).stdout
    assert usage.count("  python3 -m scripts.eval import") >= 2 and "lvpipe eval" in usage
    assert subprocess.run(command, cwd=root, capture_output=True).returncode == 2
