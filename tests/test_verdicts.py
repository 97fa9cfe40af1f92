"""Arrays that the layers of each library leave, and what is told of them.

One row a layer: the arrays are those of the real libraries, and of PyTorch by
their published shapes. A row says what the kernel is and which axes are its
fan-in, and under which names that is known. Elsewhere it must be asked, and
nowhere may a wrong answer be given.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import ws_jax
from ws_jax.core import kernels, verdicts

IMAGE, SERIES, VIDEO = (1, 6, 6, 4), (1, 6, 4), (1, 6, 6, 6, 4)


@dataclasses.dataclass(frozen=True)
class Row:
  """A layer.

  Attributes:
    make: Function that returns `{path below the layer: shape}`.
    truth: Whether it is a convolution, and the fan-in axes, by path.
    own: Whether that is known under the name that its library gives it.
    other: Whether it is known under the name "m".
  """

  name: str
  make: Callable[[], dict[str, Any]]
  truth: dict[str, tuple[bool, tuple[int, ...] | None]]
  own: bool = True
  other: bool = True


def linen(layer, inputs=IMAGE, dtype=jnp.float32):
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      return layer()(x)

  x = jax.ShapeDtypeStruct(inputs, dtype)
  return jax.eval_shape(Model().init, jax.random.key(0), x)["params"]


def scanned(layer):
  class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
      return x, nn.LayerNorm()(layer()(x)).sum()

  return lambda: nn.scan(
    Block,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    length=5,
  )(name="blocks")


def state(module):
  return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def nnx_layer(make):
  made = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
  return {type(made).__name__: state(made)}


def haiku(layer, inputs=IMAGE, stack=0):
  def net(x):
    if stack:
      return hk.experimental.layer_stack(stack)(lambda x: layer()(x))(x)
    made = layer()
    if isinstance(made, hk.RNNCore):
      return made(x[0], made.initial_state(None))
    if isinstance(made, hk.MultiHeadAttention):
      return made(x, x, x)
    return made(x)

  model = hk.transform(net)
  x = jax.ShapeDtypeStruct(inputs, jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), x)


def equinox(layer, stack=0):
  key = jax.random.key(0)
  if stack:
    keys = jax.random.split(key, stack)
    made = eqx.filter_eval_shape(eqx.filter_vmap(lambda k: layer(key=k)), keys)
  else:
    made = eqx.filter_eval_shape(lambda: layer(key=key))
  return {"layer": eqx.filter(made, lambda x: hasattr(x, "shape"))}


def torch(name, **shapes):
  arrays = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
  return {name: arrays}


CONV2, CONV1, CONV3 = (True, (0, 1, 2)), (True, (0, 1)), (True, (0, 1, 2, 3))
NO = (False, None)
part = functools.partial
MHA = {
  f"{name}/kernel": (False, (0, 1) if name == "out" else (0,))
  for name in ("query", "key", "value", "out")
}


def linen_rows():
  L = lambda layer, inputs=IMAGE: part(linen, layer, inputs)
  k = lambda truth: {"kernel": truth}
  bare = {"use_bias": False}
  turned = {"transpose_kernel": True}
  return [
    Row("Conv 1d", L(part(nn.Conv, 8, (3,)), SERIES), k(CONV1), other=False),
    Row(
      "Conv 1d bare",
      L(part(nn.Conv, 8, (3,), **bare), SERIES),
      k(CONV1),
      other=False,
    ),
    Row("Conv 2d", L(part(nn.Conv, 8, (3, 3))), k(CONV2)),
    Row("Conv 2d bare", L(part(nn.Conv, 8, (3, 3), **bare)), k(CONV2)),
    Row("Conv 1x1 square", L(part(nn.Conv, 4, (1, 1))), k(CONV2)),
    Row(
      "Conv odd bare",
      L(part(nn.Conv, 8, (5, 2), **bare)),
      k(CONV2),
      other=False,
    ),
    Row("Conv 3d", L(part(nn.Conv, 8, (3, 3, 3)), VIDEO), k(CONV3)),
    Row(
      "Conv 3d bare",
      L(part(nn.Conv, 8, (3, 3, 3), **bare), VIDEO),
      k(CONV3),
      own=False,
      other=False,
    ),
    Row(
      "depthwise", L(part(nn.Conv, 4, (3, 3), feature_group_count=4)), k(CONV2)
    ),
    Row("ConvTranspose", L(part(nn.ConvTranspose, 8, (3, 3))), k(CONV2)),
    Row(
      "ConvTranspose turned",
      L(part(nn.ConvTranspose, 8, (3, 3), **turned)),
      k((True, (0, 1, 3))),
    ),
    Row(
      "ConvTranspose bare",
      L(part(nn.ConvTranspose, 8, (3, 3), **bare)),
      k(CONV2),
      own=False,
    ),
    Row(
      "ConvTranspose turned 1d",
      L(part(nn.ConvTranspose, 8, (3,), **turned), SERIES),
      k((True, (0, 2))),
    ),
    Row(
      "ConvLocal",
      L(part(nn.ConvLocal, 8, (3, 3), padding="VALID")),
      k((True, (2,))),
      other=False,
    ),
    Row("Dense", L(part(nn.Dense, 8)), k((False, (0,)))),
    Row("DenseGeneral", L(part(nn.DenseGeneral, (2, 3))), k((False, (0,)))),
    Row(
      "DenseGeneral bare",
      L(part(nn.DenseGeneral, (2, 3), **bare)),
      k((False, (0,))),
      own=True,
      other=False,
    ),
    Row(
      "DenseGeneral 3", L(part(nn.DenseGeneral, (3, 2, 5))), k((False, (0,)))
    ),
    Row(
      "DenseGeneral 3 bare",
      L(part(nn.DenseGeneral, (3, 2, 5), **bare)),
      k((False, (0,))),
      other=False,
    ),
    Row(
      "DenseGeneral join",
      L(part(nn.DenseGeneral, 8, axis=(-2, -1))),
      k((False, (0, 1))),
      other=False,
    ),
    Row(
      "Einsum",
      L(part(nn.Einsum, (4, 2, 3), "...c,chd->...hd")),
      k((False, (0,))),
    ),
    Row(
      "Einsum turned",
      L(part(nn.Einsum, (2, 4, 3), "...c,hcd->...hd")),
      k((False, (1,))),
    ),
    Row("Embed", part(linen, part(nn.Embed, 7, 4), (1, 3), jnp.int32), {}),
    Row(
      "LayerNorm",
      L(part(nn.LayerNorm, reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3))),
      {},
    ),
    Row("BatchNorm", L(part(nn.BatchNorm, use_running_average=False)), {}),
    Row("attention", L(part(nn.MultiHeadDotProductAttention, 2), SERIES), MHA),
    Row(
      "attention bare",
      L(part(nn.MultiHeadDotProductAttention, 2, use_bias=False), SERIES),
      MHA,
    ),
    Row(
      "LSTM",
      L(lambda: nn.RNN(nn.OptimizedLSTMCell(8, name="cell")), SERIES),
      {},
    ),
    Row(
      "ConvLSTM",
      L(lambda: nn.RNN(nn.ConvLSTMCell(8, (3, 3), name="cell")), VIDEO),
      {"ih/kernel": CONV2, "hh/kernel": CONV2},
    ),
    Row(
      "scan of Conv",
      L(scanned(part(nn.Conv, 4, (3, 3)))),
      {"Conv_0/kernel": (True, (1, 2, 3))},
    ),
    Row(
      "scan of Conv bare",
      L(scanned(part(nn.Conv, 4, (3, 3), **bare))),
      {"Conv_0/kernel": (True, (1, 2, 3))},
    ),
    Row(
      "scan of Conv 1d bare",
      L(scanned(part(nn.Conv, 4, (3,), **bare)), SERIES),
      {"Conv_0/kernel": (True, (1, 2))},
    ),
    Row(
      "scan of Dense",
      L(scanned(part(nn.Dense, 4))),
      {"Dense_0/kernel": (False, (1,))},
    ),
    Row(
      "scan of attention",
      L(scanned(part(nn.MultiHeadDotProductAttention, 2)), SERIES),
      {
        f"MultiHeadDotProductAttention_0/{path}": (
          False,
          tuple(a + 1 for a in axes),
        )
        for path, (_, axes) in MHA.items()
      },
    ),
  ]


def nnx_rows():
  N = lambda make: part(nnx_layer, make)
  k = lambda truth: {"kernel": truth}
  bare = {"use_bias": False}
  return [
    Row("Conv", N(lambda r: nnx.Conv(4, 8, (3, 3), rngs=r)), k(CONV2)),
    Row(
      "Conv 1d",
      N(lambda r: nnx.Conv(4, 8, (3,), rngs=r)),
      k(CONV1),
      other=False,
    ),
    Row(
      "ConvTranspose",
      N(lambda r: nnx.ConvTranspose(4, 8, (3, 3), rngs=r)),
      k(CONV2),
    ),
    Row("Linear", N(lambda r: nnx.Linear(4, 8, rngs=r)), k((False, (0,)))),
    Row(
      "LinearGeneral",
      N(lambda r: nnx.LinearGeneral(4, (2, 3), rngs=r)),
      k((False, (0,))),
    ),
    Row(
      "LinearGeneral bare",
      N(lambda r: nnx.LinearGeneral(4, (2, 3), **bare, rngs=r)),
      k((False, None)),
      other=False,
    ),
    Row(
      "Einsum",
      N(lambda r: nnx.Einsum("...c,hcd->...hd", (2, 4, 3), (2, 3), rngs=r)),
      k((False, (1,))),
    ),
    Row("Embed", N(lambda r: nnx.Embed(7, 4, rngs=r)), {}),
    Row("BatchNorm", N(lambda r: nnx.BatchNorm(4, rngs=r)), {}),
    Row(
      "attention",
      N(lambda r: nnx.MultiHeadAttention(2, 8, decode=False, rngs=r)),
      MHA,
    ),
    Row("LSTM", N(lambda r: nnx.OptimizedLSTMCell(4, 8, rngs=r)), {}),
  ]


def haiku_rows():
  H = lambda layer, inputs=IMAGE, stack=0: part(haiku, layer, inputs, stack)
  w = lambda truth: {"w": truth}
  turned = (True, (0, 1, 3))
  bare = {"with_bias": False}
  return [
    Row("Conv1D", H(part(hk.Conv1D, 8, 3), SERIES), w(CONV1)),
    Row("Conv2D", H(part(hk.Conv2D, 8, 3)), w(CONV2)),
    Row("Conv2D bare", H(part(hk.Conv2D, 8, 3, **bare)), w(CONV2)),
    Row("Conv3D", H(part(hk.Conv3D, 8, 3), VIDEO), w(CONV3)),
    Row(
      "Conv1D bare",
      H(part(hk.Conv1D, 8, 3, **bare), SERIES),
      w(CONV1),
      other=False,
    ),
    Row("Conv2DTranspose", H(part(hk.Conv2DTranspose, 8, 3)), w(turned)),
    Row("DepthwiseConv2D", H(part(hk.DepthwiseConv2D, 2, 3)), w(CONV2)),
    Row("Linear", H(part(hk.Linear, 8)), w((False, (0,)))),
    Row(
      "stack of Linear",
      H(part(hk.Linear, 4), SERIES, 5),
      {"*": (False, (1,))},
    ),
    Row(
      "stack of Conv1D",
      H(part(hk.Conv1D, 4, 3), SERIES, 5),
      {"*": (True, (1, 2))},
    ),
    Row("LayerNorm", H(part(hk.LayerNorm, -1, True, True)), {}),
    Row(
      "Embed", part(haiku, lambda: lambda x: hk.Embed(7, 4)(jnp.int32(x))), {}
    ),
    Row("Bias", H(hk.Bias), {}),
    Row("LSTM", H(part(hk.LSTM, 8), (4,) * 2), {"*": (False, (0,))}),
    Row("GRU", H(part(hk.GRU, 8), (4,) * 2), {}),
  ]


def equinox_rows():
  E = lambda layer, stack=0: part(equinox, layer, stack)
  k = lambda truth: {"weight": truth}
  conv = (True, (1, 2, 3))
  plain = lambda make: lambda key: make()
  return [
    Row("Conv1d", E(part(eqx.nn.Conv1d, 4, 8, 3)), k((True, (1, 2)))),
    Row(
      "Conv1d bare",
      E(part(eqx.nn.Conv1d, 4, 8, 3, use_bias=False)),
      k((True, (1, 2))),
    ),
    Row("Conv2d", E(part(eqx.nn.Conv2d, 4, 8, 3)), k(conv)),
    Row("Conv3d", E(part(eqx.nn.Conv3d, 4, 8, 3)), k((True, (1, 2, 3, 4)))),
    Row("ConvTranspose2d", E(part(eqx.nn.ConvTranspose2d, 4, 8, 3)), k(conv)),
    Row(
      "stack of Conv2d",
      E(part(eqx.nn.Conv2d, 4, 4, 3), 5),
      k((True, (2, 3, 4))),
    ),
    Row("Conv", E(part(eqx.nn.Conv, 2, 4, 4, 3), 5), k((True, (2, 3, 4)))),
    Row("Linear", E(part(eqx.nn.Linear, 4, 8)), k((False, (1,)))),
    Row("stack of Linear", E(part(eqx.nn.Linear, 4, 4), 5), k((False, (2,)))),
    Row("LayerNorm", E(plain(lambda: eqx.nn.LayerNorm((8, 6, 6)))), k(NO)),
    Row(
      "LayerNorm bare",
      E(plain(lambda: eqx.nn.LayerNorm((8, 6, 6), use_bias=False))),
      k(NO),
    ),
    Row("RMSNorm", E(plain(lambda: eqx.nn.RMSNorm((8, 6, 6)))), k(NO)),
    Row("GroupNorm", E(plain(lambda: eqx.nn.GroupNorm(2, 8))), k(NO)),
    Row("Embedding", E(part(eqx.nn.Embedding, 7, 4)), k((False, (1,)))),
    Row("GRUCell", E(part(eqx.nn.GRUCell, 4, 8)), {}),
    Row(
      "attention",
      E(part(eqx.nn.MultiheadAttention, 2, 8)),
      {"query_proj/weight": (False, (1,))},
    ),
  ]


def torch_rows():
  T = lambda name, **shapes: part(torch, name, **shapes)
  k = lambda truth: {"weight": truth}
  conv = (True, (1, 2, 3))
  turned = (True, (0, 2, 3))
  conv_t, eight = "conv_transpose", (8,)
  return [
    Row("Conv1d", T("conv", weight=(8, 4, 3), bias=eight), k((True, (1, 2)))),
    Row(
      "Conv1d bare", T("conv", weight=(8, 4, 3)), k((True, (1, 2))), other=False
    ),
    Row("Conv2d", T("conv", weight=(8, 4, 3, 3), bias=eight), k(conv)),
    Row("Conv2d bare", T("conv", weight=(8, 4, 3, 3)), k(conv)),
    Row("grouped", T("conv", weight=(8, 1, 3, 3), bias=eight), k(conv)),
    Row(
      "ConvTranspose2d", T(conv_t, weight=(4, 8, 3, 3), bias=eight), k(turned)
    ),
    Row(
      "ConvTranspose2d bare",
      T(conv_t, weight=(4, 8, 3, 3)),
      k(turned),
      own=False,
      # The name "m" hides it, and it looks like a convolution: a guess.
    ),
    Row("Linear", T("fc", weight=(8, 4), bias=eight), k((False, (1,)))),
    Row("Embedding", T("embed", weight=(8, 4)), k((False, (1,)))),
    Row("LayerNorm", T("norm", weight=(8, 6, 6), bias=(8, 6, 6)), k(NO)),
    Row("LayerNorm bare", T("norm", weight=(8, 6, 6)), k(NO), other=False),
    Row("LayerNorm 2", T("norm", weight=(6, 6), bias=(6, 6)), k(NO)),
    Row("frozen", T("bn", weight=(1, 8, 1, 1), bias=(1, 8, 1, 1)), k(NO)),
    Row("BatchNorm", T("bn", weight=eight, bias=eight), k(NO)),
    Row("LSTM", T("lstm", weight_ih_l0=(32, 4), weight_hh_l0=(32, 8)), {}),
    Row(
      "Bilinear",
      T("bilinear", weight=(8, 4, 5), bias=eight),
      k((False, (1, 2))),
    ),
  ]


ROWS = [
  pytest.param(row, id=f"{library}-{row.name}")
  for library, rows in [
    ("linen", linen_rows),
    ("nnx", nnx_rows),
    ("haiku", haiku_rows),
    ("equinox", equinox_rows),
    ("torch", torch_rows),
  ]
  for row in rows()
]


@pytest.mark.parametrize("row", ROWS)
def test_what_a_layer_leaves_is_known_or_asked_for(row):
  tree = row.make()
  renamed = {"m": tree[next(iter(tree))]} if len(tree) == 1 else tree
  for known, given in [(row.own, tree), (row.other, renamed)]:
    with kernels.seeing(given) as leaves:
      found = {path: kernels.verdict_on(path, x) for path, x in leaves.items()}
    for path, verdict in found.items():
      convolves, axes = _truth(row, path, leaves[path])
      is_known = verdict.kernel == convolves and verdict.axes in (None, axes)
      if convolves:
        is_known &= verdict.axes == axes
      asks = verdict.kernel is None or verdict.axes is None
      assert is_known or verdict.guessed or (asks and not known), (
        f"{path}: {verdict}, but it is {convolves, axes}"
      )
      if known and path.split("/")[-1] in verdicts.NAMES:
        assert verdict.kernel is not None


def _truth(row, path, leaf):
  """Returns what a leaf is by its row; what no row names is a matrix."""
  for end, truth in row.truth.items():
    if verdicts.kernel_name(path) and (end == "*" or path.endswith(f"/{end}")):
      return truth
  axes = {"weight": (1,)}.get(verdicts.kernel_name(path), (0,))
  return False, axes if leaf.ndim == 2 and verdicts.kernel_name(path) else None


@pytest.mark.parametrize(
  ("path", "shape", "reason"),
  [
    ("resnet/head/conv2d/kernel", (1, 1, 8, 3), "a head of 1x1"),
    ("head/fc/weight", (3, 8, 1, 1), "a head of 1x1"),
    ("embedding/kernel", (1, 1, 8, 3), "an embedding of patches"),
    ("patch_embed/proj/weight", (8, 3, 4, 4), "an embedding of patches"),
    ("stages/0/0/attn_last/fc1/weight", (4, 8, 1, 1), "squeeze-and-excita"),
    ("features/1/block/2/fc2/weight", (8, 4, 1, 1), "squeeze-and-excita"),
    ("blocks/0/se/conv_reduce/weight", (4, 8, 1, 1), "squeeze-and-excita"),
    ("stages/0/0/attn/conv/weight", (1, 1, 3), "squeeze-and-excita"),
  ],
)
def test_convolutions_of_another_role_are_left_out(path, shape, reason):
  """They were standardized in silence, and the logits were far off."""
  leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
  assert kernels.why_not_conv(path, leaf).startswith(reason)
  assert list(kernels.select({path: leaf}, path)) == [path]


@pytest.mark.parametrize(
  ("path", "shape"),
  [
    ("patch_embed/backbone/stem/conv/weight", (8, 3, 7, 7)),
    ("fire2/squeeze/kernel", (1, 1, 8, 4)),
    ("head/conv1/kernel", (3, 3, 8, 8)),
    ("sequential/conv/kernel", (1, 1, 8, 4)),
    ("segment/seconv/kernel", (1, 1, 8, 4)),
  ],
)
def test_names_that_only_look_like_another_role_count(path, shape):
  assert ws_jax.conv_kernels(path, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(
  ("name", "known"),
  [
    ("Conv_0", True),
    ("conv", True),
    ("block1_conv2", True),
    ("conv1d_3", True),
    ("conv1_d_1", True),
    ("conv_proj", False),
    ("down", False),
  ],
)
def test_a_window_longer_than_its_inputs_needs_a_clear_name(name, known):
  """A DenseGeneral [in, head, out] of the name conv_proj looks the same."""
  leaf = jax.ShapeDtypeStruct((9, 8, 12), jnp.float32)
  verdict = kernels.verdict_on(f"{name}/kernel", leaf)
  assert verdict.kernel == (True if known else None)


def test_a_scale_of_many_axes_is_no_kernel_and_does_not_decay():
  """It became 0, and the output no longer depended on the input."""
  norm = equinox(lambda key: eqx.nn.LayerNorm((8, 6, 6)))["layer"]
  tree = {
    "conv": {"weight": jnp.ones((8, 3, 3, 3)), "bias": jnp.ones(8)},
    "norm": {"weight": jnp.ones((8, 6, 6)), "bias": jnp.ones((8, 6, 6))},
    "odd": {"weight": jnp.ones((6, 6)), "bias": jnp.ones((6, 6))},
  }
  for name in ("norm", "odd"):
    assert list(kernels.select(tree, ws_jax.conv_kernels)) == ["conv/weight"]
    assert list(kernels.select(tree, ws_jax.named_kernels)) == ["conv/weight"]
    assert not ws_jax.kernel_decay_mask(tree)[name]["weight"]
  mask = ws_jax.kernel_decay_mask(tree | {"layer": norm})
  assert not mask["layer"].weight
  assert mask["conv"]["weight"]


def test_a_transposed_kernel_in_a_list_is_told_by_the_norm_behind_it():
  """As in the generator of a DCGAN: main.0 without bias, main.1 its norm."""
  array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  for kernel, axes in [((9, 8, 4, 4), (0, 2, 3)), ((8, 9, 4, 4), (1, 2, 3))]:
    tree = {"main/0/weight": array(*kernel), "main/1/weight": array(8)}
    found = kernels.select_axes(tree, ws_jax.conv_kernels, ws_jax.fan_in_axes)
    assert found["main/0/weight"][1] == axes


def test_axes_that_cannot_be_known_are_asked_for():
  tree = {"up": {"kernel": jnp.ones((3, 3, 4, 4)), "bias": jnp.ones(4)}}
  with pytest.raises(
    ValueError, match=r"^up/kernel: the fan-in .* axes=, as al"
  ):
    ws_jax.weight_standardize(tree)
  with pytest.raises(ValueError, match="cannot be known"):
    ws_jax.weight_standardize({"filters": jnp.ones((8, 9))}, where="filters")
  (row, _) = sorted(ws_jax.describe(tree), key=lambda row: -len(row.path))
  assert "[..., in, out] or [..., out, in]?" in row.reason
  axes = ws_jax.axes_by_path(kernels.filter_axes(["up/*=-2"]))
  ws_jax.weight_standardize(tree, axes=axes)
  for rule in ("up/*", "=1", "up/*=x", "up/*="):
    with pytest.raises(ValueError, match="must be GLOB=AXIS"):
      kernels.filter_axes([rule])


def test_globs_take_the_kernels_and_must_match():
  conv = {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)}
  params = {"stem": conv, "Conv_0": conv, "head": {"kernel": jnp.ones((4, 2))}}
  for where, expected in [
    ("stem/kernel", ["stem/kernel"]),
    ("*", ["Conv_0/kernel", "head/kernel", "stem/kernel"]),
    (["stem*", "head/*"], ["head/kernel", "stem/kernel"]),
    (("Conv_*",), ["Conv_0/kernel"]),
    ("stem/bias", ["stem/bias"]),
  ]:
    assert sorted(kernels.select(params, where)) == expected
  for where, nearest in [("Conv", "Conv_0/"), (["stem*", "haed/*"], "head/k")]:
    with pytest.raises(
      ValueError, match=f"matches no path; the nearest is '{nearest}"
    ):
      ws_jax.weight_standardize(params, where=where)
  for where in (3, [b"stem"]):
    with pytest.raises(TypeError, match="a glob as 'block.*or a list of globs"):
      ws_jax.weight_standardize(params, where=where)
