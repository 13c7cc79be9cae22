// Rows of mapped files into memory, in the order in which they are wanted: every page that is not in memory yet is a fault of the thread.
// Row rows[i] goes to place places[i] of out.
#include <pthread.h>
#include <stdint.h>
#include <string.h>

typedef struct {
  const char *const *files;
  const int64_t *rows, *places;
  int64_t start, stop, rows_a_file, row_bytes;
  char *out;
} Work;

static void *work(void *argument) {
  const Work *w = argument;
  for (int64_t i = w->start; i < w->stop; i++) {
    int64_t row = w->rows[i];
    memcpy(w->out + w->places[i] * w->row_bytes, w->files[row / w->rows_a_file] + row % w->rows_a_file * w->row_bytes, w->row_bytes);
  }
  return 0;
}

void gather_mapped(const char *const *files, const int64_t *rows, const int64_t *places, int64_t num_rows, int64_t rows_a_file,
                   int64_t row_bytes, char *out, int num_threads) {
  pthread_t threads[64];
  Work works[64];
  int started = 0;
  if (num_threads > 64) num_threads = 64;
  for (int t = 0; t < num_threads; t++)
    works[t] = (Work){files, rows, places, num_rows * t / num_threads, num_rows * (t + 1) / num_threads, rows_a_file, row_bytes, out};
  for (int t = 1; t < num_threads && !pthread_create(&threads[t], 0, work, &works[t]); t++) started = t;
  work(&works[0]);
  for (int t = started + 1; t < num_threads; t++) work(&works[t]);
  for (int t = 1; t <= started; t++) pthread_join(threads[t], 0);
}
