// Loads, runs and unloads programs through the shim, for a sanitizer to watch.
// usage: driver TIMES GOOD.pte BAD.pte...
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"

static int find(const gx_program* program, const char* name) {
  for (int32_t i = 0; i < gx_num_methods(program); ++i) {
    if (strcmp(gx_method_name(program, i), name) == 0) return i;
  }
  return -1;
}

static int run_target(gx_program* program, const char* name, int64_t length, int64_t start,
                      float* sum) {
  char error[256];
  // Exactly as long as they say: one read too far is seen.
  int64_t* tokens = malloc((size_t)length * sizeof(int64_t));
  int64_t* position = malloc(sizeof(int64_t));
  for (int64_t i = 0; i < length; ++i) tokens[i] = i + 1;
  *position = start;
  gx_tensor inputs[2] = {{tokens, 4, 2, {1, length}}, {position, 4, 1, {1}}};
  gx_tensor outputs[2];
  const int32_t method = find(program, name);
  const int32_t num_outputs = gx_num_tensors(program, method, 1);
  const int status = gx_run(program, method, inputs, 2, outputs, num_outputs, error, sizeof error);
  for (int32_t i = 0; status == 0 && i < num_outputs; ++i) {
    if (outputs[i].dtype != 6) continue;
    for (int64_t j = 0; j < outputs[i].shape[1] * outputs[i].shape[2]; ++j) {
      *sum += ((const float*)outputs[i].data)[j];
    }
  }
  free(tokens);
  free(position);
  return status;
}

int main(int argc, char** argv) {
  char error[256];
  float first = 0;
  for (int time = 0; time < atoi(argv[1]); ++time) {
    float sum = 0;
    gx_program* program = gx_load(argv[2], 2, error, sizeof error);
    if (program == NULL) return fprintf(stderr, "%s\n", error), 1;
    gx_program* other = gx_load(argv[2], 2, NULL, 0);
    if (run_target(program, "fill", 5, 0, &sum) || run_target(other, "fill", 8, 16, &sum) ||
        run_target(program, "forward", 4, 5, &sum) || run_target(program, "forward", 1, 9, &sum)) {
      return fprintf(stderr, "does not run\n"), 1;
    }
    if (!run_target(program, "forward", 4, 22, &sum) || !run_target(program, "fill", 9, 0, &sum)) {
      return fprintf(stderr, "runs past the end\n"), 1;
    }
    gx_unload(program);
    if (run_target(other, "forward", 3, 0, &sum)) return 1;
    gx_unload(other);
    if (time == 0) first = sum;
    if (sum != first) return fprintf(stderr, "%g, before %g\n", sum, first), 1;
    for (int bad = 3; bad < argc; ++bad) {
      if (gx_load(argv[bad], 2, error, sizeof error) != NULL || error[0] == '\0') return 1;
    }
  }
  return 0;
}
