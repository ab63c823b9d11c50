/* Sparse products over (features, batch): what Python fills in. All members are eight bytes, so no padding differs. */
#ifndef NUCLEATE_KERNEL_H
#define NUCLEATE_KERNEL_H
#include <stddef.h>
#include <stdint.h>

#define NUCLEATE_VERSION 3

/* y[row, p] = activation(bias[row] + sum_k values[k] x[indices[k] * unit + p]) over the entries k of the row.
 *
 * The entries are sorted by segment of x, then row: a segment is small enough for the first-level cache. Positions p
 * are `lines` runs of `length` floats; a run starts `x_step` after the one before in x, `y_step` in y. With blocks,
 * four neighbouring rows share an entry, values hold four weights for each, and pointers count blocks of rows.
 * In a GRADIENT step, y is the output's gradient, and gradient[k] += sum_p y[row, p] x[indices[k] * unit + p].
 */
typedef struct {
  int64_t rows, segments;
  const int32_t *pointers; /* (segments, rows + 1) */
  const void *indices;     /* uint16 or, if wide, uint32 */
  const float *values;
  const float *bias; /* or NULL */
  int64_t wide, block, relu;
  const float *x;
  int64_t unit, x_step;
  float *y;
  int64_t y_pitch, y_step;
  int64_t lines, length;
  float *gradient;
} product_t;

/* Where a value of an image lies: batch is innermost in our own layouts, outermost in torch's.
 * Phases: with stride s, positions y and y + s are neighbours, so a strided convolution too reads runs. */
typedef struct {
  int64_t channel, phase_y, phase_x, row, column, batch;
  int64_t phases, pad_y, pad_x;
} layout_t;

typedef enum {
  PRODUCT = 0, COPY = 1, MAXIMUM = 2, AVERAGE = 3, ADD = 4, CLEAR = 5, TRANSLATE = 6, GRADIENT = 7, GELU = 8,
  PICK = 9, LOSS = 10, BACK = 11, TURN = 12, UPDATE = 13
} kind_t;

/* What a training step needs beside products. Rows of activations are `height` floats, `batch` of them in use.
 * PICK: target[c, i] = source[index[i], c] for `channels` columns c, i < batch.
 * LOSS: mean loss of logits `source` (channels, height) into *loss, its gradient into `target`, 0 beyond the batch.
 * BACK: target[c, :] = 0 where source[c, :] <= 0 (if there is a source); gradient[c] = sum target[c, :] (if there is one).
 * TURN: target[k] = source[order[k]] for k < count.
 * UPDATE: one step of the optimizer on values[k], k < count; the gradients are 0 then.
 * rates of SGD: learning rate, weight decay, momentum; of Adam: learning rate / (1 - beta1^t), weight decay, beta1,
 * beta2, 1 / sqrt(1 - beta2^t), epsilon. */
typedef struct {
  const int64_t *index, *labels; /* points of the batch; label of each point */
  double *loss;
  int64_t squared; /* mean of squares over points and classes, else cross-entropy */
  float *values, *gradient, *first, *second;
  const int32_t *order;
  const float *rates;
  int64_t count, adam;
} learn_t;

/* One step of a plan. COPY, MAXIMUM, AVERAGE: an image from one layout to another; ADD: adds into the target.
 * TRANSLATE: offsets[k] = table[indices[k]] + group_step * (row / rows_per_group).
 * GELU: x (1 + erf(x / sqrt 2)) / 2 in place of `channels` planes of `height` floats.
 * CLEAR: zeroes the columns between the rows of an image, which a product over whole planes has overwritten. */
typedef struct {
  int64_t kind;
  product_t product;
  const float *source;
  float *target;
  layout_t from, to;
  int64_t channels, height, width, batch;          /* of the source */
  int64_t out_height, out_width;                   /* of the target */
  int64_t window_y, window_x, stride_y, stride_x, pad_y, pad_x; /* of a pooling */
  int64_t relu;
  const uint32_t *table; /* of a translation */
  uint32_t *offsets;
  int64_t rows_per_group, group_step;
  learn_t learn;
} step_t;

#endif
