/* Random products, gradients and dot products on buffers of the exact size, against double precision. */
#include "kernel.c"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static uint32_t state = 1;
static uint32_t draw(uint32_t below) {
  state = state * 1664525u + 1013904223u;
  return (state >> 8) % below;
}
static float real(void) { return (float)draw(2001) / 1000.0f - 1.0f; }
static float *reals(int64_t n) {
  float *v = malloc((size_t)n * sizeof(float));
  for (int64_t i = 0; i < n; i++) v[i] = real();
  return v;
}

static int one(int threads) {
  const int64_t block = draw(2) ? 4 : 1, rows = 1 + draw(40), columns = 1 + draw(60), segments = 1 + draw(3);
  const int64_t length = draw(3) ? 1 + draw(150) : 1, lines = 1 + draw(3), wide = draw(2), gradient = draw(2);
  const int64_t units = block == 4 ? (rows + 3) / 4 : rows, density = draw(11);
  int32_t *pointers = malloc((size_t)(segments * (units + 1)) * sizeof(int32_t));
  uint32_t *column = malloc((size_t)(units * columns + 1) * sizeof(uint32_t));
  int64_t count = 0;
  for (int64_t s = 0; s < segments; s++)
    for (int64_t u = 0; u <= units; u++) {
      pointers[s * (units + 1) + u] = (int32_t)count;
      for (int64_t c = s * columns / segments; u < units && c < (s + 1) * columns / segments; c++)
        if (draw(10) < density) column[count++] = (uint32_t)c;
    }
  void *indices = malloc((size_t)count * (wide ? 4 : 2));
  for (int64_t k = 0; k < count; k++)
    if (wide) ((uint32_t *)indices)[k] = column[k];
    else ((uint16_t *)indices)[k] = (uint16_t)column[k];
  float *values = reals(count * block), *bias = reals(rows), *x = reals(columns * lines * length);
  float *y = reals(rows * lines * length), *g = calloc((size_t)(count * block), sizeof(float));
  step_t step = {.kind = gradient ? GRADIENT : PRODUCT};
  step.product = (product_t){.rows = rows, .segments = segments, .pointers = pointers, .indices = indices,
    .values = values, .bias = draw(2) ? bias : NULL, .wide = wide, .block = block, .relu = draw(2), .x = x,
    .unit = lines * length, .x_step = length, .y = y, .y_pitch = lines * length, .y_step = length, .lines = lines,
    .length = length, .gradient = g};
  nucleate_run(&step, 1, threads);
  double worst = 0;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t p = 0; p < lines * length; p++) {
      double sum = step.product.bias ? bias[r] : 0;
      for (int64_t s = 0; s < segments; s++)
        for (int32_t k = pointers[s * (units + 1) + r / block]; k < pointers[s * (units + 1) + r / block + 1]; k++)
          sum += (double)values[k * block + r % block] * x[column[k] * lines * length + p];
      if (step.product.relu && sum < 0) sum = 0;
      if (!gradient) worst = fmax(worst, fabs(sum - y[r * lines * length + p]));
    }
  for (int64_t u = 0; gradient && u < units; u++)
    for (int64_t s = 0; s < segments; s++)
      for (int32_t k = pointers[s * (units + 1) + u]; k < pointers[s * (units + 1) + u + 1]; k++)
        for (int64_t r = 0; r < block; r++) {
          double sum = 0;
          for (int64_t p = 0; u * block + r < rows && p < lines * length; p++)
            sum += (double)y[(u * block + r) * lines * length + p] * x[column[k] * lines * length + p];
          worst = fmax(worst, fabs(sum - g[k * block + r]) / 10);
        }
  free(pointers), free(column), free(indices), free(values), free(bias), free(x), free(y), free(g);
  return worst > 1e-4;
}

int main(void) {
  const char *names[] = {"baseline", "avx2", "avx512"};
  int failed = 0;
  for (int n = 0; n < 3; n++) {
    if (strcmp(nucleate_select(names[n]), names[n])) continue;
    for (int i = 0; i < 150; i++) failed += one(1 + i % 2);
    printf("%s: %d failed\n", names[n], failed);
  }
  return failed != 0;
}
