// From codes to weights.
#ifndef ANYPREC_JAX_NATIVE_TABLES_AVX512_H_
#define ANYPREC_JAX_NATIVE_TABLES_AVX512_H_

#include <immintrin.h>

#include <cstdint>

#include "codes_avx512.h"

namespace anyprec {
namespace {

// One byte per code. A permutation looks at six or seven bits of an index, and codebooks of fewer than 64 entries are repeated, so that
// whatever stands above the code does not matter.
template <int precision>
struct ByteTable {
  using Weights = V;
  static constexpr int kTables = precision <= 6 ? 1 : 1 << (precision - 6);
  V sixty_four[kTables];

  inline __attribute__((always_inline)) V look_up(V codes) const {
    if constexpr (precision <= 6) {
      return _mm512_permutexvar_epi8(codes, sixty_four[0]);
    } else {
      const V lower = _mm512_permutex2var_epi8(sixty_four[0], codes, sixty_four[1]);
      if constexpr (precision == 7) return lower;
      const V upper = _mm512_permutex2var_epi8(sixty_four[kTables - 2], codes, sixty_four[kTables - 1]);
      return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), lower, upper);
    }
  }
};

// The bytes of sixty-four 16-bit entries, given as four registers of sixteen int32.
inline void split_bytes(const V* entries, V* low, V* high) {
  const auto narrow = [](V v) { return _mm512_cvtepi32_epi8(v); };
  alignas(64) __m128i low_bytes[4], high_bytes[4];
  for (int i = 0; i < 4; ++i) low_bytes[i] = narrow(entries[i]), high_bytes[i] = narrow(_mm512_srli_epi32(entries[i], 8));
  *low = _mm512_load_si512(low_bytes), *high = _mm512_load_si512(high_bytes);
}

struct Words {
  V low, high;  // bytes of 64 weights
};

template <int precision>
struct WordTable {
  using Weights = Words;
  ByteTable<precision> low, high;

  inline __attribute__((always_inline)) Words look_up(V codes) const { return {low.look_up(codes), high.look_up(codes)}; }

  // `entry(first)` gives sixteen entries as int32.
  template <class F>
  void fill(F entry) {
    for (int t = 0; t < ByteTable<precision>::kTables; ++t) {
      V entries[4];
      for (int i = 0; i < 4; ++i) entries[i] = entry(64 * t + 16 * i);
      split_bytes(entries, &low.sixty_four[t], &high.sixty_four[t]);
    }
  }
};

// Words or bytes from a table, and the planes that it is looked up with: what `rows.h` asks for.
template <int precision, class Table>
struct Decoder : PlaneReader<precision> {
  static constexpr int kParts = 8;
  using Weights = typename Table::Weights;
  using Planes = typename PlaneReader<precision>::Planes;

  Table table;

  template <class F>
  inline __attribute__((always_inline)) void for_each_weights(const Planes& planes, F f) const {
    V codes[8];
    assemble_codes<precision>(planes.plane, codes);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) f(j, table.look_up(codes[j]));
  }

  inline __attribute__((always_inline)) Weights tail_weights(std::int64_t full_chunks, std::int64_t tail) const {
    return table.look_up(this->tail_codes(full_chunks, tail));
  }
};

}  // namespace
}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_TABLES_AVX512_H_
