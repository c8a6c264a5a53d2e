"""Whatever is asked within the schema, or against it, the server has an answer that is not its own failure."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from studio.conftest import Studio

EXAMPLES = 8  # of each operation


@pytest.fixture(scope="module")
def cookie(studio: Studio) -> dict[str, str]:
    return {"Cookie": "; ".join(f"{name}={value}" for name, value in studio.client.cookies.items())}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_request_makes_the_server_fail(studio: Studio, cookie: dict[str, str], method: str):
    schema = schemathesis.openapi.from_url(f"{studio.url}/api/openapi.json", headers=cookie)
    # Without end (tests/studio/test_api.py has it), and a process of its own each time (test_starting.py).
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
            answer = case.call(headers=cookie, timeout=60)
            assert answer.status_code < 500, answer.text

        check()
