"""The definitions of "standardized" that are in use, as data.

Published code agrees on the idea of Weight Standardization and on little else.
Two definitions that differ in eps alone are different functions once kernels
have shrunk, and weight decay shrinks a kernel whose scale does not matter.
"""

import dataclasses
import math
from typing import Literal

from ws_jax.base.names import lookup, suggest

EPS_PLACES = ("variance", "std", "floor", "floor_fan_in")


@dataclasses.dataclass(frozen=True)
class Convention:
  """A definition of Weight Standardization.

  With `mean` and `var` the moments of one filter over its fan-in,

      effective = (kernel - mean) / spread * scale * gain

  Attributes:
    ddof: Number that is taken off the fan-in before the sum of squares is
      divided by it: 0 for the biased variance, 1 for the unbiased one.
    eps: Positive number that keeps the spread above zero. Zero is refused: a
      constant filter has no standard deviation, and its gradient would be NaN.
    eps_place: Place of eps, which decides what `spread` is: "variance" is
      sqrt(var + eps), "std" is sqrt(var) + eps, "floor" is
      sqrt(max(var, eps)), "floor_fan_in" is
      sqrt(max(var * fan_in, eps) / fan_in).
    fan_in_scale: Whether the scale is 1 / sqrt(fan_in), as in networks without
      activation normalization, or 1.
    center: Whether the mean is subtracted; False is an ablation.
    rescale: Whether there are a division and a scale; False is an ablation.
    min_fan_in: Smallest fan-in allowed. One weight has no standard deviation,
      and two become +-1 whatever their values.
    source: Code or paper that the definition is from; not part of equality.

  Raises:
    ValueError: A field has none of these values.

  Example:
    >>> import dataclasses
    >>> mine = dataclasses.replace(QIAO, eps=1e-6)
    >>> mine.formula
    '(w - mean) / (std_unbiased + 1e-06)'
  """

  ddof: int = 0
  eps: float = 1e-10
  eps_place: Literal["variance", "std", "floor", "floor_fan_in"] = "variance"
  fan_in_scale: bool = False
  center: bool = True
  rescale: bool = True
  min_fan_in: int = 3
  source: str = dataclasses.field(default="", compare=False, repr=False)

  def __post_init__(self):
    if self.ddof not in (0, 1):
      raise ValueError(f"ddof must be 0 or 1, got {self.ddof!r}")
    if not (isinstance(self.eps, (int, float)) and 0 < self.eps < math.inf):
      raise ValueError(f"eps must be a positive number, got {self.eps!r}")
    if self.eps_place not in EPS_PLACES:
      raise ValueError(
        f"unknown eps_place {self.eps_place!r}: "
        f"{suggest(self.eps_place, EPS_PLACES)}"
      )
    if self.min_fan_in < 2:
      raise ValueError(f"min_fan_in must be at least 2, got {self.min_fan_in}")
    if not (self.center or self.rescale):
      raise ValueError("center=False with rescale=False would do nothing")

  @property
  def formula(self) -> str:
    """Formula in one line; `w` is one filter, `n` its fan-in."""
    top = "(w - mean)" if self.center else "w"
    if not self.rescale:
      return "w - mean"
    tail = "_unbiased" if self.ddof else ""
    spread = {
      "variance": f"sqrt(var{tail} + {self.eps:g})",
      "std": f"(std{tail} + {self.eps:g})",
      "floor": f"sqrt(max(var{tail}, {self.eps:g}))",
      "floor_fan_in": f"sqrt(max(var{tail} * n, {self.eps:g}) / n)",
    }[self.eps_place]
    return f"{top} / {spread}" + (" / sqrt(n)" if self.fan_in_scale else "")


QIAO = Convention(
  ddof=1,
  eps=1e-5,
  eps_place="std",
  source="Qiao et al., arXiv 1903.10520: the authors' PyTorch layers, "
  "pytorch-classification models/layers.py",
)
"""(w - mean) / (std_unbiased + 1e-5): the authors of the method."""

BCN = Convention(
  ddof=1,
  eps=1e-5,
  source="Qiao et al., Batch-Channel-Normalization, imagenet/models/layers.py; "
  "the DeepLabV3 folder of the same repository uses `qiao`",
)
"""(w - mean) / sqrt(var_unbiased + 1e-5): the authors' later code."""

BIT = Convention(
  eps=1e-10,
  source="Kolesnikov et al., Big Transfer, arXiv 1912.11370: big_transfer in "
  "its three frameworks, big_vision bit_paper.py, scenic",
)
"""(w - mean) / sqrt(var + 1e-10): Big Transfer; the default here."""

BIG_VISION = Convention(
  eps=1e-5,
  eps_place="std",
  source="big_vision models/bit.py; vision_transformer models_resnet.py",
)
"""(w - mean) / (std + 1e-5): Flax code of big_vision and ViT hybrids."""

UNCERTAINTY_BASELINES = Convention(
  eps=1e-5,
  source="uncertainty-baselines models/bit_resnet.py; chainer's link hook",
)
"""(w - mean) / sqrt(var + 1e-5): a port of BiT with another eps."""

TIMM = Convention(eps=1e-6, source="timm layers/std_conv.py, StdConv2d")
"""(w - mean) / sqrt(var + 1e-6): timm's default."""

TIMM_BIT = Convention(
  eps=1e-8, source="timm resnetv2.py and vision_transformer_hybrid.py"
)
"""(w - mean) / sqrt(var + 1e-8): timm's and transformers' BiT models."""

TIMM_SCALED = Convention(
  eps=1e-5,
  fan_in_scale=True,
  min_fan_in=2,
  source="timm layers/std_conv.py, ScaledStdConv2d with the eps of nfnet.py",
)
"""(w - mean) / sqrt(var + 1e-5) / sqrt(n) * gain: timm's NF networks."""

NFNET = Convention(
  eps=1e-4,
  eps_place="floor_fan_in",
  fan_in_scale=True,
  min_fan_in=2,
  source="Brock et al., arXiv 2102.06171: deepmind-research nfnets/base.py",
)
"""(w - mean) / sqrt(max(var * n, 1e-4)) * gain: normalizer-free networks."""

MMCV = dataclasses.replace(QIAO, source="mmcv cnn/bricks/conv_ws.py, ConvWS2d")
"""(w - mean) / (std_unbiased + 1e-5): OpenMMLab, the same as `QIAO`."""

COMPOSER = dataclasses.replace(
  BIT, source="MosaicML composer algorithms/weight_standardization"
)
"""(w - mean) / sqrt(var + 1e-10): Composer, the same as `BIT`."""

CENTER = Convention(
  rescale=False,
  min_fan_in=2,
  source="ablation: `bit` without the division",
)
"""w - mean: the first half of the method alone."""

SCALE = Convention(
  center=False,
  source="ablation: `bit` without the subtraction",
)
"""w / sqrt(var + 1e-10): the second half of the method alone."""

CONVENTIONS: dict[str, Convention] = {
  "qiao": QIAO,
  "bcn": BCN,
  "bit": BIT,
  "big_vision": BIG_VISION,
  "uncertainty_baselines": UNCERTAINTY_BASELINES,
  "timm": TIMM,
  "timm_bit": TIMM_BIT,
  "timm_scaled": TIMM_SCALED,
  "nfnet": NFNET,
  "mmcv": MMCV,
  "composer": COMPOSER,
  "center": CENTER,
  "scale": SCALE,
}
"""The conventions by the names people know them by."""


def get_convention(convention: str | Convention) -> Convention:
  """Returns the convention of a name, or a `Convention` as it is.

  Args:
    convention: Name of `CONVENTIONS`, or a `Convention`.

  Raises:
    ValueError: The name is unknown; the message has the nearest one.
    TypeError: It is neither a name nor a `Convention`.

  Example:
    >>> get_convention("timm").eps
    1e-06
  """
  if isinstance(convention, Convention):
    return convention
  if isinstance(convention, str):
    return lookup(CONVENTIONS, convention, "convention")
  raise TypeError(
    f"convention must be a name or a ws_jax.Convention, got {convention!r}"
  )
