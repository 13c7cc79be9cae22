// y = x W^T for many rows of x, a prompt's, on the matrix unit of a processor: weights are decoded once, to bfloat16, for all of them.
// Knows nothing of XLA; ffi.cc binds it.
#ifndef ANYPREC_JAX_NATIVE_PREFILL_H_
#define ANYPREC_JAX_NATIVE_PREFILL_H_

#include <cstdint>

#include "product.h"

namespace anyprec {

// Rows of x are packed first, once per product and sixteen at a time: rounded to bfloat16, in the order in which the unit takes them.
constexpr std::int64_t kPackedRows = 16;

struct MatrixUnit {
  bool (*runs_here)();  // asks the processor, and the operating system for permission
  std::int64_t (*packed_bytes)(std::int64_t k);  // of kPackedRows rows, a multiple of 64
  // x is [rows, k], 1 <= rows <= kPackedRows; `packed` is 64-byte aligned and has room for packed_bytes(k). bfloat16 comes as its bits.
  void (*pack_float32)(const float* x, std::int64_t rows, std::int64_t k, void* packed);
  void (*pack_bfloat16)(const std::uint16_t* x, std::int64_t rows, std::int64_t k, void* packed);
  // Writes y[b][row] for every b < m and first <= row < last; `packed` holds all rows of x, one group of kPackedRows after the other.
  // Products of bfloat16, sums in float32. What it writes for one b depends neither on the others nor on first and last. Ranges may run
  // at the same time; whole multiples of kPanelRows waste nothing.
  void (*multiply_rows)(const Matrix& matrix, const void* packed, std::int64_t m, std::int64_t first, std::int64_t last,
                        float* const* y);
};

// Rows of the matrix that are decoded together.
constexpr std::int64_t kPanelRows = 64;

// Null where this processor has none that can be used. Asks once.
const MatrixUnit* find_matrix_unit();

}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_PREFILL_H_
