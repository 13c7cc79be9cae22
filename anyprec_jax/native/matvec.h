// Products of a few activation rows with a weight matrix kept as bitplanes and per-row codebooks.
//
// Nothing here knows of XLA or Python; ffi.cc binds it. Contract (the oracle is ops/reference.py): for 0 <= r < n and
// 0 <= c < k, let code(r, c) collect bit c of row r from the first `precision` planes, plane 0 giving the most
// significant bit. Then y[b, r] = sum over c of codebook[r, code(r, c)] * x[b, c], in fp32.
//
// One kernel's sums are always taken in the same order, so a row of the result is the same bits whatever the number of
// threads and the other rows of x.
#ifndef ANYPREC_JAX_NATIVE_MATVEC_H_
#define ANYPREC_JAX_NATIVE_MATVEC_H_

#include <cstdint>
#include <string_view>

namespace anyprec {

constexpr int kMaxPrecision = 8;

// A weight matrix read at one precision. Borrowed memory, natural `AnyPrecArray` layout.
struct Matrix {
  const std::uint32_t* bitplanes;  // [at least precision, n, words]; column 32 * j + i is bit i of word j
  const std::uint16_t* codebook;   // fp16 bits [n, 2**precision]
  std::int64_t n;                  // outputs
  std::int64_t k;                  // inputs; the columns between k and 32 * words have code 0
  int precision;                   // 1..kMaxPrecision

  std::int64_t words() const { return (k + 31) / 32; }
  std::int64_t padded_k() const { return 32 * words(); }
};

// The product compiled for one instruction set.
struct Kernel {
  const char* isa;
  // How many codes of this precision it packs into a byte, which decides the order in which it wants the activations.
  int (*codes_per_byte)(int precision);
  // Writes y[b * n + r] for every b < m and first <= r < last, from activations [m, padded_k] that `arrange` ordered.
  // Reads each of the first `precision` planes once, whatever m. Calls on disjoint row ranges may run at the same time.
  void (*multiply_rows)(const Matrix& matrix, const float* arranged, std::int64_t m, std::int64_t first,
                        std::int64_t last, float* y);
};

// The kernel for `isa` ("portable", "avx2"), or for "" the fastest one; null if unknown or if this processor lacks it.
const Kernel* find_kernel(std::string_view isa);

// bfloat16 as it lies in memory: the upper half of a float.
struct BFloat16 {
  std::uint16_t bits;
};

BFloat16 round_to_bfloat16(float value);  // to nearest, ties to even

// Copies one activation row x[k] into `arranged`[padded_k], in the column order in which the kernel meets the weights,
// with zeros for the padding columns. Done once per product, not once per weight row.
void arrange(const float* x, std::int64_t k, int codes_per_byte, float* arranged);
void arrange(const BFloat16* x, std::int64_t k, int codes_per_byte, float* arranged);

}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_MATVEC_H_
