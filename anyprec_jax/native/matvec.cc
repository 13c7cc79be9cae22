#include "matvec.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "matvec_kernel.h"

namespace anyprec {

#if defined(ANYPREC_AVX2)
extern const Kernel kAvx2Kernel;  // matvec_avx2.cc
#endif

namespace {

template <int precision>
using PortableTable = std::conditional_t<precision <= 4, PairTable<precision>, SingleTable<precision>>;

const Kernel kPortableKernel = {"portable", codes_per_byte<PortableTable>, multiply_rows<PortableTable>};

float to_float(float value) { return value; }

float to_float(BFloat16 value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

template <typename Float>
void arrange_row(const Float* x, std::int64_t k, int codes_per_byte, float* arranged) {
  const int shifts = 8 / codes_per_byte;
  for (std::int64_t begin = 0; begin < k; begin += 32 * kChunkWords) {
    const std::int64_t bytes = 4 * std::min(kChunkWords, (k - begin + 31) / 32);
    for (int s = 0; s < shifts; ++s)
      for (std::int64_t t = 0; t < bytes; ++t)
        for (int f = 0; f < codes_per_byte; ++f) {
          const std::int64_t column = begin + 8 * t + s + f * shifts;
          *arranged++ = column < k ? to_float(x[column]) : 0.0f;
        }
  }
}

}  // namespace

const Kernel* find_kernel(std::string_view isa) {
#if defined(ANYPREC_AVX2)
  __builtin_cpu_init();
  if ((isa.empty() || isa == "avx2") && __builtin_cpu_supports("avx2")) return &kAvx2Kernel;
#endif
  return isa.empty() || isa == "portable" ? &kPortableKernel : nullptr;
}

BFloat16 round_to_bfloat16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  if (is_nan) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

void arrange(const float* x, std::int64_t k, int codes_per_byte, float* arranged) {
  arrange_row(x, k, codes_per_byte, arranged);
}

void arrange(const BFloat16* x, std::int64_t k, int codes_per_byte, float* arranged) {
  arrange_row(x, k, codes_per_byte, arranged);
}

}  // namespace anyprec
