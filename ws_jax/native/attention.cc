// Attention and its gradient, for XLA's CPU backend to call.
//
// For a query q, the keys k_j [channels] that it sees and their values v_j, in
// arrays [B, length, heads, channels] of float32 or bfloat16:
//
//   y = sum_j p_j v_j,  with  p_j = exp(l_j - top) / total
//                       and   l_j = q k_j / sqrt(channels)
//
// XLA moves the heads in front of the tokens, and keeps the p of all queries
// for the backward pass. Here 64 queries of one head meet their keys while both
// are in a cache, and the backward pass computes p again, from `top` (the
// largest l) and `total` (Dao et al. 2022, 2205.14135). Products are oneDNN's,
// and all else is float32 too.
//
// Start reading at `Forward` and `Backward`; each thread takes some of the
// heads, and `ForBlocks` goes over the queries of one.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <utility>

#include <immintrin.h>

#include "lanes.h"
#include "oneapi/dnnl/dnnl.h"
#include "onednn.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using namespace ws_jax;
using Array = ffi::AnyBuffer;
using Table = ffi::Buffer<ffi::F32>;
using Mask = ffi::Buffer<ffi::PRED>;
using Half = uint16_t;  // the bits of a bfloat16

constexpr int64_t kRows = 64;  // queries of a block
constexpr float kHidden = -1e30f;  // l of a key that a query does not see

// Rows of one head that lie `stride` floats apart.
struct Rows {
  float* data;
  int64_t stride;

  float* operator[](int64_t i) const { return data + i * stride; }
  Rows From(int64_t i) const { return {(*this)[i], stride}; }
};

// c = alpha a b + beta c, with c [m, n]; a is [k, m] and b [n, k] if they are
// to be transposed.
void Multiply(bool transpose_a, bool transpose_b, int64_t m, int64_t n,
              int64_t k, float alpha, Rows a, Rows b, float beta, Rows c) {
  dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha,
             a.data, a.stride, b.data, b.stride, beta, c.data, c.stride);
}

// exp(x) for x of at most about 0, to 2e-7 of it; 0 below -87.
Lanes Exp(Lanes x) {
  constexpr float kRound = 12582912.0f;  // adding it leaves whole numbers
  const Lanes least = Lanes{} - 88.0f;
  x = x < least ? least : x;
  const Lanes whole = (x * 1.44269504f + kRound) - kRound;
  const Lanes rest = (x - whole * 0.693145752f) - whole * 1.42860677e-6f;
  Lanes power = rest * (1 / 720.0f) + 1 / 120.0f;
  for (float term : {1 / 24.0f, 1 / 6.0f, 0.5f, 1.0f, 1.0f}) {
    power = power * rest + term;
  }
  const WholeLanes bits = (__builtin_convertvector(whole, WholeLanes) + 127)
                          << 23;
  Lanes factor;
  std::memcpy(&factor, &bits, sizeof(factor));
  return power * factor;
}

// The keys that one query sees: of the first `seen` those that `mask` has.
struct Sight {
  const bool* mask;
  int64_t seen;

  // Returns the l of sixteen keys from j on: kHidden for those that the query
  // does not see, and -infinity behind the last one.
  Lanes operator()(const float* row, int64_t j) const {
    const int64_t left = seen - j;
    const __mmask16 some = left < kLanes ? (1 << left) - 1 : 0xffff;
    const __m128i bytes = _mm_maskz_loadu_epi8(some, mask + j);
    const Lanes none = Lanes{} - std::numeric_limits<float>::infinity();
    const Lanes hides = _mm512_mask_blend_ps(some, none, Lanes{} + kHidden);
    return _mm512_mask_blend_ps(_mm_test_epi8_mask(bytes, bytes), hides,
                                Load<Lanes>(row + j));
  }
};

// Replaces the l of a query by exp(l - top); returns top and their total.
std::pair<float, float> Soften(const Sight& sight, float* row) {
  Lanes most = Lanes{} - std::numeric_limits<float>::infinity(), sum{};
  for (int64_t j = 0; j < sight.seen; j += kLanes) {
    const Lanes l = sight(row, j);
    Store(row + j, l);
    most = most < l ? l : most;
  }
  const float top = _mm512_reduce_max_ps(most);
  for (int64_t j = 0; j < sight.seen; j += kLanes) {
    const Lanes odds = Exp(Load<Lanes>(row + j) - top);
    Store(row + j, odds);
    sum += odds;
  }
  return {top, _mm512_reduce_add_ps(sum)};
}

// Replaces the l of a query by p, and the slopes by p of those by l, which are
// p (slope - sum of p slope), if `top` and `total` are known.
void Slope(const Sight& sight, float top, float total, float* row,
           float* slopes) {
  const float factor = 1 / total;
  Lanes along{};
  for (int64_t j = 0; j < sight.seen; j += kLanes) {
    const Lanes p = Exp(sight(row, j) - top) * factor;
    Store(row + j, p);
    along += p * Load<Lanes>(slopes + j);
  }
  const float mean = _mm512_reduce_add_ps(along);
  for (int64_t j = 0; j < sight.seen; j += kLanes) {
    Store(slopes + j,
          Load<Lanes>(row + j) * (Load<Lanes>(slopes + j) - mean));
  }
}

struct Shape {
  int64_t batch, queries, keys, heads, channels;
  int64_t masks, mask_rows;  // 1 each where they are the same for all
  bool causal;  // whether no query sees a later key

  int64_t items() const { return batch * heads; }  // heads of all texts
  float scale() const { return 1 / std::sqrt(float(channels)); }
  // Number of keys that some query before `stop` sees.
  int64_t seen(int64_t stop) const { return causal ? stop : keys; }
  // Returns which of the first `seen` keys one query of an item sees.
  Sight sight(const bool* mask, int64_t item, int64_t query,
              int64_t seen) const {
    const int64_t text = item / heads * masks / batch;
    const int64_t row = text * mask_rows + (mask_rows > 1 ? query : 0);
    return {mask + row * keys, seen};
  }
  // Number of floats between the l of two queries.
  int64_t stride() const { return (keys + kLanes - 1) / kLanes * kLanes; }
};

void Convert(float from, float& to) { to = from; }

void Convert(Half from, float& to) {
  const uint32_t bits = uint32_t{from} << 16;
  std::memcpy(&to, &bits, sizeof(to));
}

// Rounds to the nearest bfloat16, of two as near to the even one.
void Convert(float from, Half& to) {
  uint32_t bits;
  std::memcpy(&bits, &from, sizeof(bits));
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
  to = (from == from ? rounded : bits | 0x400000) >> 16;
}

// The rows of one head in an array [B, length, heads, channels], copied as
// float32 to `free`, which is moved behind them: products of rows that lie
// together are faster.
template <typename T>
class Head {
 public:
  Head(const Shape& s, T* array, int64_t length, int64_t item, float*& free)
      : length_(length),
        channels_(s.channels),
        width_(s.heads * s.channels),
        array_(array + item / s.heads * length * width_ +
               item % s.heads * s.channels),
        rows_{free, s.channels} {
    free += length * channels_;
  }

  Rows rows() const { return rows_; }

  Rows Read() const {
    ForRows([this](T* there, float* here) {
      for (int64_t c = 0; c < channels_; ++c) Convert(there[c], here[c]);
    });
    return rows_;
  }

  Rows Zero() const {
    std::fill_n(rows_.data, length_ * channels_, 0.0f);
    return rows_;
  }

  void Write() const {
    ForRows([this](T* there, float* here) {
      for (int64_t c = 0; c < channels_; ++c) Convert(here[c], there[c]);
    });
  }

 private:
  template <typename Use>
  void ForRows(Use use) const {
    for (int64_t i = 0; i < length_; ++i) use(array_ + i * width_, rows_[i]);
  }

  int64_t length_, channels_, width_;
  T* array_;
  Rows rows_;
};

// Calls `use(start, count, seen)` for each block of queries: its first one,
// their number, and the number of keys that any of them sees.
template <typename Use>
void ForBlocks(const Shape& s, Use use) {
  for (int64_t start = 0; start < s.queries; start += kRows) {
    const int64_t stop = std::min(start + kRows, s.queries);
    use(start, stop - start, s.seen(stop));
  }
}

Shape MakeShape(const Array& q, const Array& k, const Mask& mask,
                int64_t parts) {
  auto dims = q.dimensions(), hides = mask.dimensions();
  return {dims[0], dims[1], k.dimensions()[1], dims[2], dims[3],
          hides[0], hides[2], parts > 1};
}

// Calls `work(item, free)` for each head of each text; `free` is memory for two
// blocks, and for the rows of a head in `arrays` arrays.
template <typename Work>
ffi::Error ForItems(ffi::ThreadPool& pool, const Shape& s, int64_t arrays,
                    Work work) {
  const int64_t floats = 2 * kRows * s.stride() +
                         arrays * std::max(s.queries, s.keys) * s.channels;
  return AsError(ForEach(pool, s.items(), [=](int64_t item) {
    OneThread one;
    work(item, reinterpret_cast<float*>(Kept(Use::kScratch, 4 * floats)));
  }));
}

template <typename T>
T* Data(const Array& array) {
  return static_cast<T*>(array.untyped_data());
}

template <typename T>
ffi::Error Forward(ffi::ThreadPool& pool, const Shape& s, T* q, T* k, T* v,
                   const bool* mask, T* y, float* tops, float* totals) {
  return ForItems(pool, s, 4, [=](int64_t item, float* free) {
    const Rows logits{free, s.stride()};
    free += kRows * s.stride();
    const Rows queries = Head<T>(s, q, s.queries, item, free).Read();
    const Rows keys = Head<T>(s, k, s.keys, item, free).Read();
    const Rows values = Head<T>(s, v, s.keys, item, free).Read();
    const Head<T> result(s, y, s.queries, item, free);
    const Rows sums = result.rows();
    ForBlocks(s, [&](int64_t start, int64_t count, int64_t seen) {
      Multiply(false, true, count, seen, s.channels, s.scale(),
               queries.From(start), keys, 0, logits);
      float* const top = tops + item * s.queries + start;
      float* const total = totals + item * s.queries + start;
      for (int64_t i = 0; i < count; ++i) {
        const Sight sight = s.sight(mask, item, start + i, seen);
        std::tie(top[i], total[i]) = Soften(sight, logits[i]);
      }
      Multiply(false, false, count, s.channels, seen, 1, logits, values, 0,
               sums.From(start));
      for (int64_t i = 0; i < count; ++i) {
        float* const row = sums[start + i];
        const float by = total[i];
        for (int64_t c = 0; c < s.channels; ++c) row[c] /= by;
      }
    });
    result.Write();
  });
}

template <typename T>
ffi::Error Backward(ffi::ThreadPool& pool, const Shape& s, T* q, T* k, T* v,
                    const bool* mask, const float* tops, const float* totals,
                    T* dy, T* dq, T* dk, T* dv) {
  return ForItems(pool, s, 7, [=](int64_t item, float* free) {
    const Rows p{free, s.stride()};
    free += kRows * s.stride();
    const Rows slopes{free, s.stride()};
    free += kRows * s.stride();
    const Rows queries = Head<T>(s, q, s.queries, item, free).Read();
    const Rows keys = Head<T>(s, k, s.keys, item, free).Read();
    const Rows values = Head<T>(s, v, s.keys, item, free).Read();
    const Rows given = Head<T>(s, dy, s.queries, item, free).Read();
    const Head<T> to_q(s, dq, s.queries, item, free);
    const Head<T> to_k(s, dk, s.keys, item, free);
    const Head<T> to_v(s, dv, s.keys, item, free);
    const Rows by_q = to_q.rows(), by_k = to_k.Zero(), by_v = to_v.Zero();
    ForBlocks(s, [&](int64_t start, int64_t count, int64_t seen) {
      const Rows some = queries.From(start);
      const Rows cotangents = given.From(start);
      Multiply(false, true, count, seen, s.channels, s.scale(), some, keys, 0,
               p);
      Multiply(false, true, count, seen, s.channels, 1, cotangents, values, 0,
               slopes);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = item * s.queries + start + i;
        std::fill(slopes[i] + seen, slopes[i] + s.stride(), 0.0f);
        Slope(s.sight(mask, item, start + i, seen), tops[at], totals[at], p[i],
              slopes[i]);
      }
      Multiply(true, false, seen, s.channels, count, 1, p, cotangents, 1, by_v);
      Multiply(false, false, count, s.channels, seen, s.scale(), slopes, keys,
               0, by_q.From(start));
      Multiply(true, false, seen, s.channels, count, s.scale(), slopes, some, 1,
               by_k);
    });
    to_q.Write(), to_k.Write(), to_v.Write();
  });
}

ffi::Error Attend(ffi::ThreadPool pool, Array q, Array k, Array v, Mask mask,
                  ffi::Result<Array> y, ffi::Result<Table> top,
                  ffi::Result<Table> total, int64_t parts) {
  const Shape s = MakeShape(q, k, mask, parts);
  auto run = [&](auto zero) {
    using T = decltype(zero);
    return Forward(pool, s, Data<T>(q), Data<T>(k), Data<T>(v),
                   mask.typed_data(), Data<T>(*y), top->typed_data(),
                   total->typed_data());
  };
  return q.element_type() == ffi::BF16 ? run(Half{}) : run(float{});
}

ffi::Error AttendBackward(ffi::ThreadPool pool, Array q, Array k, Array v,
                          Mask mask, Table top, Table total, Array dy,
                          ffi::Result<Array> dq, ffi::Result<Array> dk,
                          ffi::Result<Array> dv, int64_t parts) {
  const Shape s = MakeShape(q, k, mask, parts);
  auto run = [&](auto zero) {
    using T = decltype(zero);
    return Backward(pool, s, Data<T>(q), Data<T>(k), Data<T>(v),
                    mask.typed_data(), top.typed_data(), total.typed_data(),
                    Data<T>(dy), Data<T>(*dq), Data<T>(*dk), Data<T>(*dv));
  };
  return q.element_type() == ffi::BF16 ? run(Half{}) : run(float{});
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(WsJaxAttend, Attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()  // q
                                  .Arg<Array>()  // k
                                  .Arg<Array>()  // v
                                  .Arg<Mask>()
                                  .Ret<Array>()  // y
                                  .Ret<Table>()  // top
                                  .Ret<Table>()  // total
                                  .Attr<int64_t>("parts"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(WsJaxAttendBackward, AttendBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()  // q
                                  .Arg<Array>()  // k
                                  .Arg<Array>()  // v
                                  .Arg<Mask>()
                                  .Arg<Table>()  // top
                                  .Arg<Table>()  // total
                                  .Arg<Array>()  // dy
                                  .Ret<Array>()  // dq
                                  .Ret<Array>()  // dk
                                  .Ret<Array>()  // dv
                                  .Attr<int64_t>("parts"));
