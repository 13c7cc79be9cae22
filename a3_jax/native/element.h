// What keys and values are stored as: float32, or bfloat16 as its bits. Everything is computed in float32.
// Functions are static: files for several instruction sets include this, and none may be given another's copy.
#ifndef A3_JAX_NATIVE_ELEMENT_H_
#define A3_JAX_NATIVE_ELEMENT_H_

#include <cstdint>
#include <cstring>

namespace a3 {

struct BFloat16 {
  std::uint16_t bits;
};

static inline float widen(float value) { return value; }

static inline float widen(BFloat16 value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

static inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace a3

#endif  // A3_JAX_NATIVE_ELEMENT_H_
