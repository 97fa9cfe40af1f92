// Normalization with two passes over memory, for XLA's CPU backend to call.
//
// The formulas are those of `ws_jax.layers.normalize`, for x [B, ..., C] in
// float32: `examples` consecutive examples and C / groups channels share a mean
// and a variance. XLA reads x once for each sum, and stores the terms. Here one
// example at a time is summed and used while it is in a cache.
//
// Start reading at `Forward` and `Backward`; `InTwoPasses` runs their passes.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "lanes.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using namespace ws_jax;
using Array = ffi::Buffer<ffi::F32>;

// Neighbouring channels, `kWide` times T, of `kRows` positions at once: with
// this many sums in flight, none waits for the one before.
template <typename T, int kWide, int kRows>
struct Tile {
  using Value = T;
  static constexpr int wide = kWide, rows = kRows, step = sizeof(T) / 4;
};

// Calls `work(tile, channel)` for tiles that cover all channels.
template <typename Work>
void ForChannels(int64_t channels, Work work) {
  int64_t c = 0;
  auto cover = [&](auto tile) {
    constexpr int64_t wide = tile.wide * tile.step;
    for (; c + wide <= channels; c += wide) work(tile, c);
  };
  cover(Tile<Lanes, 4, 1>{});
  cover(Tile<Lanes, 2, 2>{});
  cover(Tile<Lanes, 1, 4>{});
  cover(Tile<float, 1, 4>{});
}

// Sums `term(offset, k)`, which returns an array of `kSums` values, over `size`
// positions that are `stride` apart, into sums[i][channel].
template <int kSums, typename Tile, typename Term>
void Sum(Tile, int64_t size, int64_t stride, int64_t channel,
         std::array<float*, kSums> sums, Term term) {
  using T = typename Tile::Value;
  T parts[kSums][Tile::rows][Tile::wide] = {};
  auto add = [&](int64_t position, int row) {
    for (int k = 0; k < Tile::wide; ++k) {
      auto terms = term(position * stride + channel + k * Tile::step, k);
      for (int i = 0; i < kSums; ++i) parts[i][row][k] += terms[i];
    }
  };
  int64_t position = 0;
  for (; position + Tile::rows <= size; position += Tile::rows) {
    for (int row = 0; row < Tile::rows; ++row) add(position + row, row);
  }
  for (; position < size; ++position) add(position, 0);
  for (int i = 0; i < kSums; ++i) {
    for (int k = 0; k < Tile::wide; ++k) {
      T sum = parts[i][0][k];
      for (int row = 1; row < Tile::rows; ++row) sum += parts[i][row][k];
      Store(sums[i] + channel + k * Tile::step, sum);
    }
  }
}

// Returns the channels of a tile from a table of all channels.
template <typename Tile>
auto Row(Tile, const float* table, int64_t channel) {
  std::array<typename Tile::Value, Tile::wide> row;
  for (int k = 0; k < Tile::wide; ++k) {
    row[k] = Load<typename Tile::Value>(table + channel + k * Tile::step);
  }
  return row;
}

struct Shape {
  int64_t batch, size, channels;  // size: positions of an example
  int64_t examples, groups;

  int64_t sets() const { return batch / examples; }
  int64_t width() const { return channels / groups; }
  double count() const { return double(examples) * size * width(); }
  int64_t example() const { return size * channels; }
};

// Calls `use(group, channel)` for all channels, in order.
template <typename Use>
void ForGroups(const Shape& s, Use use) {
  if (s.width() == 1) {  // a loop that the compiler can vectorize
    for (int64_t c = 0; c < s.channels; ++c) use(c, c);
    return;
  }
  int64_t c = 0;
  for (int64_t g = 0; g < s.groups; ++g) {
    for (int64_t i = 0; i < s.width(); ++i) use(g, c++);
  }
}

// Copies a number per set and group to each channel of one example.
void Spread(const Shape& s, const float* table, int64_t example, float* row) {
  const float* set = table + example / s.examples * s.groups;
  ForGroups(s, [=](int64_t g, int64_t c) { row[c] = set[g]; });
}

// Calls `first` for each example, `between` for each set of examples with
// shared statistics, and `last` for each example again. If each example is a
// set, all three are called in turn while the example is in a cache.
template <typename First, typename Between, typename Last>
ffi::Error InTwoPasses(ffi::ThreadPool& pool, const Shape& s, First first,
                       Between between, Last last) {
  auto each = [&](auto work) { return ForEach(pool, s.batch, work); };
  std::string error;
  if (s.examples == 1) {
    error = each([=](int64_t i) { first(i), between(i), last(i); });
  } else {
    error = each(first);
    for (int64_t set = 0; set < s.sets(); ++set) between(set);
    if (error.empty()) error = each(last);
  }
  return AsError(error);
}

Shape MakeShape(const Array& x, int64_t examples, int64_t groups) {
  auto dims = x.dimensions();
  int64_t batch = dims.front(), channels = dims.back();
  int64_t size = static_cast<int64_t>(x.element_count()) / (batch * channels);
  return {batch, size, channels, examples, groups};
}

float* Table(std::vector<float>& all, const Shape& s) {
  all.resize(s.batch * s.channels);
  return all.data();
}

ffi::Error Forward(ffi::ThreadPool pool, Array x, Array scale, Array bias,
                   ffi::Result<Array> y, ffi::Result<Array> mean,
                   ffi::Result<Array> var, int64_t examples, int64_t groups,
                   float epsilon) {
  const Shape s = MakeShape(x, examples, groups);
  const float* const xs = x.typed_data();
  std::vector<float> all[2];  // a number for each example and channel
  float* const means = Table(all[0], s);
  float* const squares = Table(all[1], s);
  std::vector<float> rests(s.sets() * s.groups);  // the means' rounding errors
  float* const rest = rests.data();

  // Measured from the first values of the set a mean loses no digits, however
  // far they are from zero; and the squares are measured from the mean.
  auto first_values = [=](int64_t i) {
    return xs + i / s.examples * s.examples * s.example();
  };
  auto moments = [=](int64_t i) {
    const float* const in = xs + i * s.example();
    float* const mean = means + i * s.channels;
    float* const square = squares + i * s.channels;
    ForChannels(s.channels, [=](auto tile, int64_t c) {
      using T = typename decltype(tile)::Value;
      const auto guess = Row(tile, first_values(i), c);
      Sum<1>(tile, s.size, s.channels, c, {mean}, [&](int64_t at, int k) {
        return std::array<T, 1>{Load<T>(in + at) - guess[k]};
      });
      for (int k = 0; k < tile.wide; ++k) {
        float* const here = mean + c + k * tile.step;
        Store(here, Load<T>(here) / float(s.size));
      }
      const auto off = Row(tile, mean, c);
      Sum<1>(tile, s.size, s.channels, c, {square}, [&](int64_t at, int k) {
        const T centred = (Load<T>(in + at) - guess[k]) - off[k];
        return std::array<T, 1>{centred * centred};
      });
    });
  };
  // The means and squares of the parts give those of the whole (Chan et al.
  // 1979).
  auto pool_moments = [=, mean = mean->typed_data(),
                       var = var->typed_data()](int64_t set) {
    std::vector<double> middle(s.groups), square(s.groups);
    auto each = [&](auto use) {
      for (int64_t i = set * s.examples; i < (set + 1) * s.examples; ++i) {
        const float* const guess = first_values(i);
        const float* const off = means + i * s.channels;
        const float* const own = squares + i * s.channels;
        ForGroups(s, [=](int64_t g, int64_t c) {
          use(g, double(guess[c]) + off[c], own[c]);
        });
      }
    };
    each([&](int64_t g, double mean, float) { middle[g] += mean; });
    for (double& sum : middle) sum /= s.examples * s.width();
    each([&](int64_t g, double mean, float own) {
      square[g] += own + s.size * (mean - middle[g]) * (mean - middle[g]);
    });
    for (int64_t g = 0; g < s.groups; ++g) {
      const int64_t at = set * s.groups + g;
      mean[at] = middle[g];
      rest[at] = middle[g] - mean[at];
      var[at] = square[g] / s.count();
    }
  };
  auto apply = [=, mean = mean->typed_data(), var = var->typed_data(),
                y = y->typed_data(), scale = scale.typed_data(),
                bias = bias.typed_data()](int64_t i) {
    const float* const in = xs + i * s.example();
    float* const out = y + i * s.example();
    std::vector<float> rows(3 * s.channels);
    float* const middle = rows.data();
    float* const beyond = middle + s.channels;
    float* const factor = beyond + s.channels;
    Spread(s, mean, i, middle);
    Spread(s, rest, i, beyond);
    Spread(s, var, i, factor);
    for (int64_t c = 0; c < s.channels; ++c) {
      factor[c] = scale[c] / std::sqrt(factor[c] + epsilon);
    }
    ForChannels(s.channels, [=](auto tile, int64_t c) {
      using T = typename decltype(tile)::Value;
      const auto m = Row(tile, middle, c), r = Row(tile, beyond, c);
      const auto f = Row(tile, factor, c), b = Row(tile, bias, c);
      for (int64_t n = 0; n < s.size; ++n) {
        for (int k = 0; k < tile.wide; ++k) {
          const int64_t at = n * s.channels + c + k * tile.step;
          Store(out + at, ((Load<T>(in + at) - m[k]) - r[k]) * f[k] + b[k]);
        }
      }
    });
  };
  return InTwoPasses(pool, s, moments, pool_moments, apply);
}

ffi::Error Backward(ffi::ThreadPool pool, Array x, Array scale, Array mean,
                    Array var, Array dy, Array dmean, Array dvar,
                    ffi::Result<Array> dx, ffi::Result<Array> dscale,
                    ffi::Result<Array> dbias, int64_t examples, int64_t groups,
                    float epsilon) {
  const Shape s = MakeShape(x, examples, groups);
  const float* const xs = x.typed_data();
  const float* const dys = dy.typed_data();
  const float* const scales = scale.typed_data();
  std::vector<float> all[3];
  float* const ones = Table(all[0], s);  // sums of dy
  float* const along = Table(all[1], s);  // sums of dy times the centred x
  float* const middles = Table(all[2], s);
  const int64_t tables = s.sets() * s.groups;
  std::vector<float> rstds(tables), shifts(tables), slopes(tables);
  for (int64_t i = 0; i < tables; ++i) {
    rstds[i] = 1 / std::sqrt(var.typed_data()[i] + epsilon);
  }
  float* const rstd = rstds.data();
  float* const shift = shifts.data();
  float* const slope = slopes.data();

  auto sums = [=, mean = mean.typed_data()](int64_t i) {
    const float* const in = xs + i * s.example();
    const float* const given = dys + i * s.example();
    float* const middle = middles + i * s.channels;
    Spread(s, mean, i, middle);
    float* const one = ones + i * s.channels;
    float* const other = along + i * s.channels;
    ForChannels(s.channels, [=](auto tile, int64_t c) {
      using T = typename decltype(tile)::Value;
      const auto m = Row(tile, middle, c);
      Sum<2>(tile, s.size, s.channels, c, {one, other},
             [&](int64_t at, int k) {
               const T dy = Load<T>(given + at);
               return std::array<T, 2>{dy, dy * (Load<T>(in + at) - m[k])};
             });
    });
  };
  auto pool_sums = [=, dmean = dmean.typed_data(),
                    dvar = dvar.typed_data()](int64_t set) {
    std::vector<double> flat(s.groups), steep(s.groups);
    for (int64_t i = set * s.examples; i < (set + 1) * s.examples; ++i) {
      const float* const one = ones + i * s.channels;
      const float* const other = along + i * s.channels;
      ForGroups(s, [&](int64_t g, int64_t c) {
        flat[g] += double(one[c]) * scales[c];
        steep[g] += double(other[c]) * scales[c];
      });
    }
    for (int64_t g = 0; g < s.groups; ++g) {
      const int64_t at = set * s.groups + g;
      const double r = rstd[at];
      shift[at] = (dmean[at] - r * flat[g]) / s.count();
      slope[at] = (2 * dvar[at] - r * r * r * steep[g]) / s.count();
    }
  };
  auto apply = [=, dx = dx->typed_data()](int64_t i) {
    const float* const in = xs + i * s.example();
    const float* const given = dys + i * s.example();
    float* const out = dx + i * s.example();
    std::vector<float> rows(3 * s.channels);
    float* const factor = rows.data();
    float* const steep = factor + s.channels;
    float* const off = steep + s.channels;
    Spread(s, rstd, i, factor);
    Spread(s, slope, i, steep);
    Spread(s, shift, i, off);
    for (int64_t c = 0; c < s.channels; ++c) factor[c] *= scales[c];
    const float* const middle = middles + i * s.channels;
    ForChannels(s.channels, [=](auto tile, int64_t c) {
      using T = typename decltype(tile)::Value;
      const auto m = Row(tile, middle, c), f = Row(tile, factor, c);
      const auto t = Row(tile, steep, c), o = Row(tile, off, c);
      for (int64_t n = 0; n < s.size; ++n) {
        for (int k = 0; k < tile.wide; ++k) {
          const int64_t at = n * s.channels + c + k * tile.step;
          const T centred = Load<T>(in + at) - m[k];
          Store(out + at, Load<T>(given + at) * f[k] + centred * t[k] + o[k]);
        }
      }
    });
  };
  ffi::Error error = InTwoPasses(pool, s, sums, pool_sums, apply);
  // The sum is in the order of the examples, whichever thread computed them.
  std::vector<double> to_scale(s.channels), to_bias(s.channels);
  for (int64_t i = 0; i < s.batch; ++i) {
    const float* const set = rstd + i / s.examples * s.groups;
    const float* const one = ones + i * s.channels;
    const float* const other = along + i * s.channels;
    ForGroups(s, [&](int64_t g, int64_t c) {
      to_bias[c] += one[c];
      to_scale[c] += double(other[c]) * set[g];
    });
  }
  std::copy(to_scale.begin(), to_scale.end(), dscale->typed_data());
  std::copy(to_bias.begin(), to_bias.end(), dbias->typed_data());
  return error;
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(WsJaxNormalize, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()  // x
                                  .Arg<Array>()  // scale
                                  .Arg<Array>()  // bias
                                  .Ret<Array>()  // y
                                  .Ret<Array>()  // mean
                                  .Ret<Array>()  // var
                                  .Attr<int64_t>("examples")
                                  .Attr<int64_t>("groups")
                                  .Attr<float>("epsilon"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(WsJaxNormalizeBackward, Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()  // x
                                  .Arg<Array>()  // scale
                                  .Arg<Array>()  // mean
                                  .Arg<Array>()  // var
                                  .Arg<Array>()  // dy
                                  .Arg<Array>()  // dmean
                                  .Arg<Array>()  // dvar
                                  .Ret<Array>()  // dx
                                  .Ret<Array>()  // dscale
                                  .Ret<Array>()  // dbias
                                  .Attr<int64_t>("examples")
                                  .Attr<int64_t>("groups")
                                  .Attr<float>("epsilon"));
