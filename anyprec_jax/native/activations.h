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

// What a row of k columns is cut into.
struct Extent {
  std::int64_t full;    // chunks
  std::int64_t blocks;  // the same, and one more where the columns after them make a chunk of their own, filled up with zeros
  std::int64_t tails;   // or where they go into tails, the last one filled up with zeros
};

// A kernel without tails.
struct NoTail {
  static constexpr int kColumns = 0;
};

// One row of x, arranged: blocks of `columns`, then tails. Up to half a chunk goes into tails.
template <class Block, int columns, class TailBlock = NoTail>
struct Chunks {
  static Extent extent(std::int64_t k) {
    const std::int64_t full = k / columns, rest = k % columns;
    if constexpr (TailBlock::kColumns > 0)
      if (rest <= columns / 2) return {full, full, (rest + TailBlock::kColumns - 1) / TailBlock::kColumns};
    return {full, full + (rest > 0), 0};
  }

  static std::int64_t bytes(std::int64_t k) {
    const Extent parts = extent(k);
    return parts.blocks * static_cast<std::int64_t>(sizeof(Block)) + parts.tails * static_cast<std::int64_t>(sizeof(TailBlock));
  }

  const Block* blocks() const { return reinterpret_cast<const Block*>(this); }
  const TailBlock* tails(const Extent& parts) const { return reinterpret_cast<const TailBlock*>(blocks() + parts.blocks); }

  static void arrange(const float* x, std::int64_t k, void* arranged) {
    const Extent parts = extent(k);
    Block* block = static_cast<Block*>(arranged);
    for (std::int64_t i = 0; i < parts.full; ++i) (block++)->fill(x + i * columns);
    const float* rest = x + parts.full * columns;
    const std::int64_t left = k - parts.full * columns;
    if (parts.blocks > parts.full) fill<Block, columns>(block++, rest, left);
    if constexpr (TailBlock::kColumns > 0)
      for (std::int64_t i = 0; i < parts.tails; ++i)
        fill<TailBlock, TailBlock::kColumns>(reinterpret_cast<TailBlock*>(block) + i, rest + i * TailBlock::kColumns,
                                             left - i * TailBlock::kColumns);
  }

 private:
  template <class AnyBlock, int size>
  static void fill(AnyBlock* block, const float* x, std::int64_t count) {
    float padded[size] = {};
    std::memcpy(padded, x, (count < size ? count : size) * sizeof(float));
    block->fill(padded);
  }
};

}  // namespace
}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_ACTIVATIONS_H_
