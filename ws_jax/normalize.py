"""One normalization in float32, which all layers of `ws_jax.norm` share."""

import functools

import jax
import jax.numpy as jnp


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

  The statistics are float32 and free of cancellation: an input of mean 100 and
  deviation 0.01, where `mean(x * x) - mean(x) ** 2` has no correct digit, comes
  out right. The backward pass is written out: it keeps `x` itself and the
  statistics, and reads each large array as few times as possible.

  Args:
    x: `[B, ..., C]`, any float dtype.
    scale: `[C]`, multiplies the normalized values.
    bias: `[C]`, is added to them; of the dtype of `scale`.
    examples: how many consecutive examples share statistics; divides B.
    groups: how many groups the channels form; divides C.
    epsilon: is added to the variance.

  Returns:
    The result, of the shape and dtype of `x`, and the means and the biased
    variances, float32 `[B / examples, groups]`.

  Example:
    >>> x = 100 + jnp.arange(8.0).reshape(2, 2, 2)
    >>> y, mean, _ = normalize(x, jnp.ones(2), jnp.zeros(2), 1, 1)
    >>> mean
    Array([[101.5],
           [105.5]], dtype=float32)
    >>> y.mean(axis=(1, 2))
    Array([0., 0.], dtype=float32)
  """
  return _forward(x, scale, bias, examples, groups, epsilon)[0]


def _forward(x, scale, bias, examples, groups, epsilon):
  rows = _rows(x)
  # Sums around a first guess, the mean of every 16th position, give mean and
  # variance in one pass without cancellation: a part f of the values has a
  # mean within 1 / sqrt(f) standard deviations of the whole, however large.
  guess = _pool(rows[:, ::16].mean(1), examples, groups)
  offset = rows - _spread(guess, rows)
  shift = _pool(offset.mean(1), examples, groups)
  square = _pool((offset * offset).mean(1), examples, groups)
  mean, var = guess + shift, jnp.maximum(square - shift * shift, 0)
  rstd = jax.lax.rsqrt(var + epsilon)
  factor = _spread(rstd, rows) * scale[None, None]
  y = (rows - _spread(mean, rows)) * factor + bias[None, None]
  y = y.reshape(x.shape).astype(x.dtype)
  return (y, mean, var), (x, scale, mean, rstd)


def _backward(examples, groups, epsilon, residuals, cotangents):
  del epsilon  # it is inside rstd
  x, scale, mean, rstd = residuals
  dy, dmean, dvar = cotangents
  dy, rows = _rows(dy), _rows(x)
  centred = rows - _spread(mean, rows)
  # Per example and channel first: dscale and dbias fall out on the way.
  along_one = dy.mean(1)
  along_x = (dy * centred).mean(1) * _spread(rstd, rows)[:, 0]
  size = rows.size // mean.size  # values that share statistics
  shift = -rstd * _pool(along_one * scale[None], examples, groups)
  slope = -(rstd**2) * _pool(along_x * scale[None], examples, groups)
  shift += dmean / size
  slope += 2 * dvar / size
  dx = dy * (_spread(rstd, rows) * scale[None, None])
  dx += centred * _spread(slope, rows) + _spread(shift, rows)
  dx = dx.reshape(x.shape).astype(x.dtype)
  count = rows.shape[1]
  dscale, dbias = count * along_x.sum(0), count * along_one.sum(0)
  return dx, dscale.astype(scale.dtype), dbias.astype(scale.dtype)


normalize.defvjp(_forward, _backward)


def _rows(x):
  """`[B, ..., C]` as float32 `[B, positions, C]`.

  Sums over the positions come first, and only their table `[B, C]` is then
  regrouped: XLA's CPU backend is 2 to 5 times slower when it reduces the large
  array over two axes around one that stays, or over all examples at once.
  """
  return x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)


def _pool(table, examples, groups):
  """Averages `[B, C]` over examples and groups: `[B / examples, groups]`."""
  shape = (table.shape[0] // examples, examples, groups, -1)
  return table.reshape(shape).mean((1, 3))


def _spread(stats, rows):
  """The reverse: `[B / examples, groups]` to `[B, 1, C]`."""
  stats = jnp.repeat(stats, rows.shape[0] // stats.shape[0], axis=0)
  return jnp.repeat(stats, rows.shape[2] // stats.shape[1], axis=1)[:, None]
