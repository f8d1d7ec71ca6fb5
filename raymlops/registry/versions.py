"""Model versions in MLflow's registry: a bundle under a name and a number, aliases that point to it, lineage as tags.

Owns the meaning of aliases and tags. The history of what was live belongs to ``state``, since MLflow keeps none. So
does a version's bundle: a reference from here repeats the tags, which everybody who can log a run can change. Before
its code is loaded or deployed, ``lifecycle.registration.admission`` compares it with the record.

A version counts once it has its last tag. What a killed registration left is found by its run at the next attempt and
completed, so that a run is at most one version of a model, and one more for each repair of its code.
"""

from __future__ import annotations

import logging
import re
import tempfile
from contextlib import suppress
from functools import partial
from itertools import islice
from operator import itemgetter, methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from raymlops.config.base import Name
from raymlops.config.credentials import redact
from raymlops.errors import InvalidNameError, NotFoundError, TrackingError
from raymlops.records import BundleRef, ModelVersionRef
from raymlops.registry.lineage import ALIASES_OF, BUNDLE_URI, CODE_NOW, COMPLETE, DIGEST, RUN_ID, bundle_tags
from raymlops.registry.names import Names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from raymlops.tracking.client import Tracker

    _Refs = list[ModelVersionRef]  # in the class below, list is a method

ARTIFACT = "model"
CANDIDATE = "candidate"

_READY_WAIT_S = 60
_PAGE = 100
_WHOLE = {COMPLETE, DIGEST}
"""Tags of a version that was registered here, and completed."""

T = TypeVar("T")


class Registry:
    """The registry of one MLflow."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._names = Names(tracker.uc_schema)

    def register(
        self,
        name: str,
        *,
        run_id: str,
        bundle: BundleRef,
        tags: Mapping[str, str] | None = None,
        description: str = "",
    ) -> ModelVersionRef:
        """Register a bundle as the next version of a model, with the alias ``candidate``.

        The bundle's files are also logged to the run as an MLflow model, under ``model/<digest>``. The same run again
        with the same code, with whatever bundle, returns the version there is, whose bundle and aliases stay as they
        are. Code that is not the one of the training is named by the tag ``CODE_NOW``.

        Raises:
            InvalidNameError: the name has characters that a URL refuses.
            NotFoundError: there is no such run.
            BundleError: the bundle does not match its digest.
            TrackingError: MLflow does not answer; what was done so far is completed at the next try.
        """
        _check_name(name)
        run = self._tracker.run(run_id)
        self._ensure_model(name, description=description)
        code_sha = (tags or {}).get(CODE_NOW, "")
        found = self._same(name, run_id=run_id, code_sha=code_sha)
        if found is None:
            source = self._log_artifact(run, bundle)
            # It says at level info that it waits, also when there is nothing to wait for.
            logging.getLogger("mlflow.store.model_registry.abstract_store").setLevel(logging.WARNING)
            every = {**(tags or {}), **bundle_tags(bundle), RUN_ID: run_id}
            self._call(
                lambda client: client.create_model_version(
                    self._names.model(name),
                    source,
                    run_id,
                    tags=self._names.write(every),
                    description=description or None,
                    await_creation_for=_READY_WAIT_S,
                )
            )
            # MLflow's client may have sent the request twice, or another process registered the same run: all
            # keep the first version.
            found = self._same(name, run_id=run_id, code_sha=code_sha)
            assert found is not None
        version = int(found.version)
        if COMPLETE not in self._names.read(found.tags):
            self.set_alias(name, CANDIDATE, version)
            self.tag(name, version, {COMPLETE: "true"})
        return self.get(name, str(version))

    def get(self, name: str, which: str = "latest") -> ModelVersionRef:
        """Return a version by number (``"7"``), alias (``"@champion"`` or ``"champion"``) or ``"latest"``.

        Raises:
            NotFoundError: it does not exist; the hint lists the versions that do.
        """
        if (found := self.find(name, which)) is not None:
            return found
        newest = [*islice(self._completed(name), 20)][::-1]
        if not newest:
            raise NotFoundError(f"there is no model {name!r}", hint=self._known_models())
        existing = ", ".join(str(ref.version) + "".join(f" @{alias}" for alias in ref.aliases) for ref in newest)
        raise NotFoundError(f"model {name!r} has no version {which!r}", hint=f"Its newest versions: {existing}.")

    def find(self, name: str, which: str = "latest") -> ModelVersionRef | None:
        """Return a version as ``get``; None if it does not exist. No other one is read."""
        if which == "latest" or not _is_name(name):
            return next(self._completed(name), None)
        model, is_number = self._names.model(name), re.fullmatch("[1-9][0-9]{0,8}", which)
        by_alias = methodcaller("get_model_version_by_alias", model, which.removeprefix("@"))
        try:
            version = self._get(model, which) if is_number else self._call(by_alias)
        except NotFoundError:
            return None
        except TrackingError as error:
            if getattr(error.__cause__, "error_code", "") == "INVALID_PARAMETER_VALUE":  # of an alias that none has
                return None
            raise
        tags = self._names.read(version.tags)
        return _ref(name, version, tags, sorted(version.aliases)) if tags.keys() >= _WHOLE else None

    def of_run(self, name: str, run_id: str) -> _Refs:
        """Return the versions of a model that a run was registered as: one for each code, the newest last."""
        return [*self._completed(name, run_id=run_id)][::-1]

    def by_alias(self, name: str, alias: str) -> ModelVersionRef | None:
        """Return the version that an alias points to, or None."""
        return self.find(name, f"@{alias}")

    def list(self, name: str | None = None) -> _Refs:
        """Return the completed versions of one model, or of all, by name and number; none for an unknown name.

        Versions that something other than raymlops registered are left out.
        """
        models = self._models() if name is None else [name]
        refs = (ref for model in models for ref in self._completed(model))
        return sorted(refs, key=lambda ref: (ref.name, ref.version))

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias to a version; it leaves the one it pointed to."""
        self._call(lambda client: client.set_registered_model_alias(self._names.model(name), alias, str(version)))

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias, if it exists."""
        self._call(lambda client: client.delete_registered_model_alias(self._names.model(name), alias))

    def owner(self, name: str) -> str:
        """Return whose a model's aliases are, as ``set_owner`` wrote it; empty where nobody's."""
        model = self._call(lambda client: client.get_registered_model(self._names.model(name)))
        return self._names.read(model.tags).get(ALIASES_OF, "").strip()

    def set_owner(self, name: str, owner: str) -> None:
        """Write on a model whose its aliases are."""
        for key, value in self._names.write({ALIASES_OF: owner}).items():
            self._call(methodcaller("set_registered_model_tag", self._names.model(name), key, value))

    def tags(self, name: str, version: int) -> dict[str, str]:
        """Return the tags of a version."""
        return self._names.read(self._get(self._names.model(name), version).tags)

    def tag(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version; values are truncated to the registry's limit."""
        model = self._names.model(name)
        for key, value in self._names.write(tags).items():
            self._call(methodcaller("set_model_version_tag", model, str(version), key, value))

    def _ensure_model(self, name: str, *, description: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            model = self._names.model(name)
            self._call(lambda client: client.create_registered_model(model, description=description or None))
        except TrackingError as error:
            cause = error.__cause__
            if not isinstance(cause, MlflowException) or cause.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _same(self, name: str, *, run_id: str, code_sha: str) -> Any:
        """Return the one version of a run with this code, or None; duplicates that nobody completed are removed.

        A completed version wins, then the lowest number: processes that register a run at once agree on it, also
        where their bundles differ. One whose files Unity Catalog does not have yet is another process', or left over.
        """
        found = [
            (COMPLETE not in tags, int(version.version), version)
            for version, tags in self._versions(name, run_id=run_id)
            if DIGEST in tags and tags.get(CODE_NOW, "") == code_sha and version.status == "READY"
        ]
        found.sort(key=itemgetter(0, 1))
        for unfinished, _, extra in found[1:]:
            if unfinished:
                self._delete(extra)
        return found[0][2] if found else None

    def _delete(self, version: Any) -> None:
        # Another process that registers the same run may have been faster.
        with suppress(NotFoundError):
            self._call(lambda client: client.delete_model_version(version.name, version.version))

    def _log_artifact(self, run: Any, bundle: BundleRef) -> str:
        from raymlops.bundle.pyfunc import save_pyfunc

        # Named by the digest: a second bundle of the run must not overwrite the files of the first.
        path = f"{ARTIFACT}/{bundle.digest[:16]}"
        with tempfile.TemporaryDirectory(prefix="raymlops-") as folder:
            save_pyfunc(bundle, Path(folder, ARTIFACT))
            self._call(lambda client: client.log_artifacts(run.info.run_id, str(Path(folder, ARTIFACT)), path))
        return f"{run.info.artifact_uri}/{path}"

    def _completed(self, name: str, *, run_id: str | None = None) -> Iterator[ModelVersionRef]:
        """Yield the completed versions of a model, or those of one run, newest first, read page by page."""
        aliases: dict[int, tuple[str, ...]] | None = None
        for version, tags in self._versions(name, run_id=run_id) if _is_name(name) else ():
            if tags.keys() >= _WHOLE:
                aliases = self._aliases(name) if aliases is None else aliases
                yield _ref(name, version, tags, aliases.get(int(version.version), ()))

    def _versions(self, name: str, *, run_id: str | None = None) -> Iterator[tuple[Any, dict[str, str]]]:
        """Yield MLflow's versions of a model, or those of one run, newest first, each with its tags."""
        model, in_uc = self._names.model(name), self._names.uc_schema is not None
        query = f"name = '{model}'" if run_id is None else f"run_id = '{run_id}'"  # Unity Catalog takes one condition
        order = None if in_uc else ["version_number DESC"]
        found = self._pages(
            lambda client, token: client.search_model_versions(
                query, max_results=_PAGE, order_by=order, page_token=token
            )
        )
        for version in sorted(found, key=lambda one: -int(one.version)) if in_uc else found:
            if version.name == model:
                # Unity Catalog's search leaves tags out (MLflow 3.17).
                whole = self._get(model, version.version) if in_uc else version
                yield whole, self._names.read(whole.tags)

    def _get(self, model: str, version: int | str) -> Any:
        return self._call(lambda client: client.get_model_version(model, str(version)))

    def _models(self) -> Iterator[str]:
        models = self._pages(lambda client, token: client.search_registered_models(max_results=_PAGE, page_token=token))
        names = (self._names.ours(model.name) for model in models)
        return (name for name in names if name is not None and _is_name(name))

    def _pages(self, read: Callable[..., Any]) -> Iterator[Any]:
        token: str | None = None
        while True:
            page = self._call(partial(read, token=token))
            yield from page
            token = page.token
            if not token:
                return

    def _aliases(self, name: str) -> dict[int, tuple[str, ...]]:
        model = self._call(lambda client: client.get_registered_model(self._names.model(name)))
        aliases: dict[int, tuple[str, ...]] = {}
        for alias, version in sorted(model.aliases.items()):
            aliases[int(version)] = (*aliases.get(int(version), ()), alias)
        return aliases

    def _known_models(self) -> str:
        names = sorted(name for name in self._models() if self.find(name) is not None)
        return f"Registered models: {', '.join(names)}." if names else "No model is registered yet."

    def _call(self, function: Callable[[Any], T]) -> T:
        try:
            return function(self._tracker.client)
        except TrackingError:
            raise
        except Exception as error:
            raise _tracking_error(error) from error


def _ref(name: str, version: Any, tags: Mapping[str, str], aliases: Sequence[str]) -> ModelVersionRef:
    return ModelVersionRef(
        name=name,
        version=int(version.version),
        run_id=tags.get(RUN_ID) or version.run_id,
        bundle=BundleRef(uri=tags.get(BUNDLE_URI, ""), digest=tags[DIGEST]),
        aliases=tuple(aliases),
        code_sha=tags.get(CODE_NOW, ""),
    )


def _check_name(name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name, strict=True)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InvalidNameError(f"a model cannot be registered under that name: {message}") from error


def _is_name(name: str) -> bool:
    try:
        _check_name(name)
    except InvalidNameError:
        return False
    return True


def _tracking_error(error: Exception) -> Exception:
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
        return NotFoundError(f"not found in MLflow: {error.message}")
    lines = str(error).splitlines() or [type(error).__name__]
    return TrackingError(
        redact(f"MLflow's registry does not answer: {lines[0]}"), hint="Check tracking.uri and that the server is up."
    )
