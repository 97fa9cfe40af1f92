// How code that calls oneDNN shares a thread and its memory.

#ifndef WS_JAX_NATIVE_ONEDNN_H_
#define WS_JAX_NATIVE_ONEDNN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

extern "C" int omp_get_max_threads();
extern "C" void omp_set_num_threads(int);

namespace ws_jax {

// oneDNN uses the number of threads that OpenMP has set for the calling thread.
// That thread may be the user's, so its number is put back at the end.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;
};

enum class Use { kPacked, kScratch, kShares, kTotal, kCount };

// Returns memory that a thread keeps for its next call, at least `size` bytes.
inline char* Kept(Use which, size_t size) {
  constexpr size_t kAlign = 64;
  thread_local std::vector<char> kept[static_cast<int>(Use::kCount)];
  std::vector<char>& own = kept[static_cast<int>(which)];
  if (own.size() < size + kAlign) own.resize(size + kAlign);
  auto address = reinterpret_cast<uintptr_t>(own.data());
  return reinterpret_cast<char*>((address + kAlign - 1) / kAlign * kAlign);
}

}  // namespace ws_jax

#endif  // WS_JAX_NATIVE_ONEDNN_H_
