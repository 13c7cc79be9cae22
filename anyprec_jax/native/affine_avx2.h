// Affine rows: codes are bytes already.
#ifndef ANYPREC_JAX_NATIVE_AFFINE_AVX2_H_
#define ANYPREC_JAX_NATIVE_AFFINE_AVX2_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "activations.h"
#include "rows.h"

namespace anyprec {
namespace {

// Of eight float32.
inline float total(__m256 sum) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  const __m128 two = _mm_hadd_ps(four, four);
  return _mm_cvtss_f32(_mm_hadd_ps(two, two));
}

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
    const __m256i weights = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + 16 * i)));
    return _mm256_madd_epi16(weights, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.x + 16 * i)));
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

}  // namespace
}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_AFFINE_AVX2_H_
