// The operands of the handlers in ffi.cc: what they may be, and how the kernels want them. Nothing is assumed that was not checked.
#ifndef ANYPREC_JAX_NATIVE_FFI_OPERANDS_H_
#define ANYPREC_JAX_NATIVE_FFI_OPERANDS_H_

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bfloat16.h"
#include "job.h"
#include "prefill.h"
#include "product.h"
#include "xla/ffi/api/ffi.h"

namespace anyprec {
namespace {

namespace ffi = xla::ffi;
using Dimensions = ffi::Span<const int64_t>;

// ---- errors ------------------------------------------------------------------------------------------------------------------------

std::string to_string(Dimensions dimensions) {
  std::string text;
  for (int64_t size : dimensions) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

template <typename... Parts>
ffi::Error invalid(const Parts&... parts) {
  std::ostringstream message;
  message << "anyprec: ";
  (message << ... << parts);
  return ffi::Error::InvalidArgument(message.str());
}

bool equal(Dimensions dimensions, std::initializer_list<int64_t> wanted) {
  return std::equal(dimensions.begin(), dimensions.end(), wanted.begin(), wanted.end());
}

ffi::Future failed(ffi::Error error) {
  ffi::Promise promise;
  ffi::Future future(promise);
  promise.SetError(std::move(error));
  return future;
}

// ---- x and y -----------------------------------------------------------------------------------------------------------------------

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// The operands of one product that are not the matrix: activations, arranged, and where the result goes.
struct Activations {
  int64_t m = 0, n = 0;
  std::unique_ptr<char, Free> memory;
  std::vector<const void*> x;    // [m], arranged; empty where all rows are packed together
  std::vector<float*> y;         // [m] rows; of `unrounded` when the result is bfloat16
  std::vector<float> unrounded;  // [m, n], or empty
  uint16_t* rounded = nullptr;   // [m, n], or null when the result is float32

  void round_rows(int64_t first, int64_t last) const {
    if (rounded == nullptr) return;
    for (int64_t b = 0; b < m; ++b) std::transform(y[b] + first, y[b] + last, rounded + b * n + first, to_bfloat16);
  }
};

// Makes room for what the rows of x become, and says where their products go. Throws std::bad_alloc.
void place(ffi::AnyBuffer x, ffi::AnyBuffer y, int64_t bytes, Activations& out) {
  const int64_t m = x.dimensions()[0], n = y.dimensions()[1];
  out.m = m, out.n = n;
  if (m == 0) return;
  out.memory.reset(static_cast<char*>(std::aligned_alloc(64, std::max<int64_t>(bytes, 64))));
  if (out.memory == nullptr) throw std::bad_alloc();
  float* results = static_cast<float*>(y.untyped_data());
  if (x.element_type() == ffi::BF16) {
    out.unrounded.resize(m * n);
    results = out.unrounded.data();
    out.rounded = static_cast<uint16_t*>(y.untyped_data());
  }
  for (int64_t b = 0; b < m; ++b) out.y.push_back(results + b * n);
}

// Throws std::bad_alloc.
template <class AnyMatrix>
void arrange(const Product<AnyMatrix>& product, ffi::AnyBuffer x, ffi::AnyBuffer y, Activations& out) {
  const int64_t m = x.dimensions()[0], k = x.dimensions()[1];
  const int64_t row_bytes = (product.arranged_bytes(k) + 63) / 64 * 64;
  place(x, y, m * row_bytes, out);
  const bool is_bfloat16 = x.element_type() == ffi::BF16;
  std::vector<float> widened(is_bfloat16 ? k : 0);
  for (int64_t b = 0; b < m; ++b) {
    const float* row = static_cast<const float*>(x.untyped_data()) + b * k;
    if (is_bfloat16) {
      const auto* narrow = static_cast<const uint16_t*>(x.untyped_data()) + b * k;
      std::transform(narrow, narrow + k, widened.begin(), from_bfloat16);
      row = widened.data();
    }
    char* arranged = out.memory.get() + b * row_bytes;
    product.arrange(row, k, arranged);
    out.x.push_back(arranged);
  }
}

// The same for a matrix unit; with many rows of x it is worth sharing out. Throws std::bad_alloc.
void pack(ffi::ThreadPool& pool, const MatrixUnit& unit, ffi::AnyBuffer x, ffi::AnyBuffer y, Activations& out) {
  const int64_t m = x.dimensions()[0], k = x.dimensions()[1], groups = (m + kPackedRows - 1) / kPackedRows;
  const int64_t group_bytes = unit.packed_bytes(k);
  place(x, y, groups * group_bytes, out);
  char* const memory = out.memory.get();
  Job::finish(pool, groups, m * k, [=](int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group) {
      const int64_t row = group * kPackedRows, rows = std::min(kPackedRows, m - row);
      char* const packed = memory + group * group_bytes;
      if (x.element_type() == ffi::BF16) {
        unit.pack_bfloat16(static_cast<const uint16_t*>(x.untyped_data()) + row * k, rows, k, packed);
      } else {
        unit.pack_float32(static_cast<const float*>(x.untyped_data()) + row * k, rows, k, packed);
      }
    }
  });
}

ffi::Error check_x_and_y(ffi::AnyBuffer x, ffi::AnyBuffer y, int64_t n) {
  if (x.element_type() != ffi::F32 && x.element_type() != ffi::BF16)
    return invalid("x must be float32 or bfloat16, got ", x.element_type());
  if (y.element_type() != x.element_type())
    return invalid("the result must have the dtype of x, ", x.element_type(), ", got ", y.element_type());
  if (x.dimensions().size() != 2) return invalid("x must be [m, k], got ", to_string(x.dimensions()));
  if (!equal(y.dimensions(), {x.dimensions()[0], n}))
    return invalid("the result must be [", x.dimensions()[0], ", ", n, "], got ", to_string(y.dimensions()));
  return ffi::Error::Success();
}

// ---- the matrix --------------------------------------------------------------------------------------------------------------------

// Planes are [layers, parent, n, words], or [layers, parent, words of a plane] with every plane padded at its end.
struct Planes {
  int64_t layers, parent, n, k, plane_words;
  const uint32_t* data;

  Matrix matrix(int64_t layer, const uint16_t* codebooks, int precision) const {
    const auto* planes = reinterpret_cast<const uint8_t*>(data + layer * parent * plane_words);
    return {planes, 4 * plane_words, codebooks + ((layer * n) << precision), n, k, precision};
  }
};

ffi::Error read_planes(ffi::Buffer<ffi::U32> bitplanes, int64_t n, int64_t k, Planes& out) {
  const Dimensions shape = bitplanes.dimensions();
  const int64_t words = (k + 31) / 32;
  if (shape.size() == 4) {
    if (shape[2] != n || shape[3] != words)
      return invalid("a matrix [", n, ", ", k, "] needs bitplanes [layers, parent, ", n, ", ", words, "], got ", to_string(shape));
  } else if (shape.size() == 3) {
    if (shape[2] < n * words)
      return invalid("a matrix [", n, ", ", k, "] needs planes of at least ", n * words, " words, got ", to_string(shape));
  } else {
    return invalid("bitplanes must be [layers, parent, n, words] or [layers, parent, padded plane], got ", to_string(shape));
  }
  out = {shape[0], shape[1], n, k, shape.size() == 4 ? n * words : shape[2], bitplanes.typed_data()};
  return ffi::Error::Success();
}

ffi::Error check_codebook(const Planes& planes, Dimensions codebook, int64_t precision) {
  if (precision < 1 || precision > kMaxPrecision)
    return invalid("precision must be from 1 to ", kMaxPrecision, ", got ", precision);
  if (planes.parent < precision) return invalid("precision ", precision, " needs as many bitplanes, got ", planes.parent);
  if (!equal(codebook, {planes.layers, planes.n, int64_t{1} << precision}))
    return invalid("precision ", precision, " needs a codebook [", planes.layers, ", ", planes.n, ", ", 1 << precision, "], got ",
                   to_string(codebook));
  return ffi::Error::Success();
}

ffi::Error check_layer(int32_t layer, int64_t layers) {
  if (layer < 0 || layer >= layers) return invalid("layer must be in [0, ", layers, "), got ", layer);
  return ffi::Error::Success();
}

ffi::Error read_kernel(std::string_view isa, const Kernel*& kernel) {
  kernel = find_kernel(isa);
  if (kernel == nullptr) return invalid("isa '", isa, "' is unknown or not supported by this processor");
  return ffi::Error::Success();
}

// Rows too short for a chunk of a vector kernel gain nothing from integers, and their quantization errors do not average out.
constexpr int64_t kMinIntegerColumns = 128;

ffi::Error read_arithmetic(std::string_view name, int64_t k, Arithmetic& arithmetic) {
  if (name == "exact") {
    arithmetic = Arithmetic::kExact;
  } else if (name == "int16") {
    arithmetic = Arithmetic::kInt16;
  } else if (name == "int8") {
    arithmetic = Arithmetic::kInt8;
  } else {
    return invalid("arithmetic must be exact, int16 or int8, got '", name, "'");
  }
  if (k < kMinIntegerColumns) arithmetic = Arithmetic::kExact;
  return ffi::Error::Success();
}

}  // namespace
}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_FFI_OPERANDS_H_
