"""Questions with free answers, scored by a language model: LLaVA-Bench in the wild and MM-Vet."""

from __future__ import annotations

from pathlib import Path

from scripts.eval.files import maps, rows, sort_files
from scripts.eval.question import LLAVA, Question, from_llava


def llava_bench(paths: list[Path]) -> list[Question]:
    files = sort_files(paths, {"questions.jsonl": LLAVA})
    return from_llava(files["questions.jsonl"], lambda row: row.id("question_id"), "llava-bench")


def mm_vet(paths: list[Path]) -> list[Question]:
    files = sort_files(paths, {"LLaVA's questions": LLAVA, "mm-vet.json": maps("imagename")})
    found = from_llava(files["LLaVA's questions"], lambda row: "v1_" + row.id("question_id"), "mm-vet")
    for path, value in files["mm-vet.json"]:
        for name, row in zip(value, rows(value, str(path)), strict=True):
            found.append(Question(name, row.text("imagename"), row.text("question"), row, "mm-vet"))
    return found
