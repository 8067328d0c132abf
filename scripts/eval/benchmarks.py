"""The table of benchmarks: how each is read, scored and exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scripts.eval import choice, export, free, scoring, short
from scripts.eval.question import Question

Captions = dict[str, str]  # by id


@dataclass(frozen=True)
class Benchmark:
    read: Callable[[list[Path]], list[Question]]
    export: Callable[[list[Question], Captions], bytes]
    score: Callable[[list[Question], Captions], dict[str, object]] | None  # none: a language model is the judge
    metric: str = ""  # of lvpipe eval


BENCHMARKS = {
    "vqav2": Benchmark(short.vqav2, export.vqav2, scoring.mean_soft, "soft"),
    "gqa": Benchmark(short.gqa, export.gqa, scoring.gqa, "exact"),
    "vizwiz": Benchmark(short.vizwiz, export.vizwiz, scoring.mean_soft, "soft"),
    "scienceqa": Benchmark(choice.scienceqa, export.scienceqa, scoring.scienceqa, "exact"),
    "textvqa": Benchmark(short.textvqa, export.llava_answers, scoring.mean_soft, "soft"),
    "pope": Benchmark(short.pope, export.pope, scoring.pope, "exact"),
    "mmbench": Benchmark(choice.mmbench, export.mmbench, scoring.mmbench, "exact"),
    "mmbench-cn": Benchmark(
        partial(choice.mmbench, language="cn"), export.mmbench, scoring.mmbench, "exact"
    ),
    "llava-bench": Benchmark(free.llava_bench, export.llava_answers, None),
    "mm-vet": Benchmark(free.mm_vet, export.mm_vet, None),
}
