// A stable sort of 64-bit numbers by a range of bits, least significant digits first.
#ifndef A3_JAX_NATIVE_RADIX_SORT_H_
#define A3_JAX_NATIVE_RADIX_SORT_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace a3 {
namespace {

// Histograms of this many digits stay in the first-level cache, and one of them costs little beside a pass over this many numbers.
constexpr int kWideDigit = 11, kNarrowDigit = 8;
constexpr std::int64_t kFewNumbers = 4096;

// Sorts by bits 32 and up, of which those that `largest` has may differ. `spare` has as much room. Numbers with other bits set are put
// somewhere.
inline void sort_by_high_half(std::uint64_t* numbers, std::uint64_t* spare, std::int64_t count, std::uint32_t largest) {
  const int bits = largest == 0 ? 0 : 32 - __builtin_clz(largest);
  const int widest = count < kFewNumbers ? kNarrowDigit : kWideDigit, passes = (bits + widest - 1) / widest;
  const int width = passes == 0 ? 0 : (bits + passes - 1) / passes;
  const std::uint32_t mask = (1u << width) - 1;
  std::uint64_t *from = numbers, *to = spare;
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = 32 + pass * width;
    std::uint32_t places[1 << kWideDigit] = {}, next = 0;
    for (std::int64_t i = 0; i < count; ++i) ++places[(from[i] >> shift) & mask];
    for (std::uint32_t digit = 0; digit <= mask; ++digit) {
      const std::uint32_t size = places[digit];
      places[digit] = next, next += size;
    }
    for (std::int64_t i = 0; i < count; ++i) to[places[(from[i] >> shift) & mask]++] = from[i];
    std::swap(from, to);
  }
  if (from != numbers) std::memcpy(numbers, from, count * sizeof *numbers);
}

}  // namespace
}  // namespace a3

#endif  // A3_JAX_NATIVE_RADIX_SORT_H_
