// The kernel, written once. matvec.cc compiles it for any processor and matvec_<isa>.cc for one instruction set, each
// with a table of its own: how codes become weights is all that differs.
//
// Everything is in an unnamed namespace, and nothing from the standard library is instantiated, so that no function
// compiled for one instruction set can be linked into the code for another.
#ifndef ANYPREC_JAX_NATIVE_MATVEC_KERNEL_H_
#define ANYPREC_JAX_NATIVE_MATVEC_KERNEL_H_

#include <cstdint>
#include <cstring>

#include "matvec.h"

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernel reads the words of a bitplane as bytes and needs a little-endian machine"
#endif

// GCC unrolls short loops before it looks for vectors, and then finds worse ones.
#if defined(__GNUC__) && !defined(__clang__)
#define ANYPREC_ROLLED _Pragma("GCC unroll 1")
#else
#define ANYPREC_ROLLED
#endif

namespace anyprec {
namespace {

// How a row is decoded. A plane's word j is four bytes, so a row is 4 * words bytes per plane, and bit s of byte t is
// column 8 * t + s. Masking with 0x01010101 isolates bit s of four bytes at once, which turns planes into codes with
// three cheap operations per plane for four (with vectors, 32) columns. The columns then come out in the order
// "bit s slowest, byte t fastest"; a dot product does not mind, as long as the activations lie in the same order.
//
// A byte may hold several codes: its field f is the code of bit s + f * 8 / codes_per_byte.

// Words decoded at a time: the decoded weights (8 KiB), codes (2 KiB) and table (at most 2 KiB) stay in the L1 cache.
constexpr std::int64_t kChunkWords = 64;

// Partial sums per dot product: enough independent chains to hide the latency of an addition with 256-bit vectors.
constexpr int kLanes = 32;
static_assert(32 % kLanes == 0, "a row has a whole number of words and must have a whole number of lane groups");

// The bits of the float that an fp16 stands for. Without float arithmetic on tiny inputs: XLA's threads treat subnormal
// floats as zero, and centroids below 2^-14, subnormal in fp16, are common in real weights. Without branches, so that
// loops over it vectorize.
inline std::uint32_t half_to_float_bits(std::uint16_t half) {
  const std::int32_t magnitude = half & 0x7fff;
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  std::int32_t subnormal_bits;
  std::memcpy(&subnormal_bits, &subnormal, sizeof subnormal_bits);
  const std::int32_t is_subnormal = -(magnitude < 0x0400), is_finite = -(magnitude < 0x7c00);  // 0 or all ones
  const std::int32_t normal_bits = (magnitude << 13) + (112 << 23) + (~is_finite & (112 << 23));
  const std::int32_t bits = (is_subnormal & subnormal_bits) | (~is_subnormal & normal_bits);
  return static_cast<std::uint32_t>(half & 0x8000) << 16 | static_cast<std::uint32_t>(bits);
}

// Copies, for each byte of codes, its entry. Eight codes per load: the loads of the entries are what counts.
template <typename Entry>
void look_up_bytes(const Entry* entries, const unsigned char* codes, std::int64_t num_bytes, float* weights) {
  constexpr int floats = sizeof(Entry) / sizeof(float);
  for (std::int64_t i = 0; i < num_bytes; i += 8) {
    std::uint64_t eight;
    std::memcpy(&eight, codes + i, sizeof eight);
    for (int u = 0; u < 8; ++u)
      std::memcpy(weights + floats * (i + u), &entries[(eight >> (8 * u)) & 0xff], sizeof(Entry));
  }
}

// One look-up per code: one load, at every precision.
template <int precision>
struct SingleTable {
  static constexpr int kCodesPerByte = 1;

  alignas(64) std::uint32_t entries[1 << precision];  // floats, as bits

  void load(const std::uint16_t* codebook) {
    for (int i = 0; i < 1 << precision; ++i) entries[i] = half_to_float_bits(codebook[i]);
  }

  // `num_bytes`, here and below, is a multiple of 16.
  void look_up(const unsigned char* codes, std::int64_t num_bytes, float* weights) const {
    look_up_bytes(entries, codes, num_bytes, weights);
  }
};

// One look-up per two codes, where the table of all pairs is small: half the loads.
template <int precision>
struct PairTable {
  static_assert(2 * precision <= 8, "two codes must fit into a byte");
  static constexpr int kCodesPerByte = 2;
  static constexpr int kEntries = 1 << precision;

  alignas(64) std::uint64_t entries[kEntries * kEntries];  // two floats, as bits; the low field's comes first in memory

  void load(const std::uint16_t* codebook) {
    std::uint64_t centroids[kEntries];
    for (int i = 0; i < kEntries; ++i) centroids[i] = half_to_float_bits(codebook[i]);
    for (int high = 0; high < kEntries; ++high) {
      const std::uint64_t second = centroids[high] << 32;
      ANYPREC_ROLLED for (int low = 0; low < kEntries; ++low) entries[high * kEntries + low] = second | centroids[low];
    }
  }

  void look_up(const unsigned char* codes, std::int64_t num_bytes, float* weights) const {
    look_up_bytes(entries, codes, num_bytes, weights);
  }
};

// `words` words of each plane, `plane_stride` words apart -> 32 * words / codes_per_byte bytes of codes.
template <int precision, int codes_per_byte>
void decode(const std::uint32_t* planes, std::int64_t plane_stride, std::int64_t words, std::uint32_t* codes) {
  constexpr int shifts = 8 / codes_per_byte;
  for (int s = 0; s < shifts; ++s) {
    for (std::int64_t j = 0; j < words; ++j) {
      std::uint32_t code = 0;
      for (int f = 0; f < codes_per_byte; ++f)
        for (int p = 0; p < precision; ++p) {
          const std::uint32_t bit = (planes[p * plane_stride + j] >> (s + f * shifts)) & 0x01010101u;
          code |= bit << (f * precision + precision - 1 - p);
        }
      codes[s * words + j] = code;
    }
  }
}

// Sum of a[i] * b[i]; `size` is a multiple of kLanes. The lanes are spelled out because a compiler may not reorder
// floating-point additions on its own.
inline float dot(const float* a, const float* b, std::int64_t size) {
  float lanes[kLanes] = {};
  for (std::int64_t i = 0; i < size; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += a[i + l] * b[i + l];
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

template <template <int> class Table, int precision>
void multiply(const Matrix& matrix, const float* arranged, std::int64_t m, std::int64_t first, std::int64_t last,
              float* y) {
  constexpr int codes_per_byte = Table<precision>::kCodesPerByte;
  const std::int64_t words = matrix.words(), plane_stride = matrix.n * words;
  Table<precision> table;
  alignas(64) std::uint32_t codes[8 / codes_per_byte * kChunkWords];
  alignas(64) float weights[32 * kChunkWords];
  for (std::int64_t row = first; row < last; ++row) {
    table.load(matrix.codebook + (row << precision));
    for (std::int64_t b = 0; b < m; ++b) y[b * matrix.n + row] = 0.0f;
    for (std::int64_t j = 0; j < words; j += kChunkWords) {
      const std::int64_t chunk = words - j < kChunkWords ? words - j : kChunkWords;
      decode<precision, codes_per_byte>(matrix.bitplanes + row * words + j, plane_stride, chunk, codes);
      table.look_up(reinterpret_cast<const unsigned char*>(codes), 32 / codes_per_byte * chunk, weights);
      for (std::int64_t b = 0; b < m; ++b)
        y[b * matrix.n + row] += dot(weights, arranged + b * 32 * words + 32 * j, 32 * chunk);
    }
  }
}

template <template <int> class Table>
void multiply_rows(const Matrix& matrix, const float* arranged, std::int64_t m, std::int64_t first, std::int64_t last,
                   float* y) {
  switch (matrix.precision) {
    case 1: return multiply<Table, 1>(matrix, arranged, m, first, last, y);
    case 2: return multiply<Table, 2>(matrix, arranged, m, first, last, y);
    case 3: return multiply<Table, 3>(matrix, arranged, m, first, last, y);
    case 4: return multiply<Table, 4>(matrix, arranged, m, first, last, y);
    case 5: return multiply<Table, 5>(matrix, arranged, m, first, last, y);
    case 6: return multiply<Table, 6>(matrix, arranged, m, first, last, y);
    case 7: return multiply<Table, 7>(matrix, arranged, m, first, last, y);
    case 8: return multiply<Table, 8>(matrix, arranged, m, first, last, y);
  }
}

template <template <int> class Table>
int codes_per_byte(int precision) {
  constexpr int by_precision[] = {0,
                                  Table<1>::kCodesPerByte,
                                  Table<2>::kCodesPerByte,
                                  Table<3>::kCodesPerByte,
                                  Table<4>::kCodesPerByte,
                                  Table<5>::kCodesPerByte,
                                  Table<6>::kCodesPerByte,
                                  Table<7>::kCodesPerByte,
                                  Table<8>::kCodesPerByte};
  return by_precision[precision];
}

}  // namespace
}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_MATVEC_KERNEL_H_
