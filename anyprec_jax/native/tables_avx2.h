// From codes to weights. The byte shuffle that does the looking up works within halves of a register, so that a table of sixteen entries
// stands in both.
#ifndef ANYPREC_JAX_NATIVE_TABLES_AVX2_H_
#define ANYPREC_JAX_NATIVE_TABLES_AVX2_H_

#include <immintrin.h>

#include <cstdint>

#include "codes_avx2.h"

namespace anyprec {
namespace {

// Sixteen 16-bit values split into a table of their low bytes and one of their high bytes. The values come as `packs` leaves them: 0-3,
// 8-11 in the lower half and 4-7, 12-15 in the upper.
inline void split_bytes(V values, V* low, V* high) {
  const V low_then_high = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,  //
                                           0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  const V bytes = _mm256_shuffle_epi8(values, low_then_high);
  *low = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
  *high = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(2, 6, 3, 7, 2, 6, 3, 7));
}

// For columns 8 * b + j and for columns 8 * b + j + 4.
struct Two {
  V lower, upper;
};

// A code as the tables want it: its four low bits, and for each bit above them a register that has it in the sign of its byte.
// `zero_if_first` is the nibble, but with the sign set, at which a byte shuffle writes zero, where the first of those bits is.
template <int precision>
struct Index {
  static constexpr int kSelectors = Codes<precision>::kSelectors;
  Two nibble, zero_if_first, selectors[kSelectors + 1];
};

// One byte per code, from 2**(precision - 4) shuffles: a nibble picks within sixteen entries, and each further bit halves the candidates.
template <int precision>
struct ByteTable {
  static constexpr int kTables = precision < 4 ? 1 : 1 << (precision - 4);
  // Blends and shuffles compete. If there are many, the first bit does without: of its two tables, one is kept as the difference from the
  // other, and added where the bit is not set.
  static constexpr bool kDifferences = precision >= 7;
  V sixteen[kTables];

  void finish() {
    if constexpr (kDifferences)
      for (int t = 0; t < kTables; t += 2) {
        const V first = sixteen[t];
        sixteen[t] = sixteen[t + 1], sixteen[t + 1] = _mm256_xor_si256(first, sixteen[t + 1]);
      }
  }

  static inline __attribute__((always_inline)) Two shuffle(V table, const Two& nibble) {
    return {_mm256_shuffle_epi8(table, nibble.lower), _mm256_shuffle_epi8(table, nibble.upper)};
  }

  template <int bit>
  static inline __attribute__((always_inline)) Two pick(const V* tables, const Index<precision>& index) {
    if constexpr (bit == 0) {
      return shuffle(tables[0], index.nibble);
    } else {
      Two picked;
      if constexpr (bit == 1 && kDifferences) {
        const Two second = shuffle(tables[0], index.nibble), difference = shuffle(tables[1], index.zero_if_first);
        picked = {_mm256_xor_si256(second.lower, difference.lower), _mm256_xor_si256(second.upper, difference.upper)};
      } else {
        const Two first = pick<bit - 1>(tables, index), second = pick<bit - 1>(tables + (1 << (bit - 1)), index);
        const Two& selector = index.selectors[bit - 1];
        picked = {blend(first.lower, second.lower, selector.lower),
                  blend(first.upper, second.upper, selector.upper)};
      }
      settle(picked.lower), settle(picked.upper);
      return picked;
    }
  }

  inline __attribute__((always_inline)) Two look_up(const Index<precision>& index) const {
    return pick<Index<precision>::kSelectors>(sixteen, index);
  }
};

// Calls f(i, index) with the columns j = 3 - i, for i = 0 to 3; after each, meanwhile(i).
template <int precision, class F, class Meanwhile>
inline __attribute__((always_inline)) void for_each_index(const Codes<precision>& codes, F f, Meanwhile meanwhile) {
  constexpr int kSelectors = Codes<precision>::kSelectors;
  const V mask = _mm256_set1_epi8(0x0f), sign = _mm256_set1_epi8(-128);
  Index<precision> index;
  for (int s = 0; s < kSelectors; ++s) index.selectors[s] = {_mm256_slli_epi16(codes.selectors[s], 4), codes.selectors[s]};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const V nibbles = codes.nibbles[3 - i];
    index.nibble = {nibbles, _mm256_srli_epi16(nibbles, 4)};
    if constexpr (precision != 3) index.nibble = {_mm256_and_si256(index.nibble.lower, mask), _mm256_and_si256(index.nibble.upper, mask)};
    if constexpr (ByteTable<precision>::kDifferences)
      index.zero_if_first = {_mm256_or_si256(index.nibble.lower, _mm256_and_si256(index.selectors[0].lower, sign)),
                             _mm256_or_si256(index.nibble.upper, _mm256_and_si256(index.selectors[0].upper, sign))};
    f(i, index);
    for (int s = 0; s < kSelectors; ++s) {  // with the next column, the bits below the sign reach it
      Two& selector = index.selectors[s];
      selector = {_mm256_add_epi8(selector.lower, selector.lower), _mm256_add_epi8(selector.upper, selector.upper)};
    }
    meanwhile(i);
  }
}

// Of the eight registers of codes in a chunk, the place % 8 of the columns in the i-th that `for_each_index` comes to.
constexpr int column_of(int i) { return i % 2 == 0 ? 7 - i / 2 : 3 - i / 2; }

// 16-bit weights by two byte tables. Of the two parts that come from a register of codes, the first holds the columns of bytes 0-7 and
// 16-23, the second those of bytes 8-15 and 24-31.
template <int precision>
struct WordTable {
  static constexpr int kParts = 16;
  ByteTable<precision> low, high;

  void finish() { low.finish(), high.finish(); }

  template <class F, class Meanwhile>
  inline __attribute__((always_inline)) void for_each_weights(const Codes<precision>& codes, F f, Meanwhile meanwhile) const {
    const auto words = [&](int part, V l, V h) __attribute__((always_inline)) {
      f(part, _mm256_unpacklo_epi8(l, h));
      f(part + 1, _mm256_unpackhi_epi8(l, h));
    };
    for_each_index(codes, [&](int i, const Index<precision>& index) __attribute__((always_inline)) {
      const Two l = low.look_up(index), h = high.look_up(index);
      words(4 * i, l.upper, h.upper);
      words(4 * i + 2, l.lower, h.lower);
    }, meanwhile);
  }

  // Puts the values of a chunk's columns into the order of the parts.
  template <class T>
  static void arrange(const T* values, T (*x)[16]) {
    for (int part = 0; part < kParts; ++part)
      for (int i = 0; i < 16; ++i) x[part][i] = values[8 * (i % 8 + part % 2 * 8 + i / 8 * 16) + column_of(part / 2)];
  }
};

// Bytes that are weights already.
template <int precision>
struct WeightTable {
  ByteTable<precision> bytes;

  template <class F, class Meanwhile>
  inline __attribute__((always_inline)) void for_each_weights(const Codes<precision>& codes, F f, Meanwhile meanwhile) const {
    for_each_index(codes, [&](int i, const Index<precision>& index) __attribute__((always_inline)) {
      const Two weights = bytes.look_up(index);
      f(2 * i, weights.upper);
      f(2 * i + 1, weights.lower);
    }, meanwhile);
  }
};

// A table and the planes that it is looked up with: what `rows.h` asks for.
template <int precision, class Table>
struct Decoder : PlaneReader<precision> {
  Table table;

  template <class F>
  inline __attribute__((always_inline)) void for_each_weights(const Codes<precision>& codes, F f) const {
    table.for_each_weights(codes, f, [](int) {});
  }

  template <class F>
  inline __attribute__((always_inline)) Codes<precision> for_each_weights(const Codes<precision>& codes, const Decoder& source,
                                                                          std::int64_t next, F f) const {
    Assembly<precision> assembly;
    source.prefetch(next);
    table.for_each_weights(codes, f, [&](int i) __attribute__((always_inline)) {
      assembly.step(i, [&](int plane) __attribute__((always_inline)) { return source.load_plane(plane, next); });
    });
    return assembly.codes;
  }
};

}  // namespace
}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_TABLES_AVX2_H_
