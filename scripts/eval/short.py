"""Questions with short answers: VQAv2, GQA, VizWiz, TextVQA, POPE. Contents tell the files given apart.

LLaVA's own files (llava_*.jsonl) hold whole prompts; without them, prompts are made the same way from the benchmark's files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from scripts.eval.files import Failure, Row, lists, maps, rows, sort_files
from scripts.eval.question import LLAVA, SHORT, Question, from_llava, join

UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


def has(name: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and isinstance(value.get(name), list)


def ten_answers(row: Row) -> tuple[str, ...]:
    return tuple(answer.text("answer") for answer in row.list("answers"))


def numbered() -> Callable[[str], str]:
    """Ids for files that have none of their own: the n-th question of its kind."""
    counts: Counter[str] = Counter()

    def name(kind: str) -> str:
        counts[kind] += 1
        return f"{kind}-{counts[kind]}"

    return name


def vqav2(paths: list[Path]) -> list[Question]:
    files = sort_files(paths, {"LLaVA's questions": LLAVA, "questions": has("questions"), "annotations": has("annotations")})
    found = from_llava(files["LLaVA's questions"], lambda row: row.id("question_id"), "vqav2")
    for path, value in files["questions"]:
        # Images of test-dev are those of test.
        subtype = Row(str(path), value).text("data_subtype").replace("test-dev", "test")
        for row in rows(value["questions"], str(path)):
            image = f"COCO_{subtype}_{row.number('image_id'):012d}.jpg"
            found.append(Question(row.id("question_id"), image, row.text("question") + SHORT, row, "vqav2"))
    answers = {
        row.id("question_id"): ten_answers(row)
        for path, value in files["annotations"]
        for row in rows(value["annotations"], str(path))
    }
    return join(found, answers, lambda q: q.id)


def gqa(paths: list[Path]) -> list[Question]:
    files = sort_files(paths, {"LLaVA's questions": LLAVA, "testdev_balanced_questions.json": maps("imageId")})
    found = from_llava(files["LLaVA's questions"], lambda row: row.id("question_id"), "gqa")
    own = not found
    answers = {}
    for path, value in files["testdev_balanced_questions.json"]:
        for name, row in zip(value, rows(value, str(path)), strict=True):
            answers[name] = (row.text("answer"),)
            if own:
                found.append(Question(name, row.text("imageId") + ".jpg", row.text("question") + SHORT, row, "gqa"))
    return join(found, answers, lambda q: q.id)


def vizwiz(paths: list[Path]) -> list[Question]:
    files = sort_files(paths, {"LLaVA's questions": LLAVA, "test.json or val.json": lists("image", "question")})
    found = from_llava(files["LLaVA's questions"], lambda row: row.text("image"), "vizwiz")
    for path, value in files["test.json or val.json"]:
        for row in rows(value, str(path)):
            prompt = row.text("question").capitalize() + UNANSWERABLE + SHORT
            answers = ten_answers(row) if "answers" in row.values else ()
            found.append(Question(row.text("image"), row.text("image"), prompt, row, "vizwiz", answers))
    return found


def textvqa(paths: list[Path]) -> list[Question]:
    files = sort_files(paths, {"LLaVA's questions": LLAVA, "TextVQA_0.5.1_val.json": has("data")})
    name = numbered()  # question_id is the image's id in LLaVA's file
    found = from_llava(files["LLaVA's questions"], lambda row: name(row.id("question_id")), "textvqa")
    own = not found
    answers = {}
    for path, value in files["TextVQA_0.5.1_val.json"]:
        for row in rows(value["data"], str(path)):
            image, question = row.text("image_id"), row.text("question")
            given = row.raw("answers")
            if not isinstance(given, list) or not all(isinstance(answer, str) for answer in given):
                raise Failure(f'{row.where}: "answers" must be a list of texts')
            answers[image + ".jpg", question.strip().lower()] = tuple(given)
            if own:
                found.append(Question(name(image), image + ".jpg", question.capitalize() + SHORT, row, "textvqa"))
    # Before the OCR tokens and the instruction stands the question.
    return join(found, answers, lambda q: (q.image, q.prompt.split("\n")[0].strip().lower()))


def pope(paths: list[Path]) -> list[Question]:
    kinds = {"LLaVA's questions": LLAVA, "coco_pope_*.json": lists("label", "text", "image")}
    files = sort_files(paths, kinds)
    name = numbered()
    found = from_llava(files["LLaVA's questions"], lambda row: name(row.text("category")), "pope")
    found = [replace(question, family="pope-" + question.row.text("category")) for question in found]
    own = not found
    answers = {}
    for path, value in files["coco_pope_*.json"]:
        category = path.stem.rsplit("_", 1)[-1]
        for row in rows(value, str(path)):
            label = row.text("label")
            if label not in ("yes", "no"):
                raise Failure(f'{row.where}: "label" must be yes or no')
            answers["pope-" + category, row.text("image"), row.text("text")] = (label,)
            if own:
                prompt = row.text("text") + SHORT
                found.append(Question(name(category), row.text("image"), prompt, row, "pope-" + category))
    return join(found, answers, lambda q: (q.family, q.image, q.prompt.split("\n")[0]))
