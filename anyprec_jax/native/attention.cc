#include "attention.h"

#include <cmath>
#include <cstring>
#include <limits>

// Plain loops that compilers vectorize, compiled once for every x86-64 and once for AVX2; the loader picks. (By feature: a clone for an
// architecture by name runs on that one only.) Comparisons of floats keep GCC from it, unless it is told that nothing traps: CMakeLists.txt.
#if defined(ANYPREC_X86) && defined(__linux__)
#define ANYPREC_CLONES __attribute__((target_clones("default", "avx2")))
#else
#define ANYPREC_CLONES
#endif

namespace anyprec {
namespace {

// exp(x) for x <= 0, to 2 units in the last place; 0 below -87. In the manner of Cephes: 2^n times a polynomial, without branches, so
// that loops over it vectorize.
inline __attribute__((always_inline)) float exp_of_negative(float x) {
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

// The compiler may not reorder a sum of floats: this many run side by side.
constexpr std::int64_t kLanes = 16;

// scores[t] becomes exp(scores[t]) / sum of them, or NaN where the largest is not finite, or a NaN among them.
inline __attribute__((always_inline)) void softmax(float* scores, std::int64_t length) {
  const std::int64_t full = length - length % kLanes;
  float largest = -std::numeric_limits<float>::infinity(), poison = 0.0f, sum = 0.0f;
  float lanes[kLanes] = {}, poisons[kLanes] = {};
  for (std::int64_t t = 0; t < length; ++t) largest = scores[t] > largest ? scores[t] : largest;
  for (std::int64_t t = 0; t < full; t += kLanes)
    for (std::int64_t i = 0; i < kLanes; ++i) poisons[i] += scores[t + i] * 0.0f;
  for (std::int64_t t = full; t < length; ++t) poison += scores[t] * 0.0f;
  for (std::int64_t t = 0; t < length; ++t) scores[t] = exp_of_negative(scores[t] - largest);
  for (std::int64_t t = 0; t < full; t += kLanes)
    for (std::int64_t i = 0; i < kLanes; ++i) lanes[i] += scores[t + i];
  for (std::int64_t t = full; t < length; ++t) sum += scores[t];
  for (std::int64_t i = 0; i < kLanes; ++i) sum += lanes[i] + poisons[i];
  const float scale = 1.0f / (sum + poison);
  for (std::int64_t t = 0; t < length; ++t) scores[t] *= scale;
}

// Four rows of addends at a time: each element of the sums is loaded and stored once for them.
constexpr std::int64_t kRowsAtOnce = 4;

inline __attribute__((always_inline)) void add_rows(float* __restrict sums, const float* factors, const float* rows, std::int64_t stride,
                                                    std::int64_t num_rows, std::int64_t columns) {
  if (num_rows == kRowsAtOnce) {
    const float f0 = factors[0], f1 = factors[1], f2 = factors[2], f3 = factors[3];
    const float *r0 = rows, *r1 = rows + stride, *r2 = rows + 2 * stride, *r3 = rows + 3 * stride;
    for (std::int64_t i = 0; i < columns; ++i) sums[i] += (f0 * r0[i] + f1 * r1[i]) + (f2 * r2[i] + f3 * r3[i]);
  } else {
    for (std::int64_t row = 0; row < num_rows; ++row)
      for (std::int64_t i = 0; i < columns; ++i) sums[i] += factors[row] * rows[row * stride + i];
  }
}

// Of the next rows, into the second-level cache: the first has too few places for eight rows of a page each.
inline void prefetch_rows(const float* rows, std::int64_t stride, std::int64_t num_rows, std::int64_t columns) {
  constexpr std::int64_t kLine = 16;  // floats
  for (std::int64_t row = 0; row < num_rows; ++row)
    for (std::int64_t i = 0; i < columns; i += kLine) __builtin_prefetch(rows + row * stride + i, 0, 2);
}

inline std::int64_t at_most(std::int64_t limit, std::int64_t value) { return value < limit ? value : limit; }

// scratch[q][t] = query[q] . key of position t.
inline __attribute__((always_inline)) void score(const AttentionHead& head) {
  constexpr std::int64_t kBlock = 256;  // positions: their scores and rows of keys stay in the first-level cache for all queries
  std::memset(head.scratch, 0, head.queries * head.length * sizeof(float));
  for (std::int64_t first = 0; first < head.length; first += kBlock)
    for (std::int64_t d = 0; d < head.head_dim; d += kRowsAtOnce) {
      const std::int64_t count = at_most(kBlock, head.length - first), rows = at_most(kRowsAtOnce, head.head_dim - d);
      const float* keys = head.keys + d * head.room + first;
      prefetch_rows(keys + kRowsAtOnce * head.room, head.room, at_most(kRowsAtOnce, head.head_dim - d - rows), count);
      for (std::int64_t q = 0; q < head.queries; ++q)
        add_rows(head.scratch + q * head.length + first, head.query + q * head.head_dim + d, keys, head.room, rows, count);
    }
}

// out[q] = the sum of scratch[q][t] times the value of position t.
inline __attribute__((always_inline)) void mix(const AttentionHead& head) {
  std::memset(head.out, 0, head.queries * head.head_dim * sizeof(float));
  for (std::int64_t t = 0; t < head.length; t += kRowsAtOnce)
    for (std::int64_t q = 0; q < head.queries; ++q)
      add_rows(head.out + q * head.head_dim, head.scratch + q * head.length + t, head.values + t * head.head_dim, head.head_dim,
               at_most(kRowsAtOnce, head.length - t), head.head_dim);
}

}  // namespace

ANYPREC_CLONES void attend(const AttentionHead& head) {
  score(head);
  for (std::int64_t q = 0; q < head.queries; ++q) softmax(head.scratch + q * head.length, head.length);
  mix(head);
}

}  // namespace anyprec
