"""``predictions``: the prediction log of a model."""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymlops.cli.output import (
    Answer,
    EnvOption,
    JsonFlag,
    OptionalConfig,
    Overrides,
    YesFlag,
    confirm,
    given,
    note,
    printing,
)
from raymlops.errors import UsageError
from raymlops.records import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.batch.export_log import ExportRecord
    from raymlops.predictions.erase import EraseRecord
    from raymlops.predictions.where import Where

_LISTED = 20
"""Labels that match no row, of those that there are."""


def predictions(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model.")],
    overrides: Overrides = None,
    *,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="As 1h, 7d or an ISO time.  [default: 1h; with --where, the first row]"),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="As --since.  [default: now]")] = None,
    version: Annotated[int | None, typer.Option(min=1, metavar="VERSION", help="Of one version only.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="Rows with this value, such as features.customer=7; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the newest N rows.")] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Write .parquet, .csv or .jsonl instead, or whole days to a Delta table, delta+URI."
        ),
    ] = None,
    compact: Annotated[
        bool,
        typer.Option("--compact", help="Merge small files of past hours, and count hours for `drift`, instead."),
    ] = False,
    retain: Annotated[
        bool, typer.Option("--retain", help="Remove what is older than serve.log.retention_days instead.")
    ] = False,
    erase: Annotated[bool, typer.Option("--erase", help="Erase the rows of --where, and their labels.")] = False,
    config: OptionalConfig = None,
    env: EnvOption = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> Answer | None:
    """Print the logged requests of a model with answers and labels, oldest first, one JSON object per row."""
    from raymlops.lifecycle.batch.export_log import export_log
    from raymlops.lifecycle.live.log_owner import read_from
    from raymlops.lifecycle.prediction_log import (
        compact_predictions,
        other_storages,
        parse_moment,
        retain_predictions,
    )
    from raymlops.lifecycle.sources import state_id, stores_of
    from raymlops.predictions.read import Reading
    from raymlops.predictions.where import Where
    from raymlops.storage import clock
    from raymlops.storage.delta.tables import find_table

    spec = stores_of(config, overrides=overrides or (), env=env)
    owner, now = partial(state_id, spec), clock.now()
    others = {"--version": version, "--limit": limit, "--out": out}
    window = {"--since": since, "--until": until, "--where": where}
    if compact:
        _refuse("--compact", {**others, **window, "--retain": retain, "--erase": erase})
        record = compact_predictions(name, spec)
        text = f"merged {record.merged} files of {record.folders} hours and days into {record.into}"
        text += f"; counted the rows of {record.profiled} hours" if record.profiled else ""
        return Answer(record.to_dict(), text)
    if retain:
        _refuse("--retain", {**others, **window, "--erase": erase})
        confirm(f"Remove the rows and labels of {name} that are older than serve.log.retention_days?", yes=yes)
        retained = retain_predictions(name, spec, now=now)
        return Answer(retained.to_dict(), f"removed {len(retained.removed)} hours and days before {retained.before}")
    conditions = Where.parse(where) if where else None
    table = None if out is None else find_table(out)
    first = parse_moment(since or ("1h" if table is None else "1d"), now=now) if since or not where else None
    last = None if until is None else parse_moment(until, now=now)
    if erase:
        _refuse("--erase", others)
        return _erase(name, spec, conditions, since=first, until=last, yes=yes)
    if table is not None:
        _refuse("A Delta table as --out", {"--version": version, "--limit": limit, "--where": where})
        assert first is not None
        for text in other_storages(name, spec):
            note(text)
        return _exported(export_log(name, spec, table, since=first, until=min(last or now, now)))
    for text in other_storages(name, spec) if where else ():
        note(text)
    reading = Reading(
        read_from(name, spec.storage.path, owner),
        name,
        since=first,
        until=last,
        version=version,
        where=conditions,
        limit=limit,
    )
    if out is not None:
        from raymlops.predictions.export.files import write_file

        write_file(reading, out)
    elif not as_json:
        _print_lines(reading)
    counts = _print_object(reading, owner) if as_json and out is None else _counts(reading, owner)
    note(_summary(counts, reading))
    return None if out is None else Answer({"out": out, **counts}, out)


def _refuse(verb: str, options: Mapping[str, Any]) -> None:
    if mixed := given(options):
        raise UsageError(f"{verb} cannot be used with {', '.join(mixed)}", hint=f"Leave {verb} out to read.")


def _exported(record: ExportRecord) -> Answer:
    parts = [f"{record.rows} rows of {len(record.days)} days, {record.labelled} with a label"]
    if not record.days:
        parts.append("no day with rows has ended in that time: --since and --until choose another one")
    if record.left:
        left = ", ".join(record.left)
        parts.append(
            "left as they are, older than serve.log.retention_days, or with rows in the table that the log lacks and "
            f"nobody erased: {left}"
        )
    parts += [f"damaged, so that its day was left as it is: {path}" for path in record.damaged]
    note("\n".join(parts))
    text = record.table if record.table_version is None else f"{record.table}@v{record.table_version}"
    return Answer(record.to_dict(), text, exit_code=1 if record.damaged else 0)


def _erase(
    name: str,
    spec: ProjectSpec,
    where: Where | None,
    *,
    since: datetime | None,
    until: datetime | None,
    yes: bool,
) -> Answer:
    from raymlops.lifecycle.prediction_log import erase_predictions

    if where is None:
        raise UsageError("--erase needs --where FIELD=VALUE, which says whose rows")

    def agree(found: EraseRecord) -> None:
        if not yes:
            note(_erasure(found))
        confirm(f"Erase {found.rows} rows and {found.labels} labels of {name}?", yes=yes)

    record = erase_predictions(name, spec, where, since=since, until=until, agree=agree)
    return Answer(record.to_dict(), _erasure(record), exit_code=1 if record.damaged or record.open_labels else 0)


def _erasure(record: EraseRecord) -> str:
    parts = [f"{'erased' if record.erased else 'found'} {record.rows} rows and {record.labels} labels"]
    if record.unsearched:
        parts.append(_unsearched(record.unsearched))
    if record.open_labels:
        parts.append(f"{record.open_labels} labels are in files that are still written: run it again")
    parts += [f"not searched, and perhaps with such rows: {path}" for path in record.damaged]
    return "\n".join(parts)


def _unsearched(rows: int) -> str:
    return f"{rows} rows could not be compared: they lack a field, which may have been redacted, or it has another type"


def _print_lines(reading: Any) -> None:
    from raymlops.predictions.export.files import json_rows

    for batch in reading:
        with printing() as stdout:
            stdout.writelines(f"{row.decode()}\n" for row in json_rows(batch))


def _print_object(reading: Any, salt: Callable[[], str]) -> dict[str, Any]:
    """Print one object with all rows, and return its counts.

    Rows are collected on disk first, so that an error leaves no half-written object.
    """
    from raymlops.predictions.export.files import json_rows

    with tempfile.TemporaryFile("w+", encoding="utf-8") as rows:
        rows.writelines(f",{row.decode()}" for batch in reading for row in json_rows(batch))
        rows.seek(1)  # behind the first comma
        counts = _counts(reading, salt)
        with printing() as stdout:
            stdout.write(f'{to_json(counts).removesuffix("}")}, "predictions": [')
            shutil.copyfileobj(rows, stdout)
            stdout.write("]}\n")
    return counts


def _counts(reading: Any, salt: Callable[[], str]) -> dict[str, Any]:
    unknown = reading.unknown_labels(salt=salt)
    return {
        "name": reading.name,
        "since": reading.since and reading.since.isoformat(),
        "until": reading.until and reading.until.isoformat(),
        "rows": reading.rows,
        "labelled": reading.labelled,
        "conflicts": reading.conflicts,
        "unknown": unknown.num_rows,
        "damaged": list(reading.damaged),
        **({} if reading.where is None else {"unsearched": reading.unsearched}),
        **({"unknown_labels": unknown.slice(0, _LISTED).to_pylist()} if unknown.num_rows else {}),
    }


def _first(counts: dict[str, Any]) -> str:
    label = counts["unknown_labels"][0]
    whose = f" for {label['caller']}" if label["caller"] else ""
    return f"{label['request_id']} row {label['row']}{whose}"


def _summary(counts: dict[str, Any], reading: Any) -> str:
    looked_back_to = reading.looked_back_to
    parts = [f"{counts['rows']} rows, {counts['labelled']} with a label"]
    if not counts["rows"] and reading.since is not None:
        until = "" if reading.until is None else f" to {reading.until:%Y-%m-%d %H:%M}"
        parts[0] += f", since {reading.since:%Y-%m-%d %H:%M}{until} UTC: --since and --until choose another time"
    if counts["conflicts"]:
        parts.append(f"{counts['conflicts']} labels contradict the first and are no corrections")
    if counts["unknown"]:
        since = "" if looked_back_to is None else f" since {looked_back_to.isoformat(timespec='seconds')}"
        older = "" if looked_back_to is None else ", or an older one"
        parts.append(
            f"{counts['unknown']} labels that came in within the window match no row logged{since}: "
            f"an unknown request_id or row, a request of another caller{older}; such as {_first(counts)}"
        )
    if counts.get("unsearched"):
        parts.append(_unsearched(counts["unsearched"]))
    parts += [f"damaged and left out: {path}" for path in counts["damaged"]]
    return "\n".join(parts)
