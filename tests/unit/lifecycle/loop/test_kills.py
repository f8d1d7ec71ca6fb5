"""A controller that is killed at every place of every stage: another one goes on, and all is there exactly once.

Places are before and after each job that is submitted and each config that Serve gets, and before each statement and
commit that writes.
"""

from __future__ import annotations

import pytest
from echoed_log import bundle as echo_bundle
from loop_world import BAD, MINUTE, REFUSAL, WORSE, KilledError, World
from spread import at_most, spread

WALKS = {
    "promoted": {},
    "refused by its gate": {"decision": REFUSAL},
    "refused by its replay": {"replayed": REFUSAL},
    "aborted as a canary": {"canary": BAD},
    "taken back while it bakes": {"baked": BAD},
    "taken back for its answers": {"quality": "worse", "compared": WORSE},
    "training fails": {"fails": {"train": 3}},
}
"""What differs in each walk; together they pass every stage and every end that the loop gives a retraining."""
KILLED = {
    *(
        "before job train",
        "after job train",
        "before job replay",
        "after job compare",
        "before Serve",
        "after Serve",
        "before commit",
    ),
    *("before UPDATE retrainings SET", "before INSERT INTO rollouts", "before INSERT INTO messages"),
}
"""Among the places."""


@pytest.fixture(scope="module")
def began(tmp_path_factory):
    """Return a world in which version 1 is live."""
    world = World(tmp_path_factory.mktemp("began"), echo_bundle(tmp_path_factory.mktemp("bundle")))
    yield world
    world.close()


def worlds(began, folder, walk):
    """Return the world before each look of a walk, and its picture after each, of a controller that nobody kills."""
    world = copied(began, folder / "whole")
    world.restart()
    for name, value in WALKS[walk].items():
        setattr(world.jobs if name == "fails" else world, name, dict(value) if name == "fails" else value)
    world.begin()
    before, pictures = [], []
    while not pictures or world.newest().is_open:
        kept = copied(world, folder / str(len(before)))
        world.killer.places.clear()
        world.look()
        before.append((kept, list(world.killer.places)))
        pictures.append(world.picture())
        passed(world)
    world.close()
    return before, pictures


def copied(world, folder):
    folder.mkdir()
    return world.kept(folder)


def passed(world):
    """Let jobs end, and a minute pass."""
    world.work()
    world.now += MINUTE


@at_most(21)
def test_killed_anywhere_everything_is_there_once(began, tmp_path, most):
    """A look later all is as after the same look of one that nobody killed, or after the next one."""
    looks, ways = {}, {}
    for walk in WALKS:
        (tmp_path / walk).mkdir()
        before, pictures = worlds(began, tmp_path / walk, walk)
        for look, (world, places) in enumerate(before):
            looks[walk, look] = world, pictures
            moves = pictures[look - 1]["moves"] if look else []
            for at, place in enumerate(places):  # where the same was written until then, one is enough
                ways.setdefault((*moves, *places[: at + 1]), (walk, look, at, place))
    assert {place for *_, place in ways.values()} >= KILLED
    for walk, look, at, place in spread(ways.values(), most):
        world, pictures = looks[walk, look]
        other = copied(world, tmp_path / walk / f"{look}-{at}")
        other.restart()
        other.killer.at = at
        with pytest.raises(KilledError, match=place):
            other.look()
        other.restart()
        other.look()
        if other.picture() not in pictures[look : look + 2]:
            passed(other)
            other.look()
            assert other.picture() in pictures[look : look + 3], (walk, look, at, place)
        other.close()
    for world, _ in looks.values():
        world.close()
