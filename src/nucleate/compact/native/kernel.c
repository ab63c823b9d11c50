/* Sparse products and convolutions on the CPU: plain C, called through pointers.
 *
 * The batch is the vector axis: activations are (features, batch), each output row keeps its values in registers, and
 * every surviving weight is one broadcast and a few multiply-adds. A convolution is the same product: its weights are
 * constant offsets into the padded image. The arithmetic is in product.inc, compiled for several instruction sets.
 */
#include "kernel.h"

#include <float.h>
#include <math.h>
#include <string.h>

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#define THREADED
#endif

typedef void (*rows_t)(const product_t *, int64_t segment, const float *x, float *y, int64_t from, int64_t to);
typedef struct {
  int64_t width;
  rows_t run[2];
} piece_t;
typedef struct {
  const char *name;
  piece_t single[6], block[6], gradient[6], gradient_block[6];
  rows_t dot[2], dot_block[2];
  void (*gelu)(float *values, int64_t count);
  void (*back)(const step_t *s, int64_t from, int64_t to);
  void (*update)(const learn_t *l, int64_t from, int64_t to);
} kernels_t;

typedef float vec4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t mask4 __attribute__((vector_size(16), aligned(4), may_alias));
/* A NaN stays a NaN, as in torch. */
#define RELU_VEC4(a) ((vec4)((mask4)(a) & ~((a) < 0.0f)))
#define RELU_FLOAT(a) ((a) < 0.0f ? 0.0f : (a))
#define SUM_VEC4(a, b, c, d) sum4(a, b, c, d)
#define SUM_FLOAT(a, b, c, d) ((vec4){a, b, c, d})

/* (sum a, sum b, sum c, sum d) */
static inline __attribute__((always_inline)) vec4 sum4(vec4 a, vec4 b, vec4 c, vec4 d) {
  const vec4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const vec4 cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

#define ISA(name) name##_baseline
#define ISA_NAME "baseline"
#define TARGET
#define LANES 4
#define REGISTERS 16
#include "product.inc"

#if defined(__x86_64__)
#define ISA(name) name##_avx2
#define ISA_NAME "avx2"
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define REGISTERS 16
#include "product.inc"

#define ISA(name) name##_avx512
#define ISA_NAME "avx512"
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx2,fma")))
#define LANES 16
#define REGISTERS 32
#include "product.inc"
#endif

static const kernels_t *kernels = NULL;

/* The widest instruction set that this processor has, or the named one if it has it. */
EXPORT const char *nucleate_select(const char *name) {
  const kernels_t *available[3] = {&kernels_baseline, NULL, NULL};
  int count = 1;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) available[count++] = &kernels_avx2;
  if (count == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    available[count++] = &kernels_avx512;
#endif
  kernels = available[count - 1];
  for (int i = 0; name && i < count; i++)
    if (!strcmp(available[i]->name, name)) kernels = available[i];
  return kernels->name;
}

EXPORT int64_t nucleate_version(void) { return NUCLEATE_VERSION; }
EXPORT int64_t nucleate_step_size(void) { return (int64_t)sizeof(step_t); }

/* Entries before a unit of rows, summed over the segments. */
static int64_t entries_before(const product_t *t, int64_t units, int64_t unit) {
  int64_t sum = 0;
  for (int64_t s = 0; s < t->segments; s++) {
    const int32_t *p = t->pointers + s * (units + 1);
    sum += p[unit] - p[0];
  }
  return sum;
}

/* First unit of a worker's share, so that all have about equally many entries. */
static int64_t share(const product_t *t, int64_t units, int64_t worker, int64_t workers) {
  if (worker == 0) return 0;
  if (worker == workers) return units;
  const int64_t wanted = entries_before(t, units, units) * worker / workers;
  int64_t low = 0, high = units;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (entries_before(t, units, middle) < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

static void product_part(const product_t *t, int gradient, int64_t worker, int64_t workers) {
  const int blocked = t->block == 4, wide = t->wide != 0;
  const int64_t units = blocked ? (t->rows + 3) / 4 : t->rows;
  const int64_t from = share(t, units, worker, workers), to = share(t, units, worker + 1, workers);
  if (from == to) return;
  const piece_t *pieces = gradient ? (blocked ? kernels->gradient_block : kernels->gradient)
                                   : (blocked ? kernels->block : kernels->single);
  for (int64_t line = 0; line < t->lines; line++) {
    const float *x = t->x + line * t->x_step;
    float *y = t->y + line * t->y_step;
    if (t->length == 1 && !gradient) {
      const rows_t run = (blocked ? kernels->dot_block : kernels->dot)[wide];
      for (int64_t s = 0; s < t->segments; s++) run(t, s, x, y, from, to);
      continue;
    }
    for (int64_t p = 0; p < t->length;) {
      const piece_t *piece = pieces;
      while (p + piece->width > t->length) piece++;
      for (int64_t s = 0; s < t->segments; s++) piece->run[wide](t, s, x + p, y + p, from, to);
      p += piece->width;
    }
  }
}

static inline int64_t at(const layout_t *l, int64_t c, int64_t y, int64_t x) {
  y += l->pad_y;
  x += l->pad_x;
  if (l->phases == 1) return c * l->channel + y * l->row + x * l->column;
  return c * l->channel + y % l->phases * l->phase_y + x % l->phases * l->phase_x + y / l->phases * l->row +
         x / l->phases * l->column;
}

static void copy_part(const step_t *s, int64_t from, int64_t to) {
  const int64_t a = s->from.batch, b = s->to.batch, n = s->batch;
  for (int64_t c = from; c < to; c++)
    for (int64_t y = 0; y < s->height; y++) {
      const float *in = s->source + at(&s->from, c, y, 0);
      if (a != 1 && s->from.phases == 1 && s->to.phases == 1 && s->to.column == n && b == 1) {
        /* torch's layout to ours: tiles of eight, so that no cache line is fetched twice */
        float *out = s->target + at(&s->to, c, y, 0);
        for (int64_t x0 = 0; x0 < s->width; x0 += 16)
          for (int64_t i = 0; i < n; i++)
            for (int64_t x = x0; x < s->width && x < x0 + 16; x++) out[x * n + i] = in[x * s->from.column + i * a];
        continue;
      }
      for (int64_t x = 0; x < s->width; x++) {
        const float *from_x = s->source + at(&s->from, c, y, x);
        float *out = s->target + at(&s->to, c, y, x);
        if (s->kind == ADD) {
          for (int64_t i = 0; i < n; i++) {
            const float sum = out[i * b] + from_x[i * a];
            out[i * b] = s->relu ? RELU_FLOAT(sum) : sum;
          }
        } else {
          for (int64_t i = 0; i < n; i++) out[i * b] = from_x[i * a];
        }
      }
    }
}

/* A clipped window at `in` into one value for each point of the batch. */
static inline __attribute__((always_inline)) void pool_window(const step_t *s, const float *in, float *out, int64_t height, int64_t width, int64_t n) {
  memcpy(out, in, (size_t)n * sizeof(float));
  for (int64_t y = 0; y < height; y++)
    for (int64_t x = !y; x < width; x++) {
      const float *other = in + y * s->from.row + x * s->from.column;
      if (s->kind == MAXIMUM)
        for (int64_t i = 0; i < n; i++) {
          const float larger = other[i] > out[i] ? other[i] : out[i];
          out[i] = other[i] != other[i] ? other[i] : larger;
        }
      else
        for (int64_t i = 0; i < n; i++) out[i] += other[i];
    }
  if (s->kind == AVERAGE)
    for (int64_t i = 0; i < n; i++) out[i] /= (float)(height * width);
}

static inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

/* The batch is innermost on both sides. */
static void pool_part(const step_t *s, int64_t from, int64_t to) {
  const int64_t n = s->batch;
  for (int64_t c = from; c < to; c++)
    for (int64_t y = 0; y < s->out_height; y++) {
      const int64_t v = greater(y * s->stride_y - s->pad_y, 0);
      const int64_t height = lesser(y * s->stride_y - s->pad_y + s->window_y, s->height) - v;
      for (int64_t x = 0; x < s->out_width; x++) {
        const int64_t u = greater(x * s->stride_x - s->pad_x, 0);
        const int64_t width = lesser(x * s->stride_x - s->pad_x + s->window_x, s->width) - u;
        const float *in = s->source + at(&s->from, c, v, u);
        float *out = s->target + at(&s->to, c, y, x);
        if (n == 1) pool_window(s, in, out, height, width, 1); /* no loops over the batch, no call to copy a float */
        else pool_window(s, in, out, height, width, n);
      }
    }
}

static void clear_part(const step_t *s, int64_t from, int64_t to) {
  const layout_t *l = &s->to;
  for (int64_t c = from; c < to; c++)
    for (int64_t y = 0; y < s->height; y++)
      memset(s->target + at(l, c, y, s->width), 0, (size_t)(l->row - s->width * l->column) * sizeof(float));
}

/* Entries name columns of the weight matrix; a convolution reads them at offsets that depend on the image's size. */
static void translate_part(const step_t *s, int64_t worker, int64_t workers) {
  const product_t *t = &s->product;
  const int64_t units = t->block == 4 ? (t->rows + 3) / 4 : t->rows, per_group = t->block == 4 ? s->rows_per_group / 4 : s->rows_per_group;
  const int64_t from = units * worker / workers, to = units * (worker + 1) / workers;
  for (int64_t segment = 0; segment < t->segments; segment++) {
    const int32_t *pointers = t->pointers + segment * (units + 1);
    for (int64_t unit = from; unit < to; unit++) {
      const uint32_t base = (uint32_t)(unit / per_group * s->group_step);
      for (int32_t k = pointers[unit]; k < pointers[unit + 1]; k++)
        s->offsets[k] = base + s->table[t->wide ? ((const uint32_t *)t->indices)[k] : ((const uint16_t *)t->indices)[k]];
    }
  }
}

/* Tiles of four by four, turned in registers: rows of points become rows of features. */
static void pick_strip(const step_t *s, int64_t from, int64_t to) {
  const int64_t columns = s->channels, n = s->batch;
  const int64_t *index = s->learn.index;
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const float *in[4];
    for (int r = 0; r < 4; r++) in[r] = s->source + (index ? index[i + r] : i + r) * columns;
    float *out = s->target + i;
    int64_t c = from;
    for (; c + 4 <= to; c += 4) {
      const vec4 a = *(const vec4 *)(in[0] + c), b = *(const vec4 *)(in[1] + c);
      const vec4 e = *(const vec4 *)(in[2] + c), f = *(const vec4 *)(in[3] + c);
      const vec4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const vec4 ef = __builtin_shufflevector(e, f, 0, 4, 1, 5), EF = __builtin_shufflevector(e, f, 2, 6, 3, 7);
      *(vec4 *)(out + c * s->height) = __builtin_shufflevector(ab, ef, 0, 1, 4, 5);
      *(vec4 *)(out + (c + 1) * s->height) = __builtin_shufflevector(ab, ef, 2, 3, 6, 7);
      *(vec4 *)(out + (c + 2) * s->height) = __builtin_shufflevector(AB, EF, 0, 1, 4, 5);
      *(vec4 *)(out + (c + 3) * s->height) = __builtin_shufflevector(AB, EF, 2, 3, 6, 7);
    }
    for (; c < to; c++)
      for (int r = 0; r < 4; r++) out[c * s->height + r] = in[r][c];
  }
  for (; i < n; i++) {
    const float *in = s->source + (index ? index[i] : i) * columns;
    for (int64_t c = from; c < to; c++) s->target[c * s->height + i] = in[c];
  }
}

/* A cache line of each point at a time, so that those of the target are filled before they are given up. */
static void pick_part(const step_t *s, int64_t from, int64_t to) {
  for (int64_t c = from; c < to; c += 16) pick_strip(s, c, c + 16 < to ? c + 16 : to);
}

static void loss_whole(const step_t *s) {
  const int64_t classes = s->channels, pitch = s->height, n = s->batch;
  const learn_t *l = &s->learn;
  double sum = 0;
  for (int64_t i = 0; i < pitch; i++) {
    const float *z = s->source + i;
    float *d = s->target + i;
    if (i >= n) {
      for (int64_t c = 0; c < classes; c++) d[c * pitch] = 0;
      continue;
    }
    const int64_t label = l->labels[l->index ? l->index[i] : i];
    if (l->squared) {
      for (int64_t c = 0; c < classes; c++) {
        const float e = z[c * pitch] - (c == label);
        sum += (double)e * e;
        d[c * pitch] = e * (2.0f / (float)(n * classes));
      }
      continue;
    }
    float most = -INFINITY, total = 0;
    for (int64_t c = 0; c < classes; c++) most = z[c * pitch] > most || z[c * pitch] != z[c * pitch] ? z[c * pitch] : most;
    for (int64_t c = 0; c < classes; c++) total += d[c * pitch] = expf(z[c * pitch] - most);
    sum += (double)logf(total) + most - z[label * pitch];
    const float scale = 1.0f / (total * (float)n);
    for (int64_t c = 0; c < classes; c++) d[c * pitch] *= scale;
    d[label * pitch] -= 1.0f / (float)n;
  }
  *l->loss = sum / (double)(l->squared ? n * classes : n);
}

static void step_part(const step_t *s, int64_t worker, int64_t workers) {
  if (s->kind == PRODUCT || s->kind == GRADIENT) {
    product_part(&s->product, s->kind == GRADIENT, worker, workers);
    return;
  }
  if (s->kind == TRANSLATE) {
    translate_part(s, worker, workers);
    return;
  }
  if (s->kind == LOSS) {
    if (worker == 0) loss_whole(s);
    return;
  }
  if (s->kind == TURN || s->kind == UPDATE) {
    const learn_t *l = &s->learn;
    const int64_t from = l->count * worker / workers, to = l->count * (worker + 1) / workers;
    if (s->kind == UPDATE) kernels->update(l, from, to);
    else
      for (int64_t k = from; k < to; k++) s->target[k] = s->source[l->order[k]];
    return;
  }
  const int64_t from = s->channels * worker / workers, to = s->channels * (worker + 1) / workers;
  if (s->kind == PICK) pick_part(s, from, to);
  else if (s->kind == BACK) kernels->back(s, from, to);
  else if (s->kind == COPY || s->kind == ADD) copy_part(s, from, to);
  else if (s->kind == CLEAR) clear_part(s, from, to);
  else if (s->kind == GELU) kernels->gelu(s->target + from * s->height, (to - from) * s->height);
  else pool_part(s, from, to);
}

#ifdef THREADED
/* Workers that sleep between calls. One call uses them at a time; another one that comes meanwhile works alone. */
#define MOST_WORKERS 64
#define SPINS 2000
static struct {
  pthread_mutex_t owner, lock;
  pthread_cond_t wake;
  int64_t started, workers, count;
  const step_t *steps;
  int64_t born[MOST_WORKERS]; /* the job before a worker's first */
  atomic_int_fast64_t job, arrived, generation, left;
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline void breathe(int64_t spins) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
  if (spins > 1000) sched_yield();
}

static void barrier(int64_t workers) {
  const int64_t generation = atomic_load(&pool.generation);
  if (atomic_fetch_add(&pool.arrived, 1) + 1 == workers) {
    atomic_store(&pool.arrived, 0);
    atomic_fetch_add(&pool.generation, 1);
    return;
  }
  for (int64_t spins = 0; atomic_load(&pool.generation) == generation; spins++) breathe(spins);
}

static void work(const step_t *steps, int64_t count, int64_t worker, int64_t workers) {
  for (int64_t i = 0; i < count; i++) {
    step_part(steps + i, worker, workers);
    if (workers > 1 && i + 1 < count) barrier(workers);
  }
}

static void *wait_for_work(void *argument) {
  const int64_t worker = (int64_t)(intptr_t)argument;
  int64_t seen = pool.born[worker];
  for (;;) {
    for (int64_t spins = 0; atomic_load(&pool.job) == seen && spins < SPINS; spins++) breathe(0);
    if (atomic_load(&pool.job) == seen) {
      pthread_mutex_lock(&pool.lock);
      while (atomic_load(&pool.job) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
      pthread_mutex_unlock(&pool.lock);
    }
    seen = atomic_load(&pool.job);
    if (worker < pool.workers) work(pool.steps, pool.count, worker, pool.workers);
    atomic_fetch_sub(&pool.left, 1);
  }
  return NULL;
}

/* A forked child has none of its parent's threads. */
static void forget_workers(void) {
  pool.started = 0;
  atomic_store(&pool.arrived, 0);
  pthread_mutex_init(&pool.owner, NULL);
  pthread_mutex_init(&pool.lock, NULL);
  pthread_cond_init(&pool.wake, NULL);
}

static void start_workers(int64_t wanted) {
  static int registered = 0;
  if (!registered) registered = !pthread_atfork(NULL, NULL, forget_workers);
  while (pool.started < wanted) {
    pool.born[pool.started + 1] = atomic_load(&pool.job);
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    const int failed = pthread_create(&thread, &attributes, wait_for_work, (void *)(intptr_t)(pool.started + 1));
    pthread_attr_destroy(&attributes);
    if (failed) return;
    pool.started++;
  }
}

/* Multiply-adds below which waking a worker costs more than it brings. */
#ifndef WORTH_WAKING
#define WORTH_WAKING (1 << 17)
#endif

static int64_t multiply_adds(const step_t *steps, int64_t count) {
  int64_t sum = 0;
  for (int64_t i = 0; i < count; i++) {
    const product_t *t = &steps[i].product;
    if (steps[i].kind != PRODUCT && steps[i].kind != GRADIENT) continue;
    sum += entries_before(t, t->block == 4 ? (t->rows + 3) / 4 : t->rows, t->block == 4 ? (t->rows + 3) / 4 : t->rows) *
           t->block * t->lines * t->length;
  }
  return sum;
}

EXPORT void nucleate_run(const step_t *steps, int64_t count, int64_t threads) {
  if (!kernels) nucleate_select(NULL);
  if (threads > 1 && multiply_adds(steps, count) < WORTH_WAKING) threads = 1;
  if (threads > MOST_WORKERS) threads = MOST_WORKERS;
  if (threads < 2 || pthread_mutex_trylock(&pool.owner)) {
    work(steps, count, 0, 1);
    return;
  }
  start_workers(threads - 1);
  pool.steps = steps;
  pool.count = count;
  pool.workers = pool.started + 1 < threads ? pool.started + 1 : threads;
  const int64_t workers = pool.workers;
  atomic_store(&pool.left, pool.started);
  pthread_mutex_lock(&pool.lock);
  atomic_fetch_add(&pool.job, 1);
  pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.lock);
  work(steps, count, 0, workers);
  for (int64_t spins = 0; atomic_load(&pool.left); spins++) breathe(spins);
  pthread_mutex_unlock(&pool.owner);
}
#else
EXPORT void nucleate_run(const step_t *steps, int64_t count, int64_t threads) {
  (void)threads;
  if (!kernels) nucleate_select(NULL);
  for (int64_t i = 0; i < count; i++) step_part(steps + i, 0, 1);
}
#endif
