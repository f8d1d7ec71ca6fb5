"""From what a user calls the first weights of a run to where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.errors import UsageError

if TYPE_CHECKING:
    from raymlops.project import Project
    from raymlops.training.runs.lookup import Recorded

_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".h5", ".npz", ".pkl")


def located(project: Project, *, recorded: Recorded | None = None) -> Project:
    """Return the project with ``train.init_from`` as a place: its workers and trials know neither MLflow nor aliases.

    What resumes keeps the place that was ``recorded``: an alias may have moved since, or the version be gone.

    A version becomes ``URI#DIGEST`` of its bundle, a run the URI of its best checkpoint; a URI stays as it is.

    Raises:
        NotFoundError: there is no such run or version; the message names similar ones.
        UsageError: the run has no weights, or the name is that of a file.
        TrackingError: MLflow does not answer.
    """
    if recorded is not None and recorded.spec is not None:
        section = project.spec.train.model_copy(update={"init_from": recorded.spec.train.init_from})
        return project.with_train(section)
    name = project.spec.train.init_from
    if name is not None and name.endswith(_FILES):
        raise UsageError(
            f"train.init_from is {name!r}, a file, not RUN_ID, NAME@VERSION, NAME@ALIAS or the URI of a checkpoint",
            hint="Load a file of weights in the recipe, where it is read once: "
            f'def initialize(self, model): model.load_state_dict(torch.load("{name}"))',
        )
    if name is None or ("/" in name and not name.startswith("models:/")):
        return project
    from raymlops.lifecycle.named_model import split_version
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import tracker as tracker_of
    from raymlops.training.runs.lookup import look_up

    tracker = tracker_of(project.spec)
    model, version = split_version(name.removeprefix("models:/").replace("/", "@"))
    if version is not None:
        bundle = Registry(tracker).get(model, version).bundle
        place = f"{bundle.uri}#{bundle.digest}"
    else:
        found = look_up(tracker, name).tags.get("raymlops.weights_uri")
        if found is None:
            raise UsageError(
                f"train.init_from is run {name}, which has no weights: it has not ended",
                hint="Give a run that is FINISHED, NAME@VERSION, or the URI of a checkpoint.",
            )
        place = found
    return project.with_train(project.spec.train.model_copy(update={"init_from": place}))
