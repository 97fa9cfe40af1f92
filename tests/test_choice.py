"""The kernels that `weights describe` and `weights fold` are told to take."""

import numpy as np
import pytest

import ws_jax
from ws_jax import weights
from ws_jax.weights import __main__ as command
from ws_jax.weights import choice

_RNG = np.random.default_rng(0)


def array(*shape):
  return _RNG.normal(0.2, 0.5, shape).astype(np.float32)


def big_transfer():
  conv = "standardized_conv2d"
  return {
    f"resnet/root_block/{conv}/kernel": array(3, 3, 3, 4),
    f"resnet/block1/unit01/a/{conv}_3/kernel": array(1, 1, 4, 4),
    "resnet/block1/unit01/a/group_norm/gamma": array(4),
    "resnet/head/conv2d/kernel": array(1, 1, 4, 5),
    "resnet/head/conv2d/bias": array(5),
  }


def timm_bit():
  return {
    "stem.conv.weight": array(4, 3, 3, 3),
    "stages.0.blocks.0.conv1.weight": array(4, 4, 1, 1),
    "stages.0.blocks.0.downsample.conv.weight": array(8, 4, 1, 1),
    "stages.0.blocks.0.norm1.weight": array(4),
    "head.fc.weight": array(5, 8, 1, 1),
    "head.fc.bias": array(5),
  }


def timm_nf():
  arrays = {}
  for name, shape in [
    ("stem.conv", (4, 3, 3, 3)),
    ("stages.0.0.conv1", (4, 4, 1, 1)),
    ("stages.0.0.conv2b", (4, 2, 3, 3)),
    ("stages.0.0.downsample.conv", (4, 4, 1, 1)),
    ("final_conv", (8, 4, 1, 1)),
  ]:
    arrays[f"{name}.weight"] = array(*shape)
    arrays[f"{name}.gain"] = array(shape[0], 1, 1, 1)
    arrays[f"{name}.bias"] = array(shape[0])
  for name, shape in [
    ("stages.0.0.attn_last.fc1", (2, 4, 1, 1)),
    ("stages.0.0.attn_last.fc2", (4, 2, 1, 1)),
    ("stages.0.0.attn.conv", (1, 1, 3)),
    ("head.fc", (5, 8)),
  ]:
    arrays[f"{name}.weight"] = array(*shape)
  return arrays


def hybrid():
  return {
    "conv_root/kernel": array(3, 3, 3, 4),
    "block1/unit1/conv1/kernel": array(1, 1, 4, 4),
    "block1/unit1/conv_proj/kernel": array(1, 1, 4, 8),
    "embedding/kernel": array(1, 1, 8, 6),
    "embedding/bias": array(6),
    "Transformer/attention/query/kernel": array(6, 2, 3),
  }


def run(capsys, *arguments):
  rc = command.main([str(a) for a in arguments])
  said = capsys.readouterr()
  return rc, said.out, said.err


def folded(tmp_path, capsys, arrays, *flags):
  """Folds arrays; returns what changed, by path, and what was said."""
  np.savez(tmp_path / "raw.npz", **arrays)
  out = tmp_path / "out.npz"
  rc, said, error = run(capsys, "fold", tmp_path / "raw.npz", out, *flags)
  assert (rc, error) == (0, "")
  before = weights.read_params(tmp_path / "raw.npz")
  after = weights.read_params(out)
  assert after.keys() == before.keys()
  return {
    path: x for path, x in after.items() if not np.array_equal(x, before[path])
  }, said


@pytest.mark.parametrize(
  ("preset", "make", "flags", "left", "convention"),
  [
    ("bit", big_transfer, [], {"resnet/head/conv2d/kernel"}, "bit"),
    ("timm_bit", timm_bit, [], {"head/fc/weight"}, "timm_bit"),
    (
      "timm_nf",
      timm_nf,
      ["--gamma=relu"],
      {f"stages/0/0/attn_last/fc{i}/weight" for i in (1, 2)}
      | {"stages/0/0/attn/conv/weight", "head/fc/weight"},
      "timm_scaled",
    ),
    (
      "vit_hybrid",
      hybrid,
      [],
      {"embedding/kernel", "Transformer/attention/query/kernel"},
      "big_vision",
    ),
    ("big_vision", hybrid, [], {"embedding/kernel"}, "big_vision"),
  ],
)
def test_a_preset_takes_the_kernels_of_its_layout(
  tmp_path, capsys, preset, make, flags, left, convention
):
  """The head was standardized too, and gains and their factor ignored."""
  arrays = make()
  changed, said = folded(tmp_path, capsys, arrays, f"--preset={preset}", *flags)
  raw = {name.replace(".", "/"): x for name, x in arrays.items()}
  kernels = {path for path in raw if path.endswith(("/kernel", "/weight"))} - {
    path for path in raw if raw[path].ndim == 1
  }
  assert set(changed) <= kernels - left
  assert kernels - left - set(changed) <= {"Transformer/attention/query/kernel"}
  for path, x in changed.items():
    gain = None
    if preset == "timm_nf":
      gain = raw[f"{path.removesuffix('weight')}gain"].ravel() * np.float32(
        choice.GAMMAS["relu"]
      )
    axis = (1, 2, 3) if path.endswith("weight") else (0, 1, 2)
    expected = ws_jax.standardize(
      raw[path], axis=axis, convention=convention, gain=gain
    )
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)
  assert said.startswith(f"standardized {len(changed)} kernels (")
  assert f"folded with {convention}" in said or "= " in said


def test_without_a_preset_other_roles_are_left_out_and_said(tmp_path, capsys):
  changed, said = folded(tmp_path, capsys, big_transfer(), "--convention=bit")
  assert len(changed) == 2
  assert "standardized 2 kernels (1 1x1, 1 3x3), left out: 1 head\n" in said
  changed, said = folded(tmp_path, capsys, timm_nf(), "--convention=nfnet")
  assert len(changed) == 5
  assert "left out: 3 gate, 1 dense" in said


def test_where_exclude_and_filters_choose(tmp_path, capsys):
  arrays = timm_bit() | {"up.weight": array(4, 4, 2, 2)}
  flags = ["--convention=bit"]
  changed, _ = folded(
    *(tmp_path, capsys, arrays, *flags),
    *("--where=stem*", "--where=*conv*", "--exclude=*downsample*"),
  )
  assert list(changed) == [
    "stages/0/blocks/0/conv1/weight",
    "stem/conv/weight",
  ]
  changed, _ = folded(
    *(tmp_path, capsys, arrays, *flags, "--where=up*", "--filters=up*=1")
  )
  expected = ws_jax.standardize(arrays["up.weight"], axis=(0, 2, 3))
  np.testing.assert_allclose(changed["up/weight"], expected, rtol=1e-5)
  changed, _ = folded(tmp_path, capsys, arrays, *flags, "--exclude=up*")
  assert len(changed) == 3


@pytest.mark.parametrize(
  ("make", "flags", "message"),
  [
    (timm_bit, ["--preset=tim_bit"], "did you mean 'timm_bit'"),
    (timm_bit, ["--preset=bit"], "has no kernels of the preset bit"),
    (timm_nf, ["--preset=timm_nf"], "give --gamma=relu"),
    (timm_nf, ["--convention=timm_scaled"], "give --gamma=relu"),
    (timm_bit, ["--preset=timm_nf", "--gamma=none"], "has no gain beside"),
    (timm_bit, ["--where=stem"], "no path; the nearest is 'stem/conv/weig"),
    (timm_bit, ["--exclude=haed*"], "'haed*': it matches no path"),
    (timm_bit, ["--filters=stem*"], "must be GLOB=AXIS"),
    (timm_bit, ["--filters=x*=1"], "'x*': it matches no path"),
    (
      timm_nf,
      ["--where=stem*", "--convention=timm_scaled"],
      "is the gain of a kernel that is not standardized",
    ),
    (
      lambda: {"up.weight": array(4, 4, 2, 2)},
      ["--convention=bit"],
      "fan-in axes of [4, 4, 2, 2] cannot be known",
    ),
    (
      lambda: {"m.weight": array(8, 6, 6), "conv.weight": array(8, 6, 3, 3)},
      ["--convention=bit"],
      "cannot know whether m/weight [8, 6, 6] is the kernel",
    ),
  ],
)
def test_what_cannot_be_right_is_refused_in_one_line(
  tmp_path, capsys, make, flags, message
):
  np.savez(tmp_path / "raw.npz", **make())
  if not any("preset" in flag or "convention" in flag for flag in flags):
    flags = [*flags, "--convention=bit"]
  out = tmp_path / "out.npz"
  rc, said, error = run(capsys, "fold", tmp_path / "raw.npz", out, *flags)
  assert (rc, said) == (2, "")
  assert message in error
  assert error.count("\n") == 1
  assert not out.exists()


def test_describe_shows_what_fold_would_take_and_how_it_is_known(
  tmp_path, capsys
):
  np.savez(tmp_path / "raw.npz", **timm_bit())
  _, said, _ = run(
    capsys, "describe", tmp_path / "raw.npz", "--preset=timm_bit"
  )
  assert "3 of 6 leaves standardized, (w - mean) / sqrt(var + 1e-08)" in said
  _, said, _ = run(capsys, "describe", tmp_path / "raw.npz")
  assert "a head of 1x1; `where` takes it" in said
  assert "by its name" in said
  np.savez(tmp_path / "odd.npz", **{"m.weight": array(8, 6, 6)})
  rc, said, _ = run(capsys, "describe", tmp_path / "odd.npz")
  assert rc == 0
  assert "cannot be known: 3 axes" in said


def test_the_constants_of_timm_are_those_of_our_models():
  """The commands on files import no model."""
  from ws_jax.models.normfree import ACTIVATIONS

  for name, (_, gamma) in ACTIVATIONS.items():
    assert choice.GAMMAS[name] == gamma
