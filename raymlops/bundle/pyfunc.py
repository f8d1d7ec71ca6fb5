"""Save and load a bundle as a model of MLflow's ``python_function`` flavour, without pickle.

``mlflow.pyfunc.load_model("models:/NAME@champion")`` calls ``_load_pyfunc`` here with the bundle's folder. The digest
that vouches for it is looked up in the model registry: some version there must carry it as its tag. So a changed
artifact is refused even when its manifest was rewritten to match. A folder that no registry knows needs the
digest from the caller: ``load_model(path, model_config={"digest": ...})``.

Limitation: MLflow reads the ``MLmodel`` file first and calls the loader it names, so anyone who can write to the
artifact store can make ``load_model`` run other code. ``raymlops.bundle.load.load`` reads no such file.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.arrays import whole_values
from raymlops.bundle.code import OWN_PACKAGE, own_version
from raymlops.bundle.load import LoadedModel, load
from raymlops.bundle.requirements import public
from raymlops.bundle.verify import RECIPE, SIGNATURE, BundleFiles, fetch
from raymlops.errors import BundleError
from raymlops.signature import Signature
from raymlops.storage.manifest import MANIFEST

if TYPE_CHECKING:
    import os

    import pandas as pd

    from raymlops.arrays import Column
    from raymlops.records import BundleRef

DIGEST_TAG = "raymlops.digest"
"""Tag of a model version: the digest of its bundle."""

DATA = "bundle"
"""Folder of the bundle in an MLflow model."""
_LOADER = "raymlops.bundle.pyfunc"


def save_pyfunc(ref: BundleRef, dest: str | os.PathLike[str]) -> None:
    """Write an MLflow model that holds a copy of the bundle into the folder ``dest``, which must not exist.

    Raises:
        BundleError: the bundle does not match its digest.
    """
    with warnings.catch_warnings():
        # MLflow 3.17 warns about type hints of its own when this is imported.
        warnings.simplefilter("ignore")
        from mlflow.models import Model
        from mlflow.pyfunc import add_to_model
    folder = fetch(ref.uri, ref.digest)
    files = BundleFiles(folder, ref.digest)
    signature = Signature.from_dict(files.json(SIGNATURE))
    target = Path(dest)
    shutil.copytree(folder, target / DATA)
    python_env, requirements = "python_env.yaml", "requirements.txt"
    needed = {OWN_PACKAGE: own_version(), **files.json(RECIPE).get("requirements", {})}
    lines = "".join(f"{name}=={public(version)}\n" for name, version in needed.items())
    (target / requirements).write_text(lines, encoding="utf-8")
    (target / python_env).write_text(f"dependencies:\n- -r {requirements}\n", encoding="utf-8")
    model = Model(signature=_mlflow_signature(signature), metadata={DIGEST_TAG: ref.digest})
    # An empty default lets a caller pass the digest; MLflow drops configuration that a model does not declare.
    add_to_model(model, loader_module=_LOADER, data=DATA, python_env=python_env, model_config={"digest": ""})
    model.save(str(target / "MLmodel"))


class PyfuncModel:
    """Wrapped by MLflow: takes a DataFrame of the signature's inputs, returns a DataFrame of its outputs."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded

    def predict(self, model_input: Any, params: Any = None) -> pd.DataFrame:
        """Return the outputs for named columns: a DataFrame, a mapping, or a list of rows.

        Images are bytes of a PNG, times are UTC without an offset, as MLflow's types have them.

        The types are checked as the endpoint checks them, and the numbers are the same.

        Raises:
            InvalidRowsError: naming row and column of what does not fit the signature.
        """
        import pandas as pd

        del params
        frame = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(model_input)
        signature = self.loaded.signature
        columns = signature.parse_columns({str(name): frame[name] for name in frame.columns})
        outputs = self.loaded.predict(columns)
        cells = {column.name: _cells(column, outputs[column.name]) for column in signature.outputs}
        return pd.DataFrame(cells, index=frame.index)


def _cells(column: Column, array: Any) -> Any:
    if column.info.raw is not None:
        return column.info.raw(array)
    if column.type == "bool" and column.nullable:
        return np.array(whole_values(column, array), dtype=object)
    return list(array) if array.ndim > 1 else array


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> PyfuncModel:
    """Load the bundle at ``path`` for MLflow, verified against a digest from outside the artifact.

    Raises:
        BundleError: the registry knows no such bundle, or the files are not what the digest vouches for.
    """
    folder = Path(path)
    return PyfuncModel(load(folder, _trusted_digest(folder, model_config or {})))


def _trusted_digest(folder: Path, model_config: dict[str, Any]) -> str:
    given = str(model_config.get("digest") or "")
    if given:
        if _declared(folder):
            raise BundleError(
                f"{folder.parent}/MLmodel: expected an empty digest, got one: an artifact cannot vouch for itself",
                hint="The artifact was changed after it was registered. Do not use it.",
            )
        return given
    try:
        digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError(f"{folder}/{MANIFEST}: expected the manifest of a bundle, got {error}") from error
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    registry = mlflow.get_registry_uri()
    try:
        known = MlflowClient().search_model_versions(f"tag.`{DIGEST_TAG}` = '{digest}'", max_results=1)
    except MlflowException as error:
        # Unity Catalog looks nothing up by a tag.
        raise BundleError(
            f"the registry {registry} cannot say whether it knows bundle {digest}: {error}",
            hint='Give the digest that the version has as its tag: model_config={"digest": ...}.',
        ) from error
    if not known:
        raise BundleError(
            f"{folder}: expected a bundle that some model version in the registry {registry} has as its "
            f"{DIGEST_TAG}, got {digest}",
            hint="The artifact was changed, or the registry is another one: set it with mlflow.set_registry_uri, "
            'or give model_config={"digest": ...}.',
        )
    return digest


def _declared(folder: Path) -> bool:
    """Return whether the artifact's own file has a digest, which MLflow would pass on as the caller's."""
    from mlflow.models import Model

    path = folder.parent / "MLmodel"
    if not path.exists():
        return False
    flavor = Model.load(str(path)).flavors.get("python_function", {})
    return bool((flavor.get("config") or {}).get("digest"))


def _mlflow_signature(signature: Signature) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema

    return ModelSignature(
        inputs=Schema([_spec(column, is_input=True) for column in signature.inputs]),
        outputs=Schema([_spec(column, is_input=False) for column in signature.outputs]),
    )


def _spec(column: Column, *, is_input: bool) -> Any:
    from mlflow.types.schema import AnyType, Array, ColSpec

    # MLflow refuses a whole number (int64) where it expects a double, and a missing one where it expects a long, while
    # JSON and pandas write both that way. Such inputs are left to our own check, which is the endpoint's.
    free = is_input and (column.type == "float" or column.nan_missing)
    kind: Any = AnyType() if free else column.info.mlflow
    for _ in column.sent_shape:
        kind = Array(kind)
    return ColSpec(kind, column.name, required=not column.nullable)
