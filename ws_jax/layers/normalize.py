"""The float32 normalization that all layers of `ws_jax.layers.norm` share."""

import functools
import math

import jax
import jax.numpy as jnp

from ws_jax.native import foreign


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  examples: int,
  groups: int,
  epsilon: float = 1e-5,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalizes, scales and shifts, with statistics of the values themselves.

  The statistics are float32 (float64 for such an input) and free of
  cancellation: an input of mean 100 and deviation 0.01, where
  `mean(x * x) - mean(x) ** 2` has no correct digit, comes out right. The
  backward pass is written out: it keeps `x` itself and the statistics, and
  reads each large array as few times as possible. On a CPU both passes are C++
  if the program has asked for it (`ws_jax.native`).

  Args:
    x: Array `[B, ..., C]` of any float dtype.
    scale: Factor `[C]` on the normalized values.
    bias: Term `[C]` that is added to them, of the dtype of `scale`.
    examples: Number of consecutive examples that share statistics; divides B.
    groups: Number of groups that the channels form; divides C.
    epsilon: Number added to the variance.

  Returns:
    The result, of the shape and dtype of `x`, and the means and the biased
    variances, float32 `[B / examples, groups]`.

  Example:
    >>> x = 100 + jnp.arange(8.0).reshape(2, 2, 2)
    >>> y, mean, _ = normalize(x, jnp.ones(2), jnp.zeros(2), 1, 1)
    >>> mean.tolist()
    [[101.5], [105.5]]
    >>> bool(jnp.abs(y.mean(axis=(1, 2))).max() < 1e-6)
    True
  """
  return _forward(x, scale, bias, examples, groups, epsilon)[0]


def _forward(x, scale, bias, *settings):
  """Returns the results, and what the backward pass needs of them."""
  results = _call("WsJaxNormalize", _apply, (x, scale, bias), *settings)
  return results, (x, scale, *results[1:])


def _backward(examples, groups, epsilon, residuals, cotangents):
  """Returns the gradients by x, scale and bias."""
  arguments = (*residuals, *cotangents)
  return _call(
    *("WsJaxNormalizeBackward", _gradients, arguments),
    *(examples, groups, epsilon),
  )


def _call(handler, plain, arguments, examples, groups, epsilon):
  return foreign.call(
    *("normalization", handler, plain, arguments),
    examples=int(examples),
    groups=int(groups),
    epsilon=float(epsilon),
  )


def _apply(x, scale, bias, *, examples, groups, epsilon):
  """Returns the result, the means and the variances, computed by XLA."""
  rows = _rows(x, examples)
  # The mean is measured from the first values, and the variance from the mean:
  # however far from zero the values are, no digit is lost.
  guess = _pool(rows[:, 0], groups)
  mean = guess + _pool(_mean(rows - _spread(guess, rows)), groups)
  centred = rows - _spread(mean, rows)
  var = _pool(_mean(centred * centred), groups)
  rstd = jax.lax.rsqrt(var + epsilon)
  y = (rows - _spread(mean, rows)) * (_spread(rstd, rows) * scale[None, None])
  y += bias[None, None]
  return y.reshape(x.shape).astype(x.dtype), mean, var


def _gradients(
  x, scale, mean, var, dy, dmean, dvar, *, examples, groups, epsilon
):
  """Returns the gradients by x, scale and bias, computed by XLA."""
  rstd = jax.lax.rsqrt(var + epsilon)
  dy, rows = _rows(dy, examples), _rows(x, examples)
  centred = rows - _spread(mean, rows)
  # Sum per channel first: dscale and dbias are made of the same sums.
  along_one = _mean(dy)
  along_x = _mean(dy * centred) * _spread(rstd, rows)[:, 0]
  size = rows.size // mean.size  # values that share statistics
  shift = -rstd * _pool(along_one * scale[None], groups) + dmean / size
  slope = -(rstd**2) * _pool(along_x * scale[None], groups) + 2 * dvar / size
  dx = dy * (_spread(rstd, rows) * scale[None, None])
  dx += centred * _spread(slope, rows) + _spread(shift, rows)
  dx = dx.reshape(x.shape).astype(x.dtype)
  count = rows.shape[1]
  dscale, dbias = count * along_x.sum(0), count * along_one.sum(0)
  return dx, dscale.astype(scale.dtype), dbias.astype(scale.dtype)


normalize.defvjp(_forward, _backward)


def _rows(x, examples):
  """Returns x as `[B / examples, values of a channel, C]`.

  It is float32, or the dtype of x if that is wider.
  """
  channels = x.shape[-1]
  batches = x.shape[0] // examples
  values = examples * math.prod(x.shape[1:-1])
  wide = jnp.promote_types(x.dtype, jnp.float32)
  return x.reshape(batches, values, channels).astype(wide)


def _mean(rows):
  """Returns the means over the values of each channel, `[B / examples, C]`."""
  # An axis of size one that stays makes the sum slow in XLA's CPU backend.
  if rows.shape[0] == 1:
    return rows.mean((0, 1))[None]
  return rows.mean(1)


def _pool(table, groups):
  """Averages `[B / examples, C]` over the channels of each group."""
  return table.reshape(table.shape[0], groups, -1).mean(2)


def _spread(stats, rows):
  """Repeats `[B / examples, groups]` for channels, `[B / examples, 1, C]`."""
  return jnp.repeat(stats, rows.shape[2] // stats.shape[1], axis=1)[:, None]
