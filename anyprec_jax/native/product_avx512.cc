// AVX-512 with VBMI (byte permutations) and VNNI (integer dot products). Compiled with them switched on: nothing here may run before
// `runs_here` has asked the processor.
#include <immintrin.h>

#include <cstdint>

#include "activations.h"
#include "affine_avx512.h"
#include "codebook_x86.h"
#include "product.h"
#include "rows.h"
#include "tables_avx512.h"

namespace anyprec {
namespace {

struct Sum {
  __m512 value = _mm512_setzero_ps();
};

inline void fold_integers(Sum& sum, V integers, const float* scales) {
  sum.value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers), _mm512_loadu_ps(scales), sum.value);
}

// Sixteen centroids as integers from 0 to 2 * middle. The dot-product instruction multiplies unsigned by signed bytes: weights are stored
// with an offset, which the `start` of a block takes away again.
template <int precision>
inline V integers_of(const std::uint16_t* codebook, int first, float inverse, int middle) {
  const __m512 centroids = _mm512_cvtph_ps(sixteen_entries<precision>(codebook, first));
  const V integers = _mm512_cvtps_epi32(_mm512_mul_ps(centroids, _mm512_set1_ps(inverse)));
  return _mm512_add_epi32(integers, _mm512_set1_epi32(middle));
}

inline std::int32_t sum_of(const std::int16_t* q, int count) {
  std::int32_t sum = 0;
  for (int i = 0; i < count; ++i) sum += q[i];
  return sum;
}

// An int32 of the sums collects the four bytes of a plane, which are 32 neighbouring columns, or in a tail four columns.

constexpr int kTopWeight16 = 32767, kMiddle16 = 32768;

struct Int16Block {
  std::int8_t high[8][64], low[8][64];  // [column % 8][byte]
  std::int32_t start[16];
  float scales[16];

  void fill(const float* values) {
    std::int16_t q[512];
    quantize<512, kTopHighByte>(values, [](int run) { return run / 2; }, q, scales);
    for (int group = 0; group < 16; ++group) {
      start[group] = -(kMiddle16 / 256) * sum_of(q + 32 * group, 32);
      scales[group] *= 256.0f;  // the sums count in units of 256
    }
    for (int byte = 0; byte < 64; ++byte)
      for (int j = 0; j < 8; ++j) {
        const SplitBytes bytes = split(q[8 * byte + j]);
        high[j][byte] = bytes.high, low[j][byte] = bytes.low;
      }
  }
};

struct Int16Tail {
  static constexpr int kColumns = 64;
  std::int8_t high[64], low[64];  // in the order of the columns
  std::int32_t start[16];
  float scales[16];

  void fill(const float* values) {
    std::int16_t q[64];
    float of_group[2];
    quantize<64, kTopHighByte>(values, [](int run) { return run / 2; }, q, of_group);
    for (int i = 0; i < 16; ++i) start[i] = -(kMiddle16 / 256) * sum_of(q + 4 * i, 4), scales[i] = 256.0f * of_group[i / 8];
    for (int i = 0; i < 64; ++i) {
      const SplitBytes bytes = split(q[i]);
      high[i] = bytes.high, low[i] = bytes.low;
    }
  }
};

template <int precision>
struct Int16 : Decoder<precision, WordTable<precision>> {
  using Activations = Chunks<Int16Block, 512, Int16Tail>;
  using Sum = anyprec::Sum;
  struct Partial {
    V high_high = _mm512_setzero_si512(), low_high = _mm512_setzero_si512(), high_low = _mm512_setzero_si512();
  };

  float scale;

  void prepare(const Matrix& matrix, std::int64_t row) {
    this->at(matrix, row);
    const std::uint16_t* codebook = matrix.codebook + (row << precision);
    prefetch_codebook<precision>(codebook);
    const RowScale scaling = row_scale<precision>(codebook, kTopWeight16);
    scale = scaling.scale;
    this->table.fill([&](int first) { return integers_of<precision>(codebook, first, scaling.inverse, kMiddle16); });
  }

  // The product of the two low bytes, 2^-16 of the whole, is left out.
  static inline __attribute__((always_inline)) void multiply(Partial& partial, const Words& weights, V high, V low) {
    partial.high_high = _mm512_dpbusd_epi32(partial.high_high, weights.high, high);
    partial.low_high = _mm512_dpbusd_epi32(partial.low_high, weights.low, high);
    partial.high_low = _mm512_dpbusd_epi32(partial.high_low, weights.high, low);
  }

  static inline __attribute__((always_inline)) void add(Partial& partial, int j, const Words& weights, const Int16Block& block) {
    multiply(partial, weights, _mm512_loadu_si512(block.high[j]), _mm512_loadu_si512(block.low[j]));
  }

  template <class AnyBlock>
  static inline __attribute__((always_inline)) void fold(Sum& sum, const Partial& partial, const AnyBlock& block) {
    const V middle = _mm512_add_epi32(_mm512_add_epi32(partial.low_high, partial.high_low), _mm512_loadu_si512(block.start));
    fold_integers(sum, _mm512_add_epi32(_mm512_slli_epi32(partial.high_high, 8), middle), block.scales);
  }

  static inline __attribute__((always_inline)) void fold_tail(Sum& sum, const Words& weights, const Int16Tail& tail) {
    Partial partial{};
    multiply(partial, weights, _mm512_loadu_si512(tail.high), _mm512_loadu_si512(tail.low));
    fold(sum, partial, tail);
  }

  float finish(const Sum& sum) const { return scale * _mm512_reduce_add_ps(sum.value); }
};

constexpr int kTop8 = 127, kMiddle8 = 128;

struct Int8Block {
  std::int8_t x[8][64];  // [column % 8][byte]
  std::int32_t start[16];
  float scales[16];

  void fill(const float* values) {
    std::int16_t q[512];
    quantize<512, kTop8>(values, [](int run) { return run / 2; }, q, scales);
    for (int group = 0; group < 16; ++group) start[group] = -kMiddle8 * sum_of(q + 32 * group, 32);
    for (int byte = 0; byte < 64; ++byte)
      for (int j = 0; j < 8; ++j) x[j][byte] = static_cast<std::int8_t>(q[8 * byte + j]);
  }
};

struct Int8Tail {
  static constexpr int kColumns = 64;
  std::int8_t x[64];  // in the order of the columns
  std::int32_t start[16];
  float scales[16];

  void fill(const float* values) {
    std::int16_t q[64];
    float of_group[2];
    quantize<64, kTop8>(values, [](int run) { return run / 2; }, q, of_group);
    for (int i = 0; i < 16; ++i) start[i] = -kMiddle8 * sum_of(q + 4 * i, 4), scales[i] = of_group[i / 8];
    for (int i = 0; i < 64; ++i) x[i] = static_cast<std::int8_t>(q[i]);
  }
};

template <int precision>
struct Int8 : Decoder<precision, ByteTable<precision>> {
  using Activations = Chunks<Int8Block, 512, Int8Tail>;
  using Sum = anyprec::Sum;
  struct Partial {
    V value = _mm512_setzero_si512();
  };

  float scale;

  void prepare(const Matrix& matrix, std::int64_t row) {
    this->at(matrix, row);
    const std::uint16_t* codebook = matrix.codebook + (row << precision);
    prefetch_codebook<precision>(codebook);
    const RowScale scaling = row_scale<precision>(codebook, kTop8);
    scale = scaling.scale;
    WordTable<precision> words;
    words.fill([&](int first) { return integers_of<precision>(codebook, first, scaling.inverse, kMiddle8); });
    this->table = words.low;
  }

  static inline __attribute__((always_inline)) void add(Partial& partial, int j, V weights, const Int8Block& block) {
    partial.value = _mm512_dpbusd_epi32(partial.value, weights, _mm512_loadu_si512(block.x[j]));
  }

  template <class AnyBlock>
  static inline __attribute__((always_inline)) void fold(Sum& sum, const Partial& partial, const AnyBlock& block) {
    fold_integers(sum, _mm512_add_epi32(partial.value, _mm512_loadu_si512(block.start)), block.scales);
  }

  static inline __attribute__((always_inline)) void fold_tail(Sum& sum, V weights, const Int8Tail& tail) {
    const V products = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, _mm512_loadu_si512(tail.x));
    fold(sum, Partial{products}, tail);
  }

  float finish(const Sum& sum) const { return scale * _mm512_reduce_add_ps(sum.value); }
};

// Interleaving the low and the high bytes of 64 weights works on quarters of a register: bytes 0-7 of all four, then bytes 8-15.
constexpr int byte_of(int part, int i) { return 16 * (part % 2 * 2 + i / 8) + part / 2 * 8 + i % 8; }

struct ExactBlock {
  float x[8][4][16];  // [column % 8][part][byte]

  void fill(const float* values) {
    for (int j = 0; j < 8; ++j)
      for (int part = 0; part < 4; ++part)
        for (int i = 0; i < 16; ++i) x[j][part][i] = values[8 * byte_of(part, i) + j];
  }
};

struct ExactTail {
  static constexpr int kColumns = 64;
  float x[4][16];  // [part][column]

  void fill(const float* values) {
    for (int part = 0; part < 4; ++part)
      for (int i = 0; i < 16; ++i) x[part][i] = values[byte_of(part, i)];
  }
};

template <int precision>
struct Exact : Decoder<precision, WordTable<precision>> {
  using Activations = Chunks<ExactBlock, 512, ExactTail>;
  using Sum = anyprec::Sum;
  struct Partial {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
  };

  void prepare(const Matrix& matrix, std::int64_t row) {
    this->at(matrix, row);
    const std::uint16_t* codebook = matrix.codebook + (row << precision);
    this->table.fill([&](int first) { return _mm512_cvtepu16_epi32(sixteen_entries<precision>(codebook, first)); });
  }

  static inline __attribute__((always_inline)) void multiply(Partial& partial, const Words& weights, const float (*x)[16]) {
    const auto multiply_add = [&](V halves, int part) __attribute__((always_inline)) {
      const __m512 lower = _mm512_cvtph_ps(_mm512_castsi512_si256(halves)), upper = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
      partial.even = _mm512_fmadd_ps(lower, _mm512_loadu_ps(x[part]), partial.even);
      partial.odd = _mm512_fmadd_ps(upper, _mm512_loadu_ps(x[part + 1]), partial.odd);
    };
    multiply_add(_mm512_unpacklo_epi8(weights.low, weights.high), 0);
    multiply_add(_mm512_unpackhi_epi8(weights.low, weights.high), 2);
  }

  static inline __attribute__((always_inline)) void add(Partial& partial, int j, const Words& weights, const ExactBlock& block) {
    multiply(partial, weights, block.x[j]);
  }

  template <class AnyBlock>
  static inline __attribute__((always_inline)) void fold(Sum& sum, const Partial& partial, const AnyBlock&) {
    sum.value = _mm512_add_ps(sum.value, _mm512_add_ps(partial.even, partial.odd));
  }

  static inline __attribute__((always_inline)) void fold_tail(Sum& sum, const Words& weights, const ExactTail& tail) {
    Partial partial{};
    multiply(partial, weights, tail.x);
    fold(sum, partial, tail);
  }

  float finish(const Sum& sum) const { return _mm512_reduce_add_ps(sum.value); }
};

bool runs_here() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma");
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
