// Sixteen numbers at a time.

#ifndef WS_JAX_NATIVE_LANES_H_
#define WS_JAX_NATIVE_LANES_H_

#include <cstdint>
#include <cstring>

namespace ws_jax {

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t WholeLanes __attribute__((vector_size(4 * kLanes)));

template <typename T>
T Load(const float* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <typename T>
void Store(float* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}

}  // namespace ws_jax

#endif  // WS_JAX_NATIVE_LANES_H_
