// Affine rows: codes are bytes already.
#ifndef ANYPREC_JAX_NATIVE_AFFINE_AVX512_H_
#define ANYPREC_JAX_NATIVE_AFFINE_AVX512_H_

#include <immintrin.h>

#include <cstdint>

#include "activations.h"
#include "codes_avx512.h"
#include "rows.h"

namespace anyprec {
namespace {

// The dot-product instruction takes bytes: x is 256 * high + low, and its high byte, rounded, at most 127.
constexpr int kTopHighByte = 127 * 256;

struct SplitBytes {
  std::int8_t high, low;
};

inline SplitBytes split(int value) {
  const int high = (value + 128) >> 8;
  return {static_cast<std::int8_t>(high), static_cast<std::int8_t>(value - 256 * high)};
}

struct AffineBlock {
  std::int8_t high[64], low[64];  // of 64 columns; x is 256 * high + low
  float scale;                    // of all 64
  std::int32_t sum;               // of x

  void fill(const float* values) {
    std::int16_t q[64];
    float scales[2];
    quantize<64, kTopHighByte>(values, [](int) { return 0; }, q, scales);
    scale = scales[0];
    sum = 0;
    for (int i = 0; i < 64; ++i) {
      const SplitBytes bytes = split(q[i]);
      high[i] = bytes.high, low[i] = bytes.low;
      sum += q[i];
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

}  // namespace
}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_AFFINE_AVX512_H_
