// Splits work into parts for XLA's own threads.

#ifndef WS_JAX_NATIVE_THREADS_H_
#define WS_JAX_NATIVE_THREADS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace ws_jax {

// The parts of one call: a thread that is free takes the next one.
template <typename Part>
class Work {
 public:
  Work(Part part, int64_t count) : part_(std::move(part)), count_(count) {}

  void Help() {
    int64_t i;
    while ((i = next_++) < count_) {
      try {
        part_(i);
      } catch (const std::exception& error) {
        std::lock_guard<std::mutex> lock(mutex_);
        error_ = error.what();
      }
      ++done_;
    }
  }

  // Waits without sleeping: parts are of equal size, so the last ones end
  // together, and waking a thread takes longer than a small part.
  std::string Wait() {
    for (int turns = 0; done_ < count_; ++turns) {
      if (turns > 10000) std::this_thread::yield();
    }
    std::lock_guard<std::mutex> lock(mutex_);
    return error_;
  }

 private:
  Part part_;
  int64_t count_;
  std::atomic<int64_t> next_{0}, done_{0};
  std::mutex mutex_;
  std::string error_;
};

// Calls `part` for 0 to `count` - 1; returns an error's message, or "".
template <typename Part>
std::string Split(xla::ffi::ThreadPool& pool, int64_t count, Part part) {
  auto work = std::make_shared<Work<Part>>(std::move(part), count);
  for (int64_t i = 1; i < count; ++i) pool.Schedule([work] { work->Help(); });
  work->Help();
  return work->Wait();
}

// Returns the number of parts that `size` things are best split into.
inline int64_t Parts(const xla::ffi::ThreadPool& pool, int64_t size) {
  return std::clamp<int64_t>(pool.num_threads(), 1, std::max<int64_t>(size, 1));
}

// Returns where part `i` of `size` things begins, and the one before it ends.
inline int64_t Start(int64_t size, int64_t i, int64_t parts) {
  return size * i / parts;
}

// Calls `work` for 0 to `size` - 1, neighbours in one thread; returns what
// `Split` does.
template <typename Work>
std::string ForEach(xla::ffi::ThreadPool& pool, int64_t size, Work work) {
  const int64_t parts = Parts(pool, size);
  return Split(pool, parts, [=](int64_t part) {
    const int64_t end = Start(size, part + 1, parts);
    for (int64_t i = Start(size, part, parts); i < end; ++i) work(i);
  });
}

inline xla::ffi::Error AsError(const std::string& message) {
  if (message.empty()) return xla::ffi::Error::Success();
  return xla::ffi::Error(xla::ffi::ErrorCode::kInternal, message);
}

}  // namespace ws_jax

#endif  // WS_JAX_NATIVE_THREADS_H_
