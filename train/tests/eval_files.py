"""What the tests of scripts/eval share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.eval.__main__ import main

SHORT = "\nAnswer the question using a single word or phrase."
PNG = b"\x89PNG\r\n\x1a\n" + bytes(60)
JPEG = b"\xff\xd8\xff\xe0" + bytes(60)


def run(*arguments: object) -> int:
    """The exit status."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").rstrip("\n").split("\n")]


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), "utf-8")
    return path


def llava(question_id: object, image: str, text: str, category: str = "default") -> dict[str, object]:
    """A line of LLaVA's question files."""
    return {"question_id": question_id, "image": image, "text": text, "category": category}


def write_gqa(folder: Path) -> Path:
    question = {"imageId": "n16", "question": "Is it overcast?", "answer": "no", "isBalanced": True}
    return write_json(folder / "testdev_balanced_questions.json", {"2013": question})


class Bench:
    """One benchmark with its question files; images are made as they are asked for."""

    def __init__(self, name: str, questions: list[Path], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.name, self.questions, self.folder, self.capsys = name, questions, folder, capsys

    def imported(self, *images: str) -> list[dict[str, object]]:
        for image in images:
            path = self.folder / "images" / image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PNG)
        where = ("--images", self.folder / "images") if images else ()
        assert run("import", self.name, "--questions", *self.questions, *where, "--output", self.folder / "task") == 0
        rows = lines(self.folder / "task" / "questions.jsonl")
        assert all((self.folder / "task" / row["image"]).read_bytes() in (PNG, JPEG) for row in rows)
        return rows

    def captions(self, said: dict[str, str]) -> Path:
        rows = [{"id": key, "image": "x", "prompt": "p", "caption": text, "finish_reason": "stop"} for key, text in said.items()]
        return write_lines(self.folder / "captions.jsonl", rows)

    def exported(self, said: dict[str, str]) -> bytes:
        output = self.folder / "out" / "answers"
        arguments = ("--questions", *self.questions, "--captions", self.captions(said), "--output", output)
        assert run("export", self.name, *arguments) == 0
        return output.read_bytes()

    def scored(self, said: dict[str, str]) -> dict[str, object]:
        self.capsys.readouterr()
        assert run("score", self.name, "--questions", *self.questions, "--captions", self.captions(said)) == 0
        result = json.loads(self.capsys.readouterr().out)
        assert result.pop("captions").endswith("captions.jsonl")
        return result
