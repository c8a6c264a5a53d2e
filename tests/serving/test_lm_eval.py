"""lm-evaluation-harness sees the same model through the server as in the exported folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vitrine
from tests.serving.conftest import Served

TASK = """
task: small
dataset_path: json
dataset_kwargs: {data_files: {validation: "DOCUMENTS"}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{start}}"
doc_to_choice: "{{ends}}"
doc_to_target: "{{right}}"
target_delimiter: ""
metric_list: [{metric: acc}]
"""
EVALUATE = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager

tasks, folder, address = sys.argv[1:]
hf = {"pretrained": folder, "device": "cpu", "dtype": "float32"}
served = {"model": "small", "base_url": address + "/v1/completions", "tokenizer": folder, "max_length": 48,
          "tokenizer_backend": "huggingface", "num_concurrent": 3}
found = {}
for name, arguments, batch_size in (("hf", hf, 1), ("local-completions", served, 4)):
    result = lm_eval.simple_evaluate(model=name, model_args=arguments, tasks=["small"], batch_size=batch_size,
                                     task_manager=TaskManager(include_path=tasks), bootstrap_iters=0)
    found[name] = [[list(one[0]) for one in sample["resps"]] for sample in result["samples"]["small"]]
print(json.dumps(found))
"""
DOCUMENTS = [
    {"start": "The statement", "ends": [" is executed", " was eaten", "→"], "right": 0},
    {"start": "A list of ", "ends": ["names", "nqmes"], "right": 0},
    {"start": "x", "ends": ["y", "yy", "yyy", "y y"], "right": 1},
]


@pytest.mark.full  # importing the harness and transformers takes most of a minute
def test_the_harness_finds_the_same_loglikelihoods_as_in_the_exported_folder(served: Served, tmp_path: Path) -> None:
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS), encoding="utf-8")
    (tmp_path / "small.yaml").write_text(TASK.replace("DOCUMENTS", str(documents)), encoding="utf-8")
    vitrine.open_run(served.run).export(tmp_path / "hf")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, tmp_path, tmp_path / "hf", served.address],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    theirs, ours = found["hf"], found["local-completions"]
    assert [len(answers) for answers in ours] == [len(document["ends"]) for document in DOCUMENTS]
    for one, other in zip(theirs, ours, strict=True):
        assert [loglikelihood for loglikelihood, _ in other] == pytest.approx([each for each, _ in one], abs=1e-3)
        assert [greedy for _, greedy in other] == [greedy for _, greedy in one]
