#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

namespace gemma_export {
namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Kernel;
using executorch::runtime::KernelRuntimeContext;
using executorch::runtime::Span;

constexpr int64_t kMinParallelWork = 1 << 15;  // multiplications below which threads cost more

// [1, rows, heads, size], dense.
bool is_float_rows(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Float && tensor.dim() == 4 && tensor.size(0) == 1 &&
         executorch::runtime::tensor_is_default_dim_order(tensor);
}

// (value, cache!, start_pos, out!)
void update_cache(KernelRuntimeContext& context, Span<EValue*> stack) {
  if (stack.size() < 4 || !stack[0]->isTensor() || !stack[1]->isTensor() || !stack[2]->isInt()) {
    return context.fail(Error::InvalidArgument);
  }
  const Tensor& value = stack[0]->toTensor();
  Tensor& cache = stack[1]->toTensor();
  const int64_t start = stack[2]->toInt();
  if (!is_float_rows(value) || !is_float_rows(cache) || value.size(2) != cache.size(2) ||
      value.size(3) != cache.size(3) || start < 0 || start > cache.size(1) - value.size(1)) {
    return context.fail(Error::InvalidArgument);
  }
  const int64_t row = value.size(2) * value.size(3);
  std::memcpy(cache.mutable_data_ptr<float>() + start * row, value.const_data_ptr<float>(),
              static_cast<size_t>(value.numel()) * sizeof(float));
}

// Eight floats in one or two registers. An array of sums would be kept in memory by GCC 12.
typedef float Lanes __attribute__((vector_size(8 * sizeof(float))));

inline void add_product(Lanes& sum, const float* left, const float* right) {
  Lanes lanes, others;
  std::memcpy(&lanes, left, sizeof(lanes));
  std::memcpy(&others, right, sizeof(others));
  sum += lanes * others;
}

// The order of the additions depends on the length alone.
inline float dot(const float* left, const float* right, int64_t length) {
  Lanes first{}, second{}, third{}, fourth{};
  int64_t index = 0;
  for (; index + 32 <= length; index += 32) {
    add_product(first, left + index, right + index);
    add_product(second, left + index + 8, right + index + 8);
    add_product(third, left + index + 16, right + index + 16);
    add_product(fourth, left + index + 24, right + index + 24);
  }
  const Lanes lanes = (first + second) + (third + fourth);
  float sum = 0;
  for (int lane = 0; lane < 8; ++lane) sum += lanes[lane];
  for (; index < length; ++index) sum += left[index] * right[index];
  return sum;
}

// total += the rows times their weights, four rows for each time that the total is read.
inline void add_rows(float* total, const float* const* rows, const float* weights, int64_t num_rows,
                     int64_t length) {
  int64_t row = 0;
  for (; row + 4 <= num_rows; row += 4) {
    const float *r0 = rows[row], *r1 = rows[row + 1], *r2 = rows[row + 2], *r3 = rows[row + 3];
    const float w0 = weights[row], w1 = weights[row + 1];
    const float w2 = weights[row + 2], w3 = weights[row + 3];
    for (int64_t index = 0; index < length; ++index) {
      total[index] += (w0 * r0[index] + w1 * r1[index]) + (w2 * r2[index] + w3 * r3[index]);
    }
  }
  for (; row < num_rows; ++row) {
    for (int64_t index = 0; index < length; ++index) {
      total[index] += weights[row] * rows[row][index];
    }
  }
}

struct Attention {
  const float* query;  // [T, H, E]
  const float* key;    // [N, G, E]
  const float* value;  // [N, G, E]
  const float* mask;   // [T, N], or null: causal or everything
  float* out;          // [T, H, E]
  int64_t num_heads, num_kv_heads, head_size, num_keys;
  int64_t num_visible;  // of the first query
  bool is_causal;
  float scale;
};

struct Scratch {
  std::vector<float> scores;
  std::vector<const float*> values;
};

// One query row, computed alone over the keys it sees, in their order: neither how many rows the
// call has nor how many keys the mask hides changes a bit of the result.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(GX_NO_CLONES)
__attribute__((target_clones("arch=x86-64-v3", "default")))
#endif
void attend(const Attention& attention, int64_t token, int64_t head, Scratch& scratch) {
  const int64_t size = attention.head_size;
  const int64_t row = attention.num_kv_heads * size;
  const int64_t kv_place = head / (attention.num_heads / attention.num_kv_heads) * size;
  const int64_t place = (token * attention.num_heads + head) * size;
  const float* mask = attention.mask ? attention.mask + token * attention.num_keys : nullptr;
  const int64_t num_keys =
      attention.is_causal ? attention.num_visible + token : attention.num_keys;
  constexpr float kHidden = -std::numeric_limits<float>::infinity();
  float* scores = scratch.scores.data();
  const float** values = scratch.values.data();
  int64_t num_seen = 0;
  float highest = kHidden;
  for (int64_t index = 0; index < num_keys; ++index) {
    const float bias = mask ? mask[index] : 0.0f;
    if (bias == kHidden) continue;
    const float* key = attention.key + index * row + kv_place;
    const float score = bias + attention.scale * dot(attention.query + place, key, size);
    if (score > highest) highest = score;
    scores[num_seen] = score;
    values[num_seen++] = attention.value + index * row + kv_place;
  }
  float* total = attention.out + place;
  std::memset(total, 0, static_cast<size_t>(size) * sizeof(float));
  if (num_seen == 0) return;
  float sum = 0;
  for (int64_t index = 0; index < num_seen; ++index) {
    scores[index] = std::exp(scores[index] - highest);
    sum += scores[index];
  }
  add_rows(total, values, scores, num_seen, size);
  for (int64_t index = 0; index < size; ++index) total[index] /= sum;
}

// (query, key, value, start_pos, attn_mask?, dropout, is_causal, scale?, out!)
void custom_sdpa(KernelRuntimeContext& context, Span<EValue*> stack) {
  if (stack.size() < 9 || !stack[3]->isInt() || !stack[6]->isBool()) {
    return context.fail(Error::InvalidArgument);
  }
  for (size_t index : {0, 1, 2, 8}) {
    if (!stack[index]->isTensor()) return context.fail(Error::InvalidArgument);
  }
  const Tensor& query = stack[0]->toTensor();
  const Tensor& key = stack[1]->toTensor();
  const Tensor& value = stack[2]->toTensor();
  const int64_t start = stack[3]->toInt();
  const bool has_mask = stack[4]->isTensor();
  const bool is_causal = stack[6]->toBool();
  Tensor& out = stack[8]->toTensor();
  if (!is_float_rows(query) || !is_float_rows(key) || !is_float_rows(value) ||
      key.size(1) != value.size(1) || key.size(2) != value.size(2) ||
      key.size(3) != value.size(3) || key.size(3) != query.size(3) || key.size(2) < 1 ||
      query.size(2) % key.size(2) != 0 || out.scalar_type() != ScalarType::Float ||
      (has_mask && is_causal)) {
    return context.fail(Error::InvalidArgument);
  }
  const int64_t num_tokens = query.size(1);
  const int64_t num_keys = key.size(1);
  if (is_causal && (start < 0 || start > num_keys - num_tokens)) {
    return context.fail(Error::InvalidArgument);
  }
  const float* mask = nullptr;
  if (has_mask) {
    const Tensor& tensor = stack[4]->toTensor();
    if (tensor.scalar_type() != ScalarType::Float || tensor.dim() < 2 ||
        tensor.numel() != num_tokens * num_keys || tensor.size(tensor.dim() - 1) != num_keys ||
        !executorch::runtime::tensor_is_default_dim_order(tensor)) {
      return context.fail(Error::InvalidArgument);
    }
    mask = tensor.const_data_ptr<float>();
  }
  if (executorch::runtime::resize_tensor(out, query.sizes()) != Error::Ok) {
    return context.fail(Error::InvalidArgument);
  }
  const double scale = stack[7]->isDouble()
                           ? stack[7]->toDouble()
                           : 1.0 / std::sqrt(static_cast<double>(query.size(3)));
  const Attention attention{query.const_data_ptr<float>(),
                            key.const_data_ptr<float>(),
                            value.const_data_ptr<float>(),
                            mask,
                            out.mutable_data_ptr<float>(),
                            query.size(2),
                            key.size(2),
                            query.size(3),
                            num_keys,
                            start + 1,
                            is_causal,
                            static_cast<float>(scale)};
  const int64_t most_keys = is_causal ? start + num_tokens : num_keys;
  const int64_t num_jobs = num_tokens * attention.num_heads;
  const auto run = [&](int64_t begin, int64_t end) {
    Scratch scratch;
    scratch.scores.resize(static_cast<size_t>(most_keys));
    scratch.values.resize(static_cast<size_t>(most_keys));
    for (int64_t job = begin; job < end; ++job) {
      attend(attention, job / attention.num_heads, job % attention.num_heads, scratch);
    }
  };
  if (num_jobs * most_keys * attention.head_size < kMinParallelWork) return run(0, num_jobs);
  if (!executorch::extension::parallel_for(0, num_jobs, 1, run)) context.fail(Error::Internal);
}

}  // namespace

std::vector<Kernel> kernels() {
  std::vector<Kernel> all{Kernel("llama::update_cache.out", update_cache),
                          Kernel("llama::custom_sdpa.out", custom_sdpa)};
  const size_t num_ours = all.size();
  for (const Kernel& kernel : executorch::runtime::get_registered_kernels()) {
    // Of several with one name ExecuTorch takes the last.
    const bool is_ours = std::any_of(all.begin(), all.begin() + num_ours, [&](const Kernel& ours) {
      return kernel.name_ != nullptr && std::strcmp(ours.name_, kernel.name_) == 0;
    });
    if (!is_ours) all.push_back(kernel);
  }
  return all;
}

}  // namespace gemma_export
