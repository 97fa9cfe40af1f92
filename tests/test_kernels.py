"""Selected kernels and their fan-in axes, in the trees of Flax layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ws_jax
from ws_jax.core import kernels
from ws_jax.core.kernels import why_not_conv


def init(module, *shape):
  """Returns parameters of a module, with values far from standardized."""
  rng = np.random.default_rng(0)
  make = lambda x: module.init(jax.random.key(0), x)
  # Flax is only asked for shapes: nothing is compiled.
  shapes = jax.eval_shape(make, jax.ShapeDtypeStruct(shape, jnp.float32))
  return jax.tree.map(
    lambda p: jnp.asarray(rng.normal(0.5, 0.1, p.shape), p.dtype),
    shapes["params"],
  )


def chosen(params):
  return list(kernels.select(params, ws_jax.conv_kernels))


def assert_standardized(params, expected, **options):
  """Checks that these kernels have mean 0 and std 1 over exactly these axes."""
  effective = ws_jax.weight_standardize(params, **options)
  for name, axes in expected.items():
    kernel = np.asarray(jax.tree.leaves(effective[name]["kernel"])[0])
    np.testing.assert_allclose(kernel.mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(kernel.std(axes), 1, atol=1e-5)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(
  ("features", "groups"), [(6, 1), (6, 2), (4, 4), (8, 4)]
)
def test_linen_conv(ndim, features, groups):
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(features, (3,) * ndim, feature_group_count=groups)(x)
      return nn.Dense(3)(x)

  params = init(Model(), *(1, *(5,) * ndim, 4))
  assert chosen(params) == ["Conv_0/kernel"]
  fan_in = 3**ndim * 4 // groups
  kernel = params["Conv_0"]["kernel"]
  assert kernel.shape[:-1] == (*(3,) * ndim, 4 // groups)
  assert np.prod(kernel.shape[:-1]) == fan_in
  assert_standardized(params, {"Conv_0": tuple(range(ndim + 1))})


def test_one_dimensional_convolution_and_attention_are_told_apart():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(4, (3,))(x)
      x = nn.Conv(4, (3,), name="down")(x)
      x = nn.MultiHeadDotProductAttention(2, name="conv_attention")(x)
      x = nn.DenseGeneral((2, 4))(x)
      return nn.Embed(7, 4)(jnp.int32(x[..., 0, 0]))

  params = init(Model(), 1, 5, 4)
  # It was left out without a word, which is as wrong as to take it.
  with pytest.raises(
    ValueError, match=r"cannot know .* down/kernel \[3, 4, 4\]"
  ):
    chosen(params)
  reason = why_not_conv("down/kernel", params["down"]["kernel"])
  assert "1-D convolution or attention?" in reason
  # A selector that leaves it out, or takes it, is not asked.
  for where, expected in [
    (lambda p, x: ws_jax.conv_kernels(p, x) and "down" not in p, ["Conv_0"]),
    (lambda p, x: "down" in p or ws_jax.conv_kernels(p, x), ["Conv_0", "down"]),
    (["Conv_0/*", "down/*"], ["Conv_0", "down"]),
  ]:
    found = kernels.select(params, where)
    assert [p.split("/")[0] for p in found if p.endswith("kernel")] == expected
  del params["down"]
  assert chosen(params) == ["Conv_0/kernel"]


def test_dense():
  params = init(nn.Dense(5), 1, 8)
  with pytest.raises(ValueError, match=r"kernel \[8, 5\]"):
    ws_jax.weight_standardize(params)
  raw = {"head": params | {"kernel": params["kernel"] + 1}}
  effective = ws_jax.weight_standardize(raw, where=ws_jax.dense_kernels)
  np.testing.assert_allclose(effective["head"]["kernel"].mean(0), 0, atol=1e-6)
  np.testing.assert_allclose(effective["head"]["kernel"].std(0), 1, atol=1e-5)


def test_transposed_kernels():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.ConvTranspose(6, (3, 3))(x)
      return nn.ConvTranspose(5, (3, 3), transpose_kernel=True, name="up")(x)

  params = init(Model(), 1, 4, 4, 7)
  assert params["up"]["kernel"].shape == (3, 3, 5, 6)
  assert_standardized(
    params,
    {"ConvTranspose_0": (0, 1, 2), "up": (0, 1, 3)},
    axes=ws_jax.axes_by_path({"up/*": ws_jax.all_but(-2)}),
  )


def test_conv_local():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.ConvLocal(6, (3, 3), padding="VALID")(x)

  params = init(Model(), 1, 5, 5, 2)
  assert params["ConvLocal_0"]["kernel"].shape == (3, 3, 18, 6)
  assert_standardized(params, {"ConvLocal_0": (2,)})


def test_attention_projections_when_asked_for():
  params = init(nn.MultiHeadDotProductAttention(2), 1, 5, 8)
  where = lambda path, leaf: path.endswith("/kernel")
  axes = {"query": (0,), "key": (0,), "value": (0,), "out": (0, 1)}
  assert_standardized(params, axes, where=where)


def test_dense_general_by_its_own_axes():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.DenseGeneral((2, 4), name="split")(x)
      return nn.DenseGeneral(8, axis=(-2, -1), name="join")(x)

  params = init(Model(), 1, 5, 8)
  assert params["join"]["kernel"].shape == (2, 4, 8)
  assert_standardized(
    params,
    {"split": (0,), "join": (0, 1)},
    where=ws_jax.named_kernels,
    axes=ws_jax.axes_by_path({"split/*": ws_jax.all_but(-2, -1)}),
  )


def test_layers_under_scan():
  class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
      return nn.Conv(4, (3, 3))(x), None

  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      stack = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=3,
      )
      return stack(name="stack")(x, None)

  params = init(Model(), 1, 5, 5, 4)["stack"]
  assert params["Conv_0"]["kernel"].shape == (3, 3, 3, 4, 4)
  assert_standardized(params, {"Conv_0": (1, 2, 3)}, axes=ws_jax.all_but(0, -1))


def test_stacked_layers():
  stack = nn.vmap(
    nn.Conv,
    in_axes=None,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    axis_size=3,
  )

  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      return stack(4, (3, 3), name="stack")(x)

  params = init(Model(), 1, 5, 5, 2)
  assert params["stack"]["kernel"].shape == (3, 3, 3, 2, 4)
  assert_standardized(params, {"stack": (1, 2, 3)}, axes=ws_jax.all_but(0, -1))


def test_boxed_leaves_keep_their_box():
  boxed = nn.Conv(
    4,
    (3, 3),
    kernel_init=nn.with_partitioning(
      nn.initializers.lecun_normal(), (None, None, None, "model")
    ),
  )
  params = {"Conv_0": init(boxed, 1, 5, 5, 2)}
  assert chosen(params) == ["Conv_0/kernel"]
  effective = ws_jax.weight_standardize(params)
  assert effective["Conv_0"]["kernel"].names == (None, None, None, "model")
  assert_standardized(params, {"Conv_0": (0, 1, 2)})


def test_nnx_state():
  from flax import nnx

  class Model(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
      self.head = nnx.Linear(4, 2, rngs=rngs)

  graph, state = nnx.split(Model(nnx.Rngs(0)))
  effective = ws_jax.weight_standardize(state)
  model = nnx.merge(graph, effective)
  kernel = np.asarray(model.conv.kernel[...])
  np.testing.assert_allclose(kernel.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(kernel.std((0, 1, 2)), 1, atol=1e-5)
  np.testing.assert_array_equal(
    model.head.kernel[...], state["head"]["kernel"][...]
  )
  # The paths are those of the plain dict, as people write them.
  where = ws_jax.matching("conv/kernel")
  assert list(kernels.select(state, where)) == ["conv/kernel"]
  assert kernels.by_path(state).keys() == (
    kernels.by_path(nnx.to_pure_dict(state)).keys()
  )
  (row,) = (row for row in ws_jax.describe(state) if row.selected)
  assert row.path == "conv/kernel"


def test_layouts_of_other_libraries_by_name():
  haiku = {
    "net/~/conv2_d": {"w": jnp.ones((3, 3, 2, 4))},
    "net/~/conv2_d_transpose": {"w": jnp.ones((3, 3, 5, 2))},
    "net/~/linear": {"w": jnp.ones((4, 4))},
  }
  assert len(chosen(haiku)) == 2
  axes = ws_jax.fan_in_axes
  path = "net/~/conv2_d_transpose/w"
  assert axes(path, jnp.ones((3, 3, 5, 2))) == (0, 1, 3)
  assert axes("layers/0/weight", jnp.ones((4, 2, 3, 3))) == (1, 2, 3)
  assert ws_jax.conv_kernels("layers/conv/weight", jnp.ones((4, 2, 3)))
  assert not ws_jax.conv_kernels("norm/weight", jnp.ones(4))


def test_selection_by_pattern():
  conv = {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)}
  params = {"stem": conv, "block": {"Conv_0": conv}, "Conv_10": conv}
  for where in [
    ws_jax.matching("stem/kernel", "block/*/kernel"),
    ws_jax.matching_regex("^(stem|block).*kernel$"),
  ]:
    effective = ws_jax.weight_standardize(params, where=where)
    assert effective["Conv_10"]["kernel"] is conv["kernel"]
    assert not effective["stem"]["kernel"].any()
    assert not effective["block"]["Conv_0"]["kernel"].any()


def test_all_but_the_last_counts_numbers_as_numbers():
  conv = {"kernel": jnp.ones((3, 3, 2, 4))}
  params = {f"Conv_{i}": conv for i in range(12)}
  where = ws_jax.all_but_last(params, 2)
  effective = ws_jax.weight_standardize(params, where=where)
  left = [name for name in params if effective[name]["kernel"].any()]
  assert left == ["Conv_10", "Conv_11"]
  with pytest.raises(ValueError, match="last 12 of 12 kernels"):
    ws_jax.all_but_last(params, 12)


def test_axes_that_a_kernel_lacks_are_an_error_with_its_path():
  params = {"Conv_0": {"kernel": jnp.ones((3, 3, 2, 4))}}
  with pytest.raises(ValueError, match="^Conv_0/kernel: no axis 7"):
    ws_jax.weight_standardize(params, axes=ws_jax.all_but(7))


def test_selected_leaves_are_replaced_and_the_others_are_the_same_objects():
  tree = {"b": [jnp.ones(2), {"value": jnp.ones(3)}], "a": jnp.zeros(4)}
  assert list(kernels.by_path(tree)) == ["a", "b/0", "b/1/value"]
  chosen = kernels.select(tree, ws_jax.matching("b/*"))
  assert list(chosen) == ["b/0", "b/1/value"]
  got = kernels.replace(tree, {path: -leaf for path, leaf in chosen.items()})
  assert jax.tree.structure(got) == jax.tree.structure(tree)
  assert got["a"] is tree["a"]
  np.testing.assert_array_equal(got["b"][1]["value"], -jnp.ones(3))
  with pytest.raises(ValueError, match="unknown path 'b/2': did you mean 'b/"):
    kernels.replace(tree, {"b/2": jnp.ones(2)})


def test_two_leaves_of_one_path_are_refused():
  tree = {"a/kernel": jnp.ones(2), "a": {"kernel": jnp.ones(3)}}
  for call in (ws_jax.weight_standardize, ws_jax.describe):
    with pytest.raises(ValueError, match="two leaves have the path 'a/kernel'"):
      call(tree)


def test_an_error_keeps_its_type_and_gets_the_path():
  class Odd(ValueError):
    def __init__(self, one, other):
      super().__init__(f"{one} and {other}")

  with pytest.raises(Odd, match="^a/b: x and y$"):
    with kernels.errors_name("a/b"):
      raise Odd("x", "y")
  with pytest.raises(KeyError, match="^'c'$"):
    with kernels.errors_name("a/b"):
      raise KeyError("c")
