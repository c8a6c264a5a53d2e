"""Real servers, in processes of their own, over a small run."""

import os
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import openai
import pytest

import vitrine
from tests.warm import Vitrine

CONTEXT = 48
SIZE = {"n_layers": 2, "n_heads": 2, "d_model": 32, "context": CONTEXT}
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ message.role[0] }}:{{ message.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


@dataclass
class Served:
    """A server that runs."""

    run: Path
    address: str  # http://127.0.0.1:PORT
    process: "subprocess.Popen[str]"
    second_line: str  # of what it says when it starts

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="secret", max_retries=0, timeout=60)

    def metrics(self) -> dict[str, float]:
        """Numbers without labels, as Prometheus' own parser reads them."""
        from prometheus_client.parser import text_string_to_metric_families

        request = urllib.request.Request(f"{self.address}/metrics", headers={"Authorization": "Bearer secret"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read().decode()
        families = text_string_to_metric_families(text)
        return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


@contextmanager
def serving(run: Path, *options: str) -> Iterator[Served]:
    command = ["serve", run, "--port", "0", *options]
    with Vitrine(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = process.stdout.readline()
        found = re.search(r"http://\S+:\d+", first)
        try:
            assert found, first + process.communicate(timeout=10)[1]
            served = Served(run, found[0], process, process.stdout.readline())
            with served.client:
                yield served
        finally:
            process.terminate()
            _, complaints = process.communicate(timeout=20)
            assert "Traceback" not in complaints, complaints
            assert process.returncode == 143  # as the shell says it of a SIGTERM


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Callable[..., Path]:
    def make(tokenizer: str = "byte", **changes: object) -> Path:
        folder = tmp_path_factory.mktemp("served")
        (folder / "book.txt").write_text(prose, encoding="utf-8")
        settings = {f"model.{key}": value for key, value in (SIZE | changes).items()}
        settings |= {"data.tokenizer": tokenizer, "training.precision": "float32", "training.batch_size": 8}
        settings |= {"machine.threads": 1, "recording.enabled": False}
        vitrine.train(str(folder / "book.txt"), run=str(folder / "small"), steps=40, settings=settings)
        return folder / "small"

    return make


@pytest.fixture(scope="session")
def served(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A roomy server with a chat template."""
    template = tmp_path_factory.mktemp("chat") / "template.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    with serving(make_run(), "--parallel", "20", "--chat-template", str(template)) as one:
        yield one


@pytest.fixture(scope="session")
def narrow(served: Served) -> Iterator[Served]:
    """A server with an API key, room for two texts, and one that may wait."""
    os.environ["VITRINE_API_KEY"] = "secret"
    try:
        with serving(served.run, "--parallel", "2", "--queue", "1", "--name", "narrow") as one:
            yield one
    finally:
        del os.environ["VITRINE_API_KEY"]
