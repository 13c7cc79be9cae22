// AVX2, FMA and F16C. Compiled with them switched on: nothing here may run before `runs_here` has asked the processor.
//
// A chunk is 256 columns of one row: a register holds 32 bytes of a plane. The byte shuffle that does the looking up works within halves of
// a register, so that a table of sixteen entries stands in both.
#include <immintrin.h>

#include <cstdint>

#include "activations.h"
#include "half.h"
#include "product.h"
#include "rows.h"

namespace anyprec {
namespace {

using V = __m256i;

inline V broadcast(const void* bytes16) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(bytes16))); }

// Makes the compiler compute `value` here and not where it thinks best. Looking up, multiplying and assembling codes keep different units
// of the processor busy, which sees only a hundred instructions ahead: they have to alternate in the program as they are written below.
inline __attribute__((always_inline)) void settle(V& value) { asm("" : "+x"(value)); }

// `second` where the sign of the selector's byte is set. GCC takes the intrinsic apart, and compares the selector with zero first.
inline __attribute__((always_inline)) V blend(V first, V second, V selector) {
  V blended;
  asm("vpblendvb %3, %2, %1, %0" : "=x"(blended) : "x"(first), "x"(second), "x"(selector));
  return blended;
}

// ---- from planes to codes ----------------------------------------------------------------------------------------------------------

struct Pair {
  V even, odd;
};

// Fields of `width` bits of a and of b, alternating: `even` holds those at even places, each of a followed by the one of b that was at the
// same place; `odd` those at odd places. With planes as a and b, width 1: two-bit codes of the even and of the odd columns.
template <int width>
inline __attribute__((always_inline)) Pair interleave(V a, V b) {
  const V mask = _mm256_set1_epi8(width == 1 ? 0x55 : 0x33);
  const V swapped = _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi16(a, width), b), mask);
  const V raised = width == 1 ? _mm256_add_epi8(swapped, swapped) : _mm256_slli_epi16(swapped, width);  // more units add than shift
  Pair pair = {_mm256_xor_si256(a, raised), _mm256_xor_si256(b, swapped)};
  settle(pair.even), settle(pair.odd);
  return pair;
}

// The codes of a chunk. Byte b of nibbles[j] holds the four least significant bits of column 8 * b + j in its lower half and those of
// column 8 * b + j + 4 in its upper one. With fewer than four planes the bits above are anything, except that with three they are zero.
template <int precision>
struct Codes {
  static constexpr int kNibblePlanes = precision < 4 ? precision : 4, kSelectors = precision - kNibblePlanes;
  V nibbles[4];
  V selectors[kSelectors + 1];  // the planes of the bits above
};

// Codes in the making, in four steps of about six instructions, to be done among others. `plane(i)` loads a plane, the least significant
// is 0.
template <int precision>
struct Assembly {
  Codes<precision> codes;
  Pair low, high;

  template <class LoadPlane>
  inline __attribute__((always_inline)) void step(int i, LoadPlane plane) {
    V* nibbles = codes.nibbles;
    if (i == 0) {
      if constexpr (precision > 1) low = interleave<1>(plane(0), plane(1));
    } else if (i == 1) {
      if constexpr (precision == 3) {
        const V mask = _mm256_set1_epi8(0x55);
        high = {_mm256_and_si256(plane(2), mask), _mm256_and_si256(_mm256_srli_epi16(plane(2), 1), mask)};
      } else if constexpr (precision > 3) {
        high = interleave<1>(plane(2), plane(3));
      }
    } else {
      const int j = i - 2;  // nibbles j and j + 2
      if constexpr (precision == 1) {
        nibbles[j] = _mm256_srli_epi16(plane(0), j), nibbles[j + 2] = _mm256_srli_epi16(plane(0), j + 2);
      } else if constexpr (precision == 2) {
        nibbles[j] = j == 0 ? low.even : low.odd, nibbles[j + 2] = _mm256_srli_epi16(nibbles[j], 2);
      } else {
        const Pair pair = j == 0 ? interleave<2>(low.even, high.even) : interleave<2>(low.odd, high.odd);
        nibbles[j] = pair.even, nibbles[j + 2] = pair.odd;
      }
      if (i == 3)
        for (int s = 0; s < Codes<precision>::kSelectors; ++s) codes.selectors[s] = plane(4 + s);
    }
  }

  template <class LoadPlane>
  static inline __attribute__((always_inline)) Codes<precision> all(LoadPlane plane) {
    Assembly assembly;
    for (int i = 0; i < 4; ++i) assembly.step(i, plane);
    return assembly.codes;
  }
};

// Where the planes of a row are, and how a chunk of them is loaded.
template <int precision>
struct PlaneReader {
  static constexpr bool kLoadsAhead = true;
  static constexpr int kRows = 1, kColumns = 256;
  using Planes = Codes<precision>;

  const std::uint8_t* row_planes;
  std::int64_t plane_stride, row_bytes;

  void at(const Matrix& matrix, std::int64_t row) {
    row_bytes = matrix.row_bytes(), plane_stride = matrix.plane_stride;
    row_planes = matrix.planes + row * row_bytes;
  }

  inline __attribute__((always_inline)) const std::uint8_t* bytes(int plane, std::int64_t chunk) const {
    return row_planes + (precision - 1 - plane) * plane_stride + 32 * chunk;
  }

  inline __attribute__((always_inline)) V load_plane(int plane, std::int64_t chunk) const {
    return _mm256_loadu_si256(reinterpret_cast<const V*>(bytes(plane, chunk)));
  }

  // A line ahead of its use by what memory takes to answer; one in two chunks begins a line.
  inline __attribute__((always_inline)) void prefetch(std::int64_t chunk) const {
    constexpr int kAhead = 1024;
    if (chunk % 2 != 0) return;
    for (int p = 0; p < precision; ++p) _mm_prefetch(reinterpret_cast<const char*>(bytes(p, chunk) + kAhead), _MM_HINT_T0);
  }

  inline __attribute__((always_inline)) Planes load(std::int64_t chunk) const {
    prefetch(chunk);
    return Assembly<precision>::all([&](int plane) __attribute__((always_inline)) { return load_plane(plane, chunk); });
  }

  Planes load_tail(std::int64_t chunk) const {
    const int words = static_cast<int>(row_bytes - 32 * chunk) / 4;
    const V mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(words), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return Assembly<precision>::all(
        [&](int plane) { return _mm256_maskload_epi32(reinterpret_cast<const int*>(bytes(plane, chunk)), mask); });
  }
};

// ---- tables ------------------------------------------------------------------------------------------------------------------------

// Sixteen entries of a codebook; shorter codebooks are repeated, so that whatever stands above the code in a nibble does not matter.
template <int precision>
inline V sixteen_entries(const std::uint16_t* codebook, int table) {
  if constexpr (precision >= 4) return _mm256_loadu_si256(reinterpret_cast<const V*>(codebook + 16 * table));
  if constexpr (precision == 3) return broadcast(codebook);
  std::int64_t entries = 0;
  std::memcpy(&entries, codebook, 2 << precision);
  return precision == 2 ? _mm256_set1_epi64x(entries) : _mm256_set1_epi32(static_cast<int>(entries));
}

// The largest magnitude in a row's codebook, as fp16 bits, whose order is that of the magnitudes.
template <int precision>
inline float largest_magnitude(const std::uint16_t* codebook) {
  V largest = _mm256_setzero_si256();
  for (int table = 0; table < (precision < 4 ? 1 : 1 << (precision - 4)); ++table)
    largest = _mm256_max_epu16(largest, _mm256_and_si256(sixteen_entries<precision>(codebook, table), _mm256_set1_epi16(0x7fff)));
  const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  const __m128i complement = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)));  // there is no maximum, but a minimum
  return half_to_float(static_cast<std::uint16_t>(~_mm_cvtsi128_si32(complement)));
}

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

// A table with what `rows.h` asks for.
template <int precision, class Table>
struct Decoder : PlaneReader<precision> {
  Table table;

  template <class F>
  inline __attribute__((always_inline)) void for_each_weights(const Codes<precision>& codes, F f) const {
    table.for_each_weights(codes, f, [](int) {});
  }

  template <class F>
  inline __attribute__((always_inline)) Codes<precision> for_each_weights(const Codes<precision>& codes, std::int64_t next, F f) const {
    Assembly<precision> assembly;
    this->prefetch(next);
    table.for_each_weights(codes, f, [&](int i) __attribute__((always_inline)) {
      assembly.step(i, [&](int plane) __attribute__((always_inline)) { return this->load_plane(plane, next); });
    });
    return assembly.codes;
  }
};

// ---- sums --------------------------------------------------------------------------------------------------------------------------

inline float total(__m256 sum) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  const __m128 two = _mm_hadd_ps(four, four);
  return _mm_cvtss_f32(_mm_hadd_ps(two, two));
}

struct FloatSum {
  __m256 value = _mm256_setzero_ps();
};

// ---- the three arithmetics ---------------------------------------------------------------------------------------------------------

// A row's codebook in integers up to `top`.
struct Quantizer {
  float scale;
  __m256 inverse;

  template <int precision>
  static Quantizer of(const std::uint16_t* codebook, int top) {
    const float largest = largest_magnitude<precision>(codebook);
    return {largest / static_cast<float>(top), _mm256_set1_ps(largest > 0 ? static_cast<float>(top) / largest : 0.0f)};
  }

  V operator()(V halves) const {
    const __m256 lower = _mm256_cvtph_ps(_mm256_castsi256_si128(halves)), upper = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
    return _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(lower, inverse)), _mm256_cvtps_epi32(_mm256_mul_ps(upper, inverse)));
  }
};

// Sixteen products of such numbers are the most that an int32 holds.
constexpr int kTopWeight16 = 16383, kTopActivation16 = 8191;
static_assert(16ll * kTopWeight16 * kTopActivation16 < 1ll << 31, "the sums would overflow");

struct Int16Block {
  std::int16_t x[16][16];  // [part][word]
  float scales[8];

  void fill(const float* values) {
    std::int16_t q[256];
    // An int32 of the sums collects bytes 2i, 2i + 1, 2i + 8 and 2i + 9 of a half.
    quantize<256, kTopActivation16>(values, [](int run) { return run / 8 * 4 + run % 4; }, q, scales);
    WordTable<8>::arrange(q, x);
  }
};

template <int precision>
struct Int16 : Decoder<precision, WordTable<precision>> {
  static constexpr int kParts = WordTable<precision>::kParts;
  using Weights = V;
  using Activations = Chunks<Int16Block, 256>;
  using Sum = FloatSum;
  struct Partial {
    V even = _mm256_setzero_si256(), odd = _mm256_setzero_si256();  // each of eight parts, sixteen products
  };

  float scale;

  void prepare(const Matrix& matrix, std::int64_t row, std::int64_t) {
    this->at(matrix, row);
    const std::uint16_t* codebook = matrix.codebook + (row << precision);
    const Quantizer quantizer = Quantizer::of<precision>(codebook, kTopWeight16);
    scale = quantizer.scale;
    for (int t = 0; t < ByteTable<precision>::kTables; ++t)
      split_bytes(quantizer(sixteen_entries<precision>(codebook, t)), &this->table.low.sixteen[t], &this->table.high.sixteen[t]);
    this->table.finish();
  }

  static inline __attribute__((always_inline)) void add(Partial& partial, int part, V weights, const Int16Block& block) {
    V& sum = part % 2 ? partial.odd : partial.even;
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights, _mm256_load_si256(reinterpret_cast<const V*>(block.x[part]))));
    settle(sum);
  }

  static inline __attribute__((always_inline)) void fold(Sum& sum, const Partial& partial, const Int16Block& block) {
    const __m256 integers = _mm256_add_ps(_mm256_cvtepi32_ps(partial.even), _mm256_cvtepi32_ps(partial.odd));
    sum.value = _mm256_fmadd_ps(integers, _mm256_load_ps(block.scales), sum.value);
  }

  void store(const Sum& sum, const Activations&, std::int64_t row, std::int64_t, float* y) const { y[row] = scale * total(sum.value); }
};

// Two products of 127 * 127 are the most that the 16-bit sums of `maddubs` hold without saturating.
constexpr int kTop8 = 127;

struct Int8Block {
  std::int8_t x[8][32];            // [part][byte]
  std::uint8_t magnitudes[8][32];  // of x
  float scales[8];

  void fill(const float* values) {
    std::int16_t q[256];
    quantize<256, kTop8>(values, [](int run) { return run / 2; }, q, scales);
    for (int part = 0; part < 8; ++part)
      for (int byte = 0; byte < 32; ++byte) {
        const int value = q[8 * byte + column_of(part)];
        x[part][byte] = static_cast<std::int8_t>(value), magnitudes[part][byte] = static_cast<std::uint8_t>(value < 0 ? -value : value);
      }
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

template <int precision>
struct Int8 : Decoder<precision, WeightTable<precision>> {
  static constexpr int kParts = 8;
  using Weights = V;
  using Activations = Chunks<Int8Block, 256>;
  using Sum = FloatSum;
  struct Partial {
    V value = _mm256_setzero_si256();
  };

  float scale;

  void prepare(const Matrix& matrix, std::int64_t row, std::int64_t) {
    this->at(matrix, row);
    const std::uint16_t* codebook = matrix.codebook + (row << precision);
    const Quantizer quantizer = Quantizer::of<precision>(codebook, kTop8);
    scale = quantizer.scale;
    V unused;
    for (int t = 0; t < ByteTable<precision>::kTables; ++t)
      split_bytes(quantizer(sixteen_entries<precision>(codebook, t)), &this->table.bytes.sixteen[t], &unused);
    this->table.bytes.finish();
  }

  // |x| (w sign(x)), because one of the factors has to be unsigned.
  static inline __attribute__((always_inline)) void add(Partial& partial, int part, V weights, const Int8Block& block) {
    const auto load = [](const void* bytes) { return _mm256_load_si256(static_cast<const V*>(bytes)); };
    const V pairs = _mm256_maddubs_epi16(load(block.magnitudes[part]), _mm256_sign_epi8(weights, load(block.x[part])));
    partial.value = _mm256_add_epi32(partial.value, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    settle(partial.value);
  }

  static inline __attribute__((always_inline)) void fold(Sum& sum, const Partial& partial, const Int8Block& block) {
    sum.value = _mm256_fmadd_ps(_mm256_cvtepi32_ps(partial.value), _mm256_load_ps(block.scales), sum.value);
  }

  void store(const Sum& sum, const Activations&, std::int64_t row, std::int64_t, float* y) const { y[row] = scale * total(sum.value); }
};

struct ExactBlock {
  float x[16][16];  // [part][word]

  void fill(const float* values) { WordTable<8>::arrange(values, x); }
};

template <int precision>
struct Exact : Decoder<precision, WordTable<precision>> {
  static constexpr int kParts = WordTable<precision>::kParts;
  using Weights = V;
  using Activations = Chunks<ExactBlock, 256>;
  struct Partial {
    __m256 first = _mm256_setzero_ps(), second = _mm256_setzero_ps();
  };
  using Sum = Partial;

  void prepare(const Matrix& matrix, std::int64_t row, std::int64_t) {
    this->at(matrix, row);
    const std::uint16_t* codebook = matrix.codebook + (row << precision);
    for (int t = 0; t < ByteTable<precision>::kTables; ++t)
      split_bytes(as_packed(sixteen_entries<precision>(codebook, t)), &this->table.low.sixteen[t], &this->table.high.sixteen[t]);
    this->table.finish();
  }

  // In the order that `packs` would have left them in.
  static V as_packed(V entries) { return _mm256_permute4x64_epi64(entries, _MM_SHUFFLE(3, 1, 2, 0)); }

  static inline __attribute__((always_inline)) void add(Partial& partial, int part, V weights, const ExactBlock& block) {
    const auto weights_of = [](__m128i halves) { return _mm256_cvtph_ps(halves); };
    const float* x = block.x[part];
    partial.first = _mm256_fmadd_ps(weights_of(_mm256_castsi256_si128(weights)), _mm256_load_ps(x), partial.first);
    partial.second = _mm256_fmadd_ps(weights_of(_mm256_extracti128_si256(weights, 1)), _mm256_load_ps(x + 8), partial.second);
  }

  static inline __attribute__((always_inline)) void fold(Sum& sum, const Partial& partial, const ExactBlock&) {
    sum.first = _mm256_add_ps(sum.first, partial.first), sum.second = _mm256_add_ps(sum.second, partial.second);
  }

  void store(const Sum& sum, const Activations&, std::int64_t row, std::int64_t, float* y) const {
    y[row] = total(_mm256_add_ps(sum.first, sum.second));
  }
};

// ---- affine rows -------------------------------------------------------------------------------------------------------------------

struct AffineBlock {
  std::int16_t x[32];  // in the order of the columns
  float scale;
  std::int32_t sum;  // of x

  void fill(const float* values) {
    quantize<32, 32767>(values, [](int) { return 0; }, x, &scale);
    sum = 0;
    for (int i = 0; i < 32; ++i) sum += x[i];
  }
};

using AffineActivations = Chunks<AffineBlock, 32>;

inline __m256 affine_chunk(const std::uint8_t* codes, const AffineBlock& block, __m256 sum) {
  const auto half = [&](int i) {
    const V weights = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + 16 * i)));
    return _mm256_madd_epi16(weights, _mm256_loadu_si256(reinterpret_cast<const V*>(block.x + 16 * i)));
  };
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(half(0), half(1))), _mm256_set1_ps(block.scale), sum);
}

float dot_affine_row(const std::uint8_t* codes, const AffineBlock* blocks, std::int64_t k) {
  const std::int64_t full_chunks = k / 32;
  __m256 sum = _mm256_setzero_ps();
  for (std::int64_t chunk = 0; chunk < full_chunks; ++chunk) {
    if (chunk % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(codes + 32 * chunk + 2048), _MM_HINT_T0);
    sum = affine_chunk(codes + 32 * chunk, blocks[chunk], sum);
  }
  if (k % 32 != 0) {
    std::uint8_t tail[32] = {};
    std::memcpy(tail, codes + 32 * full_chunks, k % 32);
    sum = affine_chunk(tail, blocks[full_chunks], sum);
  }
  return total(sum);
}

void multiply_affine_rows(const AffineMatrix& matrix, const void* const* x, std::int64_t m, std::int64_t first, std::int64_t last,
                          float* const* y) {
  multiply_affine<AffineActivations>(matrix, x, m, first, last, y, dot_affine_row);
}

bool runs_here() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

template <template <int> class A>
constexpr Product<Matrix> product() {
  return {A<1>::Activations::bytes, A<1>::Activations::arrange, multiply_rows<A>};
}

}  // namespace

extern const Kernel kAvx2Kernel;
const Kernel kAvx2Kernel = {
    "avx2",           runs_here, product<Exact>(), product<Int16>(), product<Int8>(), {AffineActivations::bytes, AffineActivations::arrange, multiply_affine_rows}};

}  // namespace anyprec
