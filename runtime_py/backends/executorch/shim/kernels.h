// Torch-free kernels for the llama:: operators of our graphs. The wheel has them only in a library
// that links torch; the names and meanings are the same, so a stock runtime runs the .pte as well.
#ifndef GEMMA_EXPORT_EXECUTORCH_KERNELS_H_
#define GEMMA_EXPORT_EXECUTORCH_KERNELS_H_

#include <vector>

#include <executorch/runtime/kernel/operator_registry.h>

namespace gemma_export {

// Every kernel of the process, ours in place of any of the same name. They hold for the methods
// they are handed to: nothing is registered that another library could register again.
std::vector<executorch::runtime::Kernel> kernels();

}  // namespace gemma_export

#endif  // GEMMA_EXPORT_EXECUTORCH_KERNELS_H_
