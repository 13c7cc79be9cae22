#include "attention.h"

#include <cmath>
#include <cstring>
#include <limits>

// Plain loops that compilers vectorize, compiled once for every x86-64 and once for AVX2; the loader picks.
#if defined(ANYPREC_X86) && defined(__linux__)
#define ANYPREC_CLONES __attribute__((target_clones("default", "arch=haswell")))
#else
#define ANYPREC_CLONES
#endif

namespace anyprec {
namespace {

// exp(x) for x <= 0, to 2 units in the last place; 0 below -87. In the manner of Cephes: 2^n times a polynomial, without branches, so
// that loops over it vectorize.
inline float exp_of_negative(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + 0x1.8p23f;  // the integer is in the low bits
  const float n = shifted - 0x1.8p23f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  std::int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const std::int32_t power_bits = (bits << 23) + (127 << 23);
  float power;
  std::memcpy(&power, &power_bits, sizeof power);
  return x < -87.0f ? 0.0f : p * power;
}

}  // namespace

ANYPREC_CLONES void attend(const AttentionHead& head) {
  const std::int64_t length = head.length, head_dim = head.head_dim;
  for (std::int64_t q = 0; q < head.queries; ++q) {
    float* scores = head.scratch + q * length;
    std::memset(scores, 0, length * sizeof(float));
  }
  for (std::int64_t d = 0; d < head_dim; ++d) {  // a row of keys stays in the L1 cache for all queries
    const float* row = head.keys + d * head.room;
    for (std::int64_t q = 0; q < head.queries; ++q) {
      float* scores = head.scratch + q * length;
      const float factor = head.query[q * head_dim + d];
      for (std::int64_t t = 0; t < length; ++t) scores[t] += factor * row[t];
    }
  }
  for (std::int64_t q = 0; q < head.queries; ++q) {
    float* scores = head.scratch + q * length;
    float largest = -std::numeric_limits<float>::infinity();
    for (std::int64_t t = 0; t < length; ++t) largest = scores[t] > largest ? scores[t] : largest;
    // Not finite: NaN in the scores or an infinite score, and the result is NaN, as that of a softmax is.
    float poison = 0.0f;
    for (std::int64_t t = 0; t < length; ++t) poison += scores[t] * 0.0f;
    float sums[8] = {};
    std::int64_t t = 0;
    for (; t + 8 <= length; t += 8)
      for (int i = 0; i < 8; ++i) sums[i] += scores[t + i] = exp_of_negative(scores[t + i] - largest);
    for (; t < length; ++t) sums[0] += scores[t] = exp_of_negative(scores[t] - largest);
    const float sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])) + poison;
    for (t = 0; t < length; ++t) scores[t] /= sum;
    std::memset(head.out + q * head_dim, 0, head_dim * sizeof(float));
  }
  for (std::int64_t t = 0; t < length; ++t) {
    const float* value = head.values + t * head_dim;
    for (std::int64_t q = 0; q < head.queries; ++q) {
      const float weight = head.scratch[q * length + t];
      float* out = head.out + q * head_dim;
      for (std::int64_t d = 0; d < head_dim; ++d) out[d] += weight * value[d];
    }
  }
}

}  // namespace anyprec
