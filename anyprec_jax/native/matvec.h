// Products of a few activation rows with a weight matrix kept as bitplanes and per-row codebooks.
//
// This file knows nothing of XLA or Python: ffi.cc binds it. Contract (the oracle is ops/reference.py): for 0 <= r < n
// and 0 <= c < k, let code(r, c) collect bit c of row r from the first `precision` planes, plane 0 giving the most
// significant bit. Then y[b, r] = sum over c of codebook[r, code(r, c)] * x[b, c], in fp32.
//
// Every sum is taken in the same order whatever the number of threads, the number of activation rows and the processor,
// so results are the same bits everywhere.
#ifndef ANYPREC_JAX_NATIVE_MATVEC_H_
#define ANYPREC_JAX_NATIVE_MATVEC_H_

#include <cstdint>

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

// bfloat16 as it lies in memory: the upper half of a float.
struct BFloat16 {
  std::uint16_t bits;
};

BFloat16 round_to_bfloat16(float value);  // to nearest, ties to even

// Copies one activation row x[k] into `arranged`[padded_k], in the column order in which `multiply_rows` meets the
// weights at this precision, with zeros for the padding columns. Done once per product, not once per weight row.
void arrange(const float* x, std::int64_t k, int precision, float* arranged);
void arrange(const BFloat16* x, std::int64_t k, int precision, float* arranged);

// Writes y[b * n + r] for every b < m and first <= r < last. `arranged` is [m, padded_k]. Reads each of the first
// `precision` planes once, whatever m. Calls on disjoint row ranges may run at the same time.
void multiply_rows(const Matrix& matrix, const float* arranged, std::int64_t m, std::int64_t first, std::int64_t last,
                   float* y);

}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_MATVEC_H_
