// Numbers below the least normal one count as 0, as they do wherever XLA computes on a CPU; the results are to be the same rows.
#ifndef A3_JAX_NATIVE_FLUSH_H_
#define A3_JAX_NATIVE_FLUSH_H_

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace a3 {

// While one of these lives, on this thread.
class Flush {
 public:
  Flush(const Flush&) = delete;
  Flush& operator=(const Flush&) = delete;
#if defined(__SSE2__)
  Flush() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040u); }  // of results, and of operands
  ~Flush() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  Flush() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | std::uint64_t{1} << 24));
  }
  ~Flush() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  std::uint64_t before_;
#else
  Flush() = default;
#endif
};

}  // namespace a3

#endif  // A3_JAX_NATIVE_FLUSH_H_
