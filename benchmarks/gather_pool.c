// The yardstick of ginex_gather.py: a pool of POSIX threads, each of which takes the next row and reads it with pread.
// Row rows[i] goes to place places[i] of out.
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

typedef struct {
  const int *files;
  const int64_t *rows, *places;
  int64_t num_rows, rows_a_file, row_bytes;
  char *out;
  atomic_long next, failed;
} Work;

static void *work(void *argument) {
  Work *w = argument;
  for (;;) {
    int64_t i = atomic_fetch_add(&w->next, 1);
    if (i >= w->num_rows) return 0;
    int64_t row = w->rows[i], offset = row % w->rows_a_file * w->row_bytes;
    if (pread(w->files[row / w->rows_a_file], w->out + w->places[i] * w->row_bytes, w->row_bytes, offset) != w->row_bytes)
      atomic_fetch_add(&w->failed, 1);
  }
}

long gather(const int *files, const int64_t *rows, const int64_t *places, int64_t num_rows, int64_t rows_a_file, int64_t row_bytes, char *out,
            int num_threads) {
  Work w = {files, rows, places, num_rows, rows_a_file, row_bytes, out, 0, 0};
  pthread_t threads[1024];
  int started = 0;
  while (started < num_threads && started < 1024 && !pthread_create(&threads[started], 0, work, &w)) started++;
  if (!started) return -1;
  for (int i = 0; i < started; i++) pthread_join(threads[i], 0);
  return w.failed;
}
