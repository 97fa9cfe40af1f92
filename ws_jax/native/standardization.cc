// Weight Standardization of a kernel, for XLA's CPU backend to call.
//
// The formulas are those of `ws_jax.core.numerics`, for a kernel
// [fan-in, filters] in float32. XLA makes a dozen small programs of each pass.
// Here a few neighbouring filters at a time are measured and written while they
// are in a cache. All sums are in float64: where filters are tiny, huge or far
// from zero, nothing cancels, overflows or is lost.
//
// Start reading at `Forward` and `Backward`.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "lanes.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using namespace ws_jax;
using Array = ffi::Buffer<ffi::F32>;

// Neighbouring filters that are worked on together, and as float64.
constexpr int kWide = 4;
constexpr int64_t kTile = kWide * kLanes;
typedef double Exact __attribute__((vector_size(8 * kLanes)));
// Rows from one that is read to the one that is fetched meanwhile.
constexpr int64_t kAhead = 16;
// A kernel with fewer weights than this is no work for two threads.
constexpr int64_t kShare = 1 << 15;

inline Exact Widen(Lanes x) { return __builtin_convertvector(x, Exact); }
inline double Widen(float x) { return x; }
inline Lanes Narrow(Exact x) { return __builtin_convertvector(x, Lanes); }
inline float Narrow(double x) { return static_cast<float>(x); }

// Where eps goes, in the order of `ws_jax.core.conventions.EPS_PLACES`.
enum Place { kVariance, kStd, kFloor, kFloorFanIn };

struct Convention {
  int64_t fan_in, ddof, place, fan_in_scale;
  double eps;

  double count() const { return fan_in - ddof; }
  double scale() const { return fan_in_scale ? 1 / std::sqrt(fan_in) : 1; }
  double floor() const {
    return std::sqrt(place == kFloorFanIn ? eps / fan_in : eps);
  }
  double spread(double std) const {
    if (place == kVariance) return std::sqrt(std * std + eps);
    if (place == kStd) return std + eps;
    // A NaN stays one.
    return std < floor() ? floor() : std;
  }
};

// Numbers of T of neighbouring filters, one for each, times `kWidth`.
template <typename T, int kWidth>
struct Filters {
  using Sum = decltype(Widen(T()));
  using Sums = std::array<Sum, kWidth>;
  static constexpr int step = sizeof(T) / sizeof(float);

  // Calls `use(offset, k)` for each weight of the filters.
  template <typename Use>
  static void EachWeight(int64_t fan_in, int64_t stride, Use use) {
    for (int64_t i = 0; i < fan_in; ++i) {
      for (int k = 0; k < kWidth; ++k) use(i * stride + k * step, k);
    }
  }

  static Sum Read(const float* from) { return Widen(Load<T>(from)); }

  // For what is in no cache yet: they also ask for what is some rows further
  // on. In steps this long the processor does not see what comes next.
  static Sum ReadFirst(const float* from, int64_t stride) {
    __builtin_prefetch(from + kAhead * stride);
    return Read(from);
  }
  static void WriteFirst(float* to, int64_t stride, Sum value) {
    __builtin_prefetch(to + kAhead * stride, 1);
    Store(to, Narrow(value));
  }

  // Calls `use(k, j)` for each filter: the j-th number in the k-th T.
  template <typename Use>
  static void EachFilter(Use use) {
    for (int k = 0; k < kWidth; ++k) {
      for (int j = 0; j < step; ++j) use(k, j);
    }
  }
};

// Returns the number in `sums` that is that of one filter.
template <typename Sums>
double& At(Sums& sums, int k, int j) {
  return reinterpret_cast<double*>(&sums[k])[j];
}

// Calls `work(filters, first)` for groups that cover all filters.
template <typename Work>
std::string InGroups(ffi::ThreadPool& pool, int64_t fan_in, int64_t filters,
                     Work work) {
  auto cover = [=](int64_t tile) {
    int64_t c = tile * kTile;
    const int64_t end = std::min(c + kTile, filters);
    if (c + kTile <= end) {
      work(Filters<Lanes, kWide>(), c);
      return;
    }
    for (; c + kLanes <= end; c += kLanes) work(Filters<Lanes, 1>(), c);
    for (; c < end; ++c) work(Filters<float, 1>(), c);
  };
  const int64_t tiles = (filters + kTile - 1) / kTile;
  if (fan_in * filters >= kShare) return ForEach(pool, tiles, cover);
  for (int64_t i = 0; i < tiles; ++i) cover(i);
  return "";
}

// Returns the means of filters that begin at `from`.
template <typename F>
typename F::Sums Means(F, const float* from, int64_t fan_in, int64_t stride) {
  typename F::Sums sums = {};
  F::EachWeight(fan_in, stride, [&](int64_t at, int k) {
    sums[k] += F::ReadFirst(from + at, stride);
  });
  for (auto& sum : sums) sum /= double(fan_in);
  return sums;
}

ffi::Error Forward(ffi::ThreadPool pool, Array kernel, Array gain,
                   ffi::Result<Array> out, ffi::Result<Array> std, int64_t ddof,
                   float eps, int64_t place, int64_t fan_in_scale) {
  const int64_t fan_in = kernel.dimensions()[0];
  const int64_t filters = kernel.dimensions()[1];
  const Convention c{fan_in, ddof, place, fan_in_scale, eps};
  auto work = [=, from = kernel.typed_data(), gain = gain.typed_data(),
               to = out->typed_data(),
               std = std->typed_data()](auto f, int64_t first) {
    using F = decltype(f);
    const float* const in = from + first;
    const auto mean = Means(f, in, fan_in, filters);
    typename F::Sums factor = {};
    F::EachWeight(fan_in, filters, [&](int64_t at, int k) {
      const auto centred = F::Read(in + at) - mean[k];
      factor[k] += centred * centred;
    });
    F::EachFilter([&](int k, int j) {
      double& number = At(factor, k, j);
      const int64_t filter = first + k * F::step + j;
      const double deviation = std::sqrt(number / c.count());
      std[filter] = static_cast<float>(deviation);
      number = c.scale() * gain[filter] / c.spread(deviation);
    });
    F::EachWeight(fan_in, filters, [&](int64_t at, int k) {
      F::WriteFirst(to + first + at, filters,
                    (F::Read(in + at) - mean[k]) * factor[k]);
    });
  };
  return AsError(InGroups(pool, fan_in, filters, work));
}

ffi::Error Backward(ffi::ThreadPool pool, Array kernel, Array gain, Array dout,
                    Array dstd, ffi::Result<Array> dkernel,
                    ffi::Result<Array> dgain, int64_t ddof, float eps,
                    int64_t place, int64_t fan_in_scale) {
  const int64_t fan_in = kernel.dimensions()[0];
  const int64_t filters = kernel.dimensions()[1];
  const Convention c{fan_in, ddof, place, fan_in_scale, eps};
  // A filter whose deviation is below is constant, and its deviation has no
  // slope.
  const double least = std::sqrt(std::numeric_limits<float>::min());
  auto work = [=, from = kernel.typed_data(), given = dout.typed_data(),
               gain = gain.typed_data(), dstd = dstd.typed_data(),
               to = dkernel->typed_data(),
               dgain = dgain->typed_data()](auto f, int64_t first) {
    using F = decltype(f);
    const float* const in = from + first;
    const float* const dout = given + first;
    const auto mean = Means(f, in, fan_in, filters);
    typename F::Sums flat = {}, along = {}, square = {};
    F::EachWeight(fan_in, filters, [&](int64_t at, int k) {
      const auto centred = F::Read(in + at) - mean[k];
      const auto d = F::ReadFirst(dout + at, filters);
      flat[k] += d;
      along[k] += d * centred;
      square[k] += centred * centred;
    });
    // dkernel = slope * dout + steep * centred + shift
    typename F::Sums slope = {}, steep = {}, shift = {};
    F::EachFilter([&](int k, int j) {
      const int64_t filter = first + k * F::step + j;
      const double std = std::sqrt(At(square, k, j) / c.count());
      const double spread = c.spread(std), unit = c.scale() / spread;
      const bool alive = std > least;
      const double ratio = alive ? spread / std : 0;
      double share = 1;  // of the spread in the growth of the deviation
      if (c.place == kStd) share = ratio;
      if (c.place > kStd) share = spread == std;
      const double to_gain = At(along, k, j) * unit;
      dgain[filter] = static_cast<float>(to_gain);
      const double to_std =
          ratio * dstd[filter] - share * gain[filter] / spread * to_gain;
      At(steep, k, j) = to_std / (c.scale() * c.count()) * unit;
      const double slant = unit * gain[filter];
      At(slope, k, j) = slant;
      At(shift, k, j) = -slant * At(flat, k, j) / fan_in;
    });
    F::EachWeight(fan_in, filters, [&](int64_t at, int k) {
      const auto centred = F::Read(in + at) - mean[k];
      F::WriteFirst(
          to + first + at, filters,
          F::Read(dout + at) * slope[k] + centred * steep[k] + shift[k]);
    });
  };
  return AsError(InGroups(pool, fan_in, filters, work));
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(WsJaxStandardize, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()  // kernel
                                  .Arg<Array>()  // gain
                                  .Ret<Array>()  // out
                                  .Ret<Array>()  // std
                                  .Attr<int64_t>("ddof")
                                  .Attr<float>("eps")
                                  .Attr<int64_t>("place")
                                  .Attr<int64_t>("fan_in_scale"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(WsJaxStandardizeBackward, Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()  // kernel
                                  .Arg<Array>()  // gain
                                  .Arg<Array>()  // dout
                                  .Arg<Array>()  // dstd
                                  .Ret<Array>()  // dkernel
                                  .Ret<Array>()  // dgain
                                  .Attr<int64_t>("ddof")
                                  .Attr<float>("eps")
                                  .Attr<int64_t>("place")
                                  .Attr<int64_t>("fan_in_scale"));
