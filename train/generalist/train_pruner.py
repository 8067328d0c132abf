"""Train LVPruning's decision modules on the frozen demo model.

    python train_pruner.py --minutes 15 [--workers 2] [--rho 0.5]

Loss = NLL of the answer + ratio_weight * mean_s (rho_s - mean D_s)^2, the ratio term
PER SAMPLE: on the batch mean, modules move budget between questions. Hard
Gumbel-Softmax masks, applied as attention masks; cosine schedule after a warm-up.
One question per sequence: survivors see survivors, so one vision row cannot carry two
questions' masks. Same state folder and flags as train.py.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from train.generalist import data
from train.generalist import pruning
from train.tasks import families, scenes
from train.tasks.families import Question
from train.generalist.model import DemoLlava, Pruner
from train.generalist.tokenizer import PAD_ID, Tokens
from train.generalist.train import Run, load_state


def draw_question(rng: random.Random, scene: scenes.Scene, captions: float) -> Question:
    if rng.random() < captions:
        return families.caption(scene, rng)[0]
    return data.draw_questions(rng, scene, 1)[0]


def single_batch(tokens: Tokens, asked: list[Question]) -> tuple[Tensor, Tensor, Tensor]:
    """text ids [B, n] (tail, answer without eos), target [B, n] or -1, tail_length [B]"""
    rows, targets, tails = [], [], []
    for q in asked:
        tail, answer = tokens.tail(q.text), tokens.answer(q.answer)
        ids = [*tail, *answer]
        rows.append(ids[:-1])
        targets.append([-1] * (len(tail) - 1) + ids[len(tail):])
        tails.append(len(tail))
    n = max(map(len, rows))
    text = torch.tensor([r + [PAD_ID] * (n - len(r)) for r in rows])
    target = torch.tensor([t + [-1] * (n - len(t)) for t in targets])
    return text, target, torch.tensor(tails)


def train(args: argparse.Namespace) -> None:
    model, pruner, tokens = DemoLlava(), Pruner(), Tokens(data.MODEL_FOLDER)
    load_state(args, args.base, "model", model)
    model.eval().requires_grad_(False)
    run = Run(args, "pruner", {"pruner": pruner}, [(pruner, args.rate)])
    torch.manual_seed(args.seed * 1009 + run.clock.done_steps * 17 + args.rank)  # Gumbel noise
    head, ratios = torch.tensor(tokens.head), pruning.ladder(args.rho)
    while run.going:
        batch = data.draw_scenes(run.rng, args.batch)
        asked = [draw_question(run.rng, s, args.captions) for s in batch]
        text, target, tail_length = single_batch(tokens, asked)
        with torch.no_grad():
            vision = model.vision(data.pixels(batch, run.rng))
        rows = pruning.embed_rows(model, vision, head, text, tail_length)
        temperature = args.hot + (args.cold - args.hot) * run.clock.progress
        hidden, masks = pruning.masked_forward(model, pruner, rows, temperature)
        hidden = hidden[:, rows.span.stop:]
        learn = target >= 0
        nll = F.cross_entropy(model.language_model.lm_head(hidden[learn]), target[learn], reduction="none")
        sample = learn.nonzero()[:, 0]
        # The mean over a caption's tokens; a short answer counts as part of a caption,
        # or its two tokens would weigh as much as forty.
        count = learn.sum(1).clamp(min=12).float()
        answer_loss = (nll / count[sample]).sum() / args.batch
        shares = torch.stack([d.mean(1) for d in masks])  # [S, B]
        ratio_loss = (shares - torch.tensor(ratios)[:, None]).square().mean()
        loss = answer_loss + args.ratio_weight * ratio_loss
        run.step(loss, nll=nll.mean().item(), ratio=ratio_loss.item(),
                 **{f"d{i}": s.mean().item() for i, s in enumerate(shares)})
    run.save()


def work(rank: int, args: argparse.Namespace) -> None:
    args.rank = rank
    torch.set_num_threads(1 if args.workers > 1 else args.threads)
    torch.manual_seed(args.seed)  # the same start on every worker
    if args.workers > 1:
        store = f"file://{Path(args.state).resolve()}/rendezvous-pruner-{args.token}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=args.workers)
    train(args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", default="/var/tmp/lvp-train2")
    parser.add_argument("--base", default="joint", help="stage whose weights are pruned")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=24, help="per worker")
    parser.add_argument("--captions", type=float, default=0.2, help="share of captions")
    parser.add_argument("--rho", type=float, default=0.5)
    parser.add_argument("--ratio-weight", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--warm", type=int, default=20)
    parser.add_argument("--hot", type=float, default=1.0, help="Gumbel temperature at the start")
    parser.add_argument("--cold", type=float, default=1.0, help="and at the end")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    args.token = os.getpid()
    if args.workers > 1:
        # A terminated parent takes its workers along.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        torch.multiprocessing.spawn(work, (args,), nprocs=args.workers, daemon=True)
    else:
        work(0, args)


if __name__ == "__main__":
    main()
