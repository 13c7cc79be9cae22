// Binds product.h to XLA: checks the buffers, arranges the activations, shares the rows out over XLA's threads, converts bfloat16.
//
// Whatever the buffers are, the answer is a result or an error that becomes a Python exception; nothing is assumed that was not checked
// here.
#include "xla/ffi/api/ffi.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <string_view>
#include <utility>
#include <vector>

#include "attention.h"
#include "ffi_operands.h"
#include "job.h"
#include "prefill.h"
#include "product.h"

namespace anyprec {
namespace {

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
    return Job::run(pool, n, n * matrix.k, [=, &product](int64_t first, int64_t last) {
      product.multiply_rows(matrix, activations->x.data(), activations->m, first, last, activations->y.data());
      activations->round_rows(first, last);
    });
  } catch (const std::bad_alloc&) {
    return failed(ffi::Error(ffi::ErrorCode::kResourceExhausted, "anyprec: out of memory"));
  }
}

// As matmul, for many rows of x, on a processor with a matrix unit.
ffi::Future prefill(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::U32> bitplanes, ffi::Buffer<ffi::F16> codebook,
                    ffi::BufferR0<ffi::S32> layer, ffi::Result<ffi::AnyBuffer> y, int64_t precision) {
  const int64_t n = codebook.dimensions().size() == 3 ? codebook.dimensions()[1] : -1;
  Planes planes{};
  ANYPREC_CHECK(check_x_and_y(x, *y, n));
  ANYPREC_CHECK(read_planes(bitplanes, n, x.dimensions()[1], planes));
  ANYPREC_CHECK(check_codebook(planes, codebook.dimensions(), precision));
  ANYPREC_CHECK(check_layer(*layer.typed_data(), planes.layers));
  const MatrixUnit* unit = find_matrix_unit();
  if (unit == nullptr) return failed(invalid("this processor has no matrix unit, or the operating system does not let it be used"));
  const Matrix matrix = planes.matrix(*layer.typed_data(), static_cast<const uint16_t*>(codebook.untyped_data()), static_cast<int>(precision));
  try {
    auto activations = std::make_shared<Activations>();
    pack(pool, *unit, x, *y, *activations);
    const int64_t parts = (n + kPanelRows - 1) / kPanelRows, groups = (activations->m + kPackedRows - 1) / kPackedRows;
    return Job::run(pool, parts, n * matrix.k * groups, [=](int64_t first, int64_t last) {
      const int64_t first_row = first * kPanelRows, last_row = std::min(n, last * kPanelRows);
      unit->multiply_rows(matrix, activations->memory.get(), activations->m, first_row, last_row, activations->y.data());
      activations->round_rows(first_row, last_row);
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
  const uint16_t* by_precision[kMaxPrecision + 1] = {};
  for (size_t i = 0; i < codebooks.size(); ++i) {
    auto codebook = codebooks.get<ffi::Buffer<ffi::F16>>(i);
    if (!codebook.has_value()) return failed(codebook.error());
    int64_t precision = 0;
    const Dimensions shape = codebook->dimensions();
    while (precision <= kMaxPrecision && !(shape.size() == 3 && shape[2] == int64_t{1} << precision)) ++precision;
    ANYPREC_CHECK(check_codebook(planes, shape, precision));
    by_precision[precision] = static_cast<const uint16_t*>(codebook->untyped_data());
  }
  const int32_t* wanted = precisions.typed_data();
  for (int64_t b = 0; b < m; ++b)
    if (wanted[b] < 1 || wanted[b] > kMaxPrecision || by_precision[wanted[b]] == nullptr)
      return failed(invalid("row ", b, " asks for precision ", wanted[b], ", for which there is no codebook"));
  const auto& product = kernel->product(arithmetic);
  try {
    auto activations = std::make_shared<Activations>();
    arrange(product, x, *y, *activations);
    std::vector<const void*> sorted_x;
    std::vector<float*> sorted_y;
    std::vector<Group> groups;
    for (int precision = kMaxPrecision; precision >= 1; --precision) {
      const int64_t first = sorted_x.size();
      for (int64_t b = 0; b < m; ++b)
        if (wanted[b] == precision) sorted_x.push_back(activations->x[b]), sorted_y.push_back(activations->y[b]);
      const int64_t count = static_cast<int64_t>(sorted_x.size()) - first;
      if (count > 0) groups.push_back({planes.matrix(*layer.typed_data(), by_precision[precision], precision), first, count});
    }
    return Job::run(pool, n, n * planes.k * static_cast<int64_t>(groups.size()), [=, &product](int64_t first, int64_t last) {
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
    return Job::run(pool, n, n * k, [=](int64_t first, int64_t last) { dequantize_rows(matrix, first, last, out); });
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
    return Job::run(pool, n, n * k, [=](int64_t first, int64_t last) {
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
    return Job::run(pool, batch * kv_heads, 4 * work, [=](int64_t first, int64_t last) {
      for (int64_t head = first; head < last; ++head) {
        const int64_t cached = (first_head + head) * head_dim * room, queried = head * per_head * head_dim;
        attend({q + queried, per_head, k + cached, v + cached, room, wanted[head / kv_heads], head_dim, result + queried,
                         scratch->data() + head * per_head * room});
      }
    });
  } catch (const std::bad_alloc&) {
    return failed(ffi::Error(ffi::ErrorCode::kResourceExhausted, "anyprec: out of memory"));
  }
}

}  // namespace
}  // namespace anyprec

namespace ffi = xla::ffi;

XLA_FFI_DEFINE_HANDLER_SYMBOL(AnyPrecAttention, anyprec::attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR3<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Ret<ffi::BufferR3<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(AnyPrecMatmul, anyprec::matmul,
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(AnyPrecPrefill, anyprec::prefill,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::F16>>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("precision"));

// Asked from Python before a program is compiled.
extern "C" bool AnyPrecHasMatrixUnit() { return anyprec::find_matrix_unit() != nullptr; }

XLA_FFI_DEFINE_HANDLER_SYMBOL(AnyPrecMatmulMixed, anyprec::matmul_mixed,
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(AnyPrecDequantize, anyprec::dequantize,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::F16>>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .Attr<int64_t>("precision"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(AnyPrecAffineMatmul, anyprec::affine_matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::BufferR2<ffi::U8>>()
                                  .Arg<ffi::BufferR1<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<std::string_view>("isa"));
