"""JSON Schemas of the request and response bodies of a model's routes.

Owns the schemas, which state what the protocols' parsers check; where a schema cannot (a list as long as a shape says),
its description does. Bodies that are the same for all models are pydantic models; the others are made from a model's
signature. Pure. ``openapi`` puts them into a document.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.json_schema import models_json_schema

from raymlops.serving.protocols.tensors import accepted_types

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.arrays import Column
    from raymlops.signature import Signature

MAX_LABELS = 5000
_TEXT = {"type": "string"}
_REF = "#/components/schemas/{model}"

Scalar = str | float | bool


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ServerMetadata(_Closed):
    """The server's name and protocol extensions."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(_Closed):
    """A tensor's datatype and shape; -1 is any length."""

    name: str
    datatype: str
    shape: list[Annotated[int, Field(ge=-1)]]


class ModelMetadata(_Closed):
    """A model's live versions and its tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class OutputTensor(_Closed):
    """One output, in JSON or as so many bytes after it."""

    name: str
    datatype: str
    shape: list[NonNegativeInt]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferenceResponse(_Closed):
    """The answer of the Open Inference Protocol; ``ModelMetadata`` has the model's tensors."""

    model_name: str
    model_version: str
    id: str = Field(description="that of the request")
    outputs: list[OutputTensor] = Field(min_length=1)


class Label(_Closed):
    """The true label of one row of an earlier request."""

    request_id: str = Field(min_length=1, max_length=128, pattern="^[ -~]+$", description="of the answer")
    row: int = Field(0, ge=0, le=2**31 - 1, description="of that request, counted from 0")
    label: Scalar | list[Scalar] = Field(description="the true label; at most 10,000 bytes, lists at most 8 deep")
    correction: bool = Field(default=False, description="replaces an earlier label")


class Feedback(_Closed):
    """Labels of earlier requests."""

    labels: list[Label] = Field(min_length=1, max_length=MAX_LABELS)


class Accepted(_Closed):
    """How many labels are stored."""

    accepted: PositiveInt
    unmatched: list[NonNegativeInt] = Field(
        description="places, counted from 0, of labels whose requests this replica did not answer lately: they count "
        "once the log has such a request of yours"
    )
    request_id: str


class Problem(_Closed):
    """A value that does not fit the signature."""

    row: int | None = Field(description="counted from 0")
    field: str | None
    message: str


class Facts(_Closed):
    """Why a request is rejected."""

    code: str = Field(description="one word for programs")
    message: str
    field: str | None = Field(description="of the first problem")
    problems: list[Problem] = Field(max_length=20)


class Error(_Closed):
    """A rejected request."""

    error: Facts
    request_id: str


class InferenceError(Facts):
    """A rejected request of the Open Inference Protocol."""

    error: str = Field(description="the message, where the Open Inference Protocol has it")
    request_id: str


def ref(name: str) -> dict[str, str]:
    """Return a reference to a schema of the document."""
    return {"$ref": _REF.format(model=name)}


def schemas_of(
    signature: Signature, *, name: str, max_rows: int, label: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Return every schema of a model's document, by name; ``label`` is that of its labels."""
    fixed = _fixed_schemas()
    if label is not None:
        known = fixed["Label"]
        fixed = {**fixed, "Label": {**known, "properties": {**known["properties"], "label": dict(label)}}}
    rows = {"type": "array", "minItems": 1, "maxItems": max_rows, "items": ref("Row")}
    outputs = {"type": "array", "items": ref("Output")}
    return {
        "Row": _columns(signature.inputs, given=True),
        "Output": _columns(signature.outputs, given=False),
        "Request": _closed({"rows": rows}, required=("rows",)),
        "Response": _closed(
            {"outputs": outputs, "model": {**_TEXT, "const": name}, "model_version": _TEXT, "request_id": _TEXT}
        ),
        "Invocation": _invocation(signature, rows, max_rows=max_rows),
        "Predictions": _closed({"predictions": outputs}),
        "InferenceRequest": _inference_request(signature, max_rows=max_rows),
        **fixed,
    }


@functools.cache
def _fixed_schemas() -> dict[str, dict[str, Any]]:
    models = (ServerMetadata, ModelMetadata, InferenceResponse, Feedback, Accepted, Error, InferenceError)
    _, schema = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    definitions: dict[str, dict[str, Any]] = schema["$defs"]
    return definitions


def _closed(properties: dict[str, Any], *, required: Sequence[str] | None = None) -> dict[str, Any]:
    names = list(properties) if required is None else list(required)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _columns(columns: Sequence[Column], *, given: bool) -> dict[str, Any]:
    required = [column.name for column in columns if not (given and column.nullable)]
    return _closed({column.name: column.json_schema() for column in columns}, required=required)


def _invocation(signature: Signature, rows: dict[str, Any], *, max_rows: int) -> dict[str, Any]:
    width = len(signature.inputs)
    split = _closed(
        {
            "columns": {"const": [column.name for column in signature.inputs]},
            "index": {"type": "array"},
            "data": {
                "type": "array",
                "minItems": 1,
                "maxItems": max_rows,
                "items": {
                    "type": "array",
                    "prefixItems": [column.json_schema() for column in signature.inputs],
                    "items": False,
                    "minItems": width,
                    "maxItems": width,
                },
            },
        },
        required=("columns", "data"),
    )
    params = {"type": ["object", "null"], "description": "taken, and not used"}
    forms = {"dataframe_split": split, "dataframe_records": rows, "instances": rows, "inputs": rows}
    return {
        "description": "One of MLflow's forms. A split frame may have its columns in any order, and `inputs` may also "
        "be an object with a list of values for each column.",
        "oneOf": [_closed({form: schema, "params": params}, required=(form,)) for form, schema in forms.items()],
    }


def _inference_request(signature: Signature, *, max_rows: int) -> dict[str, Any]:
    needed = sum(not column.nullable for column in signature.inputs)
    parameters = {"type": ["object", "null"]}
    flag = {"type": "boolean", "default": False}
    output = _closed(
        {
            "name": {"enum": [column.name for column in signature.outputs]},
            "parameters": {**parameters, "properties": {"binary_data": flag}},
        },
        required=("name",),
    )
    return _closed(
        {
            "id": {"type": ["string", "null"], "description": "repeated in the answer"},
            "model_name": {"description": "not read: the path names the model"},
            "model_version": {"description": "not read: the path names the version"},
            "parameters": {**parameters, "properties": {"binary_data_output": flag}},
            "inputs": {
                "type": "array",
                "description": "one tensor a column, all of as many rows",
                "minItems": max(needed, 1),
                "maxItems": len(signature.inputs),
                "items": {"oneOf": [_input_tensor(column, max_rows=max_rows) for column in signature.inputs]},
            },
            "outputs": {
                "type": ["array", "null"],
                "description": "each output at most once; without any, all of them are answered",
                "maxItems": len(signature.outputs),
                "uniqueItems": True,
                "items": output,
            },
        },
        required=("inputs",),
    )


def _input_tensor(column: Column, *, max_rows: int) -> dict[str, Any]:
    longest = {} if column.max_length is None else {"maximum": column.max_length}
    free = {"type": "integer", "minimum": 0, **longest}
    sizes = [free if size is None else {"const": size} for size in column.sent_shape]
    rows = {"type": "integer", "minimum": 1, "maximum": max_rows}
    length = 1 + len(sizes)
    shape: dict[str, Any] = {"type": "array", "prefixItems": [rows, *sizes], "items": False, "minItems": length}
    if not sizes:
        shape |= {"prefixItems": [rows, {"const": 1}]}
    return _closed(
        {
            "name": {"const": column.name},
            "datatype": {"enum": list(accepted_types(column))},
            "shape": {**shape, "maxItems": max(length, 2 if not sizes else length)},
            "data": {"type": "array", "description": "as many values as the shape has, flat or nested as the shape is"},
            "parameters": {
                "type": ["object", "null"],
                "properties": {"binary_data_size": {"type": ["integer", "null"], "minimum": 0}},
                "description": "binary_data_size: how many bytes after the JSON are its data",
            },
        },
        required=("name", "datatype", "shape"),
    )
