"""``predictions``: the prediction log of a model."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from raymlops.cli.output import Answer, EnvOption, JsonFlag, OptionalConfig, Overrides, given, note, printing
from raymlops.errors import UsageError
from raymlops.records import to_json


def predictions(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model.")],
    overrides: Overrides = None,
    *,
    since: Annotated[str, typer.Option(metavar="WHEN", help="How long ago, such as 1h or 7d; or an ISO time.")] = "1h",
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="As --since.  [default: now]")] = None,
    version: Annotated[int | None, typer.Option(min=1, metavar="VERSION", help="Of one version only.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the newest N rows.")] = None,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Write .parquet, .csv or .jsonl instead.")] = None,
    compact: Annotated[bool, typer.Option("--compact", help="Merge small files of past hours instead.")] = False,
    retain: Annotated[
        bool, typer.Option("--retain", help="Remove what is older than serve.log.retention_days instead.")
    ] = False,
    config: OptionalConfig = None,
    env: EnvOption = None,
    as_json: JsonFlag = False,
) -> Answer | None:
    """Print the logged requests of a model with answers and labels, oldest first, one JSON object per row."""
    from raymlops.lifecycle.prediction_log import compact_predictions, parse_moment, retain_predictions
    from raymlops.lifecycle.sources import place_of
    from raymlops.predictions.read import Reading

    spec = place_of(config, overrides=overrides or (), env=env)
    now = datetime.now(UTC)
    if compact or retain:
        verb = "--compact" if compact else "--retain"
        if mixed := given({"--version": version, "--limit": limit, "--out": out}):
            raise UsageError(
                f"{verb} works on the files of all versions; it cannot be used with {', '.join(mixed)}",
                hint=f"Leave {verb} out to read.",
            )
    if compact:
        record = compact_predictions(name, spec)
        text = f"merged {record.merged} files of {record.folders} hours and days into {record.into}"
        return Answer(record.to_dict(), text)
    if retain:
        retained = retain_predictions(name, spec, now=now)
        return Answer(retained.to_dict(), f"removed {len(retained.removed)} hours and days before {retained.before}")
    reading = Reading(
        spec.storage.path,
        name,
        since=parse_moment(since, now=now),
        until=None if until is None else parse_moment(until, now=now),
        version=version,
        limit=limit,
    )
    if out is not None:
        from raymlops.predictions.export import write_file

        write_file(reading, out)
    elif not as_json:
        _print_lines(reading)
    counts = _print_object(reading) if as_json and out is None else _counts(reading)
    note(_summary(counts, reading.looked_back_to))
    return None if out is None else Answer({"out": out, **counts}, out)


def _print_lines(reading: Any) -> None:
    from raymlops.predictions.export import json_rows

    for batch in reading:
        with printing() as stdout:
            stdout.writelines(f"{row.decode()}\n" for row in json_rows(batch))


def _print_object(reading: Any) -> dict[str, Any]:
    """Print one object with all rows, and return its counts.

    Rows are collected on disk first, so that an error leaves no half-written object.
    """
    from raymlops.predictions.export import json_rows

    with tempfile.TemporaryFile("w+", encoding="utf-8") as rows:
        rows.writelines(f",{row.decode()}" for batch in reading for row in json_rows(batch))
        rows.seek(1)  # behind the first comma
        counts = _counts(reading)
        with printing() as stdout:
            stdout.write(f'{to_json(counts).removesuffix("}")}, "predictions": [')
            shutil.copyfileobj(rows, stdout)
            stdout.write("]}\n")
    return counts


def _counts(reading: Any) -> dict[str, Any]:
    return {
        "name": reading.name,
        "since": reading.since and reading.since.isoformat(),
        "until": reading.until and reading.until.isoformat(),
        "rows": reading.rows,
        "labelled": reading.labelled,
        "conflicts": reading.conflicts,
        "unknown": reading.count_unknown(),
        "damaged": list(reading.damaged),
    }


def _summary(counts: dict[str, Any], looked_back_to: datetime | None) -> str:
    parts = [f"{counts['rows']} rows, {counts['labelled']} with a label"]
    if counts["conflicts"]:
        parts.append(f"{counts['conflicts']} labels contradict the first and are no corrections")
    if counts["unknown"]:
        since = "" if looked_back_to is None else f" since {looked_back_to.isoformat(timespec='seconds')}"
        older = "" if looked_back_to is None else ", or an older one"
        parts.append(
            f"{counts['unknown']} labels that came in within the window match no row logged{since}: "
            f"an unknown request_id or row{older}"
        )
    parts += [f"damaged and left out: {path}" for path in counts["damaged"]]
    return "\n".join(parts)
