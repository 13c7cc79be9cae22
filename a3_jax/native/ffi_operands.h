// The operands of the handlers in ffi.cc: batches of arrays whose leading axes are those of the result, or 1. Nothing is assumed that was
// not checked here.
#ifndef A3_JAX_NATIVE_FFI_OPERANDS_H_
#define A3_JAX_NATIVE_FFI_OPERANDS_H_

#include <cstdint>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "element.h"
#include "rows.h"
#include "xla/ffi/api/ffi.h"

namespace a3 {
namespace {

namespace ffi = xla::ffi;
using Dimensions = ffi::Span<const int64_t>;

template <typename... Parts>
ffi::Error invalid(const Parts&... parts) {
  std::ostringstream message;
  message << "a3: ";
  (message << ... << parts);
  return ffi::Error::InvalidArgument(message.str());
}

#define A3_CHECK(expression)                \
  do {                                      \
    ffi::Error error = (expression);        \
    if (error.failure()) return error;      \
  } while (false)

std::string to_string(Dimensions dimensions) {
  std::string text;
  for (int64_t size : dimensions) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

// The leading axes of a result.
class Batch {
 public:
  // Of a result with so many axes of its own.
  Batch(Dimensions result, std::size_t own_axes) : axes_(result.begin(), result.end() - own_axes) {}

  int64_t size() const {
    int64_t size = 1;
    for (int64_t axis : axes_) size *= axis;
    return size;
  }

  const std::vector<int64_t>& axes() const { return axes_; }

 private:
  std::vector<int64_t> axes_;
};

// One operand: for each element of the batch, where its array starts.
class Operand {
 public:
  // `shape` are the sizes of its own axes.
  ffi::Error read(const char* name, ffi::AnyBuffer buffer, const Batch& batch, const std::vector<int64_t>& shape) {
    const Dimensions found = buffer.dimensions();
    const std::size_t leading = batch.axes().size();
    bool fits = found.size() == leading + shape.size();
    elements_ = 1;
    for (std::size_t i = 0; fits && i < shape.size(); ++i) fits = found[leading + i] == shape[i], elements_ *= shape[i];
    strides_.assign(leading, 0);
    int64_t stride = 1;
    for (std::size_t i = leading; fits && i-- > 0;) {
      fits = found[i] == batch.axes()[i] || found[i] == 1;
      strides_[i] = found[i] == 1 ? 0 : stride, stride *= found[i];
    }
    if (!fits) return invalid(name, " does not fit: [batch.., ", join(shape), "] with batch ", join(batch.axes()), " or 1 was wanted, got ", to_string(found));
    data_ = buffer.untyped_data();
    return ffi::Error::Success();
  }

  // Number of the array that belongs to an element of the batch.
  int64_t index(const Batch& batch, int64_t element) const {
    int64_t index = 0;
    for (std::size_t i = strides_.size(); i-- > 0; element /= batch.axes()[i]) index += element % batch.axes()[i] * strides_[i];
    return index;
  }

  template <class T>
  T* at(int64_t index) const {
    return static_cast<T*>(data_) + index * elements_;
  }

  template <class T>
  T* of(const Batch& batch, int64_t element) const {
    return at<T>(index(batch, element));
  }

 private:
  static std::string join(const std::vector<int64_t>& sizes) {
    std::string text;
    for (int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
    return text;
  }

  void* data_ = nullptr;
  int64_t elements_ = 1;
  std::vector<int64_t> strides_;
};

// The last axes of an operand that others must fit; -1 where there are too few.
int64_t axis_from_end(ffi::AnyBuffer buffer, std::size_t from_end) {
  const Dimensions dimensions = buffer.dimensions();
  return dimensions.size() < from_end ? -1 : dimensions[dimensions.size() - from_end];
}

ffi::Error check_type(const char* name, ffi::AnyBuffer buffer, ffi::DataType wanted) {
  if (buffer.element_type() != wanted) return invalid(name, " must be ", wanted, ", got ", buffer.element_type());
  return ffi::Error::Success();
}

ffi::Error check_axes(const char* name, ffi::AnyBuffer buffer, std::size_t least) {
  if (buffer.dimensions().size() < least) return invalid(name, " must have at least ", least, " axes, got ", to_string(buffer.dimensions()));
  return ffi::Error::Success();
}

ffi::Error check_element(const char* name, ffi::AnyBuffer buffer) {
  if (buffer.element_type() != ffi::F32 && buffer.element_type() != ffi::BF16)
    return invalid(name, " must be float32 or bfloat16, got ", buffer.element_type());
  return ffi::Error::Success();
}

// Rows are numbered in int32.
ffi::Error check_rows(int64_t n) {
  if (n > std::numeric_limits<int32_t>::max()) return invalid("at most 2^31 - 1 rows, got ", n);
  return ffi::Error::Success();
}

ffi::Error read_kernels(std::string_view isa, const Kernels*& kernels) {
  kernels = find_kernels(isa);
  if (kernels == nullptr) return invalid("isa '", isa, "' is unknown or not supported by this processor");
  return ffi::Error::Success();
}

// Calls f with a null pointer to the type of the elements.
template <class F>
ffi::Error with_element(ffi::AnyBuffer buffer, F f) {
  if (buffer.element_type() == ffi::F32) return f(static_cast<float*>(nullptr));
  return f(static_cast<BFloat16*>(nullptr));
}

}  // namespace
}  // namespace a3

#endif  // A3_JAX_NATIVE_FFI_OPERANDS_H_
