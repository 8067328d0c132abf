"""Benchmarks as published for LLaVA-1.5 into lvpipe task folders, and captions into scores and submissions.

    python3 -m scripts.eval import BENCH --questions FILE [...] --images DIR --output TASKDIR
    python3 -m scripts.eval score  BENCH --questions FILE [...] --captions captions.jsonl [...]
    python3 -m scripts.eval export BENCH --questions FILE [...] --captions captions.jsonl --output FILE

BENCH: vqav2 gqa vizwiz scienceqa textvqa pope mmbench mmbench-cn llava-bench mm-vet. scripts/eval/README.md says which files each
wants. Give all three commands the same --questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from scripts.eval.benchmarks import BENCHMARKS, Captions
from scripts.eval.files import Failure, read_lines, rows, write
from scripts.eval.question import Question, check_ids, place_images

EXAMPLES = """examples:
  python3 -m scripts.eval import gqa --questions testdev_balanced_questions.json --images gqa/images --output tasks/gqa
  lvpipe eval --model llava-1.5-7b-hf --tasks tasks/gqa --output runs/gqa --keep 0.5 --no-nll
  python3 -m scripts.eval score gqa --questions testdev_balanced_questions.json --captions runs/gqa/*/captions.jsonl

  python3 -m scripts.eval import mm-vet --questions mm-vet.json --images mm-vet/images --output tasks/mm-vet
  lvpipe caption --model llava-1.5-7b-hf --input tasks/mm-vet/questions.jsonl --output runs/mm-vet --max-new-tokens 1024
  python3 -m scripts.eval export mm-vet --questions mm-vet.json --captions runs/mm-vet/captions.jsonl --output mm-vet-answers.json
"""


def read_questions(name: str, paths: list[Path]) -> list[Question]:
    questions = BENCHMARKS[name].read(paths)
    if not questions:
        raise Failure(f"--questions: {' '.join(map(str, paths))}: no question in it")
    check_ids(questions)
    return questions


def read_captions(path: Path, questions: list[Question]) -> Captions:
    known = {question.id for question in questions}
    captions: Captions = {}
    for row in rows(read_lines(path), str(path)):
        if row.id("id") not in known:
            raise Failure(f"{row.where}: its id {row.id('id')} is none of --questions; were other files imported?")
        if "greedy_tokens" in row.values:
            raise Failure(f"{row.where}: a right answer that was scored (--score), not what the model said")
        if row.id("id") in captions:
            raise Failure(f"{row.where}: a second answer to {row.id('id')}; were two runs joined?")
        captions[row.id("id")] = row.text("caption")
    missing = [question.id for question in questions if question.id not in captions]
    if missing:
        print(f"{path}: {len(missing)} of {len(questions)} questions have no caption, the first is {missing[0]}", file=sys.stderr)
    return captions


def run_import(args: argparse.Namespace) -> None:
    questions = read_questions(args.bench, args.questions)
    places = place_images(questions, args.images, args.output)
    first = {place: i for i, place in reversed(list(enumerate(places)))}
    # Those about one image behind each other: it is encoded once.
    asked = sorted(zip(questions, places, strict=True), key=lambda pair: first[pair[1]])
    metric = BENCHMARKS[args.bench].metric
    lines = [json.dumps(question.manifest_row(metric, place), ensure_ascii=False) for question, place in asked]
    manifest = args.output / "questions.jsonl"
    write(manifest, ("\n".join(lines) + "\n").encode())
    print(f"{manifest}: {len(questions)} questions about {len(set(places))} images", file=sys.stderr)
    if all(question.answers for question in questions):
        print(f"then: lvpipe eval --tasks {args.output} ...", file=sys.stderr)
    else:
        print(f"no answers are given, so: lvpipe caption --input {manifest} ...", file=sys.stderr)


def run_score(args: argparse.Namespace) -> None:
    questions = read_questions(args.bench, args.questions)
    score = BENCHMARKS[args.bench].score
    if score is None or not all(question.answers for question in questions):
        raise Failure(f"score {args.bench}: --questions holds no answers; export the captions for the benchmark's own judge")
    for path in args.captions:
        print(json.dumps({"captions": str(path)} | score(questions, read_captions(path, questions))))


def run_export(args: argparse.Namespace) -> None:
    questions = read_questions(args.bench, args.questions)
    write(args.output, BENCHMARKS[args.bench].export(questions, read_captions(args.captions, questions)))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m scripts.eval", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, about in (
        ("import", run_import, "question files into a task folder"),
        ("score", run_score, "captions by the benchmark's own metric, one JSON line each"),
        ("export", run_export, "captions into the file that the benchmark takes"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(run=run)
        command.add_argument("bench", metavar="BENCH", choices=list(BENCHMARKS), help=", ".join(BENCHMARKS))
        command.add_argument("--questions", type=Path, nargs="+", required=True, metavar="FILE", help="the benchmark's files")
        if name == "import":
            command.add_argument("--images", type=Path, metavar="DIR", help="folder of the images (not for mmbench: in its file)")
            command.add_argument("--output", type=Path, required=True, metavar="TASKDIR", help="gets questions.jsonl")
        else:
            command.add_argument("--captions", type=Path, nargs="+" if name == "score" else None, required=True, metavar="FILE")
        if name == "export":
            command.add_argument("--output", type=Path, required=True, metavar="FILE")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = make_parser().parse_args(arguments)
    try:
        args.run(args)
    except Failure as failure:
        print(f"scripts.eval: {failure}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
