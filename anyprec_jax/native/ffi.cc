// Binds matvec.h to XLA: checks the buffers, shares the rows out over XLA's threads, converts bfloat16.
//
// Whatever the buffers are, the answer is a result or an error that becomes a Python exception; nothing is assumed that
// was not checked here.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "matvec.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Dimensions = ffi::Span<const int64_t>;

// A task shorter than this many weights costs more to hand to another thread than to do.
constexpr int64_t kMinTaskWeights = 1 << 16;
// More tasks than threads, so that a thread that starts late or loses its core does not hold up the rest.
constexpr int64_t kTasksPerThread = 4;

std::string to_string(Dimensions dimensions) {
  std::string text;
  for (int64_t size : dimensions) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

template <typename... Parts>
ffi::Error invalid(const Parts&... parts) {
  std::ostringstream message;
  message << "anyprec_matmul: ";
  (message << ... << parts);
  return ffi::Error::InvalidArgument(message.str());
}

bool equal(Dimensions dimensions, std::initializer_list<int64_t> wanted) {
  return std::equal(dimensions.begin(), dimensions.end(), wanted.begin(), wanted.end());
}

// One call's work and everything its threads share. Kept alive by each of them: a thread that starts after the last
// task was taken must still find the counter.
struct Job {
  const anyprec::Kernel* kernel;
  anyprec::Matrix matrix;
  int64_t m;
  std::vector<float> arranged;   // [m, padded_k]
  float* y;                      // [m, n]; that of `unrounded` when the result is bfloat16
  anyprec::BFloat16* rounded;    // [m, n], or null when the result is float32
  std::vector<float> unrounded;  // [m, n], or empty
  int64_t num_tasks;
  std::atomic<int64_t> next_task{0}, unfinished_tasks;
  ffi::Promise done;

  void work() {
    for (int64_t task; (task = next_task.fetch_add(1)) < num_tasks;) {
      compute(matrix.n * task / num_tasks, matrix.n * (task + 1) / num_tasks);
      if (unfinished_tasks.fetch_sub(1, std::memory_order_acq_rel) == 1) done.SetAvailable();
    }
  }

  void compute(int64_t first, int64_t last) {
    kernel->multiply_rows(matrix, arranged.data(), m, first, last, y);
    if (rounded == nullptr) return;
    for (int64_t b = 0; b < m; ++b)
      std::transform(y + b * matrix.n + first, y + b * matrix.n + last, rounded + b * matrix.n + first,
                     anyprec::round_to_bfloat16);
  }
};

ffi::Error check(ffi::AnyBuffer x, ffi::Buffer<ffi::U32> bitplanes, ffi::Buffer<ffi::F16> codebook, int32_t layer,
                 ffi::AnyBuffer y, int64_t precision) {
  const Dimensions planes = bitplanes.dimensions();
  if (precision < 1 || precision > anyprec::kMaxPrecision)
    return invalid("precision must be from 1 to ", anyprec::kMaxPrecision, ", got ", precision);
  if (x.element_type() != ffi::F32 && x.element_type() != ffi::BF16)
    return invalid("x must be float32 or bfloat16, got ", x.element_type());
  if (y.element_type() != x.element_type())
    return invalid("the result must have the dtype of x, ", x.element_type(), ", got ", y.element_type());
  if (x.dimensions().size() != 2) return invalid("x must be [m, k], got ", to_string(x.dimensions()));
  if (planes.size() != 4) return invalid("bitplanes must be [layers, parent, n, words], got ", to_string(planes));
  const int64_t m = x.dimensions()[0], k = x.dimensions()[1], layers = planes[0], n = planes[2];
  if (planes[1] < precision)
    return invalid("precision ", precision, " needs as many bitplanes, got ", to_string(planes));
  if (planes[3] != (k + 31) / 32)
    return invalid("x ", to_string(x.dimensions()), " needs bitplanes of ", (k + 31) / 32, " words, got ",
                   to_string(planes));
  if (!equal(codebook.dimensions(), {layers, n, int64_t{1} << precision}))
    return invalid("bitplanes ", to_string(planes), " at precision ", precision, " need a codebook [", layers, ", ", n,
                   ", ", 1 << precision, "], got ", to_string(codebook.dimensions()));
  if (!equal(y.dimensions(), {m, n}))
    return invalid("the result must be [", m, ", ", n, "], got ", to_string(y.dimensions()));
  if (layer < 0 || layer >= layers) return invalid("layer must be in [0, ", layers, "), got ", layer);
  return ffi::Error::Success();
}

template <typename Float>
std::vector<float> arrange(const Float* x, int64_t m, const anyprec::Matrix& matrix, int codes_per_byte) {
  std::vector<float> arranged(m * matrix.padded_k());
  for (int64_t b = 0; b < m; ++b)
    anyprec::arrange(x + b * matrix.k, matrix.k, codes_per_byte, arranged.data() + b * matrix.padded_k());
  return arranged;
}

std::shared_ptr<Job> make_job(const anyprec::Kernel* kernel, ffi::AnyBuffer x, ffi::Buffer<ffi::U32> bitplanes,
                              ffi::Buffer<ffi::F16> codebook, int32_t layer, ffi::AnyBuffer y, int64_t precision,
                              int64_t num_threads) {
  const Dimensions planes = bitplanes.dimensions();
  auto job = std::make_shared<Job>();
  job->kernel = kernel;
  job->matrix.n = planes[2];
  job->matrix.k = x.dimensions()[1];
  job->matrix.precision = static_cast<int>(precision);
  job->matrix.bitplanes = bitplanes.typed_data() + layer * planes[1] * planes[2] * planes[3];
  job->matrix.codebook = static_cast<const uint16_t*>(codebook.untyped_data()) + ((layer * planes[2]) << precision);
  job->m = x.dimensions()[0];
  const int codes_per_byte = kernel->codes_per_byte(job->matrix.precision);
  const bool is_bfloat16 = x.element_type() == ffi::BF16;
  if (is_bfloat16) {
    const auto* values = static_cast<const anyprec::BFloat16*>(x.untyped_data());
    job->arranged = arrange(values, job->m, job->matrix, codes_per_byte);
    job->unrounded.resize(job->m * job->matrix.n);
  } else {
    const auto* values = static_cast<const float*>(x.untyped_data());
    job->arranged = arrange(values, job->m, job->matrix, codes_per_byte);
  }
  job->y = is_bfloat16 ? job->unrounded.data() : static_cast<float*>(y.untyped_data());
  job->rounded = is_bfloat16 ? static_cast<anyprec::BFloat16*>(y.untyped_data()) : nullptr;
  const int64_t weights = job->matrix.n * job->matrix.padded_k();
  job->num_tasks = std::clamp<int64_t>(std::min(job->matrix.n, weights / kMinTaskWeights), 1,
                                       std::max<int64_t>(num_threads, 1) * kTasksPerThread);
  job->unfinished_tasks = job->num_tasks;
  return job;
}

ffi::Future failed(ffi::Error error) {
  ffi::Promise promise;
  ffi::Future future(promise);
  promise.SetError(std::move(error));
  return future;
}

// x [m, k], bitplanes [layers, parent, n, words], codebook [layers, n, 2**precision], layer [] -> y [m, n].
// `isa` names a kernel; "" takes the fastest one.
//
// The layer is an operand so that a loop over layers hands over the whole stack by its address: a slice taken before
// the call would be copied. Returns before the other threads are done, which keeps XLA's own thread free.
ffi::Future matmul(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::U32> bitplanes,
                   ffi::Buffer<ffi::F16> codebook, ffi::BufferR0<ffi::S32> layer, ffi::Result<ffi::AnyBuffer> y,
                   int64_t precision, std::string_view isa) {
  const int32_t layer_index = *layer.typed_data();
  if (ffi::Error error = check(x, bitplanes, codebook, layer_index, *y, precision); error.failure())
    return failed(std::move(error));
  const anyprec::Kernel* kernel = anyprec::find_kernel(isa);
  if (kernel == nullptr) return failed(invalid("isa '", isa, "' is unknown or not supported by this processor"));
  std::shared_ptr<Job> job;
  try {
    job = make_job(kernel, x, bitplanes, codebook, layer_index, *y, precision, pool.num_threads());
  } catch (const std::bad_alloc&) {
    return failed(ffi::Error(ffi::ErrorCode::kResourceExhausted, "anyprec_matmul: out of memory"));
  }
  ffi::Future future(job->done);
  const int64_t helpers = std::min(pool.num_threads(), job->num_tasks) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([job] { job->work(); });
  job->work();
  return future;
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(AnyPrecMatmul, matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::F16>>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("precision")
                                  .Attr<std::string_view>("isa"));
