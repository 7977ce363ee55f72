"""Does `segapp check --model` find bad masks? Masks are spoilt on purpose, and looked for.

    python benchmarks/label_review.py RUN [DATA] [--draws 10] [--share 0.05] [--top 0.1]

RUN was trained with train.folds on DATA, data/brain unless told, so that each mask is judged by a
model that was not trained on it:

    segapp train data.root=data/brain train.folds=3 train.budget_minutes=9 train.out=runs/folds

A draw spoils 5 % of the masks, seeded, in turn in one of three ways: moved by 6 to 10 pixels in any
direction; two foreground classes swapped; within 10 to 14 pixels of a place in one class (drawn
from those that the mask holds), that class made background. All masks are ranked, and counted is
who of the spoilt ones is among the first 10 %: by the score of `segapp check`, and, to compare, by
the Dice of mask and result alone. Predictions do not depend on masks, so each case is predicted
once. The table also says how many pixels were changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import BRAIN, table

from segapp.cases import Case, find_cases
from segapp.dispute import moved_by
from segapp.seen import hashes_of
from segapp.suspects import assign, find_judges, judge_cases
from segapp.suspicion import Tally, tally

Spoil = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
LARGE = 100  # pixels
RANKINGS: dict[str, Callable[[Tally], float]] = {
    "by the score": lambda t: t.score,
    "by Dice alone": lambda t: -np.nan_to_num(t.dice, nan=1.0),
}


def shifted(mask: np.ndarray, _: int, rng: np.random.Generator) -> np.ndarray:
    angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(6, 10)
    return moved_by(mask, round(far * np.sin(angle)), round(far * np.cos(angle)))


def swapped(mask: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Only classes that the mask holds, unless it has but one."""
    held = [k for k in range(1, classes) if (mask == k).any()]
    a = rng.choice(held)
    b = rng.choice([k for k in (held if len(held) > 1 else range(1, classes)) if k != a])
    return np.where(mask == a, b, np.where(mask == b, a, mask)).astype(mask.dtype)


def holed(mask: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    held = [k for k in range(1, classes) if (mask == k).any()]
    index, radius = rng.choice(held), rng.uniform(10, 14)
    places = np.argwhere(mask == index)
    away = np.indices(mask.shape) - places[rng.integers(len(places))].reshape(3, 1, 1, 1)
    return np.where(((away**2).sum(0) <= radius**2) & (mask == index), 0, mask)


KINDS: dict[str, Spoil] = {"shifted": shifted, "classes swapped": swapped, "a hole": holed}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path, nargs="?", default=BRAIN)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--top", type=float, default=0.1)
    args = parser.parse_args()
    predicted = predict(args.run, args.data)
    clean = [tally(*case) for case in predicted]
    first, count = (max(1, int(share * len(clean))) for share in (args.top, args.share))
    # (kind, pixels changed, found by each ranking)
    outcomes: list[tuple[str, int, list[bool]]] = []
    for draw in range(args.draws):
        rng = np.random.default_rng(draw)
        tallies = list(clean)
        spoilt: list[tuple[int, str, int]] = []
        for index in rng.choice(np.flatnonzero([t.matrix[1:].any() for t in clean]), count, False):
            probabilities, mask = predicted[index]
            kinds = [k for k in KINDS if k != "classes swapped" or probabilities.shape[1] > 2]
            kind = kinds[(len(outcomes) + len(spoilt)) % len(kinds)]
            bad = KINDS[kind](mask, probabilities.shape[1], rng)
            tallies[index] = tally(probabilities, bad)
            spoilt.append((index, kind, int((bad != mask).sum())))
        found = [
            set(np.argsort([-rank(t) for t in tallies], kind="stable")[:first].tolist())
            for rank in RANKINGS.values()
        ]
        outcomes += [(kind, size, [index in f for f in found]) for index, kind, size in spoilt]
    of_kinds = {kind: [o for o in outcomes if o[0] == kind] for kind in KINDS}
    rows = [row(kind, of_kind) for kind, of_kind in of_kinds.items() if of_kind]
    large = [o for o in outcomes if o[0] == "a hole" and o[1] >= LARGE]
    rows += [row(f"… of {LARGE} pixels or more", large)] if large else []
    print(
        f"{args.draws} draws of {count} spoilt masks in {len(clean)}; share of them among the "
        f"first {first}:\n"
    )
    columns = ("spoilt", "masks", "pixels changed (median, range)", *RANKINGS)
    print(table(columns, [*rows, row("all", outcomes)]))


def predict(run: Path, data: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Probabilities (K, classes, H, W) and mask (K, H, W) of each case by a model that has not
    learned from it; a case that all have learned from is left out."""
    cases, slabs = find_cases(data).cases, dict[str, list[tuple[np.ndarray, np.ndarray]]]()

    def keep(case: Case, probabilities: np.ndarray, truth: np.ndarray) -> None:
        slabs.setdefault(case.name, []).append((probabilities.copy(), truth.copy()))

    new = [s for s in assign(cases, find_judges(run), hashes_of(cases)) if not s.seen]
    judge_cases(new, keep)
    done = [slabs[s.case.name] for s in new if not s.error]
    if not done:
        raise SystemExit(f"{run}: was trained on every case of {data}; train it with train.folds")
    return [(np.concatenate(p), np.concatenate(t)) for p, t in (zip(*s, strict=True) for s in done)]


def row(kind: str, outcomes: list[tuple[str, int, list[bool]]]) -> tuple[str, ...]:
    sizes = [size for _, size, _ in outcomes]
    changed = f"{np.median(sizes):.0f}, {min(sizes)} to {max(sizes)}"
    shares = np.mean([found for _, _, found in outcomes], axis=0)
    return kind, str(len(outcomes)), changed, *(f"{share:.0%}" for share in shares)


if __name__ == "__main__":
    main()
