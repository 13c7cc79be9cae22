// A row of a codebook, fp16 [2**precision], as the x86 kernels read it; needs AVX2 and F16C.
#ifndef ANYPREC_JAX_NATIVE_CODEBOOK_X86_H_
#define ANYPREC_JAX_NATIVE_CODEBOOK_X86_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace anyprec {
namespace {

// Sixteen entries from `first` on; shorter codebooks are repeated, so that whatever stands above a code does not matter.
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

// Has the codebook of the row after next brought from memory: tables are prepared in one burst of reads.
template <int precision>
inline void prefetch_codebook(const std::uint16_t* codebook) {
  constexpr int kEntriesOfLine = 32;
  for (int entry = 0; entry < 1 << precision; entry += kEntriesOfLine)
    _mm_prefetch(reinterpret_cast<const char*>(codebook + (2 << precision) + entry), _MM_HINT_T0);
}

// The largest magnitude: as fp16 bits they have the order of the numbers.
template <int precision>
inline float largest_magnitude(const std::uint16_t* codebook) {
  __m256i largest = _mm256_setzero_si256();
  for (int first = 0; first < 1 << precision; first += 16)
    largest = _mm256_max_epu16(largest, _mm256_and_si256(sixteen_entries<precision>(codebook, first), _mm256_set1_epi16(0x7fff)));
  const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  const __m128i complement = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)));  // there is no maximum, but a minimum
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_xor_si128(complement, _mm_set1_epi16(-1))));
}

// How a row's centroids become integers of magnitude `top` at most.
struct RowScale {
  float scale, inverse;
};

template <int precision>
inline RowScale row_scale(const std::uint16_t* codebook, int top) {
  const float largest = largest_magnitude<precision>(codebook);
  return {largest / static_cast<float>(top), largest > 0 ? static_cast<float>(top) / largest : 0.0f};
}

}  // namespace
}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_CODEBOOK_X86_H_
