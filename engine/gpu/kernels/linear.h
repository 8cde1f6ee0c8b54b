// Products of rows of activations with a matrix. Rows of x are `x_stride` floats apart, rows of the result `out_stride`.
//
// With experts (`chosen` >= 0, the place of one expert a row), a row is multiplied with its expert's matrix, and
// `x_each` rows of the result share a row of x; an expert's matrix has `expert_rows` rows, of which `rows` are
// multiplied. `bias` and `residual` are places, or -1; the bias is of an expert too.

FUNCTION void store_result(GLOBAL float* arena, GLOBAL const float* bias, int has_bias, int residual, int out,
                           int out_stride, int row, int rows, int token, int expert, float value) {
  if (has_bias) value += bias[(long)expert * rows + row];
  if (residual >= 0) value += arena[residual + token * out_stride + row];
  arena[out + token * out_stride + row] = value;
}

#define LANES 32 // work items that share a row of the matrix
#define ROWS 4   // rows of the matrix of a work group

// The end of a matvec: adds the `sums` of the lanes, and stores the results of the tokens from `first` on.
#define ADD_LANES_AND_STORE                                                                                            \
  for (int t = 0; t < TOKENS; ++t) room[ITEM(1)][t][lane] = sums[t];                                                   \
  BARRIER;                                                                                                             \
  for (int half_ = LANES / 2; half_ > 0; half_ /= 2) {                                                                 \
    if (lane < half_)                                                                                                  \
      for (int t = 0; t < TOKENS; ++t) room[ITEM(1)][t][lane] += room[ITEM(1)][t][lane + half_];                       \
    BARRIER;                                                                                                           \
  }                                                                                                                    \
  if (row < rows && lane < TOKENS && first + lane < tokens)                                                            \
    store_result(arena, bias, has_bias, residual, out, out_stride, row, rows, first + lane, expert,                    \
                 room[ITEM(1)][lane][0]);

// One to TOKENS rows of floats.
KERNEL matvec(WEIGHTS, GLOBAL float* arena, GLOBAL const float* bias, const int has_bias, const int residual, const int x,
              const int x_stride, const int x_each, const int out, const int out_stride, const int first_row,
              const int rows, const int expert_rows, const int columns, const int chosen, const int tokens) {
  LOCAL float room[ROWS][TOKENS][LANES];
  const int lane = ITEM(0), row = GROUP(0) * ROWS + ITEM(1), first = GROUP(1) * TOKENS;
  const int expert = chosen < 0 ? 0 : AS_INT(arena[chosen + first]);
  float sums[TOKENS];
  for (int t = 0; t < TOKENS; ++t) sums[t] = 0;
  if (row < rows)
    for (int column = 4 * lane; column < columns; column += 4 * LANES) {
      float w[4];
      four_weights(WEIGHTS_GIVEN, first_row + expert * expert_rows + row, column, columns, w);
      for (int t = 0; t < TOKENS; ++t)
        if (first + t < tokens) {
          const int from = x + (first + t) / x_each * x_stride + column;
          for (int i = 0; i < 4; ++i)
            if (column + i < columns) sums[t] += w[i] * arena[from + i];
        }
    }
  ADD_LANES_AND_STORE
}

#ifndef FLOAT_BYTES
// The same with rows that round_rows has rounded.
KERNEL matvec_int8(WEIGHTS, GLOBAL float* arena, GLOBAL const uint* codes, GLOBAL const float* x_scale,
                   GLOBAL const int* x_sums, GLOBAL const float* bias, const int has_bias, const int residual,
                   const int x_each, const int out, const int out_stride, const int first_row, const int rows,
                   const int expert_rows, const int columns, const int chosen, const int tokens) {
  LOCAL float room[ROWS][TOKENS][LANES];
  const int lane = ITEM(0), row = GROUP(0) * ROWS + ITEM(1), first = GROUP(1) * TOKENS, chunks = columns / 32;
  const int expert = chosen < 0 ? 0 : AS_INT(arena[chosen + first]);
  float sums[TOKENS];
  for (int t = 0; t < TOKENS; ++t) sums[t] = 0;
  if (row < rows)
    for (int chunk = lane; chunk < chunks; chunk += LANES) {
      const long at = (long)(first_row + expert * expert_rows + row) * chunks + chunk;
      uint words[8];
      for (int word = 0; word < 8; ++word) words[word] = code_word(WEIGHTS_GIVEN, at, word);
      const long group = at * 32 / GROUP_COLUMNS;
      const float scale0 = scale_of(WEIGHTS_GIVEN, group), min0 = min_of(WEIGHTS_GIVEN, group);
#if GROUP_COLUMNS == 16
      const float scale1 = scale_of(WEIGHTS_GIVEN, group + 1), min1 = min_of(WEIGHTS_GIVEN, group + 1);
#else
      const float scale1 = scale0, min1 = min0;
#endif
      for (int t = 0; t < TOKENS; ++t)
        if (first + t < tokens) {
          const int from = (first + t) / x_each * chunks + chunk;
          int dot[2];
          for (int side = 0; side < 2; ++side) {
            int high = 0, low = 0;
            for (int word = 4 * side; word < 4 * side + 4; ++word) {
              high = DOT4(words[word], codes[from * 16 + word], high);
              low = DOT4(words[word], codes[from * 16 + 8 + word], low);
            }
            dot[side] = 128 * high + low;
          }
          const int sum0 = x_sums[from * 2], sum1 = x_sums[from * 2 + 1];
          const float products = scale0 * (float)(dot[0] - ZERO * sum0) + scale1 * (float)(dot[1] - ZERO * sum1);
          sums[t] += x_scale[from] * (products + min0 * (float)sum0 + min1 * (float)sum1);
        }
    }
  ADD_LANES_AND_STORE
}
#endif

#define TILE 64 // rows and tokens of a work group's tile
#define STEP 32 // columns that are in local memory at once
#define SIDE 16 // work items along each side of a tile; each has 4 x 4 results

// Many rows of floats, in tiles.
KERNEL matmul(WEIGHTS, GLOBAL float* arena, GLOBAL const float* bias, const int has_bias, const int residual, const int x,
              const int x_stride, const int out, const int out_stride, const int first_row, const int rows,
              const int columns, const int tokens) {
  LOCAL float w_tile[STEP][TILE + 1];
  LOCAL float x_tile[STEP][TILE + 1];
  const int item = ITEM(1) * SIDE + ITEM(0), first = GROUP(0) * TILE, first_token = GROUP(1) * TILE;
  float sums[4][4];
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) sums[i][j] = 0;
  for (int begin = 0; begin < columns; begin += STEP) {
    for (int k = item; k < TILE * STEP / 4; k += SIDE * SIDE) {
      const int at = k / (STEP / 4), column = k % (STEP / 4) * 4;
      float w[4] = {0, 0, 0, 0};
      if (first + at < rows && begin + column < columns)
        four_weights(WEIGHTS_GIVEN, first_row + first + at, begin + column, columns, w);
      for (int i = 0; i < 4; ++i) {
        const int is_there = first_token + at < tokens && begin + column + i < columns;
        w_tile[column + i][at] = w[i];
        x_tile[column + i][at] = is_there ? arena[x + (first_token + at) * x_stride + begin + column + i] : 0;
      }
    }
    BARRIER;
    for (int k = 0; k < STEP; ++k)
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) sums[i][j] += x_tile[k][ITEM(1) * 4 + i] * w_tile[k][ITEM(0) * 4 + j];
    BARRIER;
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const int token = first_token + ITEM(1) * 4 + i, row = first + ITEM(0) * 4 + j;
      if (token < tokens && row < rows)
        store_result(arena, bias, has_bias, residual, out, out_stride, row, rows, token, 0, sums[i][j]);
    }
}
