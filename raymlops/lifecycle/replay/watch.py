"""The demo of a watched model: weeks of real flights through a real endpoint in minutes, on the clock of a replay.

Owns the order: its own cluster on that clock, the first version, its weeks, and what is said at the end. What becomes
of the model is the controller's to decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.cluster.auth import variables_set
from raymlops.display import Sink, Steps
from raymlops.lifecycle.demo import addresses, clear, own_cluster
from raymlops.lifecycle.deploy import deploy
from raymlops.lifecycle.registration.gate import gate
from raymlops.lifecycle.replay.flights_asked import BEGIN
from raymlops.lifecycle.replay.run import POLICY, Replay, trained
from raymlops.lifecycle.replay.weeks import means, policy_lines, table
from raymlops.lifecycle.sources import state_of
from raymlops.records import Record
from raymlops.serving.client.client import Client
from raymlops.storage import clock
from raymlops.storage.shipped import shipped

if TYPE_CHECKING:
    from raymlops.lifecycle.replay.weeks import WeekRecord

WEEKS = 13


@dataclass(frozen=True)
class WatchRecord(Record):
    """What the replay came to."""

    weeks: list[dict[str, Any]]
    means: dict[str, float]
    """Log loss in nats over all weeks, of ``live``, ``frozen`` and ``blind``."""
    policy: list[str]
    requests: int
    """Each of them was answered: the replay ends with the first one that is not."""
    labels: int
    seconds: dict[str, float]
    table: str

    def text(self) -> str:
        """Return the last screen."""
        lines = ["policy: the values that are not the defaults", *(f"  {line}" for line in self.policy), ""]
        lines += [
            self.table,
            "",
            "log loss in nats of the same rows: live is the endpoint, as raymlops kept it; frozen",
        ]
        lines += ["is its first version; blind is retrained every four weeks, whatever comes of it"]
        total = f"{self.requests:,} requests and {self.labels:,} labels, a week late, in"
        return "\n".join([*lines, f"{total} {sum(self.seconds.values()):.0f} s"])


def watch_demo(
    *, root: str | Path = "raymlops-demo", keep: bool = False, weeks: int = WEEKS, on_step: Sink
) -> WatchRecord:
    """Replay weeks of flights through an endpoint that the controller watches, retrains and promotes.

    Raises:
        UsageError: the folder holds something else, or a demo that is still up.
        RaymlopsError: of the step that failed; everything that was started is ended.
    """
    folder = Path(root).absolute()
    clear(folder)
    file = folder / "state" / "clock"
    file.parent.mkdir()
    clock.set_replay(file, BEGIN)
    steps = Steps(2 + weeks, sink=on_step)
    done: list[WeekRecord] = []
    with variables_set({clock.FILE: str(file)}), own_cluster(folder / "state", keep=keep, steps=steps) as up:
        overrides = [*POLICY, f"storage.path={folder / 'state'}", *addresses(up)]
        with steps.step("train on January to March, register, gate and deploy") as said:
            first = trained(shipped("configs") / "flights.yaml", overrides, until=BEGIN)
            gate(first.project, first.version)
            said.append(str(deploy(first.project, first.version).url))
        with (
            state_of(first.project.spec) as state,
            Client(up.serve_url, api_key="") as client,  # ours is open; another endpoint's key would be refused
        ):
            replay = Replay(first, state, client, weeks=weeks, clock_file=file)
            for number in range(weeks):
                with steps.step(f"week {number + 1}") as said:
                    done.append(replay.week(number))
                    said.append(done[-1].short())
    return WatchRecord(
        weeks=[week.to_dict() for week in done],
        means=means(done),
        policy=policy_lines(first.project.spec),
        requests=replay.requests,
        labels=replay.feed.labels,
        seconds=steps.seconds,
        table=table(done),
    )
