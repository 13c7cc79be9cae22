// Binds product.h to XLA: checks the buffers, arranges the activations, shares the rows out over XLA's threads, converts bfloat16.
//
// Whatever the buffers are, the answer is a result or an error that becomes a Python exception; nothing is assumed that was not checked
// here.
#include "xla/ffi/api/ffi.h"

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

#include "attention.h"
#include "job.h"
#include "product.h"

namespace ffi = xla::ffi;

namespace {

using anyprec::AffineMatrix;
using anyprec::Arithmetic;
using anyprec::Kernel;
using anyprec::Matrix;
using anyprec::Product;
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

float from_bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

uint16_t to_bfloat16(float value) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// The operands of one product that are not the matrix: activations, arranged, and where the result goes.
struct Activations {
  int64_t m = 0, n = 0;
  std::unique_ptr<char, Free> memory;
  std::vector<const void*> x;    // [m], arranged
  std::vector<float*> y;         // [m] rows; of `unrounded` when the result is bfloat16
  std::vector<float> unrounded;  // [m, n], or empty
  uint16_t* rounded = nullptr;   // [m, n], or null when the result is float32

  void round_rows(int64_t first, int64_t last) const {
    if (rounded == nullptr) return;
    for (int64_t b = 0; b < m; ++b) std::transform(y[b] + first, y[b] + last, rounded + b * n + first, to_bfloat16);
  }
};

// Throws std::bad_alloc.
template <class AnyMatrix>
void arrange(const Product<AnyMatrix>& product, ffi::AnyBuffer x, ffi::AnyBuffer y, Activations& out) {
  const int64_t m = x.dimensions()[0], k = x.dimensions()[1], n = y.dimensions()[1];
  out.m = m, out.n = n;
  if (m == 0) return;
  const int64_t row_bytes = (product.arranged_bytes(k) + 63) / 64 * 64;
  out.memory.reset(static_cast<char*>(std::aligned_alloc(64, std::max<int64_t>(m * row_bytes, 64))));
  if (out.memory == nullptr) throw std::bad_alloc();
  const bool is_bfloat16 = x.element_type() == ffi::BF16;
  std::vector<float> widened(is_bfloat16 ? k : 0);
  if (is_bfloat16) {
    out.unrounded.resize(m * n);
    out.rounded = static_cast<uint16_t*>(y.untyped_data());
  }
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
    out.y.push_back((is_bfloat16 ? out.unrounded.data() : static_cast<float*>(y.untyped_data())) + b * n);
  }
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
  if (precision < 1 || precision > anyprec::kMaxPrecision)
    return invalid("precision must be from 1 to ", anyprec::kMaxPrecision, ", got ", precision);
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
  kernel = anyprec::find_kernel(isa);
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

#define ANYPREC_CHECK(expression)                                  \
  do {                                                             \
    ffi::Error error = (expression);                               \
    if (error.failure()) return failed(std::move(error));          \
  } while (false)

// ---- handlers ----------------------------------------------------------------------------------------------------------------------

// x [m, k], bitplanes, codebook [layers, n, 2**precision], layer [] -> y [m, n].
//
// The layer is an operand so that a loop over layers hands over the whole stack by its address: a slice taken before the call would be
// copied.
ffi::Future matmul(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::U32> bitplanes, ffi::Buffer<ffi::F16> codebook,
                   ffi::BufferR0<ffi::S32> layer, ffi::Result<ffi::AnyBuffer> y, int64_t precision, std::string_view arithmetic_name,
                   std::string_view isa) {
  const int64_t n = codebook.dimensions().size() == 3 ? codebook.dimensions()[1] : -1;
  Planes planes{};
  const Kernel* kernel = nullptr;
  Arithmetic arithmetic{};
  ANYPREC_CHECK(check_x_and_y(x, *y, n));
  ANYPREC_CHECK(read_planes(bitplanes, n, x.dimensions()[1], planes));
  ANYPREC_CHECK(check_codebook(planes, codebook.dimensions(), precision));
  ANYPREC_CHECK(check_layer(*layer.typed_data(), planes.layers));
  ANYPREC_CHECK(read_kernel(isa, kernel));
  ANYPREC_CHECK(read_arithmetic(arithmetic_name, planes.k, arithmetic));
  const auto& product = kernel->product(arithmetic);
  const Matrix matrix = planes.matrix(*layer.typed_data(), static_cast<const uint16_t*>(codebook.untyped_data()), static_cast<int>(precision));
  try {
    auto activations = std::make_shared<Activations>();
    arrange(product, x, *y, *activations);
    return anyprec::Job::run(pool, n, n * matrix.k, [=, &product](int64_t first, int64_t last) {
      product.multiply_rows(matrix, activations->x.data(), activations->m, first, last, activations->y.data());
      activations->round_rows(first, last);
    });
  } catch (const std::bad_alloc&) {
    return failed(ffi::Error(ffi::ErrorCode::kResourceExhausted, "anyprec: out of memory"));
  }
}

// Rows of x that ask for the same precision: a run of `x` and `y` after sorting.
struct Group {
  Matrix matrix;
  int64_t first, count;
};

// x [m, k], bitplanes, precisions [m], layer [], then one codebook [layers, n, 2**w] for every precision w that occurs -> y [m, n].
ffi::Future matmul_mixed(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::U32> bitplanes,
                         ffi::BufferR1<ffi::S32> precisions, ffi::BufferR0<ffi::S32> layer, ffi::RemainingArgs codebooks,
                         ffi::Result<ffi::AnyBuffer> y, std::string_view arithmetic_name, std::string_view isa) {
  const int64_t n = y->dimensions().size() == 2 ? y->dimensions()[1] : -1;
  Planes planes{};
  const Kernel* kernel = nullptr;
  Arithmetic arithmetic{};
  ANYPREC_CHECK(check_x_and_y(x, *y, n));
  ANYPREC_CHECK(read_planes(bitplanes, n, x.dimensions()[1], planes));
  ANYPREC_CHECK(check_layer(*layer.typed_data(), planes.layers));
  ANYPREC_CHECK(read_kernel(isa, kernel));
  ANYPREC_CHECK(read_arithmetic(arithmetic_name, planes.k, arithmetic));
  const int64_t m = x.dimensions()[0];
  if (static_cast<int64_t>(precisions.element_count()) != m)
    return failed(invalid("precisions must be [", m, "], one per row of x, got ", to_string(precisions.dimensions())));
  const uint16_t* by_precision[anyprec::kMaxPrecision + 1] = {};
  for (size_t i = 0; i < codebooks.size(); ++i) {
    auto codebook = codebooks.get<ffi::Buffer<ffi::F16>>(i);
    if (!codebook.has_value()) return failed(codebook.error());
    int64_t precision = 0;
    const Dimensions shape = codebook->dimensions();
    while (precision <= anyprec::kMaxPrecision && !(shape.size() == 3 && shape[2] == int64_t{1} << precision)) ++precision;
    ANYPREC_CHECK(check_codebook(planes, shape, precision));
    by_precision[precision] = static_cast<const uint16_t*>(codebook->untyped_data());
  }
  const int32_t* wanted = precisions.typed_data();
  for (int64_t b = 0; b < m; ++b)
    if (wanted[b] < 1 || wanted[b] > anyprec::kMaxPrecision || by_precision[wanted[b]] == nullptr)
      return failed(invalid("row ", b, " asks for precision ", wanted[b], ", for which there is no codebook"));
  const auto& product = kernel->product(arithmetic);
  try {
    auto activations = std::make_shared<Activations>();
    arrange(product, x, *y, *activations);
    std::vector<const void*> sorted_x;
    std::vector<float*> sorted_y;
    std::vector<Group> groups;
    for (int precision = anyprec::kMaxPrecision; precision >= 1; --precision) {
      const int64_t first = sorted_x.size();
      for (int64_t b = 0; b < m; ++b)
        if (wanted[b] == precision) sorted_x.push_back(activations->x[b]), sorted_y.push_back(activations->y[b]);
      const int64_t count = static_cast<int64_t>(sorted_x.size()) - first;
      if (count > 0) groups.push_back({planes.matrix(*layer.typed_data(), by_precision[precision], precision), first, count});
    }
    return anyprec::Job::run(pool, n, n * planes.k * static_cast<int64_t>(groups.size()), [=, &product](int64_t first, int64_t last) {
      // The first group brings a block's planes from memory, and the others find them in the cache.
      constexpr int64_t kBlockRows = 16;
      for (int64_t row = first; row < last; row += kBlockRows)
        for (const Group& group : groups)
          product.multiply_rows(group.matrix, sorted_x.data() + group.first, group.count, row, std::min(row + kBlockRows, last),
                                sorted_y.data() + group.first);
      activations->round_rows(first, last);
    });
  } catch (const std::bad_alloc&) {
    return failed(ffi::Error(ffi::ErrorCode::kResourceExhausted, "anyprec: out of memory"));
  }
}

// bitplanes, codebook [layers, n, 2**precision], layer [] -> weights float32 [n, k].
ffi::Future dequantize(ffi::ThreadPool pool, ffi::Buffer<ffi::U32> bitplanes, ffi::Buffer<ffi::F16> codebook,
                       ffi::BufferR0<ffi::S32> layer, ffi::ResultBufferR2<ffi::F32> weights, int64_t precision) {
  const int64_t n = weights->dimensions()[0], k = weights->dimensions()[1];
  Planes planes{};
  ANYPREC_CHECK(read_planes(bitplanes, n, k, planes));
  ANYPREC_CHECK(check_codebook(planes, codebook.dimensions(), precision));
  ANYPREC_CHECK(check_layer(*layer.typed_data(), planes.layers));
  const Matrix matrix = planes.matrix(*layer.typed_data(), static_cast<const uint16_t*>(codebook.untyped_data()), static_cast<int>(precision));
  float* out = weights->typed_data();
  try {
    return anyprec::Job::run(pool, n, n * k, [=](int64_t first, int64_t last) { anyprec::dequantize_rows(matrix, first, last, out); });
  } catch (const std::bad_alloc&) {
    return failed(ffi::Error(ffi::ErrorCode::kResourceExhausted, "anyprec: out of memory"));
  }
}

// x [m, k], codes uint8 [n, k], scale [n], offset [n] -> y [m, n].
ffi::Future affine_matmul(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::BufferR2<ffi::U8> codes, ffi::BufferR1<ffi::F32> scale,
                          ffi::BufferR1<ffi::F32> offset, ffi::Result<ffi::AnyBuffer> y, std::string_view isa) {
  const int64_t n = codes.dimensions()[0], k = codes.dimensions()[1];
  const Kernel* kernel = nullptr;
  ANYPREC_CHECK(check_x_and_y(x, *y, n));
  ANYPREC_CHECK(read_kernel(isa, kernel));
  if (x.dimensions()[1] != k) return failed(invalid("x must be [m, ", k, "], got ", to_string(x.dimensions())));
  if (!equal(scale.dimensions(), {n}) || !equal(offset.dimensions(), {n}))
    return failed(invalid("scale and offset must be [", n, "], got ", to_string(scale.dimensions()), " and ", to_string(offset.dimensions())));
  const AffineMatrix matrix{codes.typed_data(), scale.typed_data(), offset.typed_data(), n, k};
  try {
    auto activations = std::make_shared<Activations>();
    arrange(kernel->affine, x, *y, *activations);
    return anyprec::Job::run(pool, n, n * k, [=](int64_t first, int64_t last) {
      kernel->affine.multiply_rows(matrix, activations->x.data(), activations->m, first, last, activations->y.data());
      activations->round_rows(first, last);
    });
  } catch (const std::bad_alloc&) {
    return failed(ffi::Error(ffi::ErrorCode::kResourceExhausted, "anyprec: out of memory"));
  }
}

// query [batch, heads, head_dim], keys [layers, batch, kv_heads, head_dim, room], values [layers, batch, kv_heads, room, head_dim],
// layer [], lengths [batch] -> [batch, heads, head_dim]. The cache is passed whole and by address, like a stack of matrices.
ffi::Future attention(ffi::ThreadPool pool, ffi::BufferR3<ffi::F32> query, ffi::Buffer<ffi::F32> keys,
                      ffi::Buffer<ffi::F32> values, ffi::BufferR0<ffi::S32> layer, ffi::BufferR1<ffi::S32> lengths,
                      ffi::ResultBufferR3<ffi::F32> out) {
  const Dimensions shape = keys.dimensions(), queries = query.dimensions();
  if (shape.size() != 5) return failed(invalid("keys must be [layers, batch, kv_heads, head_dim, room], got ", to_string(shape)));
  const int64_t layers = shape[0], batch = shape[1], kv_heads = shape[2], head_dim = shape[3], room = shape[4];
  if (!equal(values.dimensions(), {layers, batch, kv_heads, room, head_dim}))
    return failed(invalid("keys ", to_string(shape), " need values with the last two axes exchanged, got ", to_string(values.dimensions())));
  if (queries[0] != batch || queries[2] != head_dim || kv_heads == 0 || queries[1] % kv_heads != 0)
    return failed(invalid("keys ", to_string(shape), " need a query [batch, multiple of kv_heads, head_dim], got ", to_string(queries)));
  if (!equal(out->dimensions(), {queries[0], queries[1], queries[2]}))
    return failed(invalid("the result must be ", to_string(queries), ", got ", to_string(out->dimensions())));
  if (!equal(lengths.dimensions(), {batch})) return failed(invalid("lengths must be [", batch, "], got ", to_string(lengths.dimensions())));
  ANYPREC_CHECK(check_layer(*layer.typed_data(), layers));
  const int64_t per_head = queries[1] / kv_heads, first_head = *layer.typed_data() * batch * kv_heads;
  int64_t work = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int32_t length = lengths.typed_data()[b];
    if (length < 1 || length > room) return failed(invalid("lengths must be in [1, ", room, "], got ", length));
    work += 2 * length * head_dim * kv_heads;
  }
  const float *q = query.typed_data(), *k = keys.typed_data(), *v = values.typed_data();
  const int32_t* wanted = lengths.typed_data();
  float* result = out->typed_data();
  try {
    auto scratch = std::make_shared<std::vector<float>>(batch * queries[1] * room);
    // Heads are the rows of this product; Job hands them out in multiples of kRowMultiple.
    const int64_t heads = batch * kv_heads, step = anyprec::kRowMultiple;
    return anyprec::Job::run(pool, heads * step, 4 * work, [=](int64_t first, int64_t last) {
      for (int64_t head = first / step; head < last / step; ++head) {
        const int64_t cached = (first_head + head) * head_dim * room, queried = head * per_head * head_dim;
        anyprec::attend({q + queried, per_head, k + cached, v + cached, room, wanted[head / kv_heads], head_dim, result + queried,
                         scratch->data() + head * per_head * room});
      }
    });
  } catch (const std::bad_alloc&) {
    return failed(ffi::Error(ffi::ErrorCode::kResourceExhausted, "anyprec: out of memory"));
  }
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(AnyPrecAttention, attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR3<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Ret<ffi::BufferR3<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(AnyPrecMatmul, matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::F16>>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("precision")
                                  .Attr<std::string_view>("arithmetic")
                                  .Attr<std::string_view>("isa"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(AnyPrecMatmulMixed, matmul_mixed,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<std::string_view>("arithmetic")
                                  .Attr<std::string_view>("isa"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(AnyPrecDequantize, dequantize,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::F16>>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .Attr<int64_t>("precision"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(AnyPrecAffineMatmul, affine_matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::BufferR2<ffi::U8>>()
                                  .Arg<ffi::BufferR1<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<std::string_view>("isa"));
