// AVX2, FMA and F16C. Compiled with them switched on: nothing here may run before `runs_here` has asked the processor.
#include <immintrin.h>

#include <cstdint>

#include "activations.h"
#include "affine_avx2.h"
#include "codebook_x86.h"
#include "product.h"
#include "rows.h"
#include "tables_avx2.h"

namespace anyprec {
namespace {

// ---- sums --------------------------------------------------------------------------------------------------------------------------

struct FloatSum {
  __m256 value = _mm256_setzero_ps();
};

// ---- the three arithmetics ---------------------------------------------------------------------------------------------------------

// Sixteen centroids as integers, in the order in which `packs` leaves them: 0-3, 8-11 and then 4-7, 12-15.
inline V integers_of(V halves, float inverse) {
  const __m256 lower = _mm256_cvtph_ps(_mm256_castsi256_si128(halves)), upper = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
  const __m256 factor = _mm256_set1_ps(inverse);
  return _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(lower, factor)), _mm256_cvtps_epi32(_mm256_mul_ps(upper, factor)));
}

// Eight products of two such numbers are the most that an int32 holds.
constexpr int kTop16 = 16383;
static_assert(8ll * kTop16 * kTop16 < 1ll << 31, "the sums would overflow");

struct Int16Block {
  std::int16_t x[16][16];  // [part][word]
  float scales[8];

  void fill(const float* values) {
    std::int16_t q[256];
    // An int32 of the sums collects bytes 2i, 2i + 1, 2i + 8 and 2i + 9 of a half.
    quantize<256, kTop16>(values, [](int run) { return run / 8 * 4 + run % 4; }, q, scales);
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
    V sums[4] = {};  // each of four parts, eight products
  };

  float scale;

  void prepare(const Matrix& matrix, std::int64_t row) {
    this->at(matrix, row);
    const std::uint16_t* codebook = matrix.codebook + (row << precision);
    prefetch_codebook<precision>(codebook);
    const RowScale row_scaling = row_scale<precision>(codebook, kTop16);
    scale = row_scaling.scale;
    for (int t = 0; t < ByteTable<precision>::kTables; ++t)
      split_bytes(integers_of(sixteen_entries<precision>(codebook, 16 * t), row_scaling.inverse), &this->table.low.sixteen[t], &this->table.high.sixteen[t]);
    this->table.finish();
  }

  static inline __attribute__((always_inline)) void add(Partial& partial, int part, V weights, const Int16Block& block) {
    V& sum = partial.sums[part % 4];
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights, _mm256_load_si256(reinterpret_cast<const V*>(block.x[part]))));
    settle(sum);
  }

  static inline __attribute__((always_inline)) void fold(Sum& sum, const Partial& partial, const Int16Block& block) {
    const auto two = [&](int i) { return _mm256_add_ps(_mm256_cvtepi32_ps(partial.sums[i]), _mm256_cvtepi32_ps(partial.sums[i + 1])); };
    sum.value = _mm256_fmadd_ps(_mm256_add_ps(two(0), two(2)), _mm256_load_ps(block.scales), sum.value);
  }

  float finish(const Sum& sum) const { return scale * total(sum.value); }
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

  void prepare(const Matrix& matrix, std::int64_t row) {
    this->at(matrix, row);
    const std::uint16_t* codebook = matrix.codebook + (row << precision);
    prefetch_codebook<precision>(codebook);
    const RowScale row_scaling = row_scale<precision>(codebook, kTop8);
    scale = row_scaling.scale;
    V unused;
    for (int t = 0; t < ByteTable<precision>::kTables; ++t)
      split_bytes(integers_of(sixteen_entries<precision>(codebook, 16 * t), row_scaling.inverse), &this->table.bytes.sixteen[t], &unused);
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

  float finish(const Sum& sum) const { return scale * total(sum.value); }
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

  void prepare(const Matrix& matrix, std::int64_t row) {
    this->at(matrix, row);
    const std::uint16_t* codebook = matrix.codebook + (row << precision);
    for (int t = 0; t < ByteTable<precision>::kTables; ++t)
      split_bytes(as_packed(sixteen_entries<precision>(codebook, 16 * t)), &this->table.low.sixteen[t], &this->table.high.sixteen[t]);
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

  float finish(const Sum& sum) const { return total(_mm256_add_ps(sum.first, sum.second)); }
};

bool runs_here() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

}  // namespace

extern const Kernel kAvx2Kernel;
const Kernel kAvx2Kernel = {"avx2",
                            runs_here,
                            product<Exact>(),
                            product<Int16>(),
                            product<Int8>(),
                            {AffineActivations::bytes, AffineActivations::arrange, multiply_affine_rows}};

}  // namespace anyprec
