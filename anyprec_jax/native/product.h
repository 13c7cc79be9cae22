// y = x W^T for an any-precision matrix W, one kernel per instruction set. Knows nothing of XLA; ffi.cc binds it.
#ifndef ANYPREC_JAX_NATIVE_PRODUCT_H_
#define ANYPREC_JAX_NATIVE_PRODUCT_H_

#include <cstdint>
#include <string_view>

namespace anyprec {

constexpr int kMaxPrecision = 8;

// How a matrix lies in memory when it is read at one precision. Bit i of byte b of a row of a plane belongs to column 8 * b + i, and
// plane 0 is the most significant. Rows are padded with code 0 to a multiple of four bytes.
struct Matrix {
  const std::uint8_t* planes;     // the first `precision` are read
  std::int64_t plane_stride;      // bytes from a plane to the next, at least n * row_bytes()
  const std::uint16_t* codebook;  // fp16 bits [n, 2**precision]
  std::int64_t n;                 // outputs
  std::int64_t k;                 // inputs
  int precision;                  // 1..kMaxPrecision

  std::int64_t row_bytes() const { return (k + 31) / 32 * 4; }
};

// A matrix of 8-bit codes with one affine map per row: w = scale[row] * code + offset[row].
struct AffineMatrix {
  const std::uint8_t* codes;  // [n, k]
  const float* scale;         // [n]
  const float* offset;        // [n]
  std::int64_t n;
  std::int64_t k;
};

// What a product may round on the way; docs/anyprec.md has the bounds.
enum class Arithmetic {
  kExact,  // fp16 centroids, fp32 activations, fp32 sums
  kInt16,  // centroids and activations of 14 to 16 bits, integer sums of 32 products, fp32 beyond
  kInt8,   // the same with 8 bits
};

// The product in one arithmetic, compiled for one instruction set. Activations are arranged first, once per product: converted, and put
// into the order in which the kernel meets the columns.
template <class AnyMatrix>
struct Product {
  std::int64_t (*arranged_bytes)(std::int64_t k);
  // `arranged` is 64-byte aligned and has room for arranged_bytes(k).
  void (*arrange)(const float* x, std::int64_t k, void* arranged);
  // Writes y[b][row] for every b < m and first <= row < last. Reads each plane once, as long as m <= kMaxRows. What it writes for one b does not depend on the others, nor on first and last. Ranges may run at the same time.
  void (*multiply_rows)(const AnyMatrix& matrix, const void* const* arranged, std::int64_t m, std::int64_t first, std::int64_t last,
                        float* const* y);
};

constexpr std::int64_t kMaxRows = 16;

struct Kernel {
  const char* isa;
  bool (*runs_here)();  // asks the processor
  Product<Matrix> exact, int16, int8;
  Product<AffineMatrix> affine;

  const Product<Matrix>& product(Arithmetic arithmetic) const {
    return arithmetic == Arithmetic::kExact ? exact : arithmetic == Arithmetic::kInt16 ? int16 : int8;
  }
};

// The kernel for `isa` ("portable", "avx2", "avx512"), or for "" the best one; null if unknown, not built, or if this processor lacks it.
const Kernel* find_kernel(std::string_view isa);

// Writes rows first..last-1 of the matrix as float32 [n, k]; for products with many rows of x.
void dequantize_rows(const Matrix& matrix, std::int64_t first, std::int64_t last, float* weights);

}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_PRODUCT_H_
