"""What docs/serving.md shows is run."""

import contextlib
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving.conftest import Served
from vitrine.serving.request_models import ChatBody, CompletionBody

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def examples(language: str, served: Served) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return [code.replace("http://127.0.0.1:8000", served.address).replace("book-1", "small") for code in found]


def test_the_example_in_python_runs(served: Served) -> None:
    [code] = examples("python", served)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        scope: dict[str, object] = {}
        exec(code, scope)
        scope["client"].close()
    assert len(out.getvalue()) > 40


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")
def test_the_examples_for_curl_run(served: Served) -> None:
    code = examples("bash", served)[0]
    answers = subprocess.run(code, shell=True, capture_output=True, text=True, timeout=60, check=True).stdout
    assert '"object":"text_completion"' in answers
    assert answers.rstrip().endswith("data: [DONE]")


def test_every_parameter_is_explained() -> None:
    known = set(CompletionBody.model_fields) | set(ChatBody.model_fields)
    unsaid = {"model", "prompt", "messages", "user", "suffix", "best_of", "max_completion_tokens", "top_logprobs"}
    assert {
        name for name in known if f"`{name}`" not in PAGE.replace("stream_options.", "stream_options`, `")
    } <= unsaid
