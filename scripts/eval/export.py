"""What each benchmark takes back. A question without a caption is exported with an empty answer."""

from __future__ import annotations

import json
from dataclasses import replace

from scripts.eval.files import Failure
from scripts.eval.question import Question
from scripts.eval.scoring import normalise, plain
from scripts.eval.xlsx import workbook

NOT_UPLOADED = {"hint", "category", "source", "image", "comment", "l2-category"}


def as_json(value: object, indent: int | None = None) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()


def vqav2(questions: list[Question], captions: dict[str, str]) -> bytes:
    return as_json([
        {"question_id": q.row.raw("question_id"), "answer": normalise(captions.get(q.id, ""))} for q in questions
    ])  # fmt: skip


def gqa(questions: list[Question], captions: dict[str, str]) -> bytes:
    return as_json([{"questionId": q.id, "prediction": plain(captions.get(q.id, ""))} for q in questions])


def vizwiz(questions: list[Question], captions: dict[str, str]) -> bytes:
    return as_json([{"image": q.image, "answer": normalise(captions.get(q.id, ""))} for q in questions])


def mm_vet(questions: list[Question], captions: dict[str, str]) -> bytes:
    return as_json({q.id: captions.get(q.id, "") for q in questions}, indent=2)


def llava_answers(questions: list[Question], captions: dict[str, str]) -> bytes:
    """What LLaVA's eval_*.py read: questions by number, TextVQA's by image."""
    return b"".join(
        as_json({
            "question_id": q.row.values.get("image_id", q.row.values.get("question_id", q.id)),
            "prompt": q.prompt,
            "text": captions.get(q.id, ""),
            "answer_id": q.id,
            "model_id": "lvpipe",
            "metadata": {},
        })
        for q in questions
    )  # fmt: skip


def pope(questions: list[Question], captions: dict[str, str]) -> bytes:
    """eval_pope.py tells the categories apart by LLaVA's numbers; POPE's own begin anew in each."""
    numbers = [q.row.values.get("question_id") for q in questions]
    if len(set(numbers)) < len(numbers):
        raise Failure("question_id: the same in several categories; give llava_pope_test.jsonl too, whose numbers LLaVA's eval_pope.py wants")
    return llava_answers(questions, captions)


def scienceqa(questions: list[Question], captions: dict[str, str]) -> bytes:
    """eval_science_qa.py knows a question with an image by its prompt."""
    return llava_answers([replace(q, prompt="<image>\n" + q.prompt) for q in questions], captions)


def mmbench(questions: list[Question], captions: dict[str, str]) -> bytes:
    """The table with a column for the predictions behind the options."""
    names = [name for name in questions[0].row.values if name not in NOT_UPLOADED]
    place = names.index("D") + 1
    table: list[list[str | int]] = [[*names[:place], "prediction", *names[place:]]]
    for question in questions:
        cells: list[str | int] = ["" if (cell := question.row.values[name]) == "nan" else cell for name in names]
        cells[names.index("index")] = int(question.id)
        table.append([*cells[:place], captions.get(question.id, ""), *cells[place:]])
    return workbook(table)
