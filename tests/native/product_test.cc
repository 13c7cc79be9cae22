// The kernels against products in double precision, without Python, for sanitizers and emulators: `make test-native`.
//
// Every buffer is a heap block of exactly the size that the interface asks for, so that AddressSanitizer sees one byte too many.
#include "product.h"

#include "bfloat16.h"
#include "prefill.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#if defined(ANYPREC_AMX_UNASKED)
namespace anyprec {
extern const MatrixUnit kAmxUnit;
}
#endif

namespace {

using anyprec::AffineMatrix;
using anyprec::Arithmetic;
using anyprec::Kernel;
using anyprec::Matrix;
using anyprec::MatrixUnit;
using anyprec::Product;

int failures = 0;

// Relative L2 errors that docs/anyprec.md promises.
double bound_of(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::kExact ? 2e-6 : arithmetic == Arithmetic::kInt16 ? 5e-4 : 3e-2;
}

const char* name_of(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::kExact ? "exact" : arithmetic == Arithmetic::kInt16 ? "int16" : "int8";
}

// fp16 of a number that fp16 holds exactly: a small integer divided by a power of two.
std::uint16_t half_of(int numerator, int log2_denominator) {
  if (numerator == 0) return 0;
  const int sign = numerator < 0, magnitude = std::abs(numerator);
  int exponent = 0;
  while (magnitude >> (exponent + 1)) ++exponent;
  const int biased = exponent - log2_denominator + 15, fraction = (magnitude << (10 - exponent)) & 0x3ff;
  return static_cast<std::uint16_t>(sign << 15 | biased << 10 | fraction);
}

struct Example {
  int n, k, precision, parent;
  std::int64_t plane_stride;
  std::vector<std::uint8_t> planes;
  std::vector<std::uint16_t> codebook;
  std::vector<double> weights;  // [n, k]
  double largest = 0;           // of the centroids

  Matrix matrix() const { return {planes.data(), plane_stride, codebook.data(), n, k, precision}; }
};

Example make_example(int n, int k, int precision, int padding, std::mt19937& random) {
  const int parent = 8, row_bytes = (k + 31) / 32 * 4;
  Example e{n, k, precision, parent, static_cast<std::int64_t>(n) * row_bytes + padding, {}, {}, std::vector<double>(n * k), 0};
  // The planes that are not read do not exist.
  e.planes.resize((precision - 1) * e.plane_stride + n * row_bytes);
  e.codebook.resize(n << precision);
  std::vector<double> centroids(n << precision);
  for (int i = 0; i < n << precision; ++i) {
    const int numerator = static_cast<int>(random() % 2047) - 1023;
    e.codebook[i] = half_of(numerator, 12), centroids[i] = std::ldexp(numerator, -12);
    e.largest = std::max(e.largest, std::abs(centroids[i]));
  }
  for (int row = 0; row < n; ++row)
    for (int column = 0; column < k; ++column) {
      const int code = static_cast<int>(random() % (1u << precision));
      e.weights[row * k + column] = centroids[(row << precision) + code];
      for (int p = 0; p < precision; ++p)
        if (code >> (precision - 1 - p) & 1)
          e.planes[p * e.plane_stride + row * row_bytes + column / 8] |= static_cast<std::uint8_t>(1 << column % 8);
    }
  return e;
}

std::vector<float> make_x(int m, int k, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(m * k);
  for (int i = 0; i < m * k; ++i) x[i] = normal(random) * (i % k % 97 == 5 ? 12.0f : 1.0f);  // outlier channels
  return x;
}

std::vector<double> product_of(const std::vector<double>& weights, const std::vector<float>& x, int m, int n, int k) {
  std::vector<double> y(m * n);
  for (int b = 0; b < m; ++b)
    for (int row = 0; row < n; ++row)
      for (int column = 0; column < k; ++column)
        y[b * n + row] += weights[row * k + column] * static_cast<double>(x[b * k + column]);
  return y;
}

// 64-byte aligned, and not a byte larger than asked for.
struct Aligned {
  void* data;
  explicit Aligned(std::int64_t bytes) : data(std::aligned_alloc(64, (bytes + 63) / 64 * 64)) {}
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
};

template <class AnyMatrix>
std::vector<float> run(const Product<AnyMatrix>& product, const AnyMatrix& matrix, const std::vector<float>& x, int m, std::int64_t first,
                       std::int64_t last) {
  const std::int64_t k = matrix.k;
  std::vector<Aligned*> buffers;
  std::vector<const void*> arranged;
  std::vector<float> y(m * matrix.n, -1e30f);
  std::vector<float*> rows;
  for (int b = 0; b < m; ++b) {
    buffers.push_back(new Aligned(product.arranged_bytes(k)));
    std::vector<float> alone(x.begin() + b * k, x.begin() + (b + 1) * k);
    product.arrange(alone.data(), k, buffers.back()->data);
    arranged.push_back(buffers.back()->data), rows.push_back(y.data() + b * matrix.n);
  }
  product.multiply_rows(matrix, arranged.data(), m, first, last, rows.data());
  for (Aligned* buffer : buffers) delete buffer;
  return y;
}

void expect(bool holds, const std::string& what, double value) {
  if (holds) return;
  ++failures;
  std::printf("FAILED %s: %g\n", what.c_str(), value);
}

double square_norm(const double* values, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += values[i] * values[i];
  return sum;
}

// The L2 error relative to the product, or, where there are too few outputs for a norm to mean anything, to what it could be if no products
// cancelled and all weights were as large as the largest centroid.
double relative_error(const std::vector<float>& actual, const std::vector<double>& weights, double largest, const std::vector<float>& x,
                      int m, int n, int k) {
  constexpr int kMinOutputs = 100;
  const std::vector<double> wanted = product_of(weights, x, m, n, k), wide(x.begin(), x.end());
  double error = 0;
  for (int i = 0; i < m * n; ++i) error += std::pow(actual[i] - wanted[i], 2);
  const double norm = m * n < kMinOutputs ? n * k * largest * largest * square_norm(wide.data(), m * k) : square_norm(wanted.data(), m * n);
  return std::sqrt(error / std::max(norm, 1e-30));
}

void test_product(const Kernel& kernel, Arithmetic arithmetic, int n, int k, int precision, int m, std::mt19937& random) {
  const std::string what = std::string(kernel.isa) + " " + name_of(arithmetic) + " n=" + std::to_string(n) + " k=" + std::to_string(k) +
                           " precision=" + std::to_string(precision) + " m=" + std::to_string(m);
  const Example e = make_example(n, k, precision, random() % 2 ? 2112 : 0, random);
  const std::vector<float> x = make_x(m, k, random);
  const auto& product = kernel.product(arithmetic);
  const std::vector<float> y = run(product, e.matrix(), x, m, 0, n);
  const double error = relative_error(y, e.weights, e.largest, x, m, n, k);
  expect(error <= bound_of(arithmetic), what, error);
  // A part of the rows, and each row of x alone: the same bits.
  const std::int64_t middle = n / 2;
  const std::vector<float> part = run(product, e.matrix(), x, m, middle, n);
  for (int b = 0; b < m; ++b) {
    const std::vector<float> alone =
        run(product, e.matrix(), std::vector<float>(x.begin() + b * k, x.begin() + (b + 1) * k), 1, 0, n);
    for (int row = 0; row < n; ++row) {
      expect(alone[row] == y[b * n + row], what + " alone", alone[row] - y[b * n + row]);
      if (row >= middle) expect(part[b * n + row] == y[b * n + row], what + " part", part[b * n + row] - y[b * n + row]);
    }
  }
}

void test_affine(const Kernel& kernel, int n, int k, int m, std::mt19937& random) {
  std::vector<std::uint8_t> codes(n * k);
  std::vector<float> scale(n), offset(n);
  std::vector<double> weights(n * k);
  for (int row = 0; row < n; ++row) {
    scale[row] = 0.001f * static_cast<float>(1 + random() % 9), offset[row] = -128 * scale[row];
    for (int column = 0; column < k; ++column) {
      codes[row * k + column] = static_cast<std::uint8_t>(random());
      weights[row * k + column] = static_cast<double>(scale[row]) * codes[row * k + column] + offset[row];
    }
  }
  const std::vector<float> x = make_x(m, k, random);
  const AffineMatrix matrix{codes.data(), scale.data(), offset.data(), n, k};
  const double error = relative_error(run(kernel.affine, matrix, x, m, 0, n), weights, 9 * 0.128, x, m, n, k);
  expect(error <= 5e-4,
         std::string(kernel.isa) + " affine n=" + std::to_string(n) + " k=" + std::to_string(k) + " m=" + std::to_string(m), error);
}

void test_dequantize(int n, int k, int precision, std::mt19937& random) {
  const Example e = make_example(n, k, precision, 0, random);
  std::vector<float> weights(n * k);
  anyprec::dequantize_rows(e.matrix(), 0, n, weights.data());
  for (int i = 0; i < n * k; ++i) expect(weights[i] == static_cast<float>(e.weights[i]), "dequantize", weights[i]);
}

void test_non_finite(const Kernel& kernel, Arithmetic arithmetic, std::mt19937& random) {
  const Example e = make_example(8, 700, 4, 0, random);
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    std::vector<float> x = make_x(1, 700, random);
    x[600] = bad;
    for (const float value : run(kernel.product(arithmetic), e.matrix(), x, 1, 0, 8))
      expect(!std::isfinite(value), std::string(kernel.isa) + " " + name_of(arithmetic) + " of a non-finite x", value);
  }
}

void test_kernel(const Kernel& kernel) {
  std::mt19937 random(1);
  const int shapes[][2] = {{1, 1}, {2, 31}, {5, 33}, {3, 127}, {4, 129}, {9, 512}, {7, 576}, {5, 812}, {33, 1056}, {6, 1540}};
  for (Arithmetic arithmetic : {Arithmetic::kExact, Arithmetic::kInt16, Arithmetic::kInt8}) {
    for (int precision = 1; precision <= anyprec::kMaxPrecision; ++precision) {
      for (const auto& shape : shapes) test_product(kernel, arithmetic, shape[0], shape[1], precision, 1, random);
      for (int m : {2, 16, 17, 35}) test_product(kernel, arithmetic, 7, 576, precision, m, random);
    }
    test_non_finite(kernel, arithmetic, random);
  }
  for (const auto& shape : shapes)
    for (int m : {1, 3, 17}) test_affine(kernel, shape[0], shape[1], m, random);
  for (int precision = 1; precision <= anyprec::kMaxPrecision; ++precision) test_dequantize(5, 577, precision, random);
}

// ---- the matrix unit ----------------------------------------------------------------------------------------------------------------

template <class Element>
std::vector<float> run(const MatrixUnit& unit, const Matrix& matrix, const std::vector<Element>& x, int m, std::int64_t first,
                       std::int64_t last) {
  const std::int64_t k = matrix.k, bytes = unit.packed_bytes(k), step = anyprec::kPackedRows;
  const Aligned packed((m + step - 1) / step * bytes);
  for (std::int64_t b = 0; b < m; b += step) {
    const std::int64_t rows = std::min(step, m - b);
    const std::vector<Element> group(x.begin() + b * k, x.begin() + (b + rows) * k);
    void* to = static_cast<char*>(packed.data) + b / step * bytes;
    if constexpr (sizeof(Element) == sizeof(float)) {
      unit.pack_float32(group.data(), rows, k, to);
    } else {
      unit.pack_bfloat16(group.data(), rows, k, to);
    }
  }
  std::vector<float> y(m * matrix.n, -1e30f);
  std::vector<float*> rows;
  for (int b = 0; b < m; ++b) rows.push_back(y.data() + b * matrix.n);
  unit.multiply_rows(matrix, packed.data, m, first, last, rows.data());
  return y;
}

void test_unit(const MatrixUnit& unit, int n, int k, int precision, int m, std::mt19937& random) {
  const std::string what = "matrix unit n=" + std::to_string(n) + " k=" + std::to_string(k) + " precision=" + std::to_string(precision) +
                           " m=" + std::to_string(m);
  const Example e = make_example(n, k, precision, random() % 2 ? 2112 : 0, random);
  const std::vector<float> x = make_x(m, k, random);
  const std::vector<float> y = run(unit, e.matrix(), x, m, 0, n);
  const double error = relative_error(y, e.weights, e.largest, x, m, n, k);
  expect(error <= 5e-3, what, error);
  // After both sides have been rounded to bfloat16 there is nothing left but fp32 sums.
  std::vector<std::uint16_t> narrow(x.size());
  std::transform(x.begin(), x.end(), narrow.begin(), anyprec::to_bfloat16);
  std::vector<float> rounded_x(x.size());
  std::transform(narrow.begin(), narrow.end(), rounded_x.begin(), anyprec::from_bfloat16);
  std::vector<double> rounded_weights(e.weights.size());
  std::transform(e.weights.begin(), e.weights.end(), rounded_weights.begin(),
                 [](double weight) { return anyprec::from_bfloat16(anyprec::to_bfloat16(static_cast<float>(weight))); });
  const double rest = relative_error(y, rounded_weights, e.largest, rounded_x, m, n, k);
  expect(rest <= bound_of(Arithmetic::kExact), what + " rounded", rest);
  expect(run(unit, e.matrix(), narrow, m, 0, n) == y, what + " bfloat16", 0);
  // A part of the rows, and each row of x alone: the same bits, and nothing written elsewhere.
  const std::int64_t first = n / 3, last = n - n / 4;
  const std::vector<float> part = run(unit, e.matrix(), x, m, first, last);
  for (int b = 0; b < m; ++b)
    for (int row = 0; row < n; ++row) {
      const float wanted = row < first || row >= last ? -1e30f : y[b * n + row];
      expect(part[b * n + row] == wanted, what + " part", part[b * n + row] - wanted);
    }
  for (int b = 0; b < m; b += 7) {
    const std::vector<float> alone = run(unit, e.matrix(), std::vector<float>(x.begin() + b * k, x.begin() + (b + 1) * k), 1, 0, n);
    expect(std::equal(alone.begin(), alone.end(), y.begin() + b * n), what + " alone", b);
  }
}

void test_non_finite(const MatrixUnit& unit, std::mt19937& random) {
  const Example e = make_example(40, 700, 4, 0, random);
  const std::vector<float> x = make_x(20, 700, random), y = run(unit, e.matrix(), x, 20, 0, 40);
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    std::vector<float> changed = x;
    changed[3 * 700 + 600] = bad;
    const std::vector<float> actual = run(unit, e.matrix(), changed, 20, 0, 40);
    for (int i = 0; i < 20 * 40; ++i)
      expect(i / 40 == 3 ? !std::isfinite(actual[i]) : actual[i] == y[i], "matrix unit and a non-finite row of x", actual[i]);
  }
}

void test_unit(const MatrixUnit& unit) {
  std::mt19937 random(1);
  const int shapes[][3] = {{1, 1, 1},    {15, 31, 2},   {16, 33, 16},  {17, 64, 17},  {33, 65, 31},
                           {31, 127, 33}, {64, 448, 20}, {65, 512, 48}, {100, 513, 5}, {130, 576, 33}};
  for (int precision = 1; precision <= anyprec::kMaxPrecision; ++precision)
    for (const auto& shape : shapes) test_unit(unit, shape[0], shape[1], precision, shape[2], random);
  test_unit(unit, 70, 1540, 3, 40, random);
  test_unit(unit, 9, 1100, 8, 530, random);
  test_non_finite(unit, random);
}

// Those that a build without the question is to test need not have been found.
const MatrixUnit* unit_here() {
#if defined(ANYPREC_AMX_UNASKED)
  return &anyprec::kAmxUnit;
#else
  return anyprec::find_matrix_unit();
#endif
}

// Returns whether it runs here.
bool test(const std::string& isa) {
  if (isa == "amx") {
    const MatrixUnit* unit = unit_here();
    if (unit != nullptr) test_unit(*unit);
    return unit != nullptr;
  }
  const Kernel* kernel = anyprec::find_kernel(isa);
  if (kernel != nullptr) test_kernel(*kernel);
  return kernel != nullptr;
}

}  // namespace

// With arguments: the instruction sets to test, each of which has to run here.
int main(int argc, char** argv) {
  std::vector<std::string> wanted(argv + 1, argv + argc);
  const bool all = wanted.empty();
  if (all) wanted = {"portable", "avx2", "avx512", "amx"};
  for (const std::string& isa : wanted) {
    const int before = failures;
    if (test(isa)) {
      std::printf("%s: %s\n", isa.c_str(), failures == before ? "ok" : "FAILED");
    } else {
      std::printf("%s: not here\n", isa.c_str());
      if (!all) ++failures;
    }
  }
  return failures == 0 ? 0 : 1;
}
