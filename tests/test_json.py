"""JSON of results."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vitrine._json import dumps, plain


@dataclass
class Inner:
    place: Path
    numbers: np.ndarray


@dataclass
class Outer:
    inner: tuple[Inner, ...]
    loss: float
    count: np.int64
    whole: bool


@pytest.mark.parametrize("loss", [1.5, float("nan"), float("-inf")])
def test_what_python_and_numpy_hold_becomes_json_and_what_is_not_finite_becomes_null(loss):
    result = Outer((Inner(Path("runs/a"), np.array([[0.5, loss]])),), loss, np.int64(3), True)
    number = loss if loss == 1.5 else None
    expected = {"inner": [{"place": "runs/a", "numbers": [[0.5, number]]}], "loss": number, "count": 3, "whole": True}
    assert json.loads(dumps({"result": result})) == {"result": expected}
    assert plain({3: result}) == {"3": expected}  # as JSON has it


def test_what_json_does_not_know_is_an_error():
    with pytest.raises(TypeError, match="set is not JSON"):
        dumps({"a": {1}})
