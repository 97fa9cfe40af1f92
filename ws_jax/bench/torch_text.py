"""The models of text in PyTorch, and a run of a language model.

`NETWORKS` are the twins of `ws_jax.models.transformer` and `text_cnn`, with
their arithmetic and without dropout. `Run` trains a GPT as nanoGPT does, for
`experiments/lm_nanogpt.py`. Like `torch_side` it runs in a worker and imports
nothing of ws_jax.
"""

import importlib
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

# From this folder, where the worker finds it; as a part of ws_jax it would
# import JAX.
torch_step = importlib.import_module("torch_step")

DEVICE = torch_step.DEVICE
Settings = Mapping[str, Any]


class Linear(nn.Linear):
  """A layer without bias, whose rows a convention may standardize."""

  def __init__(self, inputs: int, outputs: int, ws: str | None = None):
    super().__init__(inputs, outputs, bias=False)
    self.ws = ws

  def forward(self, input):
    return functional.linear(input, _standardized(self.weight, self.ws))


class Conv(nn.Conv1d):
  """A convolution over [B, channels, T] that may be standardized."""

  def __init__(self, inputs: int, outputs: int, width: int, ws: str | None):
    super().__init__(inputs, outputs, width, bias=False)
    self.ws, self.padding_of = ws, ((width - 1) // 2, width // 2)

  def forward(self, input):
    weight = _standardized(self.weight, self.ws)
    return functional.conv1d(functional.pad(input, self.padding_of), weight)


# Of each convention eps, and whether filters are divided by sqrt(fan-in).
_CONVENTIONS = {"bit": (1e-10, False), "timm_scaled": (1e-5, True)}


def _standardized(weight, convention: str | None):
  if convention is None:
    return weight
  eps, divides = _CONVENTIONS[convention]
  rows = weight.reshape(1, len(weight), -1)
  scale = None
  if divides:
    scale = rows.new_full([len(weight)], rows.shape[-1] ** -0.5)
  rows = functional.batch_norm(rows, None, None, scale, training=True, eps=eps)
  return rows.reshape_as(weight)


def _norm(kind: str, channels: int) -> nn.Module:
  make = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[kind]
  return make(channels, eps=1e-6)


class Block(nn.Module):
  """Attention and an MLP, each added to what comes in."""

  def __init__(self, s: Settings):
    super().__init__()
    dim, inner = s["dim"], round(s["mlp_factor"] * s["dim"])
    self.heads, self.rotary = s["heads"], s["positions"] == "rotary"
    self.attention_norm = _norm(s["norm"], dim)
    self.qkv = Linear(dim, 3 * dim, s["ws"])
    self.out = Linear(dim, dim, s["ws"])
    self.mlp_norm = _norm(s["norm"], dim)
    self.up = Linear(dim, inner, s["ws"])
    self.down = Linear(inner, dim, s["ws"])

  def forward(self, x, turns, causal, mask):
    b, t, dim = x.shape
    qkv = self.qkv(self.attention_norm(x)).view(b, t, 3, self.heads, -1)
    q, k, v = (one.squeeze(2).transpose(1, 2) for one in qkv.split(1, 2))
    if self.rotary:
      q, k = _rotate(q, turns), _rotate(k, turns)
    y = functional.scaled_dot_product_attention(
      q, k, v, attn_mask=mask, is_causal=causal
    )
    x = x + self.out(y.transpose(1, 2).reshape(b, t, dim))
    y = functional.gelu(self.up(self.mlp_norm(x)), approximate="tanh")
    return x + self.down(y)


def _rotate(x, turns):
  cos, sin = turns
  a, b = x.float().chunk(2, -1)
  return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


class Transformer(nn.Module):
  """The blocks that `Decoder` and `Encoder` have in common."""

  def __init__(self, s: Settings):
    super().__init__()
    self.embed = nn.Embedding(s["inputs"], s["dim"])
    self.positions = None
    if s["positions"] == "learned":
      self.positions = nn.Parameter(torch.zeros(s["length"], s["dim"]))
    self.blocks = nn.ModuleList(Block(s) for _ in range(s["layers"]))
    self.norm = _norm(s["norm"], s["dim"])
    half = s["dim"] // s["heads"] // 2
    rates = 10_000.0 ** -(torch.arange(half) / half)
    angles = torch.arange(s["length"])[:, None] * rates
    self.register_buffer("cos", angles.cos(), persistent=False)
    self.register_buffer("sin", angles.sin(), persistent=False)

  def encode(self, tokens, causal, mask=None):
    x = self.embed(tokens)
    if self.positions is not None:
      x = x + self.positions[: tokens.shape[1]]
    for block in self.blocks:
      x = block(x, (self.cos, self.sin), causal, mask)
    return self.norm(x)

  def load(self, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets the parameters, from arrays by their path in ws_jax."""
    own = self.state_dict()
    for name, value in own.items():
      value.copy_(torch.from_numpy(_array(name, arrays)))


def _array(name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns the array of ws_jax for the name of a parameter here."""
  if name == "embed.weight":
    return arrays["embed/embedding"]
  if name == "positions":
    return arrays["positions"]
  *owner, leaf = name.split(".")
  if owner[0] == "blocks":
    owner = [f"block{int(owner[1]) + 1}", *owner[2:]]
  part = owner[-1]
  if part == "qkv":
    sides = (
      arrays["/".join([*owner[:-1], "attention", one, "kernel"])]
      for one in ("query", "key", "value")
    )
    return np.concatenate([x.reshape(len(x), -1) for x in sides], 1).T
  if part in ("out", "up", "down"):
    place = "attention" if part == "out" else "mlp"
    kernel = arrays["/".join([*owner[:-1], place, part, "kernel"])]
    return kernel.reshape(-1, kernel.shape[-1]).T
  if leaf == "bias":
    return arrays["/".join([*owner, "bias"])]
  if part.endswith("norm"):
    return arrays["/".join([*owner, "scale"])]
  return arrays["/".join([*owner, "kernel"])].T  # [width, in, out], [in, out]


class Decoder(Transformer):
  """The twin of `TransformerLM` for rows that hold one document each."""

  def __init__(self, s: Settings):
    super().__init__(s)
    self.head = None if s["tie"] else Linear(s["dim"], s["outputs"])

  def forward(self, tokens):
    x = self.encode(tokens, causal=True)
    weight = self.embed.weight if self.head is None else self.head.weight
    return functional.linear(x, weight)


class Encoder(Transformer):
  """The twin of `TransformerClassifier`."""

  def __init__(self, s: Settings):
    super().__init__(s)
    self.head = nn.Linear(s["dim"], s["outputs"])
    self.filler = s["inputs"] - 1

  def forward(self, tokens):
    real = tokens != self.filler
    x = self.encode(tokens, causal=False, mask=real[:, None, None, :])
    weights = real / real.sum(1, keepdim=True).clamp(min=1)
    return self.head(torch.einsum("btd,bt->bd", x.float(), weights))


class TextCNN(nn.Module):
  """The twin of `ws_jax.models.text_cnn`, with BN or without a norm."""

  def __init__(self, s: Settings):
    super().__init__()
    self.embed = nn.Embedding(s["inputs"], s["dim"])
    self.filler, self.widths = s["inputs"] - 1, s["widths"]
    for width in self.widths:
      conv = Conv(s["dim"], s["filters"], width, s["ws"])
      self.add_module(f"conv{width}", conv)
    features = s["filters"] * len(self.widths)
    self.norm = (
      nn.BatchNorm1d(features) if s["norm"] == "batch" else Affine(features)
    )
    self.head = nn.Linear(features, s["outputs"])

  def forward(self, tokens):
    real = (tokens != self.filler)[:, None]
    x = self.embed(tokens).transpose(1, 2) * real
    found = []
    for width in self.widths:
      y = getattr(self, f"conv{width}")(x)
      found.append(y.masked_fill(~real, torch.finfo(y.dtype).min).amax(2))
    return self.head(functional.relu(self.norm(torch.cat(found, 1).float())))

  def load(self, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets the parameters, from arrays by their path in ws_jax."""
    for name, value in self.named_parameters():
      value.data.copy_(torch.from_numpy(_array(name, arrays).copy()))


class Affine(nn.Module):
  """A scale and a bias for each channel."""

  def __init__(self, channels: int):
    super().__init__()
    self.weight = nn.Parameter(torch.ones(channels))
    self.bias = nn.Parameter(torch.zeros(channels))

  def forward(self, x):
    return x * self.weight + self.bias


NETWORKS = {
  "transformer_lm": Decoder,
  "transformer_classifier": Encoder,
  "text_cnn": TextCNN,
}


def make(settings: Settings, arrays: Mapping[str, np.ndarray]) -> nn.Module:
  """Returns a network with the weights that `ours.Step` wrote.

  Args:
    settings: `model`, a name in `NETWORKS`, and the settings of its class.
    arrays: Arrays of that file.
  """
  network = NETWORKS[settings["model"]](settings)
  network.load(arrays)
  return network


def batch(settings: Settings, arrays: Mapping[str, np.ndarray]) -> Any:
  """Returns the tokens, and the labels or the tokens to predict."""
  del settings
  label = "labels" if "labels" in arrays else "targets"
  tokens, labels = (torch.from_numpy(arrays[x]) for x in ("inputs", label))
  return tokens.long(), labels


def optimizer(network: nn.Module, learning_rate: float) -> Any:
  """Returns AdamW with b2 0.999 and weight decay 5e-4 on kernels."""
  return _adamw(network, learning_rate, 5e-4, (0.9, 0.999))


class Run:
  """A run of a GPT on bytes, as nanoGPT does it.

  Learned positions, LayerNorm, a tied embedding, weights of deviation 0.02 and
  at the end of a branch of 0.02 / sqrt(2 layers); batches of random pieces of
  the text; AdamW with b2 0.95 (0.99 for few tokens a step) and weight decay 0.1
  on all matrices, a gradient clipped to norm 1, a linear warm-up and a cosine
  to a tenth of the rate.

  Args:
    data: Path of a file with `train`, the bytes of the training text, and the
      rows `[N, length + 1]` and `NAME_bytes` of each split to evaluate.
    settings: `inputs`, `layers`, `dim`, `heads`, `length`, `batch_size`,
      `steps`, `warmup`, `b2`.
    learning_rate: Peak of the schedule.
    seed: Seed of the weights and the batches.

  Attributes:
    parameters: Number of parameters.
  """

  def __init__(
    self, data: str, settings: Settings, learning_rate: float, seed: int = 0
  ):
    torch_step.set_up()
    torch.manual_seed(seed)
    with np.load(data, allow_pickle=False) as file:
      self.arrays = dict(file)
    self.settings, self.rate, self.seed = settings, learning_rate, seed
    fixed = {"mlp_factor": 4.0, "norm": "layer", "positions": "learned"}
    more = {"tie": True, "ws": None, "outputs": settings["inputs"]}
    self.network = Decoder(fixed | more | dict(settings)).to(DEVICE)
    self._begin()
    self.parameters = sum(p.numel() for p in self.network.parameters())

  def __call__(self) -> dict[str, float]:
    """Trains; returns bits per byte of each split, and seconds of training."""
    s, began = self.settings, time.perf_counter()
    rng = np.random.default_rng(self.seed)
    text, length = self.arrays["train"], s["length"]
    optimizer = _adamw(
      self.network, self.rate, 0.1, (0.9, s["b2"]), embedding=True
    )
    for step in range(s["steps"]):
      for group in optimizer.param_groups:
        group["lr"] = self.rate * _schedule(step, s["steps"], s["warmup"])
      starts = rng.integers(0, len(text) - length, s["batch_size"])
      rows = np.stack([text[i : i + length + 1] for i in starts])
      rows = torch.from_numpy(rows.astype(np.int64)).to(DEVICE)
      optimizer.zero_grad(set_to_none=True)
      logits = self.network(rows[:, :-1]).flatten(0, 1)
      functional.cross_entropy(logits, rows[:, 1:].flatten()).backward()
      nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
      optimizer.step()
    seconds = time.perf_counter() - began
    splits = [x.removesuffix("_bytes") for x in self.arrays if "_" in x]
    return {"seconds": seconds} | {x: self._evaluate(x) for x in splits}

  def _begin(self) -> None:
    small = 0.02 / math.sqrt(2 * self.settings["layers"])
    for name, value in self.network.named_parameters():
      if value.ndim > 1:
        end = name.endswith(("out.weight", "down.weight"))
        nn.init.normal_(value, 0.0, small if end else 0.02)

  @torch.no_grad()
  def _evaluate(self, split: str) -> float:
    rows, bits = self.arrays[split], 0.0
    special = self.settings["inputs"] - 1
    for i in range(0, len(rows), 64):
      some = torch.from_numpy(rows[i : i + 64].astype(np.int64)).to(DEVICE)
      logits = self.network(some[:, :-1]).flatten(0, 1)
      targets = some[:, 1:].flatten()
      nats = functional.cross_entropy(logits, targets, reduction="none")
      bits += float((nats * (targets != special)).sum()) / math.log(2)
    return bits / int(self.arrays[f"{split}_bytes"])


def _schedule(step: int, steps: int, warmup: int) -> float:
  """Returns a linear warm-up, and then a cosine to a tenth."""
  if step < warmup:
    return (step + 1) / warmup
  part = (step - warmup) / max(1, steps - warmup)
  return 0.1 + 0.45 * (1 + math.cos(math.pi * part))


def _adamw(network, learning_rate, decay, betas, embedding=False):
  decays = lambda name, p: p.ndim > 1 and (embedding or "embed" not in name)
  named = list(network.named_parameters())
  groups = [
    {"params": [p for n, p in named if decays(n, p)], "weight_decay": decay},
    {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
  ]
  return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)
