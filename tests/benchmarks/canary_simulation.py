"""What rollouts cost and find, simulated: how often an equally good version is aborted, how fast a worse one is.

Three steps, 10, 50 and 100 percent, of the default settings, looked at every second. Evidence and decisions are those
of the package; the requests are drawn (see `tests/fixtures/canary_worlds.py`, and for what is recorded of them
`recorded_traffic.py`). `power` is a table of what a step can show, computed and not drawn.

    python tests/benchmarks/canary_simulation.py [--rollouts N] [--part aa|worse|events|sticky|recorded|power|all]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
from scipy import special

sys.path.insert(0, str(Path(__file__).parent.parent / "fixtures"))

from canary_worlds import World, even, false_alarms, of_events, run, sticky
from recorded_traffic import KINDS, WORSE, rolled_out

from raymlops.config.serve import RolloutSection
from raymlops.lifecycle.rollout.power import RecentTraffic, forecast

SETTINGS = RolloutSection()
RPS = 50.0


def swinging(second: int) -> float:
    """Double the rates for a minute of every five, for both versions."""
    return 2.0 if second % 300 < 60 else 1.0


def equal(count: int) -> None:
    """Print how equally good versions fare."""
    print(
        f"\nEqually good versions, {RPS:g} requests/s, {count} rollouts each (allowed to abort: {SETTINGS.alpha:.1%})"
    )
    print(f"{'':44} aborted        held  promoted   s until promoted: median      p99")
    cases = [
        (errors, slow, labelled)
        for errors in (0.0, 0.001, 0.01, 0.05, 0.2)
        for slow, labelled in ((0.01, 0), (0.1, 0.2))
    ]
    for errors, slow, labelled in cases:
        world = World(errors=errors, slow=slow, loss=0.2)
        name = f"errors {errors:.1%}, slow {slow:.0%}, {f'{labelled:.0%} labelled' if labelled else 'no labels'}"
        row(
            name,
            run(
                even(world, world, settings=SETTINGS, rps=RPS),
                settings=SETTINGS,
                count=count,
                seed=1,
                labelled=labelled,
                look_s=120 if labelled else 20,
            ),
        )
    world = World(errors=0.05, slow=0.1)
    steps = even(world, world, settings=SETTINGS, rps=RPS)
    row("errors 5%, slow 10%, rates that swing", run(steps, settings=SETTINGS, count=count, seed=2, mood=swinging))
    for rps in (5.0, 1.0, 0.1):
        world = World(errors=0.01, slow=0.01)
        steps = even(world, world, settings=SETTINGS, rps=rps)
        row(f"errors 1%, slow 1%, {rps:g} requests/s", run(steps, settings=SETTINGS, count=count, seed=3))
    for rows in (1, 10, 100):
        share = false_alarms(rows, settings=SETTINGS, count=count, seed=10)
        print(f"{f'{rows} labelled rows a request, wrong together':44} {share:7.2%}", flush=True)


def worse(count: int) -> None:
    """Print how fast worse versions are found at the first step."""
    print(f"\nWorse versions, {RPS:g} requests/s, canary at 10 percent, {count} rollouts each")
    print(f"{'':44} aborted  promoted   within 60 s   s until aborted: median      p99")
    cases = [
        (f"errors {base:.1%} -> {base + 0.05:.1%}", World(base), World(base + 0.05), 0.0)
        for base in (0.0, 0.001, 0.01, 0.05, 0.2)
    ]
    cases += [
        ("all requests fail", World(), World(errors=1.0), 0.0),
        ("all requests are late", World(), World(slow=1.0), 0.0),
        ("slow 1% -> 11%", World(slow=0.01), World(slow=0.11), 0.0),
        ("slow 10% -> 20%", World(slow=0.1), World(slow=0.2), 0.0),
        ("slow 1% -> 51%", World(slow=0.01), World(slow=0.51), 0.0),
        ("loss 0.10 -> 0.15, all labelled", World(loss=0.1), World(loss=0.15), 1.0),
        ("loss 0.30 -> 0.35, all labelled", World(loss=0.3), World(loss=0.35), 1.0),
        ("loss 0.10 -> 0.15, 20% labelled", World(loss=0.1), World(loss=0.15), 0.2),
        ("loss 0.30 -> 0.50, 20% labelled", World(loss=0.3), World(loss=0.5), 0.2),
    ]
    for name, champion, canary, labelled in cases:
        found = run(
            even(champion, canary, settings=SETTINGS, rps=RPS),
            settings=SETTINGS,
            count=count,
            seed=4,
            labelled=labelled,
        )
        print(
            f"{name:44} {found.share('abort'):7.2%} {found.share('promote'):9.2%} {found.within(60):13.2%} "
            f"{shown(found.quantile(0.5, 'abort')):>25} {shown(found.quantile(0.99, 'abort')):>8}"
        )


def events(count: int) -> None:
    """Print what labels alone show of rare events and weak signals, beside a test that looks once."""
    print(f"\nBy labels alone: {count} rollouts of an equal version, {max(20, count // 100)} of others. Labels at the")
    print("first step: those that a fixed-sample test needs, and the median until the verdict as a ratio to it")
    print(f"{'':36} {'aborted':>8} {'upper 95%':>10} {'promoted':>9} {'fixed':>10} {'ratio':>6} {'within 3 x':>11}")
    for offset, slope in ((-6.3, 2), (-5.2, 2), (-4.3, 2), (-2.6, 2), (0, 0.2), (0, 0.6), (0, 2)):
        for canary in ("same", "better", "constant", "zero", "reversed"):
            runs = count if canary == "same" else max(20, count // 100)
            found = of_events(canary, offset=offset, slope=slope, settings=SETTINGS, count=runs, seed=7)
            aborted = int((found.actions == "abort").sum())
            upper = float(special.betaincinv(aborted + 1, runs - aborted, 0.95)) if aborted < runs else 1.0
            print(
                f"{f'events {found.share:.1%}, slope {slope:g}, {canary}':36} {aborted / runs:8.2%} {upper:10.2%} "
                f"{(found.actions == 'promote').mean():9.2%} {found.fixed:10,.0f} "
                f"{np.median(found.labels) / found.fixed:6.2f} {np.mean(found.labels <= 3.05 * found.fixed):11.1%}",
                flush=True,
            )


def kept(count: int) -> None:
    """Print how equally good versions fare where callers keep to a version."""
    print(f"\nEqually good versions, callers that keep to a version, sending by Zipf's law, {count} rollouts each")
    for callers in (10, 100, 10_000):
        for unlike in (False, True):
            steps = sticky(settings=SETTINGS, rps=RPS, callers=callers, unlike=unlike, count=count, seed=5)
            name = f"{callers} callers, {'a fifth of which errs, 5%' if unlike else 'all alike, errors 1%'}"
            row(name, run(steps, settings=SETTINGS, count=count, seed=6))


def recorded(count: int) -> None:
    """Print how versions fare that are equally good, or worse by twice a margin, by how their requests come."""
    print(f"\nRequests as they are recorded, 20/s, half of them labelled, {count} rollouts each: equally good")
    print("versions, and versions worse by twice the margin: how many passed, and s until aborted: median")
    print(f"{'':36} {'equal: aborted':>15} {'promoted':>9} " + " ".join(f"{name:>22}" for name in WORSE))
    for number, kind in enumerate(KINDS):
        equal = rolled_out(kind, settings=SETTINGS, count=count, seed=20 + number)
        bad = [rolled_out(kind, settings=SETTINGS, count=count, seed=50 + number, **worse) for worse in WORSE.values()]
        print(
            f"{kind.name:36} {equal.share('abort'):15.2%} {equal.share('promote'):9.2%} "
            + " ".join(f"{one.share('promote'):12.2%} {shown(one.quantile(0.5, 'abort')):>9}" for one in bad),
            flush=True,
        )


def power() -> None:
    """Print which difference a step of ten minutes can show, and when equally good versions pass."""
    margins = f"{SETTINGS.error_margin:g}, {SETTINGS.slow_margin:g}, {SETTINGS.quality_margin:g}"
    print(f"\nPower: the difference that a bake of {SETTINGS.bake_s / 60:.0f} min can show (margins {margins}),")
    print("and h until a verdict, where 2% are slow, none fails and half are labelled: without labels, and with them")
    print(f"{'requests an hour':>16} {'canary':>7} {'errors':>8} {'slow':>8} {'h':>8} {'loss':>8} {'h':>8}")
    for requests in (100, 1000, 10_000, 100_000, 1_000_000):
        plain, labelled = (
            forecast(RecentTraffic(requests, slow=0.02, labelled=part), SETTINGS) for part in (None, requests / 2)
        )
        for without, beside in zip(plain, labelled, strict=True):
            print(
                f"{requests:16,} {without.weight:7.0%} {without.shows['errors']:8.2%} {without.shows['slow']:8.2%} "
                f"{hours(without.verdict_s)} {beside.shows['quality']:8.3f} {hours(beside.verdict_s)}"
            )


def hours(seconds: float | None) -> str:
    return f"{'> 720' if seconds is None else f'{seconds / 3600:.1f}':>8}"


def row(name: str, found) -> None:
    print(
        f"{name:44} {found.share('abort'):7.2%} {found.share('wait'):11.2%} {found.share('promote'):9.2%} "
        f"{shown(found.quantile(0.5, 'promote')):>26} {shown(found.quantile(0.99, 'promote')):>8}",
        flush=True,
    )


def shown(seconds: float) -> str:
    return "-" if math.isinf(seconds) else f"{seconds:.0f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=2000)
    parser.add_argument(
        "--part", choices=("aa", "worse", "events", "sticky", "recorded", "power", "all"), default="all"
    )
    given = parser.parse_args()
    started = time.perf_counter()
    for part, show in (("aa", equal), ("worse", worse), ("events", events), ("sticky", kept), ("recorded", recorded)):
        if given.part in (part, "all"):
            show(given.rollouts if part != "sticky" else max(1, given.rollouts // 10))
    if given.part in ("power", "all"):
        power()
    print(f"\n{time.perf_counter() - started:.0f} s")
