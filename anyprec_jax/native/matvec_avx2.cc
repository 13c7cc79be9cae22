// Compiled with AVX2 switched on: nothing here may run before find_kernel has asked the processor.
#include <immintrin.h>

#include <type_traits>

#include "matvec_kernel.h"

namespace anyprec {
namespace {

// Eight look-ups at once: the table lies in registers of eight entries. A permutation picks by the three low bits of
// the code, and each further bit halves the candidates.
template <int precision>
struct PermuteTable {
  static constexpr int kCodesPerByte = 1;
  static constexpr int kRegisters = precision <= 3 ? 1 : 1 << (precision - 3);

  alignas(64) std::uint32_t entries[8 * kRegisters] = {};  // floats, as bits; the unused ones stay zero

  void load(const std::uint16_t* codebook) {
    for (int i = 0; i < 1 << precision; ++i) entries[i] = half_to_float_bits(codebook[i]);
  }

  void look_up(const unsigned char* codes, std::int64_t num_bytes, float* weights) const {
    __m256 table[kRegisters];
    for (int i = 0; i < kRegisters; ++i)
      table[i] = _mm256_castsi256_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(entries + 8 * i)));
    for (std::int64_t i = 0; i < num_bytes; i += 8) {
      const __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i)));
      __m256 picked[kRegisters];
      for (int j = 0; j < kRegisters; ++j) picked[j] = _mm256_permutevar8x32_ps(table[j], code);
      for (int bit = 3; bit < precision; ++bit) {
        const __m256 is_set = _mm256_castsi256_ps(_mm256_slli_epi32(code, 31 - bit));  // the sign decides
        for (int j = 0; j < kRegisters >> (bit - 2); ++j)
          picked[j] = _mm256_blendv_ps(picked[2 * j], picked[2 * j + 1], is_set);
      }
      _mm256_storeu_ps(weights + i, picked[0]);
    }
  }
};

// From five bits on, a load per code is as fast as four permutations and three blends per eight codes.
template <int precision>
using Avx2Table = std::conditional_t<precision <= 4, PermuteTable<precision>, SingleTable<precision>>;

}  // namespace

extern const Kernel kAvx2Kernel;
const Kernel kAvx2Kernel = {"avx2", codes_per_byte<Avx2Table>, multiply_rows<Avx2Table>};

}  // namespace anyprec
