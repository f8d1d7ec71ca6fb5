"""What ``serve_latency`` prints: a table for each number of connections, and what follows from them. Pure."""

from __future__ import annotations

from statistics import median

OURS = ("raymlops-haproxy", "raymlops-python")
HEADS = {"raymlops-haproxy": "haproxy/it", "raymlops-python": "python/it"}
UNLOGGED = ", no log"


def table(result: dict) -> str:
    """Return the whole text."""
    parts = [block(connections, runs) for connections, runs in result["rounds"].items()]
    loads = f"{result['load_before']:.1f} before and {result['load_after']:.1f} after"
    parts.append("\n".join([*conclusions(result), f"{result['cpus']} CPUs, load average {loads}"]))
    return "\n\n".join(parts)


def block(connections: int, runs: dict[str, list[dict]]) -> str:
    base = next(iter(runs))
    heads = {name: HEADS.get(name, "first/it") for name in (base, *OURS) if name in runs}
    width = max(map(len, runs))
    shown = f"{connections:>3} {'connection' if connections == 1 else 'connections'}"
    columns = f"{'requests/s':>10} {'p50 ms':>8} {'p99 ms':>8} {'cpu us':>8} {'client':>7} {'failed':>7}"
    lines = [f"{shown:{width + 2}} {columns}{''.join(f'{head:>12}' for head in heads.values())}"]
    for name, rounds in runs.items():
        rate, p50, p99, cpu, client = (
            median(one[key] for one in rounds) for key in ("per_s", "p50_ms", "p99_ms", "cpu_us", "client")
        )
        failed = sum(one["failed"] for one in rounds)
        ratios = "".join(f"{ratio(runs, own, name):>12.2f}" if own != name else f"{'':12}" for own in heads)
        lines.append(
            f"  {name:{width}} {rate:>10.0f} {p50:>8.2f} {p99:>8.2f} {cpu:>8.0f} {client:>7.2f} {failed:>7.0f}{ratios}"
        )
    return "\n".join(lines)


def conclusions(result: dict) -> list[str]:
    """Return what the log costs, how far the bare model is, and what the load generator could do."""
    lines = []
    for name in OURS:
        costs = [
            f"{connections}: {1 - ratio(runs, name, name + UNLOGGED):+.1%} of the rate, "
            f"{ratio(runs, name, name + UNLOGGED, key='cpu_us') - 1:+.1%} CPU"
            for connections, runs in result["rounds"].items()
            if name + UNLOGGED in runs
        ]
        if costs:
            lines.append(f"prediction log, {name}, by connections: {'; '.join(costs)}")
    bare = result["bare_us"]
    alone = result["rounds"].get(1, {})
    away = [f"{name} {median(one['p50_ms'] for one in rounds) * 1e3:.0f} us" for name, rounds in alone.items()]
    lines.append(f"the model alone: {bare:.0f} us a call of predict; a request of one connection: {', '.join(away)}")
    fast = [one for runs in result["rounds"].values() for one in runs.get("asgi", [])]
    if fast:
        best = max(fast, key=lambda one: one["per_s"])
        lines.append(
            f"the load generator took {best['client']:.2f} of a core for the {best['per_s']:.0f} requests/s of asgi: "
            f"it could send about {best['per_s'] / best['client']:.0f}"
        )
    return lines


def ratio(runs: dict[str, list[dict]], one: str, other: str, *, key: str = "per_s") -> float:
    """Return one's figure over the other's: the median over the turns in which both were measured.

    Two that had no turn in common are compared by way of the first, with which everything was.
    """
    base = next(iter(runs))
    if one == base:
        pairs = [(turn["base"], turn) for turn in runs[other]]
    elif other == base:
        pairs = [(turn, turn["base"]) for turn in runs[one]]
    elif other == one + UNLOGGED:
        pairs = list(zip(runs[one], runs[other], strict=True))
    else:
        return ratio(runs, base, other, key=key) * ratio(runs, one, base, key=key)
    return median(a[key] / b[key] if b[key] else float("nan") for a, b in pairs)
