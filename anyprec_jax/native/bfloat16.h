// bfloat16 as its bits.
#ifndef ANYPREC_JAX_NATIVE_BFLOAT16_H_
#define ANYPREC_JAX_NATIVE_BFLOAT16_H_

#include <cstdint>
#include <cstring>

namespace anyprec {
namespace {

inline float from_bfloat16(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline std::uint16_t to_bfloat16(float value) {  // to nearest, ties to even
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<std::uint16_t>(is_nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace
}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_BFLOAT16_H_
