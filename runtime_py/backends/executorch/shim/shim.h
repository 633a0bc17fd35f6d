// A C interface over the torch-free ExecuTorch runtime: what runtime_py needs, and no more.
//
// One program is one .pte with one set of memory arenas that all its methods share, so that a
// buffer planned with share_mutable_buffers (the KV rows) is one and the same in each of them.
// A program may be used by one thread at a time. No function throws, and none minds a NULL; what
// fails writes a line to `error` (always terminated) and returns NULL or -1.
#ifndef GEMMA_EXPORT_EXECUTORCH_SHIM_H_
#define GEMMA_EXPORT_EXECUTORCH_SHIM_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GX_VERSION 2
#define GX_PUBLIC __attribute__((visibility("default")))
#define GX_MAX_RANK 8
#define GX_MAX_TENSORS 16

typedef struct gx_program gx_program;

typedef struct {
  void* data;
  int32_t dtype;  // ExecuTorch's ScalarType: 4 int64, 6 float32, 7 float64, 11 bool
  int32_t rank;   // 0 for a scalar
  int64_t shape[GX_MAX_RANK];
} gx_tensor;

// Changes with every incompatible change of this file.
GX_PUBLIC int32_t gx_version(void);

// 1 if the process has a kernel of this name ("namespace::name.overload"), 0 if not.
GX_PUBLIC int32_t gx_has_operator(const char* name);

// Maps a .pte, checks it and loads all its methods. The thread pool belongs to the process and is
// set only while no program is loaded: gx_num_threads() says what is in force. num_threads 0
// leaves it alone.
GX_PUBLIC gx_program* gx_load(const char* path, uint32_t num_threads, char* error,
                              uint64_t error_size);
GX_PUBLIC void gx_unload(gx_program* program);
GX_PUBLIC uint32_t gx_num_threads(void);

GX_PUBLIC int32_t gx_num_methods(const gx_program* program);
GX_PUBLIC const char* gx_method_name(const gx_program* program, int32_t method);

// Number of inputs (is_output 0) or outputs (1) of a method.
GX_PUBLIC int32_t gx_num_tensors(const gx_program* program, int32_t method, int32_t is_output);

// dtype and shape of one of them; for a dynamic dimension its upper bound. data is NULL.
GX_PUBLIC int32_t gx_describe(const gx_program* program, int32_t method, int32_t is_output,
                              int32_t index, gx_tensor* tensor);

// Where a buffer that the method writes to lies ("kv.k_0"), with its dtype and shape; its data stay
// there, zeros at first, as long as the program is loaded. -1 if the method has no such buffer.
GX_PUBLIC int32_t gx_find_buffer(const gx_program* program, int32_t method, const char* name,
                                 gx_tensor* tensor);

// Runs a method on inputs that the caller owns, of any shape within the method's bounds. Fills in
// `outputs`, whose data stay valid until the next run of any method of this program.
GX_PUBLIC int32_t gx_run(gx_program* program, int32_t method, const gx_tensor* inputs,
                         int32_t num_inputs, gx_tensor* outputs, int32_t num_outputs, char* error,
                         uint64_t error_size);

#ifdef __cplusplus
}
#endif

#endif  // GEMMA_EXPORT_EXECUTORCH_SHIM_H_
