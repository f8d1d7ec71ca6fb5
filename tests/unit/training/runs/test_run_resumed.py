"""A run that is resumed keeps its data and what it learnt from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drawn
import pytest
from saved_weights import load_weights

from raymlops.data.prepare import FIT
from raymlops.errors import NonFiniteError, RecipeError
from raymlops.tracking.client import tracker
from raymlops.training.run import train

if TYPE_CHECKING:
    from raymlops.project import Project
    from raymlops.training.events import Event


def runs(project: Project) -> list[Any]:
    client = tracker(project.spec).client
    experiment = client.get_experiment_by_name(project.spec.experiment)
    return list(client.search_runs([experiment.experiment_id]))


@pytest.mark.parametrize("recipe", ["drawn:Augmented", "drawn:Unseeded"])
def test_a_run_whose_items_draw_at_random_goes_on(tiny_project: Any, storage_path: Path, recipe: str) -> None:
    """It is the same data, whatever was drawn; where nobody can tell, the run's log says how it was compared."""
    record = train(tiny_project(recipe=recipe))
    again = train(tiny_project(recipe=recipe, epochs=3), resume=record.run_id)
    assert (again.run_id, again.epochs) == (record.run_id, 3)
    assert again.data == record.data
    log = (storage_path / "runs" / record.run_id / "log.txt").read_text()
    assert ("identified by its length" in log) == (recipe == "drawn:Unseeded")


@pytest.mark.parametrize("recipe", ["broken:NoExample", "grown_package:Grown"])
def test_a_run_that_could_not_be_registered_goes_on(
    tiny_project: Any, storage_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """The first release started runs without an example, or with code that cannot travel; a new run is refused."""
    package = tmp_path / "grown_package"
    package.mkdir()
    (package / "__init__.py").write_text("from tiny import Tiny\n\n\nclass Grown(Tiny):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("broken.NoExample.example", lambda _: [{"x": [0.5, -0.5, 1.0]}])
    record = train(tiny_project(recipe=recipe))
    monkeypatch.setattr("broken.NoExample.example", lambda _: None)
    for number in range(17):
        (package / f"{number}.json").write_bytes(bytes(1 << 20))
    again = train(tiny_project(recipe=recipe, epochs=3), resume=record.run_id)
    assert (again.run_id, again.epochs) == (record.run_id, 3)
    log = (storage_path / "runs" / record.run_id / "log.txt").read_text()
    assert log.count("the training continues, but its model could not be registered") == 1
    with pytest.raises(RecipeError, match=r"example\(\) is needed|larger than 16 MiB"):
        train(tiny_project(recipe=recipe))


def fits_of(project: Project, run_id: str) -> list[Any]:
    """Return what ``fit`` learnt as each of a run's checkpoints has it, oldest first."""
    folder = Path(project.spec.storage.path) / "runs" / run_id / "checkpoints"
    return [json.loads(path.read_text())["fit"] for path in sorted(folder.glob("step-*/state.json"))]


def test_a_run_goes_on_with_what_it_learnt_from_its_data(tiny_project: Any, storage_path: Path) -> None:
    """Its weights belong to that order of colours; another fit, which would give another one, is not made."""
    record = train(tiny_project(recipe="drawn:Reordered", keep_checkpoints=9))
    (expected,) = {json.dumps(found) for found in fits_of(tiny_project(), record.run_id)}
    fits = drawn.Reordered.fits
    train(tiny_project(recipe="drawn:Reordered", keep_checkpoints=9, epochs=4), resume=record.run_id)
    found = fits_of(tiny_project(), record.run_id)
    assert len(found) == 4
    assert {json.dumps(fit) for fit in found} == {expected}
    assert drawn.Reordered.fits == fits


def test_a_run_that_died_before_its_first_checkpoint_keeps_what_it_learnt(
    tiny_project: Any, storage_path: Path
) -> None:
    """It is on record from the start; where it is not, as in the first release, it is learnt again, which is said."""

    def die(event: Event) -> None:
        if event.kind == "start":
            raise KeyboardInterrupt

    project = tiny_project(recipe="drawn:Reordered")
    with pytest.raises(KeyboardInterrupt):
        train(project, on_event=die)
    (run,) = runs(project)
    store = tracker(project.spec)
    learnt = json.loads(store.read_text(run.info.run_id, FIT))
    assert fits_of(project, run.info.run_id) == []
    train(project, resume=run.info.run_id)
    assert fits_of(project, run.info.run_id)[-1] == learnt

    with pytest.raises(KeyboardInterrupt):
        train(project, on_event=die)
    (run,) = [found for found in runs(project) if found.info.status == "KILLED"]
    (artifact,) = storage_path.parent.rglob(f"{run.info.run_id}/artifacts/{FIT}")
    artifact.unlink()
    events: list[Event] = []
    train(project, resume=run.info.run_id, on_event=events.append)
    assert any("no state of Reordered.fit() was recorded" in event.message for event in events)
    assert json.loads(store.read_text(run.info.run_id, FIT)) == fits_of(project, run.info.run_id)[-1]


def test_changed_code_that_learns_something_else_is_said(tiny_project: Any, storage_path: Path) -> None:
    """The run keeps the state that its weights were trained with."""
    project = tiny_project(recipe="drawn:Reordered")
    record = train(project)
    tracker(project.spec).log_batch(record.run_id, tags={"raymlops.code_sha": "of other code"})
    events: list[Event] = []
    train(tiny_project(recipe="drawn:Reordered", epochs=3), resume=record.run_id, on_event=events.append)
    (text,) = [event.message for event in events if "returns another state" in event.message]
    assert text.startswith("the changed code's Reordered.fit() returns another state (colours): the run keeps")
    assert len({json.dumps(fit) for fit in fits_of(project, record.run_id)}) == 1


def test_a_buffer_that_was_infinite_from_the_start_ends_no_run(tiny_project: Any, storage_path: Path) -> None:
    """A mask keeps its infinity, an observer loses its own; after a resume both are still right."""
    record = train(tiny_project(recipe="drawn:Masked"))
    again = train(tiny_project(recipe="drawn:Masked", epochs=3), resume=record.run_id)
    weights, _ = load_weights(again.weights_uri)
    assert weights["mask"].isinf().sum() == 6
    assert weights["lowest"].isfinite()


def test_a_weight_that_becomes_infinite_ends_the_run_beside_such_buffers(
    tiny_project: Any, storage_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the buffer itself, where it was finite."""
    monkeypatch.setattr(drawn.Masked, "spoils", True)
    with pytest.raises(
        NonFiniteError, match="a model with NaN or infinity is not saved as a checkpoint; found in mask"
    ):
        train(tiny_project(recipe="drawn:Masked"))
