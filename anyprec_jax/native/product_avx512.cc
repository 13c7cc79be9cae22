// AVX-512 with VBMI (byte permutations) and VNNI (integer dot products). Compiled with them switched on: nothing here may run before
// `runs_here` has asked the processor.
//
// A chunk is one row by 512 columns: a register holds 64 bytes of a plane.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "activations.h"
#include "half.h"
#include "product.h"
#include "rows.h"

namespace anyprec {
namespace {

using V = __m512i;

inline V bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
// Bits of a where the mask has them, else bits of b.
inline V select(V mask, V a, V b) { return _mm512_ternarylogic_epi64(mask, a, b, 0xca); }
template <int bits>
inline V left(V v) { return _mm512_slli_epi16(v, bits); }
template <int bits>
inline V right(V v) { return _mm512_srli_epi16(v, bits); }

// ---- from planes to codes ----------------------------------------------------------------------------------------------------------

// The four least significant bits of the codes: byte b of nibbles[j] holds column 8 * b + j in its lower half and 8 * b + j + 4 in its
// upper one. With fewer than four planes the bits above are anything.
template <int planes>
inline void assemble_nibbles(const V* plane, V* nibbles) {
  const V odd_bits = bytes(0x55), odd_pairs = bytes(0x33);
  if constexpr (planes == 1) {
    nibbles[0] = plane[0], nibbles[1] = right<1>(plane[0]), nibbles[2] = right<2>(plane[0]), nibbles[3] = right<3>(plane[0]);
  } else {
    const V even = select(odd_bits, plane[0], left<1>(plane[1])), odd = select(odd_bits, right<1>(plane[0]), plane[1]);
    if constexpr (planes == 2) {
      nibbles[0] = even, nibbles[1] = odd, nibbles[2] = right<2>(even), nibbles[3] = right<2>(odd);
    } else {
      V even_high = plane[2], odd_high = right<1>(plane[2]);
      if constexpr (planes == 4) {
        even_high = select(odd_bits, plane[2], left<1>(plane[3])), odd_high = select(odd_bits, right<1>(plane[2]), plane[3]);
      }
      nibbles[0] = select(odd_pairs, even, left<2>(even_high)), nibbles[2] = select(odd_pairs, right<2>(even), even_high);
      nibbles[1] = select(odd_pairs, odd, left<2>(odd_high)), nibbles[3] = select(odd_pairs, right<2>(odd), odd_high);
    }
  }
}

// Byte b of codes[j] is the code of column 8 * b + j; bits above the precision are anything.
template <int precision>
inline void assemble_codes(const V* plane, V* codes) {
  V low[4];
  assemble_nibbles<(precision < 4 ? precision : 4)>(plane, low);
  if constexpr (precision <= 4) {
    for (int j = 0; j < 4; ++j) codes[j] = low[j], codes[j + 4] = right<4>(low[j]);
  } else {
    V high[4];
    assemble_nibbles<precision - 4>(plane + 4, high);
    const V mask = bytes(0xf0);
    for (int j = 0; j < 4; ++j) {
      codes[j] = select(mask, left<4>(high[j]), low[j]);
      codes[j + 4] = select(mask, high[j], right<4>(low[j]));
    }
  }
}

template <int precision>
struct PlaneReader {
  static constexpr bool kLoadsAhead = false;
  struct Planes {
    V plane[precision];  // the least significant first
  };

  const std::uint8_t* row_planes;
  std::int64_t plane_stride, row_bytes;

  void at(const Matrix& matrix, std::int64_t row) {
    row_bytes = matrix.row_bytes(), plane_stride = matrix.plane_stride;
    row_planes = matrix.planes + row * row_bytes;
  }

  inline __attribute__((always_inline)) Planes load(std::int64_t chunk) const {
    constexpr int kAhead = 1024;  // bytes: a line ahead of its use by what memory takes to answer
    Planes planes;
    for (int p = 0; p < precision; ++p) {
      const std::uint8_t* line = row_planes + p * plane_stride + 64 * chunk;
      _mm_prefetch(reinterpret_cast<const char*>(line + kAhead), _MM_HINT_T0);
      planes.plane[precision - 1 - p] = _mm512_loadu_si512(line);
    }
    return planes;
  }

  inline __attribute__((always_inline)) Planes load_tail(std::int64_t chunk) const {
    const std::int64_t left_over = row_bytes - 64 * chunk;
    const __mmask64 mask = left_over >= 64 ? ~0ull : ~(~0ull << left_over);
    Planes planes;
    for (int p = 0; p < precision; ++p)
      planes.plane[precision - 1 - p] = _mm512_maskz_loadu_epi8(mask, row_planes + p * plane_stride + 64 * chunk);
    return planes;
  }
};

// ---- tables ------------------------------------------------------------------------------------------------------------------------

// One byte per code. A permutation looks at six or seven bits of an index, and codebooks of fewer than 64 entries are repeated, so that
// whatever stands above the code does not matter.
template <int precision>
struct ByteTable {
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

// Sixteen entries of a row's codebook from `first` on, repeated where there are fewer.
template <int precision>
inline __m256i sixteen_entries(const std::uint16_t* codebook, int first) {
  if constexpr (precision >= 4) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codebook + first % (1 << precision)));
  } else if constexpr (precision == 3) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codebook)));
  } else {
    std::int64_t entries = 0;
    std::memcpy(&entries, codebook, 2 << precision);
    return precision == 2 ? _mm256_set1_epi64x(entries) : _mm256_set1_epi32(static_cast<int>(entries));
  }
}

template <int precision>
inline float largest_magnitude(const std::uint16_t* codebook) {
  __m256i largest = _mm256_setzero_si256();
  for (int first = 0; first < 1 << precision; first += 16)
    largest = _mm256_max_epu16(largest, _mm256_and_si256(sixteen_entries<precision>(codebook, first), _mm256_set1_epi16(0x7fff)));
  const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  const __m128i complement = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)));  // there is no maximum, but a minimum
  return half_to_float(static_cast<std::uint16_t>(~_mm_cvtsi128_si32(complement)));
}

// round(centroid * inverse) + middle: 0 <= result <= 2 * middle.
template <int precision>
inline __m512i quantized(const std::uint16_t* codebook, int first, float inverse, int middle) {
  const __m512 centroids = _mm512_cvtph_ps(sixteen_entries<precision>(codebook, first));
  const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(centroids, _mm512_set1_ps(inverse)));
  return _mm512_add_epi32(integers, _mm512_set1_epi32(middle));
}

// The bytes of sixty-four 16-bit entries, given as four registers of sixteen int32.
inline void split_bytes(const V* entries, V* low, V* high) {
  const auto narrow = [](V v) { return _mm512_cvtepi32_epi8(v); };
  alignas(64) __m128i low_bytes[4], high_bytes[4];
  for (int i = 0; i < 4; ++i) low_bytes[i] = narrow(entries[i]), high_bytes[i] = narrow(_mm512_srli_epi32(entries[i], 8));
  *low = _mm512_load_si512(low_bytes), *high = _mm512_load_si512(high_bytes);
}

template <int precision>
struct WordTable {
  ByteTable<precision> low, high;

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

struct Words {
  V low, high;  // bytes of 64 weights
};

// ---- the three arithmetics ---------------------------------------------------------------------------------------------------------

struct Sum {
  __m512 value = _mm512_setzero_ps();
};

inline void store_sum(const Sum& sum, float scale, std::int64_t row, float* y) { y[row] = scale * _mm512_reduce_add_ps(sum.value); }

// The dot-product instruction multiplies unsigned by signed bytes: weights are stored with an offset, which `start` takes away again.
// An int32 of the sums collects four bytes, which are 32 neighbouring columns.

constexpr int kTopWeight16 = 32767, kMiddle16 = 32768;
constexpr int kTopActivation16 = 32512;  // 127 * 256: its high byte, rounded, is at most 127

struct Int16Block {
  std::int8_t high[8][64], low[8][64];  // [column % 8][byte]; x is 256 * high + low
  std::int32_t start[16];
  float scales[16];

  void fill(const float* values) {
    std::int16_t q[512];
    quantize<512, kTopActivation16>(values, [](int run) { return run / 2; }, q, scales);
    for (int group = 0; group < 16; ++group) {
      std::int32_t sum = 0;
      for (int i = 0; i < 32; ++i) sum += q[32 * group + i];
      start[group] = -(kMiddle16 / 256) * sum;  // the sums count in units of 256
      scales[group] *= 256.0f;
    }
    for (int byte = 0; byte < 64; ++byte)
      for (int j = 0; j < 8; ++j) {
        const int value = q[8 * byte + j], rounded = (value + 128) >> 8;
        high[j][byte] = static_cast<std::int8_t>(rounded);
        low[j][byte] = static_cast<std::int8_t>(value - 256 * rounded);
      }
  }
};

template <int precision>
struct Int16 : PlaneReader<precision> {
  static constexpr int kRows = 1, kColumns = 512, kParts = 8;
  using Planes = typename PlaneReader<precision>::Planes;
  using Weights = Words;
  using Activations = Chunks<Int16Block, kColumns>;
  using Sum = anyprec::Sum;
  struct Partial {
    V high_high = _mm512_setzero_si512(), low_high = _mm512_setzero_si512(), high_low = _mm512_setzero_si512();
  };

  WordTable<precision> table;
  float scale;

  void prepare(const Matrix& matrix, std::int64_t row, std::int64_t) {
    this->at(matrix, row);
    const std::uint16_t* codebook = matrix.codebook + (row << precision);
    _mm_prefetch(reinterpret_cast<const char*>(codebook + (2 << precision)), _MM_HINT_T0);
    const float largest = largest_magnitude<precision>(codebook), inverse = largest > 0 ? kTopWeight16 / largest : 0.0f;
    scale = largest / kTopWeight16;
    table.fill([&](int first) { return quantized<precision>(codebook, first, inverse, kMiddle16); });
  }

  template <class F>
  inline __attribute__((always_inline)) void for_each_weights(const Planes& planes, F f) const {
    V codes[8];
    assemble_codes<precision>(planes.plane, codes);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) f(j, Words{table.low.look_up(codes[j]), table.high.look_up(codes[j])});
  }

  // The product of the two low bytes, 2^-16 of the whole, is left out.
  static inline __attribute__((always_inline)) void add(Partial& partial, int j, const Words& weights, const Int16Block& block) {
    const V high = _mm512_loadu_si512(block.high[j]), low = _mm512_loadu_si512(block.low[j]);
    partial.high_high = _mm512_dpbusd_epi32(partial.high_high, weights.high, high);
    partial.low_high = _mm512_dpbusd_epi32(partial.low_high, weights.low, high);
    partial.high_low = _mm512_dpbusd_epi32(partial.high_low, weights.high, low);
  }

  static inline __attribute__((always_inline)) void fold(Sum& sum, const Partial& partial, const Int16Block& block) {
    const V middle = _mm512_add_epi32(_mm512_add_epi32(partial.low_high, partial.high_low), _mm512_loadu_si512(block.start));
    const V integers = _mm512_add_epi32(_mm512_slli_epi32(partial.high_high, 8), middle);
    sum.value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers), _mm512_loadu_ps(block.scales), sum.value);
  }

  void store(const Sum& sum, const Activations&, std::int64_t row, std::int64_t, float* y) const { store_sum(sum, scale, row, y); }
};

constexpr int kTop8 = 127, kMiddle8 = 128;

struct Int8Block {
  std::int8_t x[8][64];  // [column % 8][byte]
  std::int32_t start[16];
  float scales[16];

  void fill(const float* values) {
    std::int16_t q[512];
    quantize<512, kTop8>(values, [](int run) { return run / 2; }, q, scales);
    for (int group = 0; group < 16; ++group) {
      std::int32_t sum = 0;
      for (int i = 0; i < 32; ++i) sum += q[32 * group + i];
      start[group] = -kMiddle8 * sum;
    }
    for (int byte = 0; byte < 64; ++byte)
      for (int j = 0; j < 8; ++j) x[j][byte] = static_cast<std::int8_t>(q[8 * byte + j]);
  }
};

template <int precision>
struct Int8 : PlaneReader<precision> {
  static constexpr int kRows = 1, kColumns = 512, kParts = 8;
  using Planes = typename PlaneReader<precision>::Planes;
  using Weights = V;
  using Activations = Chunks<Int8Block, kColumns>;
  using Sum = anyprec::Sum;
  struct Partial {
    V value = _mm512_setzero_si512();
  };

  ByteTable<precision> table;
  float scale;

  void prepare(const Matrix& matrix, std::int64_t row, std::int64_t) {
    this->at(matrix, row);
    const std::uint16_t* codebook = matrix.codebook + (row << precision);
    _mm_prefetch(reinterpret_cast<const char*>(codebook + (2 << precision)), _MM_HINT_T0);
    const float largest = largest_magnitude<precision>(codebook), inverse = largest > 0 ? kTop8 / largest : 0.0f;
    scale = largest / kTop8;
    WordTable<precision> words;
    words.fill([&](int first) { return quantized<precision>(codebook, first, inverse, kMiddle8); });
    table = words.low;
  }

  template <class F>
  inline __attribute__((always_inline)) void for_each_weights(const Planes& planes, F f) const {
    V codes[8];
    assemble_codes<precision>(planes.plane, codes);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) f(j, table.look_up(codes[j]));
  }

  static inline __attribute__((always_inline)) void add(Partial& partial, int j, V weights, const Int8Block& block) {
    partial.value = _mm512_dpbusd_epi32(partial.value, weights, _mm512_loadu_si512(block.x[j]));
  }

  static inline __attribute__((always_inline)) void fold(Sum& sum, const Partial& partial, const Int8Block& block) {
    const V integers = _mm512_add_epi32(partial.value, _mm512_loadu_si512(block.start));
    sum.value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers), _mm512_loadu_ps(block.scales), sum.value);
  }

  void store(const Sum& sum, const Activations&, std::int64_t row, std::int64_t, float* y) const { store_sum(sum, scale, row, y); }
};

struct ExactBlock {
  float x[8][4][16];  // [column % 8][which sixteen bytes][byte]

  void fill(const float* values) {
    for (int j = 0; j < 8; ++j)
      for (int part = 0; part < 4; ++part)
        for (int i = 0; i < 16; ++i) x[j][part][i] = values[8 * byte_of(part, i) + j];
  }

  // Interleaving the low and the high bytes of the weights works on quarters of a register: bytes 0-7 of all four, then bytes 8-15.
  static int byte_of(int part, int i) { return 16 * (part % 2 * 2 + i / 8) + part / 2 * 8 + i % 8; }
};

template <int precision>
struct Exact : PlaneReader<precision> {
  static constexpr int kRows = 1, kColumns = 512, kParts = 8;
  using Planes = typename PlaneReader<precision>::Planes;
  using Weights = Words;
  using Activations = Chunks<ExactBlock, kColumns>;
  struct Partial {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
  };
  using Sum = anyprec::Sum;

  WordTable<precision> table;

  void prepare(const Matrix& matrix, std::int64_t row, std::int64_t) {
    this->at(matrix, row);
    const std::uint16_t* codebook = matrix.codebook + (row << precision);
    table.fill([&](int first) { return _mm512_cvtepu16_epi32(sixteen_entries<precision>(codebook, first)); });
  }

  template <class F>
  inline __attribute__((always_inline)) void for_each_weights(const Planes& planes, F f) const {
    V codes[8];
    assemble_codes<precision>(planes.plane, codes);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) f(j, Words{table.low.look_up(codes[j]), table.high.look_up(codes[j])});
  }

  static inline __attribute__((always_inline)) void add(Partial& partial, int j, const Words& weights, const ExactBlock& block) {
    const auto multiply_add = [&](V halves, int part) __attribute__((always_inline)) {
      const __m512 lower = _mm512_cvtph_ps(_mm512_castsi512_si256(halves)), upper = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
      partial.even = _mm512_fmadd_ps(lower, _mm512_loadu_ps(block.x[j][part]), partial.even);
      partial.odd = _mm512_fmadd_ps(upper, _mm512_loadu_ps(block.x[j][part + 1]), partial.odd);
    };
    multiply_add(_mm512_unpacklo_epi8(weights.low, weights.high), 0);
    multiply_add(_mm512_unpackhi_epi8(weights.low, weights.high), 2);
  }

  static inline __attribute__((always_inline)) void fold(Sum& sum, const Partial& partial, const ExactBlock&) {
    sum.value = _mm512_add_ps(sum.value, _mm512_add_ps(partial.even, partial.odd));
  }

  void store(const Sum& sum, const Activations&, std::int64_t row, std::int64_t, float* y) const { store_sum(sum, 1.0f, row, y); }
};

// ---- affine rows -------------------------------------------------------------------------------------------------------------------

struct AffineBlock {
  std::int8_t high[64], low[64];  // of 64 columns; x is 256 * high + low
  float scale;                    // of all 64
  std::int32_t sum;               // of x

  void fill(const float* values) {
    std::int16_t q[64];
    float scales[2];
    quantize<64, kTopActivation16>(values, [](int) { return 0; }, q, scales);
    scale = scales[0];
    sum = 0;
    for (int i = 0; i < 64; ++i) {
      const int value = q[i], rounded = (value + 128) >> 8;
      high[i] = static_cast<std::int8_t>(rounded), low[i] = static_cast<std::int8_t>(value - 256 * rounded);
      sum += value;
    }
  }
};

using AffineActivations = Chunks<AffineBlock, 64>;

inline __m512 affine_chunk(V codes, const AffineBlock& block, __m512 sum) {
  const V high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, _mm512_loadu_si512(block.high));
  const V integers = _mm512_dpbusd_epi32(_mm512_slli_epi32(high, 8), codes, _mm512_loadu_si512(block.low));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers), _mm512_set1_ps(block.scale), sum);
}

float dot_affine_row(const std::uint8_t* codes, const AffineBlock* blocks, std::int64_t k) {
  const std::int64_t full_chunks = k / 64;
  __m512 sum = _mm512_setzero_ps();
  for (std::int64_t chunk = 0; chunk < full_chunks; ++chunk) {
    _mm_prefetch(reinterpret_cast<const char*>(codes + 64 * chunk + 2048), _MM_HINT_T0);
    sum = affine_chunk(_mm512_loadu_si512(codes + 64 * chunk), blocks[chunk], sum);
  }
  if (k % 64 != 0) {
    const __mmask64 mask = ~(~0ull << (k % 64));
    sum = affine_chunk(_mm512_maskz_loadu_epi8(mask, codes + 64 * full_chunks), blocks[full_chunks], sum);
  }
  return _mm512_reduce_add_ps(sum);
}

void multiply_affine_rows(const AffineMatrix& matrix, const void* const* x, std::int64_t m, std::int64_t first, std::int64_t last,
                          float* const* y) {
  multiply_affine<AffineActivations>(matrix, x, m, first, last, y, dot_affine_row);
}

bool runs_here() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

template <template <int> class A>
constexpr Product<Matrix> product() {
  return {A<1>::Activations::bytes, A<1>::Activations::arrange, multiply_rows<A>};
}

}  // namespace

extern const Kernel kAvx512Kernel;
const Kernel kAvx512Kernel = {"avx512",
                              runs_here,
                              product<Exact>(),
                              product<Int16>(),
                              product<Int8>(),
                              {AffineActivations::bytes, AffineActivations::arrange, multiply_affine_rows}};

}  // namespace anyprec
