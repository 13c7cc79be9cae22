// Activations as the vector kernels want them: in the order in which the weights come, quantized where the arithmetic says so.
#ifndef ANYPREC_JAX_NATIVE_ACTIVATIONS_H_
#define ANYPREC_JAX_NATIVE_ACTIVATIONS_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace anyprec {
namespace {

constexpr int kGroupColumns = 32;  // that share a scale
constexpr int kRunColumns = 16;    // neighbours within a group

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// To nearest, ties to even, for |value| < 2^22: adding 1.5 * 2^23 leaves the integer in the low bits.
inline std::int32_t round_to_int(float value) { return static_cast<std::int32_t>(bits_of(value + 0x1.8p23f) - bits_of(0x1.8p23f)); }

// q = round(x * top / max|x|) per group, and the scale that undoes it; `group_of_run` says to which group sixteen neighbours belong. An
// infinity or NaN makes the scale one, and so whatever it is multiplied into.
template <int columns, int top, class GroupOfRun>
void quantize(const float* x, GroupOfRun group_of_run, std::int16_t* q, float* scales) {
  constexpr std::uint32_t infinity = 0x7f800000u, smallest = 0x0c000000u;  // 2^-103: its reciprocal times `top` is finite
  std::uint32_t largest[columns / kGroupColumns] = {};
  for (int run = 0; run < columns / kRunColumns; ++run) {
    std::uint32_t run_largest = 0;
    for (int i = 0; i < kRunColumns; ++i) {
      const std::uint32_t magnitude = bits_of(x[run * kRunColumns + i]) & 0x7fffffffu;
      run_largest = magnitude > run_largest ? magnitude : run_largest;
    }
    std::uint32_t& group_largest = largest[group_of_run(run)];
    group_largest = run_largest > group_largest ? run_largest : group_largest;
  }
  for (int run = 0; run < columns / kRunColumns; ++run) {
    const std::uint32_t magnitude = largest[group_of_run(run)];
    const float* values = x + run * kRunColumns;
    std::int16_t* out = q + run * kRunColumns;
    if (magnitude >= infinity) {
      scales[group_of_run(run)] = float_of(magnitude);
      for (int i = 0; i < kRunColumns; ++i)
        out[i] = static_cast<std::int16_t>(std::isinf(values[i]) ? std::copysign(static_cast<float>(top), values[i]) : 0);
      continue;
    }
    const float inverse = magnitude < smallest ? 0.0f : top / float_of(magnitude);
    scales[group_of_run(run)] = magnitude < smallest ? 0.0f : float_of(magnitude) / top;
    for (int i = 0; i < kRunColumns; ++i) out[i] = static_cast<std::int16_t>(round_to_int(values[i] * inverse));
  }
}

// The chunks of one row of x; the columns after k that fill the last one are zero.
template <class Block, int columns>
struct Chunks {
  static std::int64_t count(std::int64_t k) { return (k + columns - 1) / columns; }
  static std::int64_t bytes(std::int64_t k) { return count(k) * static_cast<std::int64_t>(sizeof(Block)); }

  const Block* blocks() const { return reinterpret_cast<const Block*>(this); }

  static void arrange(const float* x, std::int64_t k, void* arranged) {
    Block* block = static_cast<Block*>(arranged);
    std::int64_t start = 0;
    for (; start + columns <= k; start += columns) (block++)->fill(x + start);
    if (start == k) return;
    float padded[columns] = {};
    std::memcpy(padded, x + start, (k - start) * sizeof(float));
    block->fill(padded);
  }
};

}  // namespace
}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_ACTIVATIONS_H_
