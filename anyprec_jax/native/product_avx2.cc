// AVX2, FMA and F16C. Compiled with them switched on: nothing here may run before `runs_here` has asked the processor.
//
// A chunk is two rows by 128 columns. A register holds 16 bytes of a plane's row r in its lower half and 16 of row r + 1 in its upper:
// the byte shuffle that does the looking up takes its table from the half that it writes, so that each row has its own codebook.
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
inline V in_halves(__m128i lower, __m128i upper) { return _mm256_inserti128_si256(_mm256_castsi128_si256(lower), upper, 1); }

// ---- from planes to codes ----------------------------------------------------------------------------------------------------------

struct Pair {
  V even, odd;
};

// Fields of `width` bits of a and of b, alternating: `even` holds those at even places, each of a followed by the one of b that was at the
// same place; `odd` those at odd places. With planes as a and b, width 1: two-bit codes of the even and of the odd columns.
template <int width>
inline Pair interleave(V a, V b) {
  const V mask = _mm256_set1_epi8(width == 1 ? 0x55 : 0x33);
  const V swapped = _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi16(a, width), b), mask);
  return {_mm256_xor_si256(a, _mm256_slli_epi16(swapped, width)), _mm256_xor_si256(b, swapped)};
}

// The four least significant bits of the codes: byte b of nibbles[j] holds column 8 * b + j in its lower half and 8 * b + j + 4 in its
// upper one. With fewer than four planes the bits above are anything, except that with three they are zero.
template <int planes>
inline void assemble_nibbles(const V* plane, V* nibbles) {
  if constexpr (planes == 1) {
    for (int j = 0; j < 4; ++j) nibbles[j] = _mm256_srli_epi16(plane[0], j);
  } else {
    const Pair low = interleave<1>(plane[0], plane[1]);
    if constexpr (planes == 2) {
      nibbles[0] = low.even, nibbles[1] = low.odd;
      nibbles[2] = _mm256_srli_epi16(low.even, 2), nibbles[3] = _mm256_srli_epi16(low.odd, 2);
    } else {
      Pair high;
      if constexpr (planes == 3) {
        const V mask = _mm256_set1_epi8(0x55);
        high = {_mm256_and_si256(plane[2], mask), _mm256_and_si256(_mm256_srli_epi16(plane[2], 1), mask)};
      } else {
        high = interleave<1>(plane[2], plane[3]);
      }
      const Pair even = interleave<2>(low.even, high.even), odd = interleave<2>(low.odd, high.odd);
      nibbles[0] = even.even, nibbles[1] = odd.even, nibbles[2] = even.odd, nibbles[3] = odd.odd;
    }
  }
}

// Where the planes of two rows are, and how a chunk of them is loaded.
template <int precision>
struct PlaneReader {
  struct Planes {
    V plane[precision];  // the least significant first
  };

  const std::uint8_t* first_row;
  std::int64_t plane_stride, to_second_row, row_bytes;

  void at(const Matrix& matrix, std::int64_t row, std::int64_t last) {
    row_bytes = matrix.row_bytes(), plane_stride = matrix.plane_stride;
    first_row = matrix.planes + row * row_bytes;
    to_second_row = row + 1 < last ? row_bytes : 0;
  }

  inline __attribute__((always_inline)) Planes load(std::int64_t chunk) const {
    // A line ahead of its use by what memory takes to answer; one in four chunks begins a line.
    constexpr int kAhead = 1024;
    Planes planes;
    for (int p = 0; p < precision; ++p) {
      const std::uint8_t* bytes = first_row + p * plane_stride + 16 * chunk;
      if (chunk % 4 == 0) {
        _mm_prefetch(reinterpret_cast<const char*>(bytes + kAhead), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(bytes + to_second_row + kAhead), _MM_HINT_T0);
      }
      planes.plane[precision - 1 - p] = in_halves(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)),
                                                  _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + to_second_row)));
    }
    return planes;
  }

  Planes load_tail(std::int64_t chunk) const {
    const int words = static_cast<int>(row_bytes - 16 * chunk) / 4;
    const __m128i mask = _mm_cmpgt_epi32(_mm_set1_epi32(words < 4 ? words : 4), _mm_setr_epi32(0, 1, 2, 3));
    Planes planes;
    for (int p = 0; p < precision; ++p) {
      const auto* bytes = reinterpret_cast<const int*>(first_row + p * plane_stride + 16 * chunk);
      const auto* second = reinterpret_cast<const int*>(first_row + p * plane_stride + 16 * chunk + to_second_row);
      planes.plane[precision - 1 - p] = in_halves(_mm_maskload_epi32(bytes, mask), _mm_maskload_epi32(second, mask));
    }
    return planes;
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

// Sixteen 16-bit values of each of two rows, split into a table of their low bytes and one of their high bytes. The values come as
// `packs` leaves them: 0-3, 8-11 in the lower half and 4-7, 12-15 in the upper.
inline void split_bytes(V first, V second, V* low, V* high) {
  const V order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), byte = _mm256_set1_epi16(0xff);
  *low = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(_mm256_and_si256(first, byte), _mm256_and_si256(second, byte)), order);
  *high = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(_mm256_srli_epi16(first, 8), _mm256_srli_epi16(second, 8)), order);
}

// One byte per code, from 2**(precision - 4) shuffles: a nibble picks within sixteen entries, and each further bit halves the candidates.
template <int precision>
struct ByteTable {
  static constexpr int kTables = precision < 4 ? 1 : 1 << (precision - 4);
  V sixteen[kTables];

  template <int bit>
  static inline __attribute__((always_inline)) V pick(const V* tables, V nibble, const V* selectors) {
    if constexpr (bit == 0) {
      return _mm256_shuffle_epi8(tables[0], nibble);
    } else {
      return _mm256_blendv_epi8(pick<bit - 1>(tables, nibble, selectors), pick<bit - 1>(tables + (1 << (bit - 1)), nibble, selectors),
                                selectors[bit - 1]);
    }
  }

  inline __attribute__((always_inline)) V look_up(V nibble, const V* selectors) const {
    return pick<(precision < 4 ? 0 : precision - 4)>(sixteen, nibble, selectors);
  }
};

// Calls f(j, nibble, selectors) for the eight columns of every byte: the four low bits of the codes of columns 8 * b + j, and for each
// bit above them a register that has it in the sign of byte b.
template <int precision, class F>
inline __attribute__((always_inline)) void for_each_code(const V* plane, F f) {
  constexpr int kNibblePlanes = precision < 4 ? precision : 4, kSelectors = precision - kNibblePlanes;
  const V mask = _mm256_set1_epi8(0x0f);
  V nibbles[4], selectors[kSelectors + 1];
  assemble_nibbles<kNibblePlanes>(plane, nibbles);
  for (int s = 0; s < kSelectors; ++s) selectors[s] = plane[4 + s];
#pragma GCC unroll 8
  for (int j = 7; j >= 0; --j) {  // downwards: a bit reaches the sign by doubling
    const V nibble = j < 4 ? nibbles[j] : _mm256_srli_epi16(nibbles[j - 4], 4);
    f(j, precision == 3 ? nibble : _mm256_and_si256(nibble, mask), selectors);
    for (int s = 0; s < kSelectors; ++s) selectors[s] = _mm256_add_epi8(selectors[s], selectors[s]);
  }
}

// 16-bit weights by two byte tables. Parts come with j from 7 down: the first of each two holds columns 8 * b + j of bytes 0-7 of both
// rows, the second those of bytes 8-15.
template <int precision>
struct WordTable {
  static constexpr int kParts = 16;
  ByteTable<precision> low, high;

  template <class F>
  inline __attribute__((always_inline)) void for_each_weights(const V* plane, F f) const {
    for_each_code<precision>(plane, [&](int j, V nibble, const V* selectors) __attribute__((always_inline)) {
      const V l = low.look_up(nibble, selectors), h = high.look_up(nibble, selectors);
      f(14 - 2 * j, _mm256_unpacklo_epi8(l, h));
      f(15 - 2 * j, _mm256_unpackhi_epi8(l, h));
    });
  }
};

// ---- sums --------------------------------------------------------------------------------------------------------------------------

// Each half of the register summed, scaled and written to its row.
inline void store_halves(__m256 sum, float first_scale, float second_scale, std::int64_t row, std::int64_t last, float* y) {
  const __m256 pairs = _mm256_hadd_ps(sum, sum), total = _mm256_hadd_ps(pairs, pairs);
  y[row] = first_scale * _mm256_cvtss_f32(total);
  if (row + 1 < last) y[row + 1] = second_scale * _mm_cvtss_f32(_mm256_extractf128_ps(total, 1));
}

struct IntegerSum {
  __m256 value = _mm256_setzero_ps();
};

// A scale of a group of x is the same for both rows.
inline void fold_integers(IntegerSum& sum, __m256 integers, const float* scales) {
  sum.value = _mm256_fmadd_ps(integers, _mm256_broadcast_ps(reinterpret_cast<const __m128*>(scales)), sum.value);
}

// ---- the three arithmetics ---------------------------------------------------------------------------------------------------------

// Sixteen products of such numbers are the most that an int32 holds.
constexpr int kTopWeight16 = 16383, kTopActivation16 = 8191;
static_assert(16ll * kTopWeight16 * kTopActivation16 < 1ll << 31, "the sums would overflow");

struct Int16Block {
  std::int16_t x[8][16];  // [column % 8][byte]
  float scales[4];

  void fill(const float* values) {
    std::int16_t q[128];
    // An int32 of the sums collects bytes 2i, 2i + 1, 8 + 2i and 9 + 2i.
    quantize<128, kTopActivation16>(values, [](int run) { return run % 4; }, q, scales);
    for (int byte = 0; byte < 16; ++byte)
      for (int j = 0; j < 8; ++j) x[j][byte] = q[8 * byte + j];
  }
};

template <int precision>
struct Int16 : PlaneReader<precision> {
  static constexpr int kRows = 2, kColumns = 128, kParts = WordTable<precision>::kParts;
  using Planes = typename PlaneReader<precision>::Planes;
  using Weights = V;
  using Activations = Chunks<Int16Block, kColumns>;
  using Sum = IntegerSum;
  struct Partial {
    V even = _mm256_setzero_si256(), odd = _mm256_setzero_si256();  // each of eight parts, sixteen products
  };

  WordTable<precision> table;
  float first_scale, second_scale;

  void prepare(const Matrix& matrix, std::int64_t row, std::int64_t last) {
    this->at(matrix, row, last);
    const std::uint16_t* first = matrix.codebook + (row << precision);
    const std::uint16_t* second = row + 1 < last ? first + (1 << precision) : first;
    const float first_largest = largest_magnitude<precision>(first), second_largest = largest_magnitude<precision>(second);
    first_scale = first_largest / kTopWeight16, second_scale = second_largest / kTopWeight16;
    const __m256 first_inverse = _mm256_set1_ps(first_largest > 0 ? kTopWeight16 / first_largest : 0.0f);
    const __m256 second_inverse = _mm256_set1_ps(second_largest > 0 ? kTopWeight16 / second_largest : 0.0f);
    for (int t = 0; t < ByteTable<precision>::kTables; ++t)
      split_bytes(quantized(sixteen_entries<precision>(first, t), first_inverse),
                  quantized(sixteen_entries<precision>(second, t), second_inverse), &table.low.sixteen[t], &table.high.sixteen[t]);
  }

  static V quantized(V halves, __m256 inverse) {
    const __m256 lower = _mm256_cvtph_ps(_mm256_castsi256_si128(halves)), upper = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
    return _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(lower, inverse)), _mm256_cvtps_epi32(_mm256_mul_ps(upper, inverse)));
  }

  template <class F>
  inline __attribute__((always_inline)) void for_each_weights(const Planes& planes, F f) const {
    table.for_each_weights(planes.plane, f);
  }

  static inline __attribute__((always_inline)) void add(Partial& partial, int part, V weights, const Int16Block& block) {
    V& sum = part % 2 ? partial.odd : partial.even;
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights, broadcast(block.x[7 - part / 2] + part % 2 * 8)));
  }

  static inline __attribute__((always_inline)) void fold(Sum& sum, const Partial& partial, const Int16Block& block) {
    fold_integers(sum, _mm256_add_ps(_mm256_cvtepi32_ps(partial.even), _mm256_cvtepi32_ps(partial.odd)), block.scales);
  }

  void store(const Sum& sum, const Activations&, std::int64_t row, std::int64_t last, float* y) const {
    store_halves(sum.value, first_scale, second_scale, row, last, y);
  }
};

// Two products of 127 * 127 are the most that the 16-bit sums of `maddubs` hold without saturating.
constexpr int kTop8 = 127;

struct Int8Block {
  std::int8_t x[8][16];            // [column % 8][byte]
  std::uint8_t magnitudes[8][16];  // of x
  float scales[4];

  void fill(const float* values) {
    std::int16_t q[128];
    quantize<128, kTop8>(values, [](int run) { return run / 2; }, q, scales);
    for (int byte = 0; byte < 16; ++byte)
      for (int j = 0; j < 8; ++j) {
        x[j][byte] = static_cast<std::int8_t>(q[8 * byte + j]);
        magnitudes[j][byte] = static_cast<std::uint8_t>(q[8 * byte + j] < 0 ? -q[8 * byte + j] : q[8 * byte + j]);
      }
  }
};

template <int precision>
struct Int8 : PlaneReader<precision> {
  static constexpr int kRows = 2, kColumns = 128, kParts = 8;
  using Planes = typename PlaneReader<precision>::Planes;
  using Weights = V;
  using Activations = Chunks<Int8Block, kColumns>;
  using Sum = IntegerSum;
  struct Partial {
    V value = _mm256_setzero_si256();
  };

  ByteTable<precision> table;
  float first_scale, second_scale;

  void prepare(const Matrix& matrix, std::int64_t row, std::int64_t last) {
    this->at(matrix, row, last);
    const std::uint16_t* first = matrix.codebook + (row << precision);
    const std::uint16_t* second = row + 1 < last ? first + (1 << precision) : first;
    const float first_largest = largest_magnitude<precision>(first), second_largest = largest_magnitude<precision>(second);
    first_scale = first_largest / kTop8, second_scale = second_largest / kTop8;
    const __m256 first_inverse = _mm256_set1_ps(first_largest > 0 ? kTop8 / first_largest : 0.0f);
    const __m256 second_inverse = _mm256_set1_ps(second_largest > 0 ? kTop8 / second_largest : 0.0f);
    V unused;
    for (int t = 0; t < ByteTable<precision>::kTables; ++t)
      split_bytes(Int16<precision>::quantized(sixteen_entries<precision>(first, t), first_inverse),
                  Int16<precision>::quantized(sixteen_entries<precision>(second, t), second_inverse), &table.sixteen[t], &unused);
  }

  template <class F>
  inline __attribute__((always_inline)) void for_each_weights(const Planes& planes, F f) const {
    for_each_code<precision>(planes.plane, [&](int j, V nibble, const V* selectors)
                                               __attribute__((always_inline)) { f(7 - j, table.look_up(nibble, selectors)); });
  }

  // |x| (w sign(x)), because one of the factors has to be unsigned.
  static inline __attribute__((always_inline)) void add(Partial& partial, int part, V weights, const Int8Block& block) {
    const int j = 7 - part;
    const V pairs = _mm256_maddubs_epi16(broadcast(block.magnitudes[j]), _mm256_sign_epi8(weights, broadcast(block.x[j])));
    partial.value = _mm256_add_epi32(partial.value, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }

  static inline __attribute__((always_inline)) void fold(Sum& sum, const Partial& partial, const Int8Block& block) {
    fold_integers(sum, _mm256_cvtepi32_ps(partial.value), block.scales);
  }

  void store(const Sum& sum, const Activations&, std::int64_t row, std::int64_t last, float* y) const {
    store_halves(sum.value, first_scale, second_scale, row, last, y);
  }
};

struct ExactBlock {
  float x[8][16];  // [column % 8][byte]

  void fill(const float* values) {
    for (int byte = 0; byte < 16; ++byte)
      for (int j = 0; j < 8; ++j) x[j][byte] = values[8 * byte + j];
  }
};

template <int precision>
struct Exact : PlaneReader<precision> {
  static constexpr int kRows = 2, kColumns = 128, kParts = WordTable<precision>::kParts;
  using Planes = typename PlaneReader<precision>::Planes;
  using Weights = V;
  using Activations = Chunks<ExactBlock, kColumns>;
  struct Partial {
    __m256 first = _mm256_setzero_ps(), second = _mm256_setzero_ps();
  };
  using Sum = Partial;

  WordTable<precision> table;

  void prepare(const Matrix& matrix, std::int64_t row, std::int64_t last) {
    this->at(matrix, row, last);
    const std::uint16_t* first = matrix.codebook + (row << precision);
    const std::uint16_t* second = row + 1 < last ? first + (1 << precision) : first;
    for (int t = 0; t < ByteTable<precision>::kTables; ++t)
      split_bytes(as_packed(sixteen_entries<precision>(first, t)), as_packed(sixteen_entries<precision>(second, t)),
                  &table.low.sixteen[t], &table.high.sixteen[t]);
  }

  // In the order that `packs` would have left them in.
  static V as_packed(V entries) { return _mm256_permute4x64_epi64(entries, _MM_SHUFFLE(3, 1, 2, 0)); }

  template <class F>
  inline __attribute__((always_inline)) void for_each_weights(const Planes& planes, F f) const {
    table.for_each_weights(planes.plane, f);
  }

  static inline __attribute__((always_inline)) void add(Partial& partial, int part, V weights, const ExactBlock& block) {
    const __m256 x = _mm256_loadu_ps(block.x[7 - part / 2] + part % 2 * 8);
    partial.first = _mm256_fmadd_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(weights)), x, partial.first);
    partial.second = _mm256_fmadd_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(weights, 1)), x, partial.second);
  }

  static inline __attribute__((always_inline)) void fold(Sum& sum, const Partial& partial, const ExactBlock&) {
    sum.first = _mm256_add_ps(sum.first, partial.first), sum.second = _mm256_add_ps(sum.second, partial.second);
  }

  void store(const Sum& sum, const Activations&, std::int64_t row, std::int64_t last, float* y) const {
    const auto halves = [](__m256 v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); };
    store_halves(_mm256_set_m128(halves(sum.second), halves(sum.first)), 1.0f, 1.0f, row, last, y);
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
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  const __m128 two = _mm_hadd_ps(four, four);
  return _mm_cvtss_f32(_mm_hadd_ps(two, two));
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
