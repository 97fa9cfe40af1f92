// Convolutions by oneDNN, for XLA's CPU backend to call.
//
// y = convolution(x, kernel), with x [N, spatial..., C], kernel [spatial...,
// C / groups, O] and y [N, spatial..., O]. One handler serves the three maps
// that are linear in each argument: `result` says which of y (0), x (1) and
// kernel (2) is computed from the other two. All three are float32 or all
// bfloat16; sums are float32.
//
// The examples are split over XLA's own threads, and oneDNN computes each part
// with one thread. Threads of oneDNN's own would compete with XLA's for the
// cores, or sleep, and waking one takes longer than a small convolution.
//
// Start reading at `Convolve`, then `Run` (all parts), then `Compute` (one).

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "onednn.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using namespace ws_jax;
using dnnl::memory;
using Dims = memory::dims;
using Type = memory::data_type;
using Array = ffi::AnyBuffer;

enum Result : int64_t { kOutput = 0, kInput = 1, kKernel = 2 };

dnnl::engine& Engine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::stream& Stream() {
  thread_local dnnl::stream stream(Engine());
  return stream;
}

// All that a oneDNN primitive depends on; x and y are those of one part.
struct Geometry {
  Result result;
  Type type;
  Dims x, kernel, y, strides, low, high, dilation;
  int64_t groups;
};

bool operator<(const Geometry& a, const Geometry& b) {
  auto tie = [](const Geometry& g) {
    return std::tie(g.result, g.type, g.x, g.kernel, g.y, g.strides, g.low,
                    g.high, g.dilation, g.groups);
  };
  return tie(a) < tie(b);
}

struct Plan {
  dnnl::primitive convolution;
  dnnl::reorder reorder;  // of the kernel, between JAX's layout and oneDNN's
  memory::desc x, y, plain, packed, scratch;
};

// Appends the spatial dimensions of `shape`, of which the last has the stride
// `step`; returns the stride of the dimension before them.
int64_t AddSpatial(Dims::const_iterator begin, Dims::const_iterator end,
                   int64_t step, Dims& dims, Dims& strides) {
  const size_t first = dims.size();
  dims.insert(dims.end(), begin, end);
  strides.resize(dims.size());
  for (size_t i = dims.size(); i > first; --i) {
    strides[i - 1] = step;
    step *= dims[i - 1];
  }
  return step;
}

// Describes [N, spatial..., C] in memory, which oneDNN calls
// [N, C, spatial...].
memory::desc Images(const Dims& shape, Type type) {
  Dims dims{shape.front(), shape.back()}, strides{0, 1};
  strides[0] = AddSpatial(shape.begin() + 1, shape.end() - 1, shape.back(),
                          dims, strides);
  return {dims, type, strides};
}

// Describes [spatial..., I, O] in memory, which oneDNN calls
// [groups, O / groups, I, spatial...].
std::pair<Dims, memory::desc> Kernel(const Dims& shape, int64_t groups,
                                     Type type) {
  const int64_t outputs = shape.back(), inputs = shape[shape.size() - 2];
  Dims dims{outputs / groups, inputs}, strides{1, outputs};
  if (groups > 1) {
    dims.insert(dims.begin(), groups);
    strides.insert(strides.begin(), outputs / groups);
  }
  AddSpatial(shape.begin(), shape.end() - 2, inputs * outputs, dims, strides);
  return {dims, {dims, type, strides}};
}

Plan MakePlan(const Geometry& g) {
  const auto algorithm = dnnl::algorithm::convolution_direct;
  memory::desc x = Images(g.x, g.type), y = Images(g.y, g.type);
  // What the parts give for the kernel is summed before it is rounded.
  auto [dims, plain] =
      Kernel(g.kernel, g.groups, g.result == kKernel ? Type::f32 : g.type);
  memory::desc any(dims, g.type, memory::format_tag::any);
  memory::desc sums(dims, Type::f32, memory::format_tag::any);
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  auto plan = [&](const auto& desc, dnnl::query kernel) {
    memory::desc packed = desc.query_md(kernel);
    auto [from, to] = g.result == kKernel ? std::pair(packed, plain)
                                          : std::pair(plain, packed);
    dnnl::reorder::primitive_desc reorder(Engine(), from, Engine(), to);
    return Plan{dnnl::primitive(desc), dnnl::reorder(reorder), x, y, plain,
                packed, desc.scratchpad_desc()};
  };
  dnnl::convolution_forward::primitive_desc forward(
      Engine(), dnnl::prop_kind::forward_training, algorithm, x, any, y,
      g.strides, g.dilation, g.low, g.high, attr);
  if (g.result == kOutput) return plan(forward, dnnl::query::weights_md);
  if (g.result == kInput) {
    dnnl::convolution_backward_data::primitive_desc backward(
        Engine(), algorithm, x, any, y, g.strides, g.dilation, g.low, g.high,
        forward, attr);
    return plan(backward, dnnl::query::weights_md);
  }
  dnnl::convolution_backward_weights::primitive_desc backward(
      Engine(), algorithm, x, sums, y, g.strides, g.dilation, g.low, g.high,
      forward, attr);
  return plan(backward, dnnl::query::diff_weights_md);
}

const Plan& GetPlan(const Geometry& geometry) {
  static auto& plans = *new std::map<Geometry, Plan>();
  static auto& mutex = *new std::mutex();
  std::lock_guard<std::mutex> lock(mutex);
  auto found = plans.find(geometry);
  if (found == plans.end()) {
    found = plans.emplace(geometry, MakePlan(geometry)).first;
  }
  return found->second;
}

Dims ToDims(ffi::Span<const int64_t> span) {
  return Dims(span.begin(), span.end());
}

memory Place(const memory::desc& desc, void* address) {
  return memory(desc, Engine(), address);
}

int64_t Size(const Dims& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1},
                         std::multiplies<int64_t>());
}

// Computes one part, in one thread.
void Compute(const Plan& plan, Result result, char* x, char* kernel, char* y) {
  auto kept = [](Use use, const memory::desc& desc) {
    return Place(desc, Kept(use, desc.get_size()));
  };
  memory plain = Place(plan.plain, kernel);
  memory packed = kept(Use::kPacked, plan.packed);
  memory scratch = kept(Use::kScratch, plan.scratch);
  if (result != kKernel) plan.reorder.execute(Stream(), plain, packed);
  plan.convolution.execute(
      Stream(),
      {{result == kInput ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, Place(plan.x, x)},
       {result == kKernel ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, packed},
       {result == kOutput ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, Place(plan.y, y)},
       {DNNL_ARG_SCRATCHPAD, scratch}});
  if (result == kKernel) plan.reorder.execute(Stream(), packed, plain);
}

// Computes all parts, and sums what they give for the kernel.
ffi::Error Run(ffi::ThreadPool& pool, Geometry g, char* x, char* kernel,
               char* y) {
  const int64_t examples = g.x[0], count = Parts(pool, examples);
  const int64_t width = memory::data_type_size(g.type);
  const int64_t x_size = Size(g.x) / examples * width;
  const int64_t y_size = Size(g.y) / examples * width;
  auto first = [&](int64_t part) { return Start(examples, part, count); };
  std::vector<const Plan*> plans;
  for (int64_t i = 0; i < count; ++i) {
    g.x[0] = g.y[0] = first(i + 1) - first(i);
    plans.push_back(&GetPlan(g));
  }
  // Each part writes a kernel gradient of its own, in float32; that of the first
  // part becomes the sum.
  const int64_t size = Size(g.kernel);
  const int64_t others = g.result == kKernel ? (count - 1) * size : 0;
  const bool rounds = g.result == kKernel && g.type != Type::f32;
  char* total = rounds ? Kept(Use::kTotal, 4 * size) : kernel;
  char* shares = Kept(Use::kShares, 4 * others);
  auto share = [&](int64_t i) {
    return i && others ? shares + 4 * (i - 1) * size : total;
  };
  std::string error = Split(pool, count, [&](int64_t i) {
    OneThread one;
    Compute(*plans[i], g.result, x + first(i) * x_size, share(i),
            y + first(i) * y_size);
  });
  if (!error.empty()) return AsError(error);
  // The sum is in the order of the examples, whichever thread computes it.
  auto sum = reinterpret_cast<float*>(total);
  auto added = reinterpret_cast<const float*>(shares);
  const int64_t ranges = std::clamp<int64_t>(others >> 18, 1, count);
  Split(pool, ranges, [&](int64_t range) {
    const int64_t end = Start(size, range + 1, ranges);
    for (int64_t from = 0; from < others; from += size) {
      for (int64_t j = Start(size, range, ranges); j < end; ++j) {
        sum[j] += added[from + j];
      }
    }
  });
  if (rounds) {
    memory from = Place({{size}, Type::f32, Dims{1}}, total);
    memory to = Place({{size}, g.type, Dims{1}}, kernel);
    dnnl::reorder(from, to).execute(Stream(), from, to);
  }
  return ffi::Error::Success();
}

ffi::Error Convolve(ffi::ThreadPool pool, Array a, Array b,
                    ffi::Result<Array> out, int64_t result,
                    ffi::Span<const int64_t> strides,
                    ffi::Span<const int64_t> low, ffi::Span<const int64_t> high,
                    ffi::Span<const int64_t> dilation, int64_t groups) {
  // The arguments a and b are the two of x, kernel and y that are given.
  Array& x = result == kInput ? *out : a;
  Array& kernel = result == kKernel ? *out : b;
  Array& y = result == kOutput ? *out : result == kInput ? a : b;
  const bool narrow = x.element_type() == ffi::BF16;
  Geometry geometry{static_cast<Result>(result),
                    narrow ? Type::bf16 : Type::f32,
                    ToDims(x.dimensions()),
                    ToDims(kernel.dimensions()),
                    ToDims(y.dimensions()),
                    ToDims(strides),
                    ToDims(low),
                    ToDims(high),
                    ToDims(dilation),
                    groups};
  try {
    OneThread one;
    auto bytes = [](Array& a) { return static_cast<char*>(a.untyped_data()); };
    return Run(pool, std::move(geometry), bytes(x), bytes(kernel), bytes(y));
  } catch (const std::exception& error) {
    return AsError(error.what());
  }
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(WsJaxConvolve, Convolve,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("result")
                                  .Attr<ffi::Span<const int64_t>>("strides")
                                  .Attr<ffi::Span<const int64_t>>("low")
                                  .Attr<ffi::Span<const int64_t>>("high")
                                  .Attr<ffi::Span<const int64_t>>("dilation")
                                  .Attr<int64_t>("groups"));
