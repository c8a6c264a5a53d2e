"""`vitrine export`: write a run as a Hugging Face folder, which transformers opens without any code of ours.

`to_theirs` and `to_ours` translate names and shapes in both directions; `hf_import` uses the second.
"""

import json
import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from vitrine._files import whole_folder
from vitrine.config import Config, ModelConfig
from vitrine.errors import RunError
from vitrine.model.inventory import TensorSpec, inventory
from vitrine.runs.reader import CHAT_TEMPLATE, TOKENIZER, RunReader
from vitrine.text.tokenizer import (
    TOKENIZER_CONFIG,
    end_of_text_id,
    given_names,
    kind,
    load_tokenizer,
    read_tokenizer_config,
    save_tokenizer,
)
from vitrine.training.checkpoint import Snapshot, load_step

Floats = NDArray[np.float32]

MODEL = "model.safetensors"

# Tensors that older files carry beside the parameters: tables that are computed anyway.
TABLES = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Exported:
    """The result of an export: the folder or file that was written."""

    path: str
    step: int
    model: str
    parameters: int
    digest: str


def export_run(run: str | Path, directory: str | Path, step: str | int = "last") -> Exported:
    """Write a run as a Hugging Face folder. If that fails, nothing is left behind.

    Args:
        directory: does not exist yet, or is empty.
        step: "last", "best" (by validation loss), or a step that has a keyframe.

    Raises RunError: there is something in the directory, a number is not finite, or the disk refuses.
    """
    reader, directory = RunReader(run), Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RunError(f"{directory} exists already, and export replaces nothing. Name a new folder.")
    snapshot, tokenizer = load_step(reader, step), load_tokenizer(reader.path / TOKENIZER)
    ours = finite_numbers(snapshot)
    model, end_id = reader.config.model, end_of_text_id(tokenizer)
    texts = {
        "config.json": _json(their_config(model, end_id)),
        "generation_config.json": _json(_generation_config(reader.config, end_id)),
        TOKENIZER_CONFIG: _json(_tokenizer_config(tokenizer, model.context, read_tokenizer_config(reader.path))),
        "README.md": _card(reader, snapshot, tokenizer),
    }
    if (reader.path / CHAT_TEMPLATE).is_file():
        texts[CHAT_TEMPLATE] = (reader.path / CHAT_TEMPLATE).read_text(encoding="utf-8")
    with made_whole(directory, f"The folder {directory} cannot be made") as temporary:
        save_file(to_theirs(model, ours), temporary / MODEL, metadata={"format": "pt"})
        save_tokenizer(tokenizer, temporary / "tokenizer.json")
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        (temporary / MODEL).chmod(
            (temporary / "config.json").stat().st_mode
        )  # safetensors makes it readable for its owner only
    count = sum(numbers.size for numbers in ours.values())
    return Exported(str(directory), snapshot.step, model.family.transformers_class, count, snapshot.digest)


def finite_numbers(snapshot: Snapshot) -> dict[str, Floats]:
    """The parameters of a step by name. Raises RunError if one of them is not finite."""
    ours = {name: tensor.numpy() for name, tensor in snapshot.parameters.items()}
    for name, numbers in ours.items():
        if not np.isfinite(numbers).all():
            raise RunError(
                f"{name} holds numbers that are not finite at step {snapshot.step}: a model with these predicts "
                "nothing. Export an earlier step, with --step."
            )
    return ours


def their_config(model: ModelConfig, end_id: int | None) -> dict[str, Any]:
    """The config.json of a model. It gives every value for which transformers has a different default."""
    common: dict[str, Any] = {
        "architectures": [model.family.transformers_class],
        "model_type": model.architecture,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tie_embeddings,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "dtype": "float32",
    }
    return common | model.family.to_huggingface(model)


def to_theirs(model: ModelConfig, ours: Mapping[str, Floats]) -> dict[str, Floats]:
    """Our parameters by the names, and in the shapes, of transformers."""
    theirs = {}
    for name, plans in _places(model).items():
        numbers = np.concatenate([ours[plan.name] for plan in plans])
        theirs[name] = np.ascontiguousarray(numbers.T if _turned(model, plans[0]) else numbers)
    return theirs


def to_ours(model: ModelConfig, theirs: Mapping[str, Callable[[], Floats]], folder: Path) -> dict[str, Floats]:
    """The inverse of `to_theirs`; each of their tensors is read when it is called. Raises RunError if one does not fit."""
    places, ours = _places(model), {}
    spare = {"lm_head.weight"} if model.tie_embeddings else set()
    odd = [name for name in theirs if name not in places and name not in spare and not name.endswith(TABLES)]
    if odd:
        raise RunError(
            f"{folder} cannot be imported: its tensor {odd[0]!r:.100} has no place in the {model.architecture} family."
        )
    for name, plans in places.items():
        if name not in theirs:
            raise RunError(f"{folder} is not complete: the tensor {name} is missing. Copy all of its files.")
        numbers, shape = theirs[name](), (sum(plan.shape[0] for plan in plans), *plans[0].shape[1:])
        turned = _turned(model, plans[0])
        wanted = shape[::-1] if turned else shape
        if numbers.shape != wanted:
            raise RunError(f"{folder}: {name} has shape {numbers.shape}; by config.json it must be {wanted}.")
        if not np.isfinite(numbers).all():
            raise RunError(f"{folder}: {name} holds numbers that are not finite.")
        for plan, part in zip(plans, np.split(numbers.T if turned else numbers, len(plans)), strict=True):
            ours[plan.name] = np.ascontiguousarray(part)
    return ours


@contextmanager
def made_whole(path: Path, failure: str) -> Iterator[Path]:
    """A folder that is filled under another name, and gets its own when it is whole."""
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(path) as temporary:
            yield temporary
    except (OSError, SafetensorError, sqlite3.Error) as error:
        raise RunError(f"{failure}: {error}.") from None


def _places(model: ModelConfig) -> dict[str, list[TensorSpec]]:
    """The name of each of their tensors, and those of ours whose rows it stacks."""
    places: dict[str, list[TensorSpec]] = {}
    for plan in inventory(model):
        end = plan.name.rpartition(".")[2]
        home = model.family.huggingface[plan.part].format(plan.block)
        places.setdefault(f"{home}.{'weight' if end == 'gain' else end}", []).append(plan)
    return places


def _turned(model: ModelConfig, plan: TensorSpec) -> bool:
    """Whether theirs is (inputs, outputs): ours is (outputs, inputs)."""
    return model.family.huggingface_turned and plan.hidden


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


def _generation_config(config: Config, end_id: int | None) -> dict[str, Any]:
    """The run's [sampling] for transformers' `generate`. All keys are given: its defaults differ from ours."""
    sampling = config.sampling
    common = {
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
        "max_length": config.model.context,  # prompt and all
        "repetition_penalty": sampling.repetition_penalty,
    }
    if sampling.temperature == 0:
        return common | {"do_sample": False}
    drawing = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    return common | drawing | ({"min_p": sampling.min_p} if sampling.min_p else {})


def _tokenizer_config(tokenizer: Tokenizer, context: int, own: dict[str, Any]) -> dict[str, Any]:
    """own: the run's tokenizer_config.json, which names the special tokens if the tokenizer was imported."""
    end_id = end_of_text_id(tokenizer)
    end = None if end_id is None else tokenizer.id_to_token(end_id)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "bos_token": end,
        "eos_token": end,
    } | given_names(own)


def _card(reader: RunReader, snapshot: Snapshot, tokenizer: Tokenizer) -> str:
    """The README.md: size, text, losses, and how to load the model."""
    config, model = reader.config, reader.config.model
    count = sum(tensor.parameters for tensor in reader.tensors)
    losses = [f"- {sentence}" for sentence in measured(reader, snapshot.step)]
    tokens = {
        "char": "characters: one that is not in its vocabulary is an error in transformers too",
        "byte": "bytes of UTF-8",
        "bpe": "byte-level BPE",
    }.get(kind(tokenizer), "as tokenizer.json says")
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- {model.architecture}
- vitrine
---

# {reader.path.resolve().name}

A language model of {count:,} parameters ({model.family.transformers_class}), trained with Vitrine; these are the parameters
that step {snapshot.step} of {config.training.steps} starts from.

```python
from transformers import AutoModelForCausalLM, {model.family.transformers_tokenizer}

tokenizer = {model.family.transformers_tokenizer}.from_pretrained("DIR")  # this folder
model = AutoModelForCausalLM.from_pretrained("DIR")
ids = tokenizer("Once", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids)[0]))
```

It sees {model.context} tokens at once. Tokens: {model.vocab_size:,}, {tokens}.

## Losses

{chr(10).join(losses) or "Nothing was measured at this step."}

## Where it comes from

- corpus digest: {corpus_digest(reader) or "unknown"}
- first parameters: {Path(config.training.parent).name or f"random, seed {config.training.seed}"}
- digest of the parameters: {snapshot.digest}

## Hyperparameters

```toml
{tomli_w.dumps(config.portable())}```
"""


def measured(reader: RunReader, step: int) -> list[str]:
    """The losses that were measured at a step, each with its measure."""
    losses = [
        f"validation loss at step {e.step}: {e.loss:.4f} nats per token, over {e.tokens:,} tokens"
        for e in reader.evaluations()
        if e.step == step and math.isfinite(e.loss)
    ]
    before = reader.step_record(step - 1)
    if before and math.isfinite(before.loss):
        losses.append(f"training loss of the step before: {before.loss:.4f}")
    return losses


def corpus_digest(reader: RunReader) -> str:
    """Of the text that the run learned from; empty: unknown."""
    digest: str = json.loads(reader.facts().get("fingerprint", "{}")).get("corpus", "")
    return digest
