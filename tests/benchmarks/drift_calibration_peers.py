"""What rules of others flag of the windows that the verdict judges: the rows behind the counts, in 10 columns.

Five references of 30 windows each are followed by 20 windows without drift, and by 5 with each drift in one column. KS
is chi-square where a column has categories. Each rule is shown at its own level, and with the limit at which it alarms
in one of the 100 windows without drift, which nobody can know who has no such windows.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
from drift_calibrated import CATEGORY, DRIFTS, SEED, deviation, oracle
from drift_worlds import CATEGORY_SHARE, EDGES, LEVELS, NULL_LEVELS, SHIFTS, as_column, category, is_category, judged
from scipy.signal import lfilter
from scipy.stats import chi2_contingency, ks_2samp

COLUMNS, OWN = 10, 30
REFERENCES, WINDOWS, DRIFTED = 5, 20, 5
CORRELATION = 0.3
NAMES = (*DRIFTS, f"correlation {CORRELATION}")


def compare_rules(worlds, rows, *, evidently):
    """Print what each rule flags."""
    print(f"\n{'Share of windows with anything flagged':42} {'no drift':>8} " + " ".join(f"{n:>15}" for n in NAMES))
    for world in worlds:
        for each in rows:
            _compare(world, each, evidently=evidently)


def _compare(world, rows, *, evidently):
    drawn = [_drawn(world, rows, np.random.default_rng([SEED, rows, at])) for at in range(REFERENCES)]
    verdicts, shares = [[] for _ in range(len(NAMES) + 1)], []
    for reference, windows in drawn:
        own = _counted(reference)
        shares.append(own[CATEGORY][0][:, 0] / own[CATEGORY][0].sum(axis=1))
        for at, some in enumerate(windows):
            columns = [
                tuple(np.concatenate(pair) for pair in zip(*both, strict=True))
                for both in zip(own, _counted(some), strict=True)
            ]
            verdicts[at] += [v.outcome == "alarm" for v in judged(columns, own=OWN, rows=rows, world=world)]
    title = f"{world.name} {rows:,}: "
    _print(title + "raymlops", [np.mean(each) for each in verdicts])
    cell = world, COLUMNS, rows, OWN
    best = [oracle(cell, name, windows=1, of_share=deviation(shares, world)) for name in NAMES]
    _print(title + "oracle of one window", [0.01, *best])
    # What rules of others see: numbers and codes of categories, NaN where a row has no value.
    values = [(_values(ref.reshape(-1, COLUMNS)), [_values(w[1:]) for w in windows]) for ref, windows in drawn]
    found = [[] for _ in verdicts]
    for reference, windows in values:
        known = [_present(reference[:, at], at) for at in range(COLUMNS)]
        for at, some in enumerate(windows):
            found[at] += [-np.log(_least_p(known, window)) for window in some]
    for name, level in (("KS p < .05", 0.05), ("KS, Holm", 0.05 / COLUMNS), ("KS where 1 of 100 alarms", None)):
        limit = max(found[0]) if level is None else -np.log(level)
        _print(title + name, [np.mean(np.array(each) >= limit) for each in found])
    if not evidently:
        return
    for windows, said in ((OWN, "30 windows"), (1, "1 window")):
        scores = [[] for _ in found]
        for reference, some in values:
            part = reference[: windows * rows]
            for at, each in enumerate(_evidently(evidently, part, np.stack([w for one in some for w in one]), some)):
                scores[at] += each
        for name, limit in ((f"evidently, {said}", 1.0), (f"evidently, {said}, 1 of 100", max(scores[0]))):
            _print(title + name, [np.mean(np.array(each) >= limit) for each in scores])


def _print(name, shares):
    first, *others = (f"{share:.2f}" for share in shares)
    print(f"{name:42} {first:>8} " + " ".join(f"{each:>15}" for each in others), flush=True)


def _drawn(world, rows, rng):
    """Return latent values of own windows, and those of windows without drift and with each, one before them first."""
    number = OWN + 1 + WINDOWS
    noise = rng.standard_normal((number * rows + 1_000, COLUMNS))
    latent = lfilter([np.sqrt(1 - world.rho**2)], [1, -world.rho], noise, axis=0)[1_000:].reshape(number, rows, COLUMNS)
    few = latent[OWN : OWN + DRIFTED + 1]
    shifted = [few + shift * (np.arange(COLUMNS) == 0) for shift in SHIFTS]
    middle = np.append(EDGES, EDGES[-1] + 1) - 1e-9  # A value in each level.
    points, null, related = few.copy(), few.copy(), few.copy()
    moved = (category(_levels(few[..., CATEGORY])) == 0) & ~_is_null(few[..., CATEGORY])
    moved &= rng.random(moved.shape) < 0.05 / CATEGORY_SHARE
    points[..., CATEGORY][moved] = middle[np.flatnonzero(category(np.arange(LEVELS)) == 1)[0]]
    null[..., 1] = middle[NULL_LEVELS[0]]
    related[..., 0] = np.sqrt(1 - CORRELATION**2) * few[..., 0] + CORRELATION * few[..., 2]
    return latent[:OWN], [latent[OWN:], *shifted, points, null, related]


def _levels(latent):
    return np.searchsorted(EDGES, latent)


def _is_null(latent):
    return np.isin(_levels(latent), NULL_LEVELS)


def _counted(windows):
    """Return the counts and nulls of each column of windows of latent values."""
    levels = _levels(windows)
    return [
        as_column(np.stack([np.bincount(one, minlength=LEVELS) for one in levels[..., at]]), at)
        for at in range(COLUMNS)
    ]


def _values(latent):
    found = latent.copy()
    for at in range(COLUMNS):
        if is_category(at):
            found[..., at] = category(_levels(latent[..., at]))
        if at % 2:
            found[..., at][_is_null(latent[..., at])] = np.nan
    return found


def _present(values, at):
    held = values[~np.isnan(values)]
    return np.bincount(held.astype(int), minlength=6) if is_category(at) else np.sort(held)


def _least_p(reference, window):
    least = 1.0
    for at, known in enumerate(reference):
        now = _present(window[:, at], at)
        if is_category(at):
            least = min(least, chi2_contingency(np.stack([known, now])).pvalue)
        elif len(now):  # Of a column that is all null KS says nothing.
            least = min(least, ks_2samp(known, now, method="asymp").pvalue)
    return max(least, 1e-300)


def _evidently(python, reference, windows, parts):
    """Return the scores of windows, in the parts that they are of."""
    with tempfile.TemporaryDirectory() as folder:
        categories = [at for at in range(COLUMNS) if is_category(at)]
        np.savez(Path(folder) / "rows.npz", reference=reference, windows=windows, categories=categories)
        peer = Path(__file__).with_name("drift_calibration_evidently.py")
        answer = subprocess.run([python, peer, folder], check=True, capture_output=True, text=True)
    scores = [float(line) for line in answer.stdout.split()]
    ends = np.cumsum([len(part) for part in parts])
    return [scores[end - len(part) : end] for end, part in zip(ends, parts, strict=True)]
