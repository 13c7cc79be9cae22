// Work for XLA's threads: tasks that any of them may take.
#ifndef A3_JAX_NATIVE_TASKS_H_
#define A3_JAX_NATIVE_TASKS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace a3 {

// Kept alive by each of its threads: one that starts after the last task was taken must still find the counter.
class Tasks {
 public:
  // Calls `task` with 0..count-1, here and on the pool's threads, and returns when all are done. Tasks that others have taken are being
  // worked on, so this waits for none that has to be scheduled yet. `task` throws nothing. `work` is how many numbers a task reads.
  static void run(xla::ffi::ThreadPool& pool, std::int64_t count, std::int64_t work, std::function<void(std::int64_t)> task) {
    // Less than this costs more to hand to another thread than to do.
    constexpr std::int64_t kLeastWork = 1 << 16;
    auto tasks = std::make_shared<Tasks>();
    tasks->count_ = count, tasks->unfinished_ = count, tasks->task_ = std::move(task);
    const std::int64_t helpers = work * count < kLeastWork ? 0 : std::min<std::int64_t>(pool.num_threads(), count) - 1;
    for (std::int64_t i = 0; i < helpers; ++i) pool.Schedule([tasks] { tasks->work(); });
    tasks->work();
    while (tasks->unfinished_.load(std::memory_order_acquire) > 0) std::this_thread::yield();
  }

 private:
  void work() {
    for (std::int64_t i; (i = next_.fetch_add(1)) < count_;) {
      task_(i);
      unfinished_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  std::int64_t count_ = 0;
  std::function<void(std::int64_t)> task_;
  std::atomic<std::int64_t> next_{0}, unfinished_{0};
};

}  // namespace a3

#endif  // A3_JAX_NATIVE_TASKS_H_
