"""The arms of a comparison: their names, their order, and their overrides.

An arm is a norm together with what is done to the weights or the gradients. It
has the name that papers write: `BN`, `GN+WS`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

# In the order of every table and legend.
ARMS: dict[str, dict[str, Any]] = {
  "BN": {"model.norm": "batch", "model.ws": False},
  "BN+WS": {"model.norm": "batch", "model.ws": True},
  "GN": {"model.norm": "group", "model.ws": False},
  "GN+mean": {
    "model.norm": "group",
    "model.ws": True,
    "model.ws_convention": "center",
  },
  "GN+std": {
    "model.norm": "group",
    "model.ws": True,
    "model.ws_convention": "scale",
  },
  "GN+WS": {"model.norm": "group", "model.ws": True},
  "GN+GC": {
    "model.norm": "group",
    "model.ws": False,
    "optim.centralize": True,
  },
  "GN+WS+GC": {
    "model.norm": "group",
    "model.ws": True,
    "optim.centralize": True,
  },
  "LN": {"model.norm": "layer", "model.ws": False},
  "LN+WS": {"model.norm": "layer", "model.ws": True},
  "RMS": {"model.norm": "rms", "model.ws": False},
  "RMS+WS": {"model.norm": "rms", "model.ws": True},
  "IN": {"model.norm": "instance", "model.ws": False},
  "IN+WS": {"model.norm": "instance", "model.ws": True},
  "BCN": {"model.norm": "batch_channel", "model.ws": False},
  "BCN+WS": {"model.norm": "batch_channel", "model.ws": True},
  "BCN(est)": {"model.norm": "batch_channel_estimated", "model.ws": False},
  "BCN(est)+WS": {"model.norm": "batch_channel_estimated", "model.ws": True},
  "plain": {"model.ws": False},
  "no norm": {"model.norm": "none", "model.ws": False},
  "WS": {"model.norm": "none", "model.ws": True},
}
_NORMS = {
  "batch": "BN",
  "group": "GN",
  "layer": "LN",
  "rms": "RMS",
  "instance": "IN",
  "batch_channel": "BCN",
  "batch_channel_estimated": "BCN(est)",
}
# Conventions that are one half of WS; every other convention is both halves.
_HALVES = {"center": "mean", "scale": "std"}


def arm(
  norm: str | None,
  ws: bool,
  convention: str | None = None,
  centralize: bool | None = False,
  clip: float | None = None,
) -> str:
  """Returns the name of an arm.

  An arm need not be one of `ARMS`: the name is put together from its parts.

  Args:
    norm: Kind of the norm, as in `model.norm`; None for a model that brings its
      own: its arms are `plain` and `WS`.
    ws: Whether weights are standardized.
    convention: Convention of WS. `center` and `scale` are its two halves, which
      are called `mean` and `std`.
    centralize: Whether gradients are centralized (GC).
    clip: Limit of adaptive gradient clipping (AGC), or None.

  Example:
    >>> arm("batch", False), arm("group", True), arm("none", True)
    ('BN', 'GN+WS', 'WS')
    >>> arm("group", True, "center"), arm("group", False, centralize=True)
    ('GN+mean', 'GN+GC')
    >>> arm("batch_channel", True), arm(None, True, clip=0.1)
    ('BCN+WS', 'WS+AGC')
  """
  parts = [] if norm in (None, "none") else [_NORMS.get(norm, norm)]
  if ws:
    parts.append(_HALVES.get(convention or "", "WS"))
  if centralize:
    parts.append("GC")
  if clip is not None:
    parts.append("AGC")
  return "+".join(parts) or ("plain" if norm is None else "no norm")


def arm_of(row: Mapping[str, Any]) -> str:
  """Returns the name of the arm that a run belongs to.

  Args:
    row: Row of the run, or its config by dotted key. Rows of older files have
      no column for the convention and for the centralization.
  """
  return arm(
    row.get("model.norm"),
    row["model.ws"],
    row.get("model.ws_convention"),
    row.get("optim.centralize"),
    row.get("optim.adaptive_clip"),
  )


def in_order(names: Iterable[str]) -> list[str]:
  """Returns the names of arms without repetition, in the order of `ARMS`.

  Names that are not in `ARMS` come last, sorted.

  Example:
    >>> in_order(["mine", "WS", "BN", "WS"])
    ['BN', 'WS', 'mine']
  """
  known = [*ARMS]
  rank = lambda name: known.index(name) if name in known else len(known)
  return sorted(set(names), key=lambda name: (rank(name), name))
