#include "matvec.h"

#include <algorithm>
#include <array>
#include <cstring>

// Portable C++17. Where the linker can choose between versions of a function when the library is loaded, the kernel is
// compiled a second time for AVX2; the source, the order of operations and therefore the results are the same.
#if defined(__x86_64__) && defined(__gnu_linux__) && (defined(__clang__) ? __clang_major__ >= 14 : __GNUC__ >= 8)
#define ANYPREC_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define ANYPREC_CLONES
#endif

// Everything under the kernel must be inlined into it: an ordinary function would be compiled for the baseline only.
#define ANYPREC_INLINE inline __attribute__((always_inline))

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernel reads the words of a bitplane as bytes and needs a little-endian machine"
#endif

namespace anyprec {
namespace {

// How a row is decoded. A plane's word j is four bytes, so a row is `4 * words` bytes per plane, and bit s of byte t is
// column 8 * t + s. Masking with 0x01010101 isolates bit s of four bytes at once, which turns planes into codes with
// three cheap operations per plane for four (with vectors, 32) columns. The columns then come out in the order
// "bit s slowest, byte t fastest"; a dot product does not mind, as long as the activations lie in the same order.
//
// Looking the codes up, one load each, is the dear part. Up to four bits two codes fit into one byte, and a table of
// pairs halves the number of loads: field f of a byte holds the code of bit s + f * kShifts.
constexpr int codes_per_byte(int precision) { return precision <= 4 ? 2 : 1; }

// Words decoded at a time: the decoded weights (8 KiB), codes (2 KiB) and table (at most 2 KiB) stay in the L1 cache.
constexpr std::int64_t kChunkWords = 64;

// Partial sums per dot product: enough independent chains to hide the latency of an addition with 256-bit vectors.
constexpr int kLanes = 32;
static_assert(32 % kLanes == 0, "a row has a whole number of words and must have a whole number of lane groups");

// An fp16 value. Without float arithmetic on tiny inputs: XLA's threads treat subnormal floats as zero, and centroids
// below 2^-14, subnormal in fp16, are common in real weights. Without branches, so that loops over it vectorize.
ANYPREC_INLINE float half_to_float(std::uint16_t half) {
  const std::int32_t magnitude = half & 0x7fff;
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  std::int32_t subnormal_bits;
  std::memcpy(&subnormal_bits, &subnormal, sizeof subnormal_bits);
  const std::int32_t is_subnormal = -(magnitude < 0x0400), is_finite = -(magnitude < 0x7c00);  // 0 or all ones
  const std::int32_t normal_bits = (magnitude << 13) + (112 << 23) + (~is_finite & (112 << 23));
  const std::int32_t bits = (is_subnormal & subnormal_bits) | (~is_subnormal & normal_bits);
  const std::uint32_t signed_bits = static_cast<std::uint32_t>(half & 0x8000) << 16 | static_cast<std::uint32_t>(bits);
  float value;
  std::memcpy(&value, &signed_bits, sizeof value);
  return value;
}

template <int precision>
struct Decoder {
  static constexpr int kFields = codes_per_byte(precision);
  static constexpr int kShifts = 8 / kFields;
  static constexpr int kUnroll = 8;          // look-ups per turn of the loop; divides 4 * kShifts, a word's share
  using Entry = std::array<float, kFields>;  // the weights that one byte stands for

  alignas(64) Entry table[1 << (kFields * precision)];
  alignas(64) std::uint32_t codes[kShifts * kChunkWords];
  alignas(64) float weights[32 * kChunkWords];

  ANYPREC_INLINE void load_codebook(const std::uint16_t* codebook) {
    constexpr int entries = 1 << precision;
    alignas(64) float centroids[entries];
    for (int i = 0; i < entries; ++i) centroids[i] = half_to_float(codebook[i]);
    if constexpr (kFields == 1) {
      for (int i = 0; i < entries; ++i) table[i] = {centroids[i]};
    } else {
      for (int high = 0; high < entries; ++high)
        for (int low = 0; low < entries; ++low) table[high << precision | low] = {centroids[low], centroids[high]};
    }
  }

  // `words` words of each plane, `plane_stride` words apart -> the first 32 * words of `weights`.
  ANYPREC_INLINE void decode(const std::uint32_t* planes, std::int64_t plane_stride, std::int64_t words) {
    for (int s = 0; s < kShifts; ++s) {
      for (std::int64_t j = 0; j < words; ++j) {
        std::uint32_t code = 0;
        for (int f = 0; f < kFields; ++f)
          for (int p = 0; p < precision; ++p) {
            const std::uint32_t bit = (planes[p * plane_stride + j] >> (s + f * kShifts)) & 0x01010101u;
            code |= bit << (f * precision + precision - 1 - p);
          }
        codes[s * words + j] = code;
      }
    }
    const auto* bytes = reinterpret_cast<const unsigned char*>(codes);
    for (std::int64_t i = 0; i < 4 * kShifts * words; i += kUnroll)
      for (int u = 0; u < kUnroll; ++u)
        std::memcpy(weights + kFields * (i + u), table[bytes[i + u]].data(), sizeof(Entry));
  }
};

// Sum of a[i] * b[i]; `size` is a multiple of kLanes. The lanes are spelled out because a compiler may not reorder
// floating-point additions on its own.
ANYPREC_INLINE float dot(const float* a, const float* b, std::int64_t size) {
  float lanes[kLanes] = {};
  for (std::int64_t i = 0; i < size; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += a[i + l] * b[i + l];
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

template <int precision>
ANYPREC_INLINE void multiply(const Matrix& matrix, const float* arranged, std::int64_t m, std::int64_t first,
                             std::int64_t last, float* y) {
  const std::int64_t words = matrix.words(), plane_stride = matrix.n * words;
  Decoder<precision> decoder;
  for (std::int64_t row = first; row < last; ++row) {
    decoder.load_codebook(matrix.codebook + (row << precision));
    for (std::int64_t b = 0; b < m; ++b) y[b * matrix.n + row] = 0.0f;
    for (std::int64_t j = 0; j < words; j += kChunkWords) {
      const std::int64_t chunk = std::min(kChunkWords, words - j);
      decoder.decode(matrix.bitplanes + row * words + j, plane_stride, chunk);
      for (std::int64_t b = 0; b < m; ++b)
        y[b * matrix.n + row] += dot(decoder.weights, arranged + b * 32 * words + 32 * j, 32 * chunk);
    }
  }
}

float to_float(float value) { return value; }

float to_float(BFloat16 value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

template <typename Float>
void arrange_row(const Float* x, std::int64_t k, int precision, float* arranged) {
  const int fields = codes_per_byte(precision), shifts = 8 / fields;
  for (std::int64_t begin = 0; begin < k; begin += 32 * kChunkWords) {
    const std::int64_t bytes = 4 * std::min(kChunkWords, (k - begin + 31) / 32);
    for (int s = 0; s < shifts; ++s)
      for (std::int64_t t = 0; t < bytes; ++t)
        for (int f = 0; f < fields; ++f) {
          const std::int64_t column = begin + 8 * t + s + f * shifts;
          *arranged++ = column < k ? to_float(x[column]) : 0.0f;
        }
  }
}

}  // namespace

BFloat16 round_to_bfloat16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  if (is_nan) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

void arrange(const float* x, std::int64_t k, int precision, float* arranged) { arrange_row(x, k, precision, arranged); }

void arrange(const BFloat16* x, std::int64_t k, int precision, float* arranged) {
  arrange_row(x, k, precision, arranged);
}

ANYPREC_CLONES void multiply_rows(const Matrix& matrix, const float* arranged, std::int64_t m, std::int64_t first,
                                  std::int64_t last, float* y) {
  switch (matrix.precision) {
    case 1: return multiply<1>(matrix, arranged, m, first, last, y);
    case 2: return multiply<2>(matrix, arranged, m, first, last, y);
    case 3: return multiply<3>(matrix, arranged, m, first, last, y);
    case 4: return multiply<4>(matrix, arranged, m, first, last, y);
    case 5: return multiply<5>(matrix, arranged, m, first, last, y);
    case 6: return multiply<6>(matrix, arranged, m, first, last, y);
    case 7: return multiply<7>(matrix, arranged, m, first, last, y);
    case 8: return multiply<8>(matrix, arranged, m, first, last, y);
  }
}

}  // namespace anyprec
