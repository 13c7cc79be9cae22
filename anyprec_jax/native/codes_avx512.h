// From planes to codes, 512 columns of a row at a time: a register holds 64 bytes of a plane.
#ifndef ANYPREC_JAX_NATIVE_CODES_AVX512_H_
#define ANYPREC_JAX_NATIVE_CODES_AVX512_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "product.h"

namespace anyprec {
namespace {

using V = __m512i;

inline V bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
// Bits of a where the mask has them, else bits of b.
inline V select(V mask, V a, V b) { return _mm512_ternarylogic_epi64(mask, a, b, 0xca); }
template <int bits>
inline V left(V v) { return _mm512_slli_epi16(v, bits); }
template <int bits>
inline V right(V v) { return _mm512_srli_epi16(v, bits); }

// The four least significant bits of the codes: byte b of nibbles[j] holds column 8 * b + j in its lower half and 8 * b + j + 4 in its
// upper one. With fewer than four planes the bits above are anything.
template <int planes>
inline void assemble_nibbles(const V* plane, V* nibbles) {
  const V odd_bits = bytes(0x55), odd_pairs = bytes(0x33);
  if constexpr (planes == 1) {
    nibbles[0] = plane[0], nibbles[1] = right<1>(plane[0]), nibbles[2] = right<2>(plane[0]), nibbles[3] = right<3>(plane[0]);
  } else {
    const V even = select(odd_bits, plane[0], left<1>(plane[1])), odd = select(odd_bits, right<1>(plane[0]), plane[1]);
    if constexpr (planes == 2) {
      nibbles[0] = even, nibbles[1] = odd, nibbles[2] = right<2>(even), nibbles[3] = right<2>(odd);
    } else {
      V even_high = plane[2], odd_high = right<1>(plane[2]);
      if constexpr (planes == 4) {
        even_high = select(odd_bits, plane[2], left<1>(plane[3])), odd_high = select(odd_bits, right<1>(plane[2]), plane[3]);
      }
      nibbles[0] = select(odd_pairs, even, left<2>(even_high)), nibbles[2] = select(odd_pairs, right<2>(even), even_high);
      nibbles[1] = select(odd_pairs, odd, left<2>(odd_high)), nibbles[3] = select(odd_pairs, right<2>(odd), odd_high);
    }
  }
}

// Byte b of codes[j] is the code of column 8 * b + j; bits above the precision are anything.
template <int precision>
inline void assemble_codes(const V* plane, V* codes) {
  V low[4];
  assemble_nibbles<(precision < 4 ? precision : 4)>(plane, low);
  if constexpr (precision <= 4) {
    for (int j = 0; j < 4; ++j) codes[j] = low[j], codes[j + 4] = right<4>(low[j]);
  } else {
    V high[4];
    assemble_nibbles<precision - 4>(plane + 4, high);
    const V mask = bytes(0xf0);
    for (int j = 0; j < 4; ++j) {
      codes[j] = select(mask, left<4>(high[j]), low[j]);
      codes[j + 4] = select(mask, high[j], right<4>(low[j]));
    }
  }
}

// Where the planes of a row are, and how a part of them is loaded.
template <int precision>
struct PlaneReader {
  static constexpr bool kLoadsAhead = false;
  static constexpr int kColumns = 512, kTailColumns = 64;
  struct Planes {
    V plane[precision];  // the least significant first
  };

  const std::uint8_t* row_planes;
  std::int64_t plane_stride, row_bytes;

  void at(const Matrix& matrix, std::int64_t row) {
    row_bytes = matrix.row_bytes(), plane_stride = matrix.plane_stride;
    row_planes = matrix.planes + row * row_bytes;
  }

  const std::uint8_t* bytes_of(int plane, std::int64_t first_byte) const {
    return row_planes + (precision - 1 - plane) * plane_stride + first_byte;
  }

  inline __attribute__((always_inline)) Planes load(std::int64_t chunk) const {
    constexpr int kAhead = 1024;  // bytes: a line ahead of its use by what memory takes to answer
    Planes planes;
    for (int p = 0; p < precision; ++p) {
      const std::uint8_t* line = bytes_of(p, 64 * chunk);
      _mm_prefetch(reinterpret_cast<const char*>(line + kAhead), _MM_HINT_T0);
      planes.plane[p] = _mm512_loadu_si512(line);
    }
    return planes;
  }

  inline __attribute__((always_inline)) Planes load_tail(std::int64_t chunk) const {
    const std::int64_t left_over = row_bytes - 64 * chunk;
    const __mmask64 mask = left_over >= 64 ? ~0ull : ~(~0ull << left_over);
    Planes planes;
    for (int p = 0; p < precision; ++p) planes.plane[p] = _mm512_maskz_loadu_epi8(mask, bytes_of(p, 64 * chunk));
    return planes;
  }

  // The codes of 64 columns in their order: eight bytes of a plane are a mask, under which its bit is added.
  inline __attribute__((always_inline)) V tail_codes(std::int64_t full_chunks, std::int64_t tail) const {
    const std::int64_t first_byte = 64 * full_chunks + 8 * tail, left_over = row_bytes - first_byte;
    V codes = _mm512_setzero_si512();
    for (int p = 0; p < precision; ++p) {
      std::uint64_t mask = 0;
      std::memcpy(&mask, bytes_of(p, first_byte), left_over < 8 ? left_over : 8);
      codes = _mm512_mask_add_epi8(codes, mask, codes, bytes(1 << p));
    }
    return codes;
  }
};

}  // namespace
}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_CODES_AVX512_H_
