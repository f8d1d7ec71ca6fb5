"""What a client makes of rows before it sends anything."""

from __future__ import annotations

import numpy as np
import orjson
import pandas as pd
import pytest
import torch

from raymlops.errors import InvalidRowsError
from raymlops.serving.client.calls import predict_call
from raymlops.serving.client.client import Client


@pytest.mark.parametrize(
    "rows",
    [
        [{"a": 1.0}, {"a": float("-inf")}],
        [{"a": 1.0}, {"a": np.float32("inf")}],
        [{"a": [1.0]}, {"a": [[0.0], (1.0, float("inf"))]}],
        [{"a": 1.0}, {"a": np.array([1.0, np.inf])}],
        [{"a": 1.0}, {"a": np.array([np.nan, -np.inf])}],
        [{"a": 1.0}, {"a": np.array([1.0, np.inf], dtype=object)}],
        [{"a": 1.0}, {"a": torch.tensor([[1.0, float("inf")]])}],
        pd.DataFrame({"a": [1.0, float("inf")]}),
    ],
)
def test_infinity_is_not_taken_for_missing(rows):
    """JSON would carry it as null; nothing is sent."""
    with Client("http://127.0.0.1:9") as client, pytest.raises(InvalidRowsError, match=r"row 1, field 'a': infinity"):
        client.predict("flights", rows)


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (torch.tensor([[1.0, float("nan")]]), [[1.0, None]]),
        (torch.tensor([True]), [True]),
        (np.array([], dtype=np.float64), []),
        (np.array(["x"]), ["x"]),
        (np.int64(3), 3),
    ],
)
def test_arrays_and_tensors_of_any_kind_are_sent(value, sent):
    """Those of floats may hold NaN, which is missing."""
    call = predict_call("flights", [{"a": value}], request_id=None, session=None, version=None)
    assert orjson.loads(call.body)["rows"] == [{"a": sent}]
