"""A language model in one file: text, tokens, model, training and sampling. It needs torch and NumPy.

    python one_file.py book.txt [--steps 1000 --d_model 128 --n_layers 4 --temperature 0.5]

Read it from top to bottom. It is what `vitrine train` does, without looking inside: with the same hyperparameters (family
qwen3, float32, one thread, a context of at most 64) both end with the same parameters, to the bit.
"""

import argparse
import hashlib
import itertools
import math
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


# 1. Hyperparameters: chosen by a person. Nothing that follows changes them.
@dataclass(frozen=True)
class Hyperparameters:
    # of the architecture
    n_layers: int = 2  # blocks, one after the other
    n_heads: int = 2  # attention heads of a block
    d_model: int = 64  # numbers that stand for one token on its way through the model
    d_ff: int = 160  # hidden units of a block
    context: int = 64  # tokens that the model sees at once
    # of the training
    steps: int = 300
    batch_size: int = 16  # windows of text in a step
    seed: int = 1
    optimizer: str = "muon"  # or adamw
    learning_rate: float = 0.03  # of Muon
    adamw_learning_rate: float = 0.014142
    momentum: float = 0.95
    beta1: float = 0.8
    beta2: float = 0.95
    epsilon: float = 1e-10
    weight_decay: float = 0.0
    clip: float = 1.0  # largest norm of the whole gradient; 0: none
    warmup_steps: int = 0
    final_fraction: float = 0.03  # of the learning rate, that is left at the end
    # of decoding: they act on the model's output, and change no parameter
    temperature: float = 0.8
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0


# 2. Chance: every random number is a function of a key, so that there is no state of a generator to save.
def keyed_hash(*key):
    """64 random bits for a key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def permute(position, size, key):
    """Where a position goes in a random order of range(size): a Feistel network, which needs no table."""
    half = max(1, (max(1, size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for turn in range(4):
            mixed = (right + 1) * 0x9E3779B97F4A7C15 + (key >> 8 * turn) * 0xD1B54A32D192ED03
            mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & 2**64 - 1
            left, right = right, left ^ (mixed >> 32) & mask
        position = left << half | right
        if position < size:
            return position


# 3. Text: each character becomes a token, and a step reads some windows of them.
def read(path):
    """The characters that occur, and the tokens to learn from; the last tenth is left to measure the loss on."""
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    alphabet, tokens = np.unique(list(text), return_inverse=True)  # a token is the number of its character
    cut = math.floor(len(tokens) * 0.9 + 1e-9)
    return list(alphabet), tokens[:cut], tokens[cut:]


def batch(tokens, step, hyper):
    """The windows of a step, (batch_size, context), and what follows each token. An epoch reads every window once."""
    windows = max(1, (len(tokens) - hyper.context) // hyper.context)
    rows = []
    for draw in range(step * hyper.batch_size, (step + 1) * hyper.batch_size):
        epoch, position = divmod(draw, windows)
        slack = min(hyper.context, len(tokens) - windows * hyper.context)
        window = permute(position, windows, keyed_hash(hyper.seed, "order", 0, epoch))
        start = window * hyper.context + keyed_hash(hyper.seed, "offset", 0, epoch) % max(1, slack)
        rows.append(tokens[start : start + hyper.context + 1])
    both = torch.from_numpy(np.stack(rows))
    return both[:, :-1], both[:, 1:]


# 4. The model: tokens in, a score for each possible next token out.
class RootMeanSquare(torch.autograd.Function):
    """x divided by its root mean square. The backward pass is worked out by hand, which is faster than op by op."""

    @staticmethod
    def forward(ctx, x):
        scale = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() * (1 / x.shape[-1]) + 1e-5).rsqrt()
        ctx.save_for_backward(x * scale, scale)
        return x * scale

    @staticmethod
    def backward(ctx, gradient):
        normalised, scale = ctx.saved_tensors
        along = (normalised * gradient).mean(-1, keepdim=True)
        return torch.addcmul(gradient, normalised, along, value=-1) * scale


class RMSNorm(nn.Module):
    """Brings the numbers of each token to the same size, then multiplies each by a learned gain."""

    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return RootMeanSquare.apply(x) * self.gain


class Rotation(torch.autograd.Function):
    """Turns pairs of numbers by angles that grow with the position, so that attention sees how far apart tokens are."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    def backward(ctx, gradient):
        cos, sin = ctx.saved_tensors
        return turn(gradient, cos, -sin), None, None


def turn(x, cos, sin):
    turned, half = (x * cos).contiguous(), x.shape[-1] // 2  # number i goes with number i + half
    turned[..., :half].addcmul_(x[..., half:], sin[:, :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin[:, half:])
    return turned


class Attention(nn.Module):
    """Each token looks at the ones before it: its query against their keys says how much of their values it takes."""

    def __init__(self, hyper):
        super().__init__()
        width, self.n_heads = hyper.d_model, hyper.n_heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.query_norm, self.key_norm = (RMSNorm(width // self.n_heads) for _ in range(2))

    def forward(self, x, cos, sin):
        batch, seq, width = x.shape
        split = (batch, seq, self.n_heads, width // self.n_heads)
        q = Rotation.apply(self.query_norm(self.query(x).view(split)).transpose(1, 2), cos, sin).flatten(0, 1)
        k = Rotation.apply(self.key_norm(self.key(x).view(split)).transpose(1, 2), cos, sin).flatten(0, 1)
        v = self.value(x).view(split).transpose(1, 2).flatten(0, 1)  # as q and k: (batch * n_heads, seq, head_dim)
        future = torch.full((seq, seq), -math.inf).triu(diagonal=1)  # no token looks at those after it
        scores = torch.baddbmm(future, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
        mixed = torch.bmm(scores.softmax(-1), v).view(batch, self.n_heads, seq, -1).transpose(1, 2)
        return self.output(mixed.reshape(batch, seq, width))


class MLP(nn.Module):
    """Each token by itself: hidden units, each with a gate that opens or closes it."""

    def __init__(self, hyper):
        super().__init__()
        self.expand, self.gate = (nn.Linear(hyper.d_model, hyper.d_ff, bias=False) for _ in range(2))
        self.shrink = nn.Linear(hyper.d_ff, hyper.d_model, bias=False)

    def forward(self, x):
        return self.shrink(F.silu(self.gate(x)) * self.expand(x))


class Block(nn.Module):
    """Attention, then MLP. Both read the numbers of the tokens, and add to them."""

    def __init__(self, hyper):
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(hyper.d_model), Attention(hyper)
        self.mlp_norm, self.mlp = RMSNorm(hyper.d_model), MLP(hyper)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """Tokens (batch, seq) in, scores (batch, seq, vocabulary) out. They are called logits."""

    def __init__(self, hyper, vocabulary):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hyper.d_model)
        self.blocks = nn.ModuleList(Block(hyper) for _ in range(hyper.n_layers))
        self.final_norm = RMSNorm(hyper.d_model)
        self.head = nn.Linear(hyper.d_model, vocabulary, bias=False)
        head_dim, place = hyper.d_model // hyper.n_heads, torch.arange(hyper.context, dtype=torch.float32)
        speeds = 10_000.0 ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angles = torch.outer(place, speeds).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, tokens):
        x, seq = self.embedding(tokens), tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:seq], self.sin[:seq])
        return self.head(self.final_norm(x))


# 5. Parameters: what the model learns. At first they are random, or zero, or one.
def initialise(model, hyper):
    """Step 0. What writes into the sum of the blocks starts at zero: then every block does nothing at first."""
    for name, parameter in model.named_parameters():
        if name.endswith(("output.weight", "shrink.weight")):
            parameter.data.zero_()
        elif parameter.dim() == 2:  # a gain is one already
            draws = np.random.Generator(np.random.Philox(key=keyed_hash(hyper.seed, "birth", name)))
            spread = {"embedding.weight": 1.0, "head.weight": 0.001}.get(name, hyper.d_model**-0.5)
            parameter.data = torch.from_numpy(draws.standard_normal(parameter.shape, np.float32)).mul_(spread)
    return model


# 6. Update: a small step of every parameter against its gradient.
class Optimizer:
    """AdamW, or Muon for the matrices of the blocks and AdamW for the rest. It remembers past gradients."""

    def __init__(self, model, hyper):
        self.hyper, shape = hyper, lambda p: tuple(p.shape)
        hidden = sorted((p for p in model.blocks.parameters() if p.dim() == 2), key=shape)
        gains = sorted((p for p in model.parameters() if p.dim() == 1), key=shape)
        self.parameters = [*hidden, model.embedding.weight, model.head.weight, *gains]
        muon = hidden if hyper.optimizer == "muon" else []
        stacks = [list(alike) for _, alike in itertools.groupby(muon, shape)]  # matrices of one shape
        self.stacks = [(stack, torch.zeros(len(stack), *stack[0].shape)) for stack in stacks]
        self.rest = [(p, torch.zeros(p.shape), torch.zeros(p.shape)) for p in self.parameters[len(muon) :]]

    @torch.no_grad()
    def update(self, step):
        hyper, scale = self.hyper, self.schedule(step)
        # As in Vitrine, each tensor begins at a cache line of 16 numbers: their sum has the same bits then.
        every = torch.cat([F.pad(p.grad.flatten(), (0, -p.numel() % 16)) for p in self.parameters])
        norm = float(torch.linalg.vector_norm(every))
        shorter = min(1.0, (hyper.clip or math.inf) / (norm or 1.0))
        for p in self.parameters:
            p.grad.mul_(shorter)
        for stack, momentum in self.stacks:
            self.muon(stack, momentum, hyper.learning_rate * scale)
        for p, mean, square in self.rest:
            self.adamw(p, mean, square, step, hyper.adamw_learning_rate * scale)

    def schedule(self, step):
        """The share of the learning rate at this step: it rises at first, then falls in a straight line."""
        warmup = self.hyper.warmup_steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 1 - (1 - self.hyper.final_fraction) * ((step - warmup) / max(1, self.hyper.steps - warmup))

    def adamw(self, p, mean, square, step, rate):
        """Along the mean of past gradients, divided by their usual size. Source: arXiv:1711.05101."""
        hyper = self.hyper
        mean.mul_(hyper.beta1).add_(p.grad, alpha=1 - hyper.beta1)
        square.mul_(hyper.beta2).addcmul_(p.grad, p.grad, value=1 - hyper.beta2)
        size = square.sqrt().mul_((1 - hyper.beta2 ** (step + 1)) ** -0.5).add_(hyper.epsilon)
        change = (mean / size).mul_(rate / (1 - hyper.beta1 ** (step + 1)))
        if hyper.weight_decay and not self.stacks and p.dim() == 2:  # pulls matrices towards zero
            change.add_(p, alpha=rate * hyper.weight_decay)
        p.sub_(change)

    def muon(self, stack, momentum, rate):
        """Along the momentum of each matrix, made orthogonal. Source: https://kellerjordan.github.io/posts/muon."""
        hyper, (rows, columns) = self.hyper, stack[0].shape
        gradient, factor = torch.stack([p.grad for p in stack]), math.sqrt(max(1.0, rows / columns))
        momentum.mul_(hyper.momentum).add_(gradient, alpha=1 - hyper.momentum)
        ahead = gradient.mul(1 - hyper.momentum).add_(momentum, alpha=hyper.momentum)
        for p, direction in zip(stack, orthogonalise(ahead), strict=True):
            if hyper.weight_decay:
                p.sub_(direction.mul(factor).add_(p, alpha=hyper.weight_decay), alpha=rate)
            else:
                p.sub_(direction, alpha=rate * factor)


def orthogonalise(x):
    """Matrices (n, rows, columns) with the same directions, all of about length one: five steps of an iteration."""
    if x.shape[1] > x.shape[2]:
        return orthogonalise(x.transpose(1, 2)).transpose(1, 2)
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = torch.bmm(x, x.transpose(1, 2))
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x


# 7. Training: the four lines, again and again.
def train(tokens, vocabulary, hyper):
    """A model that has learned from the tokens."""
    model = initialise(Decoder(hyper, vocabulary), hyper)
    optimizer = Optimizer(model, hyper)
    for step in range(hyper.steps):
        inputs, targets = batch(tokens, step, hyper)
        model.zero_grad()
        logits = model(inputs)  # forward: predict the next token
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # loss: how wrong that was
        loss.backward()  # backward: for each parameter, where the loss grows
        optimizer.update(step)  # update: a small step the other way
        if step % 50 == 0 or step == hyper.steps - 1:
            print(f"step {step:5d}   loss {loss.item():.4f}", flush=True)
    return model


# 8. Sampling: the model's scores become probabilities, and one token is drawn; then the next.
@torch.no_grad()
def write(model, alphabet, prompt, length, hyper):
    """A continuation of the prompt."""
    draws, tokens = torch.Generator().manual_seed(hyper.seed), [alphabet.index(character) for character in prompt]
    for _ in range(length):
        logits = model(torch.tensor([tokens[-hyper.context :]]))[0, -1]
        likely, order = (logits / max(hyper.temperature, 1e-5)).softmax(-1).sort(descending=True)
        likely[hyper.top_k or len(likely) :] = 0  # only the top_k likeliest
        kept = likely.cumsum(-1) - likely < hyper.top_p * likely.sum()  # and of these, what makes up top_p together
        tokens.append(int(order[torch.multinomial(likely * kept, 1, generator=draws)]))
    return "".join(alphabet[token] for token in tokens)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="a text file, UTF-8")
    for field in fields(Hyperparameters):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default)
    chosen = vars(parser.parse_args())
    alphabet, learned, held_back = read(chosen.pop("text"))
    hyper = Hyperparameters(**chosen)
    if len(held_back) <= hyper.context:
        parser.error(f"{len(learned) + len(held_back)} characters are too few: give {10 * hyper.context + 10}")
    torch.set_num_threads(1)
    model = train(learned, len(alphabet), hyper)
    inputs, targets = batch(held_back, 0, hyper)
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
    print(f"loss on {targets.numel()} characters that it has not seen: {loss:.4f}")
    digest = hashlib.sha256()  # equal digests, equal bits
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} <f4 {tuple(parameter.shape)}\n".encode() + parameter.detach().numpy().tobytes())
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, digest {digest.hexdigest()}")
    print(write(model, alphabet, alphabet[0], 300, hyper))


if __name__ == "__main__":
    main()
