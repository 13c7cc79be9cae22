// From planes to codes, 256 columns of a row at a time: a register holds 32 bytes of a plane.
#ifndef ANYPREC_JAX_NATIVE_CODES_AVX2_H_
#define ANYPREC_JAX_NATIVE_CODES_AVX2_H_

#include <immintrin.h>

#include <cstdint>

#include "product.h"

namespace anyprec {
namespace {

using V = __m256i;

// Makes the compiler compute `value` here and not where it thinks best. Looking up, multiplying and assembling codes keep different units
// of the processor busy, which sees only a hundred instructions ahead: they have to alternate in the program as they are written below.
inline __attribute__((always_inline)) void settle(V& value) { asm("" : "+x"(value)); }

// `second` where the sign of the selector's byte is set. GCC takes the intrinsic apart, and compares the selector with zero first.
inline __attribute__((always_inline)) V blend(V first, V second, V selector) {
  V blended;
  asm("vpblendvb %3, %2, %1, %0" : "=x"(blended) : "x"(first), "x"(second), "x"(selector));
  return blended;
}

struct Pair {
  V even, odd;
};

// Fields of `width` bits of a and of b, alternating: `even` holds those at even places, each of a followed by the one of b that was at the
// same place; `odd` those at odd places. With planes as a and b, width 1: two-bit codes of the even and of the odd columns.
template <int width>
inline __attribute__((always_inline)) Pair interleave(V a, V b) {
  const V mask = _mm256_set1_epi8(width == 1 ? 0x55 : 0x33);
  const V swapped = _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi16(a, width), b), mask);
  const V raised = width == 1 ? _mm256_add_epi8(swapped, swapped) : _mm256_slli_epi16(swapped, width);  // more units add than shift
  Pair pair = {_mm256_xor_si256(a, raised), _mm256_xor_si256(b, swapped)};
  settle(pair.even), settle(pair.odd);
  return pair;
}

// The codes of a chunk. Byte b of nibbles[j] holds the four least significant bits of column 8 * b + j in its lower half and those of
// column 8 * b + j + 4 in its upper one. With fewer than four planes the bits above are anything, except that with three they are zero.
template <int precision>
struct Codes {
  static constexpr int kNibblePlanes = precision < 4 ? precision : 4, kSelectors = precision - kNibblePlanes;
  V nibbles[4];
  V selectors[kSelectors + 1];  // the planes of the bits above
};

// Codes in the making, in four steps of about six instructions, to be done among others. `plane(i)` loads a plane, the least significant
// is 0.
template <int precision>
struct Assembly {
  Codes<precision> codes;
  Pair low, high;

  template <class LoadPlane>
  inline __attribute__((always_inline)) void step(int i, LoadPlane plane) {
    V* nibbles = codes.nibbles;
    if (i == 0) {
      if constexpr (precision > 1) low = interleave<1>(plane(0), plane(1));
    } else if (i == 1) {
      if constexpr (precision == 3) {
        const V mask = _mm256_set1_epi8(0x55);
        high = {_mm256_and_si256(plane(2), mask), _mm256_and_si256(_mm256_srli_epi16(plane(2), 1), mask)};
      } else if constexpr (precision > 3) {
        high = interleave<1>(plane(2), plane(3));
      }
    } else {
      const int j = i - 2;  // nibbles j and j + 2
      if constexpr (precision == 1) {
        nibbles[j] = _mm256_srli_epi16(plane(0), j), nibbles[j + 2] = _mm256_srli_epi16(plane(0), j + 2);
      } else if constexpr (precision == 2) {
        nibbles[j] = j == 0 ? low.even : low.odd, nibbles[j + 2] = _mm256_srli_epi16(nibbles[j], 2);
      } else {
        const Pair pair = j == 0 ? interleave<2>(low.even, high.even) : interleave<2>(low.odd, high.odd);
        nibbles[j] = pair.even, nibbles[j + 2] = pair.odd;
      }
      if (i == 3)
        for (int s = 0; s < Codes<precision>::kSelectors; ++s) codes.selectors[s] = plane(4 + s);
    }
  }

  template <class LoadPlane>
  static inline __attribute__((always_inline)) Codes<precision> all(LoadPlane plane) {
    Assembly assembly;
    for (int i = 0; i < 4; ++i) assembly.step(i, plane);
    return assembly.codes;
  }
};

// Where the planes of a row are, and how a chunk of them is loaded.
template <int precision>
struct PlaneReader {
  static constexpr bool kLoadsAhead = true;
  static constexpr int kColumns = 256, kTailColumns = 0;
  using Planes = Codes<precision>;

  const std::uint8_t* row_planes;
  std::int64_t plane_stride, row_bytes;

  void at(const Matrix& matrix, std::int64_t row) {
    row_bytes = matrix.row_bytes(), plane_stride = matrix.plane_stride;
    row_planes = matrix.planes + row * row_bytes;
  }

  inline __attribute__((always_inline)) const std::uint8_t* bytes(int plane, std::int64_t chunk) const {
    return row_planes + (precision - 1 - plane) * plane_stride + 32 * chunk;
  }

  inline __attribute__((always_inline)) V load_plane(int plane, std::int64_t chunk) const {
    return _mm256_loadu_si256(reinterpret_cast<const V*>(bytes(plane, chunk)));
  }

  // A line ahead of its use by what memory takes to answer. One in two chunks begins a line, if rows are whole lines.
  inline __attribute__((always_inline)) void prefetch(std::int64_t chunk) const {
    constexpr int kAhead = 4096;
    if (chunk % 2 != 0 && row_bytes % 64 == 0) return;
    for (int p = 0; p < precision; ++p) _mm_prefetch(reinterpret_cast<const char*>(bytes(p, chunk) + kAhead), _MM_HINT_T0);
  }

  inline __attribute__((always_inline)) Planes load(std::int64_t chunk) const {
    prefetch(chunk);
    return Assembly<precision>::all([&](int plane) __attribute__((always_inline)) { return load_plane(plane, chunk); });
  }

  Planes load_tail(std::int64_t chunk) const {
    prefetch(chunk);
    const int words = static_cast<int>(row_bytes - 32 * chunk) / 4;
    const V mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(words), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return Assembly<precision>::all(
        [&](int plane) { return _mm256_maskload_epi32(reinterpret_cast<const int*>(bytes(plane, chunk)), mask); });
  }
};

}  // namespace
}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_CODES_AVX2_H_
