// A product as work for XLA's threads: ranges of rows that any of them may take.
#ifndef ANYPREC_JAX_NATIVE_JOB_H_
#define ANYPREC_JAX_NATIVE_JOB_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace anyprec {

// Kept alive by each of its threads: one that starts after the last range was taken must still find the counter.
class Job {
 public:
  using Range = std::function<void(std::int64_t first, std::int64_t last)>;

  // Calls `range` on parts of 0..n-1, here and on the pool's threads, and returns a future of all of them: XLA's own thread is free once
  // it has done its share. `weights` says how much work there is.
  static xla::ffi::Future run(xla::ffi::ThreadPool& pool, std::int64_t n, std::int64_t weights, Range range) {
    return xla::ffi::Future(start(pool, n, weights, std::move(range))->done_);
  }

  // The same, and returns when all are done. Parts that others have taken are being worked on, so this waits for none that has to be
  // scheduled yet.
  static void finish(xla::ffi::ThreadPool& pool, std::int64_t n, std::int64_t weights, Range range) {
    const auto job = start(pool, n, weights, std::move(range));
    while (job->unfinished_.load(std::memory_order_acquire) > 0) std::this_thread::yield();
  }

 private:
  static std::shared_ptr<Job> start(xla::ffi::ThreadPool& pool, std::int64_t n, std::int64_t weights, Range range) {
    // A task shorter than this many weights costs more to hand to another thread than to do.
    constexpr std::int64_t kMinTaskWeights = 1 << 16;
    // More tasks than threads, so that a thread that starts late or loses its core does not hold up the rest.
    constexpr std::int64_t kTasksPerThread = 4;
    const std::int64_t threads = std::max<std::int64_t>(pool.num_threads(), 1);
    auto job = std::make_shared<Job>();
    job->n_ = n, job->range_ = std::move(range);
    job->num_tasks_ = std::clamp<std::int64_t>(std::min(n, weights / kMinTaskWeights), 1, threads * kTasksPerThread);
    job->unfinished_ = job->num_tasks_;
    const std::int64_t helpers = std::min(threads, job->num_tasks_) - 1;
    for (std::int64_t i = 0; i < helpers; ++i) pool.Schedule([job] { job->work(); });
    job->work();
    return job;
  }

  void work() {
    for (std::int64_t task; (task = next_.fetch_add(1)) < num_tasks_;) {
      range_(n_ * task / num_tasks_, n_ * (task + 1) / num_tasks_);
      if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) done_.SetAvailable();
    }
  }

  std::int64_t n_ = 0, num_tasks_ = 0;
  Range range_;
  std::atomic<std::int64_t> next_{0}, unfinished_{0};
  xla::ffi::Promise done_;
};

}  // namespace anyprec

#endif  // ANYPREC_JAX_NATIVE_JOB_H_
