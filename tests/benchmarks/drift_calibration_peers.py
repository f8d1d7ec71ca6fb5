"""What rules of others flag of the windows that the verdict judges: the rows behind the counts, in 10 columns.

Five references of 30 windows each are followed by 20 windows without drift, and by 5 with each drift in one column. KS
is chi-square where a column has categories. Each rule is shown at its own level, and with the limit at which it alarms
in one of the 100 windows without drift, which nobody can know who has no such windows.
"""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from drift_calibrated import CATEGORY, DRIFTS, SEED, deviation, oracle
from drift_worlds import CATEGORY_SHARE, EDGES, LEVELS, NULL_LEVELS, SHIFTS, category, is_category
from scipy.signal import lfilter
from scipy.stats import chi2_contingency, ks_2samp

from raymlops.monitor.drift import judge
from raymlops.monitor.own_windows import by_rows
from raymlops.monitor.profiled import column_counts, pair_counts
from raymlops.profiles.count import profile_of
from raymlops.profiles.reference import Chunk, reference_of

COLUMNS, OWN = 10, 30
REFERENCES, WINDOWS, DRIFTED = 5, 20, 5
CORRELATION = 0.3
NAMES = (*DRIFTS, f"correlation {CORRELATION}")
NONE_AND_NAMES = ("no drift", *NAMES)


def compare_rules(worlds, rows, *, evidently):
    """Print what each rule flags."""
    print(f"\n{'Share of windows with anything flagged':42} " + " ".join(f"{name:>15}" for name in NONE_AND_NAMES))
    for world in worlds:
        for each in rows:
            _compare(world, each, evidently=evidently)


def _compare(world, rows, *, evidently):
    drawn = [_drawn(world, rows, np.random.default_rng([SEED, rows, at])) for at in range(REFERENCES)]
    title = f"{world.name} {rows:,}: "
    for name, said in zip(("raymlops", "raymlops --between-columns"), _ours(drawn, rows), strict=True):
        _print(title + name, [np.mean(each) for each in said])
    first = np.stack([category(_levels(windows[0][..., CATEGORY])) == 0 for _, windows in drawn])
    shares = (first & ~_is_null(np.stack([windows[0][..., CATEGORY] for _, windows in drawn]))).mean(axis=-1)
    cell = world, COLUMNS, rows, OWN
    best = [oracle(cell, name, windows=1, of_share=deviation(shares, world)) for name in NAMES]
    _print(title + "oracle of one window", [0.01, *best])
    # What rules of others see: numbers and codes of categories, NaN where a row has no value.
    values = [(_values(ref.reshape(-1, COLUMNS)), [_values(w[1:]) for w in windows]) for ref, windows in drawn]
    found = [[] for _ in values[0][1]]
    for reference, windows in values:
        known = [_present(reference[:, at], at) for at in range(COLUMNS)]
        for at, some in enumerate(windows):
            found[at] += [-np.log(_least_p(known, window)) for window in some]
    for name, level in (("KS p < .05", 0.05), ("KS, Holm", 0.05 / COLUMNS), ("KS where 1 of 100 alarms", None)):
        limit = max(found[0]) if level is None else -np.log(level)
        _print(title + name, [np.mean(np.array(each) >= limit) for each in found])
    for windows, said in ((OWN, "30 windows"), (1, "1 window")) if evidently else ():
        scores = [[] for _ in found]
        for reference, some in values:
            part = reference[: windows * rows]
            for at, each in enumerate(_evidently(evidently, part, np.stack([w for one in some for w in one]), some)):
                scores[at] += each
        for name, limit in ((f"evidently, {said}", 1.0), (f"evidently, {said}, 1 of 100", max(scores[0]))):
            _print(title + name, [np.mean(np.array(each) >= limit) for each in scores])


def _ours(drawn, rows):
    """Return which windows are alarms: by columns, and by columns and their correlations."""
    found = [[[] for _ in NONE_AND_NAMES] for _ in range(2)]
    for reference, windows in drawn:
        table = _table(reference.reshape(-1, COLUMNS))
        profiles = reference_of(
            lambda table=table: [Chunk(table, OWN * rows)], rows=OWN * rows, row_order="ordered", scored=[*table]
        )
        own = by_rows(profiles.blocks.rows, rows=rows)
        for at, some in enumerate(windows):
            counted = [profile_of(_table(one), profiles.layout) for one in some]
            for two in itertools.pairwise(counted):
                columns, _ = column_counts(profiles.blocks, two)
                pairs = pair_counts(profiles.blocks, two)
                found[0][at].append(judge(columns, own).outcome == "alarm")
                found[1][at].append(judge(columns + pairs, own).outcome == "alarm")
    return found


def _table(latent):
    """Return rows as columns of numbers and text, as a recipe has them."""
    values = _values(latent)
    texts = np.array([*"abcdef", None], dtype=object)
    return {
        f"c{at}": texts[np.nan_to_num(column, nan=6).astype(int)] if is_category(at) else column
        for at, column in enumerate(values.T)
    }


def _print(name, shares):
    print(f"{name:42} " + " ".join(f"{share:>15.2f}" for share in shares), flush=True)


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
