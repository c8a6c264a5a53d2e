"""Whatever is asked within the schema, or against it, the server has an answer that is not its own failure."""

from pathlib import Path

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from tests.studio.conftest import SCHEMA, Studio, as_declared, operation_of
from vitrine.studio.openapi import FILE, schema

CELL = "blocks.0.mlp.expand.weight[1,2]"
# Each JSON route, asked for something that is there; `as_declared` holds the answer against the schema.
ASKED = [
    ("GET", "runs", {}),
    ("GET", "runs/small", {}),
    ("GET", "runs/small/series", {"name": "loss"}),
    ("GET", "compare", {"run": ["small", "other"]}),
    ("GET", "runs/small/layers", {"statistic": "gradient_norm"}),
    ("GET", "runs/small/step/3", {}),
    ("GET", "runs/small/parameter", {"name": CELL, "step": 3}),
    ("GET", "runs/small/neuron", {"name": "blocks.0.mlp.expand[1]", "step": 3}),
    ("GET", "runs/small/tensor", {"name": "final_norm.gain", "step": 3}),
    ("POST", "runs/small/nudge", {"parameter": CELL, "step": 3, "sizes": [0.1]}),
    ("GET", "runs/small/progress", {"step": 3}),
    ("GET", "runs/small/health", {}),
    ("GET", "runs/small/headline", {}),
    ("GET", "runs/small/report", {}),
    ("POST", "runs/small/next", {"prompt": "The ", "step": 160}),
    ("POST", "runs/small/births", {"seed": 2, "spread": 50.0}),
    ("GET", "hyperparameters", {}),
    ("POST", "plan", {"corpus": "small", "preset": "nano", "steps": 5}),
    ("GET", "starting", {}),
]
ELSEWHERE = {("POST", "/api/runs"), ("POST", "/api/runs/{run}/requests")}  # test_launch.py
EXAMPLES = 8  # of each operation


@pytest.fixture(scope="module")
def token(studio: Studio) -> dict[str, str]:
    return {"Authorization": f"Bearer {studio.token}"}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_request_makes_the_server_fail(studio: Studio, token: dict[str, str], method: str):
    schema = schemathesis.openapi.from_url(f"{studio.url}/api/openapi.json", headers=token)
    # Without end (tests/studio/test_runs.py has it), and a process of its own each time (test_launch.py).
    schema = schema.include(method=method).exclude(path_regex="/stream$").exclude(path="/api/runs", method="POST")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 4
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def check(case: schemathesis.Case) -> None:
            if "run" in (case.path_parameters or {}):
                case.path_parameters["run"] = "small"
            answer = case.call(headers=token, timeout=60)
            assert answer.status_code < 500, answer.text

        check()


def test_the_committed_schema_is_that_of_the_routes():
    assert FILE.read_text(encoding="utf-8") == schema(), "run `make schema`"


def test_every_json_route_answers_as_the_schema_says(studio: Studio, other: Path):
    seen = set()
    for method, path, asked in ASKED:
        answer = studio.get(path, **asked) if method == "GET" else studio.post(path, **asked)
        assert answer.status_code == 200, answer.text
        seen.add((method, operation_of(method, f"/api/{path}")[0]))
    assert seen | ELSEWHERE == {
        (method.upper(), path)
        for path, methods in SCHEMA["paths"].items()
        for method, said in methods.items()
        if "application/json" in said["responses"]["200"].get("content", {})
    }


def test_an_answer_of_another_shape_would_be_noticed(studio: Studio):
    answer = studio.get("runs/small/progress", step=3)
    for wrong in ({"working": "yes"}, {"more": 1}):
        changed = httpx.Response(200, json=answer.json() | wrong, request=answer.request)
        with pytest.raises(jsonschema_rs.ValidationError):
            as_declared(changed)
