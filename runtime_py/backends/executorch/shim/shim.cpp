#include "shim.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <executorch/extension/data_loader/mmap_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/runtime.h>

#include "failure.h"
#include "kernels.h"

// Exported by libexecutorch_threadpool.so, whose threadpool.h the wheel of 1.5.1 does not ship.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t num_threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using executorch::aten::DimOrderType;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::StridesType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::extension::MallocMemoryAllocator;
using executorch::extension::MmapDataLoader;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::HierarchicalAllocator;
using executorch::runtime::Kernel;
using executorch::runtime::MemoryManager;
using executorch::runtime::Method;
using executorch::runtime::MethodMeta;
using executorch::runtime::Program;
using executorch::runtime::Span;
using executorch::runtime::Tag;
using gemma_export::Failure;
using gemma_export::guarded;
using gemma_export::LogCatcher;
using gemma_export::require;

constexpr size_t kArenaAlignment = 64;
constexpr uint64_t kMaxArenaBytes = uint64_t{1} << 40;

std::mutex load_mutex;  // the thread pool belongs to the process
std::atomic<int> num_programs{0};

// ---- The file, before ExecuTorch sees it. ----

template <typename Number>
Number number_at(const unsigned char* bytes, size_t offset) {
  Number number;
  std::memcpy(&number, bytes + offset, sizeof(number));
  return number;
}

// The extended header says how long the file must be; ExecuTorch itself does not compare.
void check_length(const MmapDataLoader& loader, uint64_t size_bytes) {
  constexpr size_t kHeadBytes = 64;
  if (size_bytes < kHeadBytes) {
    throw Failure("not a .pte: " + std::to_string(size_bytes) + " bytes");
  }
  auto head = loader.load(
      0, kHeadBytes,
      executorch::runtime::DataLoader::SegmentInfo(
          executorch::runtime::DataLoader::SegmentInfo::Type::Program));
  if (!head.ok()) throw Failure("cannot be mapped");
  const auto* bytes = static_cast<const unsigned char*>(head->data());
  if (std::memcmp(bytes + 4, "ET", 2) != 0) throw Failure("not a .pte: no ET at byte 4");
  if (std::memcmp(bytes + 8, "eh00", 4) != 0) throw Failure("no extended header at byte 8");
  const uint64_t program_bytes = number_at<uint64_t>(bytes, 16);
  const uint64_t segments_begin = number_at<uint64_t>(bytes, 24);
  // Headers of 24 bytes lack the length of the segments.
  const uint64_t segments_bytes =
      number_at<uint32_t>(bytes, 12) >= 32 ? number_at<uint64_t>(bytes, 32) : 0;
  if (program_bytes > size_bytes || segments_begin > size_bytes ||
      segments_bytes > size_bytes - segments_begin) {
    throw Failure("truncated: the file has " + std::to_string(size_bytes) +
                  " bytes, its header asks for " +
                  std::to_string(std::max(program_bytes, segments_begin + segments_bytes)));
  }
}

// ---- One program. ----

struct FreeArena {
  void operator()(uint8_t* arena) const { std::free(arena); }
};

// Zeroed memory that costs nothing before it is touched, as a KV buffer of 32k rows should.
std::unique_ptr<uint8_t, FreeArena> new_arena(size_t size_bytes, Span<uint8_t>& span) {
  auto* raw = static_cast<uint8_t*>(std::calloc(1, size_bytes + kArenaAlignment));
  if (raw == nullptr) throw std::bad_alloc();
  const size_t skip = kArenaAlignment - reinterpret_cast<uintptr_t>(raw) % kArenaAlignment;
  span = Span<uint8_t>(raw + skip, size_bytes);
  return std::unique_ptr<uint8_t, FreeArena>(raw);
}

struct LoadedMethod {
  std::string name;
  std::vector<Span<uint8_t>> spans;
  std::unique_ptr<MallocMemoryAllocator> memory = std::make_unique<MallocMemoryAllocator>();
  std::unique_ptr<MallocMemoryAllocator> scratch = std::make_unique<MallocMemoryAllocator>();
  std::unique_ptr<HierarchicalAllocator> planned;
  std::unique_ptr<MemoryManager> manager;
  std::unique_ptr<Method> method;  // last: it goes first
};

}  // namespace

struct gx_program {
  std::unique_ptr<MmapDataLoader> loader;
  std::unique_ptr<Program> program;
  std::vector<Kernel> kernels;
  std::vector<std::unique_ptr<uint8_t, FreeArena>> arenas;
  std::vector<Span<uint8_t>> arena_spans;
  std::vector<std::unique_ptr<LoadedMethod>> methods;
  bool counted = false;

  ~gx_program() {
    methods.clear();
    if (counted) --num_programs;
  }
};

namespace {

MethodMeta meta_of(const gx_program& loaded, const std::string& name) {
  auto meta = loaded.program->method_meta(name.c_str());
  if (!meta.ok()) throw Failure("method " + name + " is damaged");
  return *meta;
}

// Buffer i of every method is the same memory, as large as the largest method needs it.
void create_arenas(gx_program& loaded) {
  std::vector<uint64_t> sizes;
  for (const auto& method : loaded.methods) {
    const MethodMeta meta = meta_of(loaded, method->name);
    const size_t num_buffers = meta.num_memory_planned_buffers();
    sizes.resize(std::max(sizes.size(), num_buffers));
    for (size_t index = 0; index < num_buffers; ++index) {
      const auto size = meta.memory_planned_buffer_size(index);
      if (!size.ok() || *size < 0 || static_cast<uint64_t>(*size) > kMaxArenaBytes) {
        throw Failure("method " + method->name + " asks for memory of an impossible size");
      }
      sizes[index] = std::max(sizes[index], static_cast<uint64_t>(*size));
    }
  }
  loaded.arena_spans.resize(sizes.size());
  for (size_t index = 0; index < sizes.size(); ++index) {
    loaded.arenas.push_back(
        new_arena(static_cast<size_t>(sizes[index]), loaded.arena_spans[index]));
  }
}

void load_method(gx_program& loaded, LoadedMethod& method, const LogCatcher& log) {
  const MethodMeta meta = meta_of(loaded, method.name);
  method.spans.assign(loaded.arena_spans.begin(),
                      loaded.arena_spans.begin() +
                          static_cast<std::ptrdiff_t>(meta.num_memory_planned_buffers()));
  method.planned = std::make_unique<HierarchicalAllocator>(
      Span<Span<uint8_t>>(method.spans.data(), method.spans.size()));
  method.manager = std::make_unique<MemoryManager>(method.memory.get(), method.planned.get(),
                                                   method.scratch.get());
  // Not with weight_cache_enabled, although methods then shared what XNNPACK repacks: 1.5.1 names
  // a packed weight by its integers alone, so of two layers with equal integers and different
  // scales the second computes with the scales of the first, in silence. The cache is the
  // process's, so the two need not even be in one file. Instead no weight is in two methods.
  auto result = loaded.program->load_method(
      method.name.c_str(), method.manager.get(), nullptr, nullptr, nullptr,
      Span<const Kernel>(loaded.kernels.data(), loaded.kernels.size()));
  require(result.error(), "method " + method.name, log);
  method.method = std::make_unique<Method>(std::move(*result));
}

void set_num_threads(uint32_t num_threads) {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (num_threads == 0 || pool == nullptr || num_programs > 0) return;
  if (pool->get_thread_count() != num_threads) pool->_unsafe_reset_threadpool(num_threads);
}

gx_program* load(const char* path, uint32_t num_threads) {
  if (path == nullptr) throw Failure("no path");
  executorch::runtime::runtime_init();
  const LogCatcher log;
  const std::lock_guard<std::mutex> lock(load_mutex);
  auto loaded = std::make_unique<gx_program>();
  auto loader = MmapDataLoader::from(path, MmapDataLoader::MlockConfig::NoMlock);
  require(loader.error(), "cannot be opened", log);
  loaded->loader = std::make_unique<MmapDataLoader>(std::move(*loader));
  const auto size_bytes = loaded->loader->size();
  require(size_bytes.error(), "has no size", log);
  check_length(*loaded->loader, *size_bytes);
  auto program =
      Program::load(loaded->loader.get(), Program::Verification::InternalConsistency);
  require(program.error(), "damaged", log);
  loaded->program = std::make_unique<Program>(std::move(*program));
  loaded->kernels = gemma_export::kernels();
  for (size_t index = 0; index < loaded->program->num_methods(); ++index) {
    const auto name = loaded->program->get_method_name(index);
    require(name.error(), "damaged", log);
    loaded->methods.push_back(std::make_unique<LoadedMethod>());
    loaded->methods.back()->name = *name;
  }
  create_arenas(*loaded);
  set_num_threads(num_threads);
  ++num_programs;
  loaded->counted = true;
  for (auto& method : loaded->methods) load_method(*loaded, *method, log);
  return loaded.release();
}

const LoadedMethod* find(const gx_program* program, int32_t method) {
  if (program == nullptr || method < 0) return nullptr;
  const auto index = static_cast<size_t>(method);
  return index < program->methods.size() ? program->methods[index].get() : nullptr;
}

bool describe_scalar(Tag tag, gx_tensor& tensor) {
  switch (tag) {
    case Tag::Int: tensor.dtype = static_cast<int32_t>(ScalarType::Long); return true;
    case Tag::Double: tensor.dtype = static_cast<int32_t>(ScalarType::Double); return true;
    case Tag::Bool: tensor.dtype = static_cast<int32_t>(ScalarType::Bool); return true;
    default: return false;
  }
}

int32_t describe(const LoadedMethod& method, bool is_output, size_t index, gx_tensor& tensor) {
  const MethodMeta meta = method.method->method_meta();
  tensor = gx_tensor{};
  const auto tag = is_output ? meta.output_tag(index) : meta.input_tag(index);
  if (!tag.ok()) return -1;
  if (describe_scalar(*tag, tensor)) return 0;
  if (*tag != Tag::Tensor) return -1;
  const auto info = is_output ? meta.output_tensor_meta(index) : meta.input_tensor_meta(index);
  if (!info.ok() || info->sizes().size() > GX_MAX_RANK) return -1;
  tensor.dtype = static_cast<int32_t>(info->scalar_type());
  tensor.rank = static_cast<int32_t>(info->sizes().size());
  std::copy(info->sizes().begin(), info->sizes().end(), tensor.shape);
  return 0;
}

void set_input(LoadedMethod& method, const gx_tensor& input, size_t index, const LogCatcher& log) {
  const std::string what = method.name + ": input " + std::to_string(index);
  if (input.data == nullptr) throw Failure(what + " is NULL");
  if (input.rank < 0 || input.rank > GX_MAX_RANK) throw Failure(what + ": rank");
  const auto tag = method.method->method_meta().input_tag(index);
  if (!tag.ok() || *tag != Tag::Tensor) throw Failure(what + " is not a tensor");
  SizesType sizes[GX_MAX_RANK] = {};
  DimOrderType order[GX_MAX_RANK] = {};
  StridesType strides[GX_MAX_RANK] = {};
  int64_t stride = 1;
  for (int32_t dim = input.rank - 1; dim >= 0; --dim) {
    if (input.shape[dim] < 0 || input.shape[dim] > INT32_MAX / std::max<int64_t>(stride, 1)) {
      throw Failure(what + ": shape");
    }
    sizes[dim] = static_cast<SizesType>(input.shape[dim]);
    order[dim] = static_cast<DimOrderType>(dim);
    strides[dim] = static_cast<StridesType>(stride);
    stride *= std::max<int64_t>(input.shape[dim], 1);
  }
  TensorImpl impl(static_cast<ScalarType>(input.dtype), input.rank, sizes, input.data, order,
                  strides);
  require(method.method->set_input(EValue(Tensor(&impl)), index), what, log);
}

void read_tensor(const Tensor& tensor, gx_tensor& output) {
  output.data = tensor.mutable_data_ptr();
  output.dtype = static_cast<int32_t>(tensor.scalar_type());
  output.rank = static_cast<int32_t>(tensor.dim());
  std::copy(tensor.sizes().begin(), tensor.sizes().end(), output.shape);
}

void read_output(const LoadedMethod& method, size_t index, gx_tensor& output) {
  const EValue& value = method.method->get_output(index);
  output = gx_tensor{};
  if (describe_scalar(value.tag, output)) {
    output.data = const_cast<void*>(static_cast<const void*>(&value.payload.copyable_union));
    return;
  }
  if (!value.isTensor() || value.toTensor().dim() > GX_MAX_RANK) {
    throw Failure(method.name + ": output " + std::to_string(index) + " is not a tensor");
  }
  read_tensor(value.toTensor(), output);
}

}  // namespace

extern "C" {

int32_t gx_version(void) { return GX_VERSION; }

int32_t gx_has_operator(const char* name) {
  if (name == nullptr) return 0;
  for (const Kernel& kernel : executorch::runtime::get_registered_kernels()) {
    if (kernel.name_ != nullptr && std::strcmp(kernel.name_, name) == 0) return 1;
  }
  return 0;
}

gx_program* gx_load(const char* path, uint32_t num_threads, char* error, uint64_t error_size) {
  return guarded<gx_program*>(nullptr, error, error_size,
                              [&] { return load(path, num_threads); });
}

void gx_unload(gx_program* program) {
  if (program == nullptr) return;
  guarded(0, nullptr, 0, [&] {
    const LogCatcher log;
    const std::lock_guard<std::mutex> lock(load_mutex);
    delete program;
    return 0;
  });
}

uint32_t gx_num_threads(void) {
  return guarded<uint32_t>(0, nullptr, 0, [] {
    auto* pool = executorch::extension::threadpool::get_threadpool();
    return pool == nullptr ? 1u : static_cast<uint32_t>(pool->get_thread_count());
  });
}

int32_t gx_num_methods(const gx_program* program) {
  return program == nullptr ? -1 : static_cast<int32_t>(program->methods.size());
}

const char* gx_method_name(const gx_program* program, int32_t method) {
  const LoadedMethod* found = find(program, method);
  return found == nullptr ? nullptr : found->name.c_str();
}

int32_t gx_num_tensors(const gx_program* program, int32_t method, int32_t is_output) {
  const LoadedMethod* found = find(program, method);
  if (found == nullptr) return -1;
  return static_cast<int32_t>(is_output ? found->method->outputs_size()
                                        : found->method->inputs_size());
}

int32_t gx_describe(const gx_program* program, int32_t method, int32_t is_output, int32_t index,
                    gx_tensor* tensor) {
  if (tensor == nullptr || index < 0 || index >= gx_num_tensors(program, method, is_output)) {
    return -1;
  }
  return guarded(-1, nullptr, 0, [&] {
    const LogCatcher log;
    return describe(*find(program, method), is_output != 0, static_cast<size_t>(index), *tensor);
  });
}

int32_t gx_find_buffer(const gx_program* program, int32_t method, const char* name,
                       gx_tensor* tensor) {
  const LoadedMethod* found = find(program, method);
  if (found == nullptr || name == nullptr || tensor == nullptr) return -1;
  return guarded(-1, nullptr, 0, [&] {
    const LogCatcher log;
    const auto buffer = found->method->get_attribute(name);
    *tensor = gx_tensor{};
    if (!buffer.ok() || buffer->dim() > GX_MAX_RANK) return -1;
    read_tensor(*buffer, *tensor);
    return 0;
  });
}

int32_t gx_run(gx_program* program, int32_t method, const gx_tensor* inputs, int32_t num_inputs,
               gx_tensor* outputs, int32_t num_outputs, char* error, uint64_t error_size) {
  return guarded(-1, error, error_size, [&] {
    if (find(program, method) == nullptr) throw Failure("no such method");
    if (num_inputs != gx_num_tensors(program, method, 0) ||
        num_outputs != gx_num_tensors(program, method, 1) ||
        (num_inputs > 0 && inputs == nullptr) || (num_outputs > 0 && outputs == nullptr)) {
      throw Failure("wrong number of inputs or outputs");
    }
    const LogCatcher log;
    LoadedMethod& loaded = *program->methods[static_cast<size_t>(method)];
    for (int32_t index = 0; index < num_inputs; ++index) {
      set_input(loaded, inputs[index], static_cast<size_t>(index), log);
    }
    require(loaded.method->execute(), loaded.name, log);
    for (int32_t index = 0; index < num_outputs; ++index) {
      read_output(loaded, static_cast<size_t>(index), outputs[index]);
    }
    return 0;
  });
}

}  // extern "C"
