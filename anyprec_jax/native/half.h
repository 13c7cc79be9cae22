// fp16 without float arithmetic on tiny inputs: XLA's threads treat subnormal floats as zero, and centroids below 2^-14, subnormal in
// fp16, are common in real weights.
#ifndef ANYPREC_JAX_NATIVE_HALF_H_
#define ANYPREC_JAX_NATIVE_HALF_H_

#include <cstdint>
#include <cstring>

namespace anyprec {
namespace {

// Without branches, so that loops over it vectorize.
inline float half_to_float(std::uint16_t half) {
  const std::int32_t magnitude = half & 0x7fff;
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  std::int32_t subnormal_bits;
  std::memcpy(&subnormal_bits, &subnormal, sizeof subnormal_bits);
  const std::int32_t is_subnormal = -(magnitude < 0x0400), is_finite = -(magnitude < 0x7c00);  // 0 or all ones
  const std::int32_t normal_bits = (magnitude << 13) + (112 << 23) + (~is_finite & (112 << 23));
  const std::uint32_t bits = static_cast<std::uint32_t>(half & 0x8000) << 16 |
                             static_cast<std::uint32_t>((is_subnormal & subnormal_bits) | (~is_subnormal & normal_bits));
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace
}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_HALF_H_
