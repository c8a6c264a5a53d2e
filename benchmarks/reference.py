"""A plain trainer for comparison that does not change: nanoGPT's published laptop recipe, in eager float32.

    python -m benchmarks.reference TEXT

Written from that recipe's numbers (4 layers, 4 heads, width 128, context 64, batches of 12, 2,000 steps, AdamW at 1e-3
falling to 1e-4 along a cosine, no dropout, no biases, tied embeddings), with PyTorch and without any code of Vitrine. Do not
change it: benchmarks/time_to_loss.py compares with its time. Prints one JSON object: steps, val_loss (nats per character,
whole validation split), duration_s (imports included).
"""

import time

STARTED_S = time.perf_counter()

import json  # noqa: E402
import math  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, STEPS, WARMUP = 4, 4, 128, 64, 12, 2000, 100


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.attention, self.output = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.expand, self.shrink = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, _ = x.shape
        heads = self.attention(self.norm_1(x)).view(batch, seq, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, seq, WIDTH))
        return x + self.shrink(F.gelu(self.expand(self.norm_2(x))))


class GPT(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_stream = name.endswith(("output.weight", "shrink.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if into_stream else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


class Training:
    """Train the model on a text for 2,000 steps."""

    def __init__(self, text: str) -> None:
        torch.manual_seed(1337)
        known = {character: number for number, character in enumerate(sorted(set(text)))}
        ids = torch.tensor([known[character] for character in text])
        self.train, self.validation = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
        self.model = GPT(len(known))
        matrices = [parameter for parameter in self.model.parameters() if parameter.ndim == 2]
        vectors = [parameter for parameter in self.model.parameters() if parameter.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))

    def step(self, step: int) -> Tensor:
        rate = (step + 1) / (WARMUP + 1)
        if step >= WARMUP:
            rate = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-3 * rate
        starts = torch.randint(len(self.train) - CONTEXT, (BATCH,))
        windows = self.train[starts[:, None] + torch.arange(CONTEXT + 1)]
        loss = F.cross_entropy(self.model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss


def main() -> None:
    training = Training(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for step in range(STEPS):
        loss = training.step(step)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {STEPS}   loss {loss.item():.3f}", file=sys.stderr)
    result = {"steps": STEPS, "val_loss": whole_loss(training.model, training.validation)}
    print(json.dumps(result | {"duration_s": round(time.perf_counter() - STARTED_S, 2)}))


@torch.no_grad()
def whole_loss(model: GPT, ids: Tensor) -> float:
    """Nats per character over non-overlapping windows; each target counts once."""
    total, whole = 0.0, (len(ids) - 1) // CONTEXT * CONTEXT
    windows = list(zip(ids[:whole].view(-1, CONTEXT), ids[1 : whole + 1].view(-1, CONTEXT), strict=True))
    for start in range(0, len(windows), 64):
        inputs, targets = (torch.stack(part) for part in zip(*windows[start : start + 64], strict=True))
        total += F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum").item()
    if whole < len(ids) - 1:
        logits = model(ids[None, whole:-1])[0]
        total += F.cross_entropy(logits, ids[whole + 1 :], reduction="sum").item()
    return total / (len(ids) - 1)


if __name__ == "__main__":
    main()
