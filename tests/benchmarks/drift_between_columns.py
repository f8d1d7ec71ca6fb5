"""Changes between columns: false alarms and power of correlations ranked among own windows, beside a classifier's.

Ten normal columns, of which 0 and 1 have a correlation of .6, 2 and 3 of .3, the others none. Drift is that .6 becomes
.3, or that column 0 is of another row (a join by the wrong key): each column by itself stays as it is. A reference of
30 windows is counted as a bundle counts it; its windows and those that follow are judged as ``raymlops drift NAME
--between-columns`` judges them, columns and pairs together.

Beside it the classifier two-sample test of Lopez-Paz and Oquab (ICLR 2017): logistic regression on ranks and their
products two by two, between the reference's rows and the window's, by its accuracy on the half that it was not fitted
to. Its p-value is that of independent rows, .01; and, for power at equal false alarms, its accuracy against the .99
quantile of all windows without drift, which nobody has in practice.

    python tests/benchmarks/drift_between_columns.py [--references 50] [--rows 500 5000]
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # Two processes on two cores.

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pool

import numpy as np
from scipy.signal import lfilter
from scipy.special import expit, ndtr

from raymlops.monitor.drift import judge
from raymlops.monitor.own_windows import by_rows
from raymlops.monitor.profiled import column_counts, pair_counts
from raymlops.profiles.count import profile_of
from raymlops.profiles.reference import Chunk, reference_of

SEED = 20_132
COLUMNS, OWN, WINDOWS, DRIFTED = 10, 30, 20, 4
MOST_ROWS = 2_000
"""Of either side that the classifier sees."""
WORKERS = 2
DRIFTS = (".6 to .3", "another row")


@dataclass(frozen=True)
class Cell:
    """How rows come: ``rho`` is their autocorrelation."""

    rho: float
    rows: int

    @property
    def name(self) -> str:
        """Return a short name."""
        return f"{f'AR({self.rho:g})' if self.rho else 'independent'}, {self.rows:,} rows"


def drawn(rng, cell, *, windows, first=0.6):
    """Return rows of so many windows, of shape (rows, COLUMNS); ``first`` is the correlation of columns 0 and 1."""
    noise = rng.standard_normal((windows * cell.rows, COLUMNS))
    for at, related in ((0, first), (2, 0.3)):
        noise[:, at + 1] = related * noise[:, at] + np.sqrt(1 - related**2) * noise[:, at + 1]
    if not cell.rho:
        return noise
    start = noise[:1] * cell.rho
    return lfilter([np.sqrt(1 - cell.rho**2)], [1, -cell.rho], noise, axis=0, zi=start)[0]


def drifted(rng, cell, kind):
    """Return windows with a drift."""
    if kind == ".6 to .3":
        return drawn(rng, cell, windows=DRIFTED, first=0.3)
    found = drawn(rng, cell, windows=DRIFTED)
    found[:, 0] = drawn(rng, cell, windows=DRIFTED)[:, 0]
    return found


def simulated(number, cell):
    """Return what one reference says: of windows without drift, and of those with each."""
    rng = np.random.default_rng([SEED, int(1000 * cell.rho), cell.rows, number])
    rows = drawn(rng, cell, windows=OWN + WINDOWS + 1)
    known, later = rows[: OWN * cell.rows], rows[OWN * cell.rows :]
    reference = reference_of(
        lambda: [Chunk(named(known), len(known))], rows=len(known), row_order="ordered", scored=[*named(known)]
    )
    plain = verdicts(reference, later, cell)
    sample = known[rng.choice(len(known), min(MOST_ROWS, len(known)), replace=False)]
    accuracies = [accuracy(rng, sample, one) for one in later.reshape(-1, cell.rows, COLUMNS)[1:]]
    found = {}
    for kind in DRIFTS:
        moved = drifted(rng, cell, kind)
        seen = [accuracy(rng, sample, one) for one in moved.reshape(-1, cell.rows, COLUMNS)[1:]]
        found[kind] = (verdicts(reference, moved, cell), seen)
    return plain, accuracies, found


def named(rows):
    """Return rows as columns."""
    return {f"x{at}": rows[:, at] for at in range(COLUMNS)}


def verdicts(reference, rows, cell):
    """Return the outcomes of all windows but the first, each with the one before it."""
    profiles = [profile_of(named(one), reference.layout) for one in rows.reshape(-1, cell.rows, COLUMNS)]
    own = by_rows(reference.blocks.rows, rows=cell.rows)
    outcomes = []
    for at in range(1, len(profiles)):
        two = profiles[at - 1 : at + 1]
        columns = column_counts(reference.blocks, two)[0] + pair_counts(reference.blocks, two)
        outcomes.append(judge(columns, own).outcome)
    return outcomes


def accuracy(rng, one, other):
    """Return how far the accuracy of a classifier is above that of chance, in standard deviations of independent rows.

    Both sides have the same weight, and half of each is tested.
    """
    other = other[rng.choice(len(other), min(MOST_ROWS, len(other)), replace=False)]
    one = one[: len(other) * 4]
    ranks = np.concatenate([one, other])
    ranks = 2 * (np.argsort(np.argsort(ranks, axis=0), axis=0) + 0.5) / len(ranks) - 1
    first, second = np.triu_indices(COLUMNS, k=1)
    features = np.column_stack([np.ones(len(ranks)), ranks, 3 * ranks[:, first] * ranks[:, second]])
    label = np.repeat([0.0, 1.0], [len(one), len(other)])
    weight = np.where(label == 1, len(one) / len(other), 1.0)
    fitted = rng.random(len(ranks)) < 0.5
    beta = np.zeros(features.shape[1])
    x, y, w = features[fitted], label[fitted], weight[fitted]
    for _ in range(6):
        p = expit(x @ beta)
        hessian = (x * (w * p * (1 - p))[:, None]).T @ x + np.eye(x.shape[1])
        beta += np.linalg.solve(hessian, x.T @ (w * (y - p)) - beta)
    right = (features[~fitted] @ beta > 0) == (label[~fitted] > 0.5)
    of_one, of_other = right[label[~fitted] == 0], right[label[~fitted] == 1]
    deviation = np.sqrt(0.25 / len(of_one) + 0.25 / len(of_other)) / 2
    return ((of_one.mean() + of_other.mean()) / 2 - 0.5) / deviation


def main():
    """Print a line a cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, default=50)
    parser.add_argument("--rows", type=int, nargs="*", default=(500, 5_000))
    asked = parser.parse_args()
    with Pool(WORKERS) as pool:
        for rows in asked.rows:
            for rho in (0.0, 0.9, 0.99):
                cell = Cell(rho, rows)
                found = pool.map(partial(simulated, cell=cell), range(asked.references), chunksize=1)
                sys.stdout.write(line(cell, found) + "\n")
                sys.stdout.flush()


def line(cell, found):
    """Return what was found in a cell."""
    each = np.array([np.mean([one == "alarm" for one in plain]) for plain, _, _ in found])
    warned = np.mean([one in {"alarm", "warn"} for plain, _, _ in found for one in plain])
    none = np.array([one for _, accuracies, _ in found for one in accuracies])
    upper = each.mean() + 1.645 * each.std(ddof=1) / np.sqrt(len(each))
    text = f"{cell.name}: false alarms {each.mean():.4f} (at most {upper:.4f}), warned {warned:.3f}; "
    text += f"classifier {np.mean(1 - ndtr(none) <= 0.01):.3f}"
    critical = np.quantile(none, 0.99)
    for kind in DRIFTS:
        ours = np.mean([one == "alarm" for _, _, drifts in found for one in drifts[kind][0]])
        theirs = np.mean([one > critical for _, _, drifts in found for one in drifts[kind][1]])
        text += f"; {kind}: {ours:.2f}, classifier at equal false alarms {theirs:.2f}"
    return text


if __name__ == "__main__":
    main()
