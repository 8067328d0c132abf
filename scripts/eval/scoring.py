"""The benchmarks' own ways of scoring, in per cent. A question without a caption counts as answered wrongly."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache

from scripts.eval.question import Question

NUMBERS = {
    word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}  # fmt: skip
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Written without their apostrophes, or some of them, these get them back. "shes", "im" and their like are not among those of VQA.
CONTRACTIONS = {
    word.replace("'", ""): word
    for word in """ain't aren't can't couldn't couldn't've could've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't shan't she'd've shouldn't shouldn't've should've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's
    there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've weren't
    we've what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's won't wouldn't wouldn't've would've y'all y'all'd've y'all'll you'd you'd've you'll
    you're you've""".split()
}


@cache
def normalise(text: str) -> str:
    """A short answer as VQA's evaluation compares it, and as LLaVA-1.5 submits it to VQAv2 and VizWiz."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    before = text
    for mark in PUNCTUATION:
        beside_space = mark + " " in before or " " + mark in before
        text = text.replace(mark, "" if beside_space else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = (NUMBERS.get(word, word) for word in text.split())
    return " ".join(CONTRACTIONS.get(word.replace("'", ""), word) for word in words if word not in ARTICLES)


def soft(text: str, answers: tuple[str, ...]) -> float:
    """VQA accuracy: the mean over leaving one person's answer out of min(1, equal ones / 3)."""
    said = normalise(text)
    equal = [normalise(answer) == said for answer in answers]
    return sum(min(1.0, (sum(equal) - own) / 3) for own in equal) / len(equal)


def choice(text: str) -> str:
    """The option that is meant: "B", "B. Paris" or "The answer is B."; empty: none, or several."""
    text = text.strip()
    if text in ("A", "B", "C", "D", "E"):
        return text
    if re.match(r"[A-E]\. ", text):
        return text[0]
    meant = re.findall(r"The answer is ([A-Z]).", text)
    return meant[0] if len(meant) == 1 else ""


def says_no(text: str) -> bool:
    """What POPE reads out of a sentence; all else is a yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return any(word in words for word in ("No", "no", "not"))


def plain(text: str) -> str:
    """As GQA compares it."""
    return text.rstrip(".").lower()


def per_cent(part: float, whole: float) -> float:
    return round(100 * part / whole, 4) if whole else 0.0


def mean_soft(questions: list[Question], captions: dict[str, str]) -> dict[str, object]:
    scores = [soft(captions[q.id], q.answers) if q.id in captions else 0.0 for q in questions]
    return {"questions": len(scores), "accuracy": per_cent(sum(scores), len(scores))}


def gqa(questions: list[Question], captions: dict[str, str]) -> dict[str, object]:
    right = sum(q.id in captions and plain(captions[q.id]) == q.answers[0] for q in questions)
    return {"questions": len(questions), "accuracy": per_cent(right, len(questions))}


def scienceqa(questions: list[Question], captions: dict[str, str]) -> dict[str, object]:
    right = sum(choice(captions.get(q.id, "")) == q.answers[0] for q in questions)
    return {"questions": len(questions), "accuracy": per_cent(right, len(questions))}


def mmbench(questions: list[Question], captions: dict[str, str]) -> dict[str, object]:
    """Circular: right where all turns of the options are."""
    groups: dict[str | None, bool] = defaultdict(lambda: True)
    for question in questions:
        groups[question.group] &= choice(captions.get(question.id, "")) == question.answers[0]
    return {"questions": len(groups), "accuracy": per_cent(sum(groups.values()), len(groups))}


def pope(questions: list[Question], captions: dict[str, str]) -> dict[str, object]:
    """Each category, and the mean of their F1, which is the figure that is reported."""
    categories: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        categories[question.family].append(question)
    result: dict[str, object] = {name: pope_category(asked, captions) for name, asked in sorted(categories.items())}
    f1 = [part["f1"] for part in result.values()]
    return {"questions": len(questions), "f1": round(sum(f1) / len(f1), 4)} | result


def pope_category(questions: list[Question], captions: dict[str, str]) -> dict[str, float]:
    counts = {(said, right): 0 for said in (True, False) for right in (True, False)}  # (yes, right)
    for question in questions:
        wanted = question.answers[0] == "yes"
        # Without a caption, whatever is wrong.
        yes = not says_no(captions[question.id]) if question.id in captions else not wanted
        counts[yes, yes == wanted] += 1
    hits, false_alarms, misses = counts[True, True], counts[True, False], counts[False, False]
    return {
        "questions": len(questions),
        "f1": per_cent(2 * hits, 2 * hits + false_alarms + misses),
        "accuracy": per_cent(hits + counts[False, True], len(questions)),
        "precision": per_cent(hits, hits + false_alarms),
        "recall": per_cent(hits, hits + misses),
        "yes": per_cent(hits + false_alarms, len(questions)),
    }
