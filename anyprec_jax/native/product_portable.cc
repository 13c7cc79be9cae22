// Plain C++ for any little-endian processor, written so that compilers find the vectors. Every arithmetic is computed exactly here: what
// integers gain is in the instructions of the other kernels.
#include <cstdint>
#include <cstring>

#include "half.h"
#include "product.h"

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernel reads the words of a bitplane as bytes and needs a little-endian machine"
#endif

namespace anyprec {
namespace {

// A plane's word is four bytes, and masking with 0x01010101 isolates one bit of each: four columns' codes per few cheap operations. The
// columns of a chunk then come out in the order "bit slowest, byte fastest"; the activations lie in the same order.
constexpr std::int64_t kChunkWords = 64;  // the codes (2 KiB) and weights (8 KiB) of a chunk stay in the L1 cache
constexpr int kLanes = 32;                // partial sums: enough independent chains to hide the latency of an addition

std::int64_t words_of(std::int64_t k) { return (k + 31) / 32; }
std::int64_t chunk_words(std::int64_t words, std::int64_t first) { return words - first < kChunkWords ? words - first : kChunkWords; }

template <int precision>
void decode(const std::uint8_t* planes, std::int64_t plane_stride, std::int64_t words, std::uint32_t* codes) {
  for (int bit = 0; bit < 8; ++bit)
    for (std::int64_t j = 0; j < words; ++j) {
      std::uint32_t code = 0;
      for (int p = 0; p < precision; ++p) {
        std::uint32_t word;
        std::memcpy(&word, planes + p * plane_stride + 4 * j, sizeof word);
        code |= ((word >> bit) & 0x01010101u) << (precision - 1 - p);
      }
      codes[bit * words + j] = code;
    }
}

void look_up(const float* table, const std::uint32_t* codes, std::int64_t words, float* weights) {
  for (std::int64_t j = 0; j < 8 * words; ++j)
    for (int byte = 0; byte < 4; ++byte) weights[4 * j + byte] = table[codes[j] >> (8 * byte) & 0xff];
}

// `size` is a multiple of kLanes. The lanes are spelled out because a compiler may not reorder floating-point additions on its own.
float dot(const float* a, const float* b, std::int64_t size) {
  float lanes[kLanes] = {};
  for (std::int64_t i = 0; i < size; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += a[i + l] * b[i + l];
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

template <int precision>
void multiply(const Matrix& matrix, const void* const* x, std::int64_t m, std::int64_t first, std::int64_t last, float* const* y) {
  const std::int64_t words = words_of(matrix.k);
  float table[1 << precision];
  alignas(64) std::uint32_t codes[8 * kChunkWords];
  alignas(64) float weights[32 * kChunkWords];
  for (std::int64_t row = first; row < last; ++row) {
    for (int i = 0; i < 1 << precision; ++i) table[i] = half_to_float(matrix.codebook[(row << precision) + i]);
    for (std::int64_t b = 0; b < m; ++b) y[b][row] = 0.0f;
    for (std::int64_t word = 0; word < words; word += kChunkWords) {
      const std::int64_t count = chunk_words(words, word);
      decode<precision>(matrix.planes + row * matrix.row_bytes() + 4 * word, matrix.plane_stride, count, codes);
      look_up(table, codes, count, weights);
      for (std::int64_t b = 0; b < m; ++b) y[b][row] += dot(weights, static_cast<const float*>(x[b]) + 32 * word, 32 * count);
    }
  }
}

// Calls multiply<matrix.precision>.
void multiply_rows(const Matrix& matrix, const void* const* x, std::int64_t m, std::int64_t first, std::int64_t last,
                   float* const* y) {
  using Multiply = decltype(&multiply<1>);
  constexpr Multiply by_precision[] = {multiply<1>, multiply<2>, multiply<3>, multiply<4>,
                                       multiply<5>, multiply<6>, multiply<7>, multiply<8>};
  by_precision[matrix.precision - 1](matrix, x, m, first, last, y);
}

std::int64_t arranged_bytes(std::int64_t k) { return words_of(k) * 32 * static_cast<std::int64_t>(sizeof(float)); }

void arrange(const float* x, std::int64_t k, void* arranged) {
  float* out = static_cast<float*>(arranged);
  for (std::int64_t word = 0; word < words_of(k); word += kChunkWords)
    for (int bit = 0; bit < 8; ++bit)
      for (std::int64_t byte = 0; byte < 4 * chunk_words(words_of(k), word); ++byte) {
        const std::int64_t column = 32 * word + 8 * byte + bit;
        *out++ = column < k ? x[column] : 0.0f;
      }
}

// Affine rows take the columns as they are.
void copy(const float* x, std::int64_t k, void* arranged) {
  std::memset(arranged, 0, arranged_bytes(k));
  std::memcpy(arranged, x, k * sizeof(float));
}

void multiply_affine_rows(const AffineMatrix& matrix, const void* const* x, std::int64_t m, std::int64_t first, std::int64_t last,
                          float* const* y) {
  alignas(64) float codes[32 * kChunkWords], ones[32 * kChunkWords];
  for (float& one : ones) one = 1.0f;
  const std::int64_t chunk = 32 * kChunkWords;
  for (std::int64_t row = first; row < last; ++row)
    for (std::int64_t b = 0; b < m; ++b) {
      float sum = 0.0f, x_sum = 0.0f;
      for (std::int64_t column = 0; column < matrix.k; column += chunk) {
        const std::int64_t count = matrix.k - column < chunk ? matrix.k - column : chunk, padded = (count + 31) / 32 * 32;
        for (std::int64_t i = 0; i < padded; ++i) codes[i] = i < count ? matrix.codes[row * matrix.k + column + i] : 0.0f;
        sum += dot(codes, static_cast<const float*>(x[b]) + column, padded);
        x_sum += dot(ones, static_cast<const float*>(x[b]) + column, padded);
      }
      y[b][row] = matrix.scale[row] * sum + matrix.offset[row] * x_sum;
    }
}

constexpr Product<Matrix> kExact = {arranged_bytes, arrange, multiply_rows};

}  // namespace

extern const Kernel kPortableKernel;
const Kernel kPortableKernel = {"portable",
                                [] { return true; },
                                kExact,
                                kExact,
                                kExact,
                                {arranged_bytes, copy, multiply_affine_rows}};

void dequantize_rows(const Matrix& matrix, std::int64_t first, std::int64_t last, float* weights) {
  float table[1 << kMaxPrecision];
  for (std::int64_t row = first; row < last; ++row) {
    const std::uint16_t* codebook = matrix.codebook + (row << matrix.precision);
    for (int i = 0; i < 1 << matrix.precision; ++i) table[i] = half_to_float(codebook[i]);
    const std::uint8_t* planes = matrix.planes + row * matrix.row_bytes();
    float* out = weights + row * matrix.k;
    for (std::int64_t byte = 0; byte < (matrix.k + 7) / 8; ++byte) {
      // Byte i of `codes` becomes the code of column 8 * byte + i.
      std::uint64_t codes = 0;
      for (int p = 0; p < matrix.precision; ++p) {
        const std::uint64_t bits = planes[p * matrix.plane_stride + byte];
        const std::uint64_t spread = (bits * 0x0101010101010101u) & 0x8040201008040201u;  // bit i, in byte i
        codes = codes << 1 | (((spread + 0x00406070787c7e7fu) >> 7) & 0x0101010101010101u);
      }
      const std::int64_t columns = matrix.k - 8 * byte < 8 ? matrix.k - 8 * byte : 8;
      for (std::int64_t i = 0; i < columns; ++i) out[8 * byte + i] = table[codes >> (8 * i) & 0xff];
    }
  }
}

}  // namespace anyprec
