// Loads, runs and unloads programs through the shim, for a sanitizer to watch.
// usage: driver TIMES GOOD.pte BAD.pte...
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"

#define FLOAT32 6
#define INT64 4

static int find(const gx_program* program, const char* name) {
  for (int32_t i = 0; i < gx_num_methods(program); ++i) {
    if (strcmp(gx_method_name(program, i), name) == 0) return i;
  }
  return -1;
}

static size_t size_bytes(const gx_tensor* tensor) {
  size_t size = tensor->dtype == INT64 ? sizeof(int64_t) : sizeof(float);
  for (int32_t dim = 0; dim < tensor->rank; ++dim) size *= (size_t)tensor->shape[dim];
  return size;
}

static void release(gx_tensor* tensors, int32_t num_tensors) {
  for (int32_t i = 0; i < num_tensors; ++i) free(tensors[i].data);
}

// In memory exactly as long as they say: one value read too far is seen.
static void keep(gx_tensor* tensor, const void* data) {
  const size_t size = size_bytes(tensor);
  tensor->data = malloc(size);
  memcpy(tensor->data, data, size);
}

// Runs on inputs that it frees; what comes out is copied to `outputs`, which the caller frees.
static int run(gx_program* program, const char* name, gx_tensor* inputs, int32_t num_inputs,
               gx_tensor* outputs, float* sum) {
  char error[256];
  const int32_t method = find(program, name);
  const int32_t num_outputs = gx_num_tensors(program, method, 1);
  const int status =
      gx_run(program, method, inputs, num_inputs, outputs, num_outputs, error, sizeof error);
  release(inputs, num_inputs);
  if (status) return status;
  for (int32_t i = 0; i < num_outputs; ++i) {
    keep(&outputs[i], outputs[i].data);
    const float* values = outputs[i].data;
    for (size_t j = 0; j < size_bytes(&outputs[i]) / sizeof(float); ++j) *sum += values[j];
  }
  return 0;
}

static gx_tensor position_tensor(int64_t position) {
  gx_tensor tensor = {NULL, INT64, 1, {1}};
  keep(&tensor, &position);
  return tensor;
}

static gx_tensor tokens_tensor(int64_t length) {
  int64_t token_ids[32];
  for (int64_t i = 0; i < length; ++i) token_ids[i] = i + 1;
  gx_tensor tensor = {NULL, INT64, 2, {1, length}};
  keep(&tensor, token_ids);
  return tensor;
}

static int fill(gx_program* program, int64_t length, int64_t start, gx_tensor* filled, float* sum) {
  gx_tensor inputs[2] = {tokens_tensor(length), position_tensor(start)};
  return run(program, "fill", inputs, 2, filled, sum);
}

static int prefill(gx_program* program, int64_t length, int64_t start, float* sum) {
  gx_tensor filled[2];
  const int status = fill(program, length, start, filled, sum);
  if (status == 0) release(filled, 2);
  return status;
}

// The target over `length` tokens, then the drafter on its last hidden state.
static int round_of(gx_program* program, int64_t length, int64_t start, float* sum) {
  gx_tensor inputs[3], finished[2], drafted[2];
  if (fill(program, length, start, inputs, sum)) return -1;
  inputs[2] = position_tensor(start);
  if (run(program, "finish", inputs, 3, finished, sum)) return -1;
  const int64_t size = finished[1].shape[2];
  gx_tensor hidden = {NULL, FLOAT32, 3, {1, 1, size}};
  keep(&hidden, (float*)finished[1].data + (length - 1) * size);
  release(finished, 2);
  gx_tensor draft_inputs[3] = {tokens_tensor(1), hidden, position_tensor(start + length)};
  if (run(program, "draft", draft_inputs, 3, drafted, sum)) return -1;
  release(drafted, 2);
  return 0;
}

static int read_constants(gx_program* program) {
  for (int32_t method = 0; method < gx_num_methods(program); ++method) {
    gx_tensor number;
    if (gx_num_tensors(program, method, 0)) continue;
    if (gx_run(program, method, NULL, 0, &number, 1, NULL, 0)) return -1;
    if (number.dtype != INT64 || number.rank != 0) return -1;
  }
  return 0;
}

// The keys of layer 0 are found, other names and nothing at all are not.
static int find_buffers(const gx_program* program, float* sum) {
  gx_tensor rows;
  const int32_t method = find(program, "fill");
  if (gx_find_buffer(program, method, "kv.k_0", &rows) || rows.dtype != FLOAT32) return -1;
  for (size_t i = 0; i < size_bytes(&rows) / sizeof(float); ++i) *sum += ((float*)rows.data)[i];
  return gx_find_buffer(program, method, "kv.k_9", &rows) == -1 &&
                 gx_find_buffer(program, method, NULL, &rows) == -1 &&
                 gx_find_buffer(program, method, "kv.k_0", NULL) == -1 &&
                 gx_find_buffer(program, 99, "kv.k_0", &rows) == -1 &&
                 gx_find_buffer(NULL, method, "kv.k_0", &rows) == -1
             ? 0
             : -1;
}

int main(int argc, char** argv) {
  char error[256];
  float first = 0;
  for (int time = 0; time < atoi(argv[1]); ++time) {
    float sum = 0;
    gx_program* program = gx_load(argv[2], 2, error, sizeof error);
    if (program == NULL) return fprintf(stderr, "%s\n", error), 1;
    gx_program* other = gx_load(argv[2], 2, NULL, 0);
    if (read_constants(program) || prefill(program, 5, 0, &sum) || prefill(other, 8, 16, &sum) ||
        round_of(program, 4, 5, &sum) || round_of(program, 1, 9, &sum)) {
      return fprintf(stderr, "does not run\n"), 1;
    }
    if (!prefill(program, 4, 22, &sum) || !prefill(program, 9, 0, &sum)) {
      return fprintf(stderr, "runs past the end\n"), 1;
    }
    if (find_buffers(program, &sum)) return fprintf(stderr, "no buffers\n"), 1;
    gx_unload(program);
    if (round_of(other, 3, 0, &sum)) return 1;
    gx_unload(other);
    if (time == 0) first = sum;
    if (sum != first) return fprintf(stderr, "%g, before %g\n", sum, first), 1;
    for (int bad = 3; bad < argc; ++bad) {
      if (gx_load(argv[bad], 2, error, sizeof error) != NULL || error[0] == '\0') return 1;
    }
  }
  return 0;
}
