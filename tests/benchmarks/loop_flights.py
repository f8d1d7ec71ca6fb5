"""Does the loop help? 39 weeks of flights in 2013 with labels a week late, beside two who do not look.

Each begins with a model of January to March. *Frozen* keeps it. *Blind* is retrained every four weeks on the last 90
days, with whatever comes of it. *Loop* is what raymlops decides: the verdict on skill since the promotion, the trigger
with its cool-down and budget, the gate on rows later than all training, the bake and the taking back. *By skill* is a
loop that no schedule triggers. Requests are replayed by the week: rollouts take no time here. Policies are in
`tests/fixtures/loop_courses.py`, and were written down before the first run. `--shift` reverses what a column means
for labels from July on. One minute a seed on one core.

    python tests/benchmarks/loop_flights.py [--shift] [--seeds N] [--figure FILE]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "fixtures"))

import loop_courses as courses
import numpy as np
import torch
from courses_figure import draw
from flight_weeks import ORACLE_SEED, WEEKS, FlightWeeks, as_time, end_of
from paired_weeks import METRICS, difference, over_seeds, whole
from recovery import learnt, weeks_to

WHY = 70
EVENTS = ("alarm", "retrained", "promoted", "rejected", "taken back")


def main(*, shift: bool, seeds: int, figure: Path | None) -> None:
    torch.set_num_threads(1)
    policy = {"retrain": courses.LOOP.model_dump(mode="json"), "gate": courses.GATE.model_dump(mode="json")}
    print(f"policy {policy}")
    world = before = FlightWeeks()
    if shift:
        world = before.reversed_from(courses.SHIFT_WEEK, column=courses.SHIFT_COLUMN, seed=ORACLE_SEED)
        said = f"{courses.SHIFT_COLUMN} means the contrary for labels from week {courses.SHIFT_WEEK + 1} on"
        print(f"{said}: {(world.labels != before.labels).mean():.1%} of all labels are others")
    found = []
    for seed in courses.SEEDS[:seeds]:
        found.append(courses.side_by_side(world, seed=seed))
        told(seed, found[-1])
    pooled = {name: over_seeds([each[name].weeks for each in found]) for name in found[0]}
    compared(f"{len(found)} seeds together", pooled)
    if shift:
        recovered(pooled, courses.known_since_shift(world, seed=ORACLE_SEED))
    by_week(found[0])
    if figure is not None:
        shown = [(name, losses(weeks), found[0][name].events) for name, weeks in pooled.items()]
        title = (
            "Log loss a week beside frozen's"
            + (f", {courses.SHIFT_COLUMN} reversed" if shift else "")
            + "; events of seed 0"
        )
        figure.write_text(draw(title, shown, shift=courses.SHIFT_WEEK if shift else None), encoding="utf-8")


def told(seed, each) -> None:
    """Print one seed: what happened, and all weeks together."""
    compared(f"seed {seed}", {name: course.weeks for name, course in each.items()})
    for name in ("blind", "loop", "by skill"):
        print(f"  {name:10} " + ", ".join(f"{each[name].count(what)} {what}" for what in EVENTS))


def compared(title, weeks) -> None:
    """Print each metric of all weeks, and what the loop is better by."""
    print(f"\n{title}: {WEEKS} weeks" + "".join(f"{name:>12}" for name in METRICS))
    for name, each in weeks.items():
        print(f"  {name:24}" + "".join(f"{whole(each)[metric]:12.4f}" for metric in METRICS))
    for ours in ("loop", "by skill"):
        for theirs in ("frozen", "blind"):
            parts = difference(weeks[ours], weeks[theirs])
            said = "  ".join(
                f"{name} {parts[name][0]:+.4f} ({parts[name][1]:+.4f} to {parts[name][2]:+.4f})" for name in METRICS
            )
            print(f"  {ours} - {theirs:8} {said}", flush=True)
    gap = courses.shortfall(weeks)
    print(f"  loop is worse than the better of both by {gap:+.4f} nats; {courses.GATE.margin:g} is allowed")


def recovered(weeks, known) -> None:
    """Print the weeks to recovery."""
    since, best = courses.SHIFT_WEEK, aucs(known)
    print(f"\nAUC since week {since + 1}: the share of the way from frozen to one trained on all weeks since, by week")
    for name, each in weeks.items():
        if name == "frozen":
            continue
        share = learnt(aucs(each[since:]), frozen=aucs(weeks["frozen"][since:]), known=best)
        said = ["never" if (at := weeks_to(part, share)) is None else f"after {at} weeks" for part in (0.5, 0.8)]
        print(f"  {name:10} half of it {said[0]}, 80% {said[1]}; in the last eight weeks {share[-8:].mean():.0%}")
        print("             " + " ".join(f"{value:+.2f}" for value in share), flush=True)


def aucs(weeks):
    """Return the AUC of each week."""
    return [whole([week])["auc"] for week in weeks]


def losses(weeks):
    """Return the log loss of each week."""
    return np.array([week["loss"] / week["count"] for week in weeks])


def by_week(each) -> None:
    """Print a table by week, of one seed."""
    print("\nweek  until       late   log loss: " + " ".join(f"{name:>9}" for name in each) + "   what happened")
    for week in range(WEEKS):
        first = each["frozen"].weeks[week]
        late = first["late_scores"].sum() / first["count"]
        said = [
            f"{name}: {what}{f' ({why[:WHY]})' if why and name == 'loop' else ''}"
            for name, course in each.items()
            for at, what, why in course.events
            if at == week
        ]
        row = " ".join(f"{course.weeks[week]['loss'] / first['count']:9.4f}" for course in each.values())
        print(f"{week + 1:4}  {as_time(end_of(week)):%Y-%m-%d}  {late:.3f}             {row}   {'; '.join(said)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shift", action="store_true")
    parser.add_argument("--seeds", type=int, default=len(courses.SEEDS))
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    started = time.perf_counter()
    main(shift=given.shift, seeds=given.seeds, figure=given.figure)
    print(f"\n{time.perf_counter() - started:.0f} s")
