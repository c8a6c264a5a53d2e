"""Checks before a training begins: text, memory, processes and packages."""

import importlib.util
from collections.abc import Callable

from vitrine.config import Config
from vitrine.errors import ConfigError, CorpusError
from vitrine.model.inventory import Plan, make_plan
from vitrine.text.token_files import Prepared
from vitrine.training.device import check_device, memory_bytes


def check_tokens(config: Config, tokens: Prepared) -> None:
    """Check that every token has a row of the embedding, and that every source fills a window."""
    context, known = config.model.context, tokens.tokenizer.get_vocab_size()
    if config.model.vocab_size < known:
        raise ConfigError(
            f"model.vocab_size must be at least the {known:,} tokens of the tokenizer: got {config.model.vocab_size:,}. "
            "Leave it out to use that number."
        )
    for spec, source in zip(config.data.corpus, tokens.train, strict=True):
        if len(source) < context + 1:
            raise CorpusError(
                f"{spec} has {len(source)} training tokens; the model's context of {context} needs at least "
                f"{context + 1}. Give more text, or try --set model.context={max(2, len(source) // 2)}."
            )


def plan_here(config: Config) -> Plan:
    """Parameters, compute and memory, compared with the memory of the training device."""
    return make_plan(config, memory_bytes(check_device(config.machine.device)))


def check_memory(config: Config, note: Callable[[str], None]) -> None:
    """Refuse what certainly does not fit; warn if it depends on the activations, which are an estimate."""
    plan = plan_here(config)
    memory, has = plan.memory, plan.available_bytes / 1e9
    tokens = 16 * config.training.batch_size * (config.model.context + 1)  # inputs and targets, of int64
    certain = memory["parameters"] + memory["gradients"] + memory["optimizer"] + tokens
    if certain > plan.available_bytes:
        raise ConfigError(
            f"{plan.parameters:,} parameters with their gradients and optimizer state, and the tokens of a micro-batch, "
            f"need {certain / 1e9:,.1f} GB of memory; {config.machine.device} has {has:,.1f} GB. Try a smaller preset, "
            "fewer layers, or a smaller training.batch_size."
        )
    if not plan.fits:
        note(
            f"This may not fit into memory: about {plan.memory_bytes / 1e9:,.1f} GB of {has:,.1f} GB. "
            "A smaller training.batch_size with more training.accumulation needs less."
        )


def check_processes(config: Config, size: int) -> None:
    """Check that the rows can be shared equally between the processes."""
    if config.training.batch_size % size:
        raise ConfigError(
            f"training.batch_size must be divisible by the number of processes: got "
            f"{config.training.batch_size} and {size}."
        )


def check_loggers(config: Config) -> None:
    """Check that the packages of `recording.mirror` are installed."""
    for name in config.recording.mirror:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder of that name, as wandb creates, is no package
            raise ConfigError(
                f"recording.mirror = {name} needs the package {name}, which is not installed. "
                f"Try: pip install 'vitrine[{name}]'."
            )
