// Binds search, attention and sorting to XLA: checks the buffers and shares the batch out over XLA's threads.
//
// Whatever the buffers are, the answer is a result or an error that becomes a Python exception.
#include "xla/ffi/api/ffi.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <string_view>
#include <type_traits>
#include <vector>

#include "ffi_operands.h"
#include "flush.h"
#include "rows.h"
#include "search.h"
#include "selected.h"
#include "sort_columns.h"
#include "tasks.h"

namespace a3 {
namespace {

// What may go wrong while tasks run, which must not throw.
enum Trouble { kNone, kOutOfMemory, kRowOutOfRange };

ffi::Error error_of(Trouble trouble) {
  if (trouble == kOutOfMemory) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "a3: out of memory");
  if (trouble == kRowOutOfRange) return invalid("sorted_keys.rows has a row that is not in [0, length)");
  return ffi::Error::Success();
}

// Runs `task`, which returns trouble or none, for each element. `work`: numbers that one of them reads.
template <class Task>
ffi::Error for_each(ffi::ThreadPool& pool, int64_t count, int64_t work, Task task) {
  std::atomic<int> trouble{kNone};
  try {
    Tasks::run(pool, count, work, [&](int64_t element) {
      const Flush flush;
      try {
        const Trouble one = task(element);
        if (one != kNone) trouble = one;
      } catch (const std::bad_alloc&) {
        trouble = kOutOfMemory;
      }
    });
  } catch (const std::bad_alloc&) {
    return error_of(kOutOfMemory);
  }
  return error_of(static_cast<Trouble>(trouble.load()));
}

// A thread's own, for as long as it lives: room is asked for once.
Scratch& scratch_of_thread() {
  thread_local Scratch scratch;
  return scratch;
}

// ---- the search --------------------------------------------------------------------------------------------------------------------

// The operands of a search. The range of `length` is checked for each element, where its value is known.
struct Searches {
  Operand query, values, rows, iterations, length;
  int64_t d, n;

  ffi::Error read(const Batch& batch, ffi::AnyBuffer query_buffer, ffi::AnyBuffer values_buffer, ffi::AnyBuffer rows_buffer,
                  ffi::AnyBuffer iterations_buffer, ffi::AnyBuffer length_buffer) {
    A3_CHECK(check_type("query", query_buffer, ffi::F32));
    A3_CHECK(check_element("sorted_keys.values", values_buffer));
    A3_CHECK(check_type("sorted_keys.rows", rows_buffer, ffi::S32));
    A3_CHECK(check_type("num_iterations", iterations_buffer, ffi::S32));
    A3_CHECK(check_type("length", length_buffer, ffi::S32));
    A3_CHECK(check_axes("sorted_keys.values", values_buffer, 2));
    d = axis_from_end(values_buffer, 2), n = axis_from_end(values_buffer, 1);
    A3_CHECK(check_rows(n));
    A3_CHECK(query.read("query", query_buffer, batch, {d}));
    A3_CHECK(values.read("sorted_keys.values", values_buffer, batch, {d, n}));
    A3_CHECK(rows.read("sorted_keys.rows", rows_buffer, batch, {d, n}));
    A3_CHECK(iterations.read("num_iterations", iterations_buffer, batch, {}));
    return length.read("length", length_buffer, batch, {});
  }

  int64_t length_of(const Batch& batch, int64_t element) const {
    return std::clamp<int64_t>(*length.of<int32_t>(batch, element), 0, n);
  }

  template <class Element>
  int64_t search(const Batch& batch, int64_t element, bool skip_heuristic, const Kernels& kernels, Scratch& scratch) const {
    const SortedColumns<Element> columns = {values.of<const Element>(batch, element), rows.of<const int32_t>(batch, element), d, n,
                                            length_of(batch, element)};
    return a3::search(query.of<const float>(batch, element), columns, *iterations.of<int32_t>(batch, element), skip_heuristic, kernels,
                      scratch);
  }
};

// query [.., d], values, rows [.., d, n], iterations, length [..] -> candidates [.., n].
ffi::Error candidates(ffi::ThreadPool pool, ffi::AnyBuffer query, ffi::AnyBuffer values, ffi::AnyBuffer rows, ffi::AnyBuffer iterations,
                      ffi::AnyBuffer length, ffi::Result<ffi::AnyBuffer> found, bool skip_heuristic, std::string_view isa) {
  const Kernels* kernels = nullptr;
  Searches searches;
  Operand result;
  A3_CHECK(read_kernels(isa, kernels));
  A3_CHECK(check_type("the result", *found, ffi::PRED));
  A3_CHECK(check_axes("the result", *found, 1));
  const Batch batch(found->dimensions(), 1);
  A3_CHECK(searches.read(batch, query, values, rows, iterations, length));
  A3_CHECK(result.read("the result", *found, batch, {searches.n}));
  return with_element(values, [&](auto* null) {
    using Element = std::remove_pointer_t<decltype(null)>;
    return for_each(pool, batch.size(), searches.n, [&](int64_t element) {
      Scratch& scratch = scratch_of_thread();
      bool* const is_candidate = result.of<bool>(batch, element);
      std::fill(is_candidate, is_candidate + searches.n, false);
      const int64_t count = searches.search<Element>(batch, element, skip_heuristic, *kernels, scratch);
      for (int64_t i = 0; i < count; ++i) is_candidate[scratch.candidates[i]] = true;
      return count < 0 ? kRowOutOfRange : kNone;
    });
  });
}

// The same with key [.., n, d], value [.., n, dv] and gap [..] -> out [.., dv], lse [..], counts [.., 2]: candidates and rows kept.
ffi::Error attention(ffi::ThreadPool pool, ffi::AnyBuffer query, ffi::AnyBuffer key, ffi::AnyBuffer value, ffi::AnyBuffer values,
                     ffi::AnyBuffer rows, ffi::AnyBuffer iterations, ffi::AnyBuffer length, ffi::AnyBuffer gap,
                     ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> lse,
                     ffi::Result<ffi::AnyBuffer> counts, bool skip_heuristic, std::string_view isa) {
  const Kernels* kernels = nullptr;
  Searches searches;
  Operand keys, all_values, gaps, outs, lses, all_counts;
  A3_CHECK(read_kernels(isa, kernels));
  A3_CHECK(check_type("the output", *out, ffi::F32));
  A3_CHECK(check_type("lse", *lse, ffi::F32));
  A3_CHECK(check_type("counts", *counts, ffi::S32));
  A3_CHECK(check_axes("the output", *out, 1));
  A3_CHECK(check_type("gap", gap, ffi::F32));
  A3_CHECK(check_element("key", key));
  A3_CHECK(check_type("value", value, key.element_type()));
  A3_CHECK(check_type("sorted_keys.values", values, key.element_type()));
  const Batch batch(out->dimensions(), 1);
  const int64_t dv = axis_from_end(*out, 1);
  A3_CHECK(searches.read(batch, query, values, rows, iterations, length));
  A3_CHECK(keys.read("key", key, batch, {searches.n, searches.d}));
  A3_CHECK(all_values.read("value", value, batch, {searches.n, dv}));
  A3_CHECK(gaps.read("gap", gap, batch, {}));
  A3_CHECK(outs.read("the output", *out, batch, {dv}));
  A3_CHECK(lses.read("lse", *lse, batch, {}));
  A3_CHECK(all_counts.read("counts", *counts, batch, {2}));
  return with_element(key, [&](auto* null) {
    using Element = std::remove_pointer_t<decltype(null)>;
    return for_each(pool, batch.size(), searches.n, [&](int64_t element) {
      Scratch& scratch = scratch_of_thread();
      const int64_t count = searches.search<Element>(batch, element, skip_heuristic, *kernels, scratch);
      if (count < 0) return kRowOutOfRange;
      const Selected<Element> selected = {searches.query.of<const float>(batch, element), keys.of<const Element>(batch, element),
                                          all_values.of<const Element>(batch, element), dv, *gaps.of<float>(batch, element)};
      int32_t* const found = all_counts.of<int32_t>(batch, element);
      found[0] = static_cast<int32_t>(count);
      found[1] = static_cast<int32_t>(attend_selected(selected, searches.d, count, *kernels, scratch, outs.of<float>(batch, element),
                                                      lses.of<float>(batch, element)));
      return kNone;
    });
  });
}

// ---- exact attention ---------------------------------------------------------------------------------------------------------------

// query [.., d], key [.., n, d], value [.., n, dv], first, last [..] -> out [.., dv], lse [..]. Queries that follow one another and have
// the same keys, values and rows read these once.
ffi::Error exact(ffi::ThreadPool pool, ffi::AnyBuffer query, ffi::AnyBuffer key, ffi::AnyBuffer value, ffi::AnyBuffer first,
                 ffi::AnyBuffer last, ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> lse, std::string_view isa) {
  const Kernels* kernels = nullptr;
  Operand queries, keys, values, firsts, lasts, outs, lses;
  A3_CHECK(read_kernels(isa, kernels));
  A3_CHECK(check_type("query", query, ffi::F32));
  A3_CHECK(check_type("the output", *out, ffi::F32));
  A3_CHECK(check_type("lse", *lse, ffi::F32));
  A3_CHECK(check_type("first", first, ffi::S32));
  A3_CHECK(check_type("last", last, ffi::S32));
  A3_CHECK(check_element("key", key));
  A3_CHECK(check_type("value", value, key.element_type()));
  A3_CHECK(check_axes("key", key, 2));
  A3_CHECK(check_axes("the output", *out, 1));
  const Batch batch(out->dimensions(), 1);
  const int64_t n = axis_from_end(key, 2), d = axis_from_end(key, 1), dv = axis_from_end(*out, 1);
  A3_CHECK(check_rows(n));
  A3_CHECK(queries.read("query", query, batch, {d}));
  A3_CHECK(keys.read("key", key, batch, {n, d}));
  A3_CHECK(values.read("value", value, batch, {n, dv}));
  A3_CHECK(firsts.read("first", first, batch, {}));
  A3_CHECK(lasts.read("last", last, batch, {}));
  A3_CHECK(outs.read("the output", *out, batch, {dv}));
  A3_CHECK(lses.read("lse", *lse, batch, {}));
  struct Group {
    int64_t element, queries, query, key, value, first, last;
  };
  std::vector<Group> groups;
  for (int64_t element = 0; element < batch.size(); ++element) {
    const int64_t end = std::clamp<int64_t>(*lasts.of<int32_t>(batch, element), 0, n);
    const int64_t start = std::clamp<int64_t>(*firsts.of<int32_t>(batch, element), 0, end);
    const Group one = {element,
                       1,
                       queries.index(batch, element),
                       keys.index(batch, element),
                       values.index(batch, element),
                       start,
                       end};
    Group* const group = groups.empty() ? nullptr : &groups.back();
    if (group != nullptr && one.query == group->query + group->queries && one.key == group->key && one.value == group->value &&
        one.first == group->first && one.last == group->last) {
      ++group->queries;
    } else {
      groups.push_back(one);
    }
  }
  return with_element(key, [&](auto* null) {
    using Element = std::remove_pointer_t<decltype(null)>;
    return for_each(pool, static_cast<int64_t>(groups.size()), n * (d + dv), [&](int64_t i) {
      const Group& group = groups[i];
      kernels->of<Element>().attend({queries.at<const float>(group.query), group.queries, keys.at<const Element>(group.key),
                                     values.at<const Element>(group.value), group.first, group.last, d, dv,
                                     outs.of<float>(batch, group.element), lses.of<float>(batch, group.element)});
      return kNone;
    });
  });
}

// ---- sorting -----------------------------------------------------------------------------------------------------------------------

// key [.., n, d] -> values, rows [.., d, n].
ffi::Error sort(ffi::ThreadPool pool, ffi::AnyBuffer key, ffi::Result<ffi::AnyBuffer> values, ffi::Result<ffi::AnyBuffer> rows) {
  Operand keys, all_values, all_rows;
  A3_CHECK(check_element("key", key));
  A3_CHECK(check_type("values", *values, key.element_type()));
  A3_CHECK(check_type("rows", *rows, ffi::S32));
  A3_CHECK(check_axes("key", key, 2));
  A3_CHECK(check_axes("values", *values, 2));
  const Batch batch(values->dimensions(), 2);
  const int64_t n = axis_from_end(key, 2), d = axis_from_end(key, 1), parts = (d + kColumnsAtOnce - 1) / kColumnsAtOnce;
  A3_CHECK(check_rows(n));
  A3_CHECK(keys.read("key", key, batch, {n, d}));
  A3_CHECK(all_values.read("values", *values, batch, {d, n}));
  A3_CHECK(all_rows.read("rows", *rows, batch, {d, n}));
  return with_element(key, [&](auto* null) {
    using Element = std::remove_pointer_t<decltype(null)>;
    return for_each(pool, batch.size() * parts, n * kColumnsAtOnce, [&](int64_t task) {
      const int64_t element = task / parts, start = task % parts * kColumnsAtOnce;
      std::vector<uint64_t> scratch;
      sort_columns(keys.of<const Element>(batch, element), n, d, start, std::min(kColumnsAtOnce, d - start),
                   all_values.of<Element>(batch, element) + start * n, all_rows.of<int32_t>(batch, element) + start * n, scratch);
      return kNone;
    });
  });
}

// values, rows [.., d, capacity], key [.., w, d], length [..] -> values and rows in place, w entries longer.
ffi::Error append(ffi::ThreadPool pool, ffi::AnyBuffer values, ffi::AnyBuffer rows, ffi::AnyBuffer key, ffi::AnyBuffer length,
                  ffi::Result<ffi::AnyBuffer> new_values, ffi::Result<ffi::AnyBuffer> new_rows) {
  Operand old_values, old_rows, keys, lengths, all_values, all_rows;
  A3_CHECK(check_element("key", key));
  A3_CHECK(check_type("sorted_keys.values", values, key.element_type()));
  A3_CHECK(check_type("the new values", *new_values, key.element_type()));
  A3_CHECK(check_type("sorted_keys.rows", rows, ffi::S32));
  A3_CHECK(check_type("the new rows", *new_rows, ffi::S32));
  A3_CHECK(check_type("length", length, ffi::S32));
  A3_CHECK(check_axes("key", key, 2));
  A3_CHECK(check_axes("the new values", *new_values, 2));
  const Batch batch(new_values->dimensions(), 2);
  const int64_t capacity = axis_from_end(*new_values, 1), d = axis_from_end(key, 1), w = axis_from_end(key, 2);
  A3_CHECK(check_rows(capacity));
  A3_CHECK(old_values.read("sorted_keys.values", values, batch, {d, capacity}));
  A3_CHECK(old_rows.read("sorted_keys.rows", rows, batch, {d, capacity}));
  A3_CHECK(keys.read("key", key, batch, {w, d}));
  A3_CHECK(lengths.read("length", length, batch, {}));
  A3_CHECK(all_values.read("the new values", *new_values, batch, {d, capacity}));
  A3_CHECK(all_rows.read("the new rows", *new_rows, batch, {d, capacity}));
  for (int64_t element = 0; element < batch.size(); ++element) {
    const int64_t filled = *lengths.of<int32_t>(batch, element);
    if (filled < 0 || filled + w > capacity) return invalid("length must be in [0, ", capacity - w, "], got ", filled);
  }
  const int64_t parts = (d + kColumnsAtOnce - 1) / kColumnsAtOnce;
  return with_element(key, [&](auto* null) {
    using Element = std::remove_pointer_t<decltype(null)>;
    return for_each(pool, batch.size() * parts, capacity * kColumnsAtOnce, [&](int64_t task) {
      const int64_t element = task / parts, first = task % parts * kColumnsAtOnce, count = std::min(kColumnsAtOnce, d - first);
      const int64_t filled = *lengths.of<int32_t>(batch, element);
      std::vector<uint64_t> scratch;
      std::vector<Element> sorted_values(count * w);
      std::vector<int32_t> sorted_rows(count * w);
      sort_columns(keys.of<const Element>(batch, element), w, d, first, count, sorted_values.data(), sorted_rows.data(), scratch);
      for (int64_t column = 0; column < count; ++column) {
        const int64_t start = (first + column) * capacity;
        Element* const to_values = all_values.of<Element>(batch, element) + start;
        int32_t* const to_rows = all_rows.of<int32_t>(batch, element) + start;
        const Element* const from_values = old_values.of<const Element>(batch, element) + start;
        const int32_t* const from_rows = old_rows.of<const int32_t>(batch, element) + start;
        if (to_values != from_values) std::copy(from_values, from_values + capacity, to_values);
        if (to_rows != from_rows) std::copy(from_rows, from_rows + capacity, to_rows);
        insert_entries(sorted_values.data() + column * w, sorted_rows.data() + column * w, w, to_values, to_rows, filled);
      }
      return kNone;
    });
  });
}

}  // namespace
}  // namespace a3

namespace ffi = xla::ffi;

XLA_FFI_DEFINE_HANDLER_SYMBOL(A3Candidates, a3::candidates,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<bool>("skip_heuristic")
                                  .Attr<std::string_view>("isa"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(A3Attention, a3::attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<bool>("skip_heuristic")
                                  .Attr<std::string_view>("isa"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(A3Exact, a3::exact,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<std::string_view>("isa"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(A3Sort, a3::sort,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(A3Append, a3::append,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
