"""What can be guessed without looking: the share of answers right for one who has learned how often each is.

    python3 -m train.tasks.blind [--scenes 12000]

A guesser of letters takes the listed option that was right most often where it was listed; of other families, the question's most
frequent answer. Learned on half of the questions and asked the other half, both ways.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter, defaultdict

from train.tasks import families, scenes
from train.tasks.families import Question

OPTION = re.compile(r"([A-D])\. (.*?)(?= [B-D]\. | Answer)")


def options(question: Question) -> dict[str, str]:
    """Letter -> option, in the order they are listed; {} for a question without."""
    return dict(OPTION.findall(question.text))


def guess(learned: list[Question], asked: list[Question]) -> int:
    """How many of `asked` are guessed right."""
    right: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    listed: Counter[tuple[str, str]] = Counter()
    for question in learned:
        letters = options(question)
        if not letters:
            right["", question.text][question.answer] += 1
        for letter, option in letters.items():
            listed[question.kind, option] += 1
            right[question.kind, option]["right"] += letter == question.answer
    usual = Counter(question.answer for question in learned).most_common(1)[0][0]
    hits = 0
    for question in asked:
        letters = options(question)
        if letters:
            found = max(letters, key=lambda i: right[question.kind, letters[i]]["right"] / (listed[question.kind, letters[i]] or 1))
        else:
            seen = right["", question.text]
            found = seen.most_common(1)[0][0] if seen else usual
        hits += found == question.answer
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=12000)
    args = parser.parse_args()
    halves: defaultdict[str, tuple[list[Question], list[Question]]] = defaultdict(lambda: ([], []))
    for i in range(args.scenes):
        rng = random.Random(f"blind-{i}")
        scene = scenes.make_scene(rng, test=True)
        for family in families.FAMILIES:
            for question in families.ask(scene, rng, family):
                halves[family][i % 2].append(question)
    for family, (one, two) in halves.items():
        if family != "caption":
            print(f"{family:13} {(guess(one, two) + guess(two, one)) / (len(one) + len(two)):.3f}")


if __name__ == "__main__":
    main()
