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

/* What a training step does beside products. */
static int learned(int threads) {
  const int64_t columns = 1 + draw(40), batch = 1 + draw(30), pitch = batch + draw(9), points = batch + draw(5), count = 1 + draw(90);
  float *source = reals(points * columns), *picked = calloc((size_t)(columns * pitch), sizeof(float));
  float *d = reals(columns * pitch), *summed = reals(columns), *kept = malloc((size_t)(columns * pitch) * sizeof(float));
  float *w = reals(count), *g = reals(count), *m = reals(count), *v = reals(count), *turned = reals(count);
  float *was[4] = {reals(count), reals(count), reals(count), reals(count)}, *own[4] = {w, g, m, v};
  int64_t *index = malloc((size_t)batch * sizeof(int64_t)), *labels = malloc((size_t)points * sizeof(int64_t));
  int32_t *order = malloc((size_t)count * sizeof(int32_t));
  double loss = 0, exact = 0, worst = 0;
  const float rates[6] = {0.1f, 0.01f, 0.9f, 0.999f, 1.5f, 1e-3f};
  const int64_t squared = draw(2), adam = draw(2);
  for (int64_t i = 0; i < batch; i++) index[i] = draw((uint32_t)points);
  for (int64_t i = 0; i < points; i++) labels[i] = draw((uint32_t)columns);
  for (int64_t k = 0; k < count; k++) order[k] = (int32_t)draw((uint32_t)count), v[k] = fabsf(v[k]);
  for (int i = 0; i < 4; i++) memcpy(was[i], own[i], (size_t)count * sizeof(float));
  step_t steps[5] = {{.kind = PICK}, {.kind = LOSS}, {.kind = BACK}, {.kind = TURN}, {.kind = UPDATE}};
  for (int i = 0; i < 3; i++) steps[i].channels = columns, steps[i].height = pitch, steps[i].batch = batch;
  steps[0].source = source, steps[0].target = picked, steps[0].learn.index = index;
  steps[1].source = picked, steps[1].target = d;
  steps[1].learn = (learn_t){.index = index, .labels = labels, .loss = &loss, .squared = squared};
  steps[2].source = picked, steps[2].target = d, steps[2].learn.gradient = summed;
  steps[3].source = w, steps[3].target = turned, steps[3].learn = (learn_t){.order = order, .count = count};
  steps[4].learn = (learn_t){.values = w, .gradient = g, .first = m, .second = v, .rates = rates, .count = count, .adam = adam};
  nucleate_run(steps, 2, threads);
  memcpy(kept, d, (size_t)(columns * pitch) * sizeof(float));
  nucleate_run(steps + 2, 3, threads);
  for (int64_t i = 0; i < batch; i++) {
    double sum = 0;
    for (int64_t c = 0; c < columns; c++) worst = fmax(worst, fabs(picked[c * pitch + i] - source[index[i] * columns + c]));
    for (int64_t c = 0; c < columns; c++) sum += exp(picked[c * pitch + i]);
    for (int64_t c = 0; c < columns; c++) {
      const double z = picked[c * pitch + i], one = c == labels[index[i]];
      const double wanted = squared ? 2 * (z - one) / (double)(batch * columns) : (exp(z) / sum - one) / (double)batch;
      exact += squared ? (z - one) * (z - one) / (double)(batch * columns) : one * (log(sum) - z) / (double)batch;
      worst = fmax(worst, fabs(wanted - kept[c * pitch + i]));
    }
  }
  worst = fmax(worst, fabs(exact - loss));
  for (int64_t c = 0; c < columns; c++) {
    double sum = 0;
    for (int64_t i = 0; i < pitch; i++) {
      const float through = picked[c * pitch + i] > 0 ? kept[c * pitch + i] : 0;
      worst = fmax(worst, fabsf(d[c * pitch + i] - through) + (i < batch ? 0 : fabsf(kept[c * pitch + i])));
      sum += through;
    }
    worst = fmax(worst, fabs(sum - summed[c]));
  }
  for (int64_t k = 0; k < count; k++) {
    const double slope = was[1][k] + 0.01 * was[0][k];
    const double first = adam ? was[2][k] + 0.1 * (slope - was[2][k]) : 0.9 * was[2][k] + slope;
    const double second = 0.999 * was[3][k] + 0.001 * slope * slope;
    const double moved = 0.1 * (adam ? first / (sqrt(second) * 1.5 + 1e-3) : first);
    worst = fmax(worst, fabs(was[0][k] - moved - w[k]) + fabs(first - m[k]) + fabsf(g[k]) + fabsf(turned[k] - was[0][order[k]]));
  }
  free(source), free(picked), free(d), free(summed), free(kept), free(turned), free(index), free(labels), free(order);
  for (int i = 0; i < 4; i++) free(was[i]), free(own[i]);
  return worst > 1e-4;
}

int main(void) {
  const char *names[] = {"baseline", "avx2", "avx512"};
  int failed = 0;
  for (int n = 0; n < 3; n++) {
    if (strcmp(nucleate_select(names[n]), names[n])) continue;
    for (int i = 0; i < 150; i++) failed += one(1 + i % 2) + learned(1 + i % 2);
    printf("%s: %d failed\n", names[n], failed);
  }
  return failed != 0;
}
