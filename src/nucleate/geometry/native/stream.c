/* The two passes over features, each fused into one read of them: class sums, and residuals with their thin products.
 *
 * Plain C, called through pointers. Points go by in groups and their features in spans, so that what a span needs of the
 * class means and of the columns stays in the first cache. The arithmetic is in stream.inc, compiled three times on x86.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#define VERSION 1
enum { LANES = 8, GROUP = 64, SPAN = 256, TILE = 4, WIDEST = 64 };

typedef float vecf __attribute__((vector_size(32), aligned(4), may_alias));
typedef float wide_t __attribute__((vector_size(64), aligned(4), may_alias));
typedef float half_t __attribute__((vector_size(16), aligned(4), may_alias));
typedef double vecd __attribute__((vector_size(32), aligned(8), may_alias));

/* Features (points, dim) with `pitch` floats between points. */
typedef struct {
  const float *x;
  int64_t pitch;
  const int64_t *labels;
  int64_t points, dim;
} features_t;

/* Sums by class: (classes, dim), (classes), all added to. */
typedef struct {
  double *sum, *square, *count;
} sums_t;

/* r = x - means[label]; what is NULL is not wanted. */
typedef struct {
  const float *means;   /* (classes, dim) */
  const float *rows;    /* (classes, dim): slack = <r, rows[label]> */
  const float *columns; /* (dim, width), width a multiple of LANES: out = r columns */
  int64_t width;
  float *residual; /* (points, dim) */
  float *length;   /* (points): |r| */
  double *slack;   /* (points) */
  float *out;      /* (points, width) */
} residual_t;

#define ISA(name) name##_baseline
#define TARGET
#include "stream.inc"

#if defined(__x86_64__)
#define ISA(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#include "stream.inc"
#define ISA(name) name##_avx512
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx2,fma")))
#define WIDE wide_t
#include "stream.inc"
#define HAS(set) __builtin_cpu_supports(set)
#define CALL(name, ...)                                                                    \
  (!(HAS("avx2") && HAS("fma"))                                        ? name##_baseline   \
   : HAS("avx512f") && HAS("avx512vl") && HAS("avx512dq") ? name##_avx512                  \
                                                                       : name##_avx2)(__VA_ARGS__)
#else
#define CALL(name, ...) name##_baseline(__VA_ARGS__)
#endif

EXPORT int nucleate_stream_version(void) { return VERSION; }

EXPORT void nucleate_class_sums(const features_t *f, const sums_t *s) { CALL(class_sums, f, s); }

EXPORT void nucleate_residuals(const features_t *f, const residual_t *r) { CALL(residuals, f, r); }
