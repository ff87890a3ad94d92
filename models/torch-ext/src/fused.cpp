// Fused operations that libtorch lacks: SiLU after GroupNorm in one pass over memory, with its gradient.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/group_norm.h>
#include <ATen/ops/silu.h>
#include <ATen/record_function.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/custom_function.h>

#include "fused.h"

#define DECLARE(variant)                                                                                              \
  void group_norm_silu_forward_##variant(const float*, const float*, const float*, float*, float*, long, long, float); \
  void group_norm_silu_backward_##variant(const float*, const float*, const float*, const float*, const float*, float*, long, long);

extern "C" {
DECLARE(baseline)
#ifdef EXT_X86
DECLARE(avx2)
DECLARE(avx512)
#endif
}

namespace {

struct Kernels {
  decltype(&group_norm_silu_forward_baseline) forward = group_norm_silu_forward_baseline;
  decltype(&group_norm_silu_backward_baseline) backward = group_norm_silu_backward_baseline;

  Kernels() {
#ifdef EXT_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      forward = group_norm_silu_forward_avx512;
      backward = group_norm_silu_backward_avx512;
    } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      forward = group_norm_silu_forward_avx2;
      backward = group_norm_silu_backward_avx2;
    }
#endif
  }
};

const Kernels& kernels() {
  static const Kernels chosen;
  return chosen;
}

// libtorch's own OpenMP, found by its symbols, since two runtimes would compete for the cores. Without it (a libtorch built
// on another runtime) the calling thread does the work.
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using OmpNumber = int (*)();

template <typename F>
void in_parallel(int64_t count, const F& body) {
  static const auto parallel = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  static const auto thread_num = reinterpret_cast<OmpNumber>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
  static const auto num_threads = reinterpret_cast<OmpNumber>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
  const int64_t wanted = std::min<int64_t>(at::get_num_threads(), count);
  const bool has_openmp = parallel != nullptr && thread_num != nullptr && num_threads != nullptr;
  if (wanted <= 1 || !has_openmp || at::in_parallel_region()) {
    for (int64_t i = 0; i < count; i++) body(i);
    return;
  }
  struct Work {
    const F& body;
    int64_t count;
  } work{body, count};
  parallel(
      [](void* data) {
        const Work& work = *static_cast<Work*>(data);
        // OpenMP may have started fewer threads than were wanted.
        const int64_t thread = thread_num(), share = (work.count + num_threads() - 1) / num_threads();
        const int64_t end = std::min(work.count, (thread + 1) * share);
        for (int64_t i = thread * share; i < end; i++) work.body(i);
      },
      &work, static_cast<unsigned>(wanted), 0);
}

struct GroupNormSilu : torch::autograd::Function<GroupNormSilu> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input, const at::Tensor& weight,
                            const at::Tensor& bias, int64_t groups, double eps) {
    RECORD_FUNCTION("ambiguity::group_norm_silu", {});
    const at::Tensor x = input.contiguous();
    at::Tensor y = at::empty_like(x);
    const int64_t n = x.size(0), channels = x.size(1) / groups, pixels = x.numel() / (n * x.size(1)), block = channels * pixels;
    at::Tensor stats = at::empty({n * groups, 2}, x.options());
    const float *from = x.const_data_ptr<float>(), *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
    float *to = y.mutable_data_ptr<float>(), *kept = stats.mutable_data_ptr<float>();
    const auto kernel = kernels().forward;
    in_parallel(n * groups, [&](int64_t i) {
      const int64_t c = i % groups * channels;
      kernel(from + i * block, w + c, b + c, to + i * block, kept + 2 * i, channels, pixels, static_cast<float>(eps));
    });
    context->save_for_backward({x, weight, bias, stats});
    context->saved_data["groups"] = groups;
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    RECORD_FUNCTION("ambiguity::group_norm_silu_backward", {});
    TORCH_CHECK(!at::GradMode::is_enabled(), "group_norm_silu cannot be differentiated twice");
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &bias = saved[2], &stats = saved[3];
    const at::Tensor dy = gradients[0].contiguous();
    at::Tensor dx = at::empty_like(x);
    const int64_t groups = context->saved_data["groups"].toInt();
    const int64_t n = x.size(0), channels = x.size(1) / groups, pixels = x.numel() / (n * x.size(1)), block = channels * pixels;
    const float *grad = dy.const_data_ptr<float>(), *from = x.const_data_ptr<float>(), *kept = stats.const_data_ptr<float>();
    const float *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
    float* to = dx.mutable_data_ptr<float>();
    const auto kernel = kernels().backward;
    in_parallel(n * groups, [&](int64_t i) {
      const int64_t c = i % groups * channels;
      kernel(grad + i * block, from + i * block, w + c, b + c, kept + 2 * i, to + i * block, channels, pixels);
    });
    return {dx, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor group_norm_silu(const at::Tensor& x, int64_t groups, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  const bool is_float = x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && bias.scalar_type() == at::kFloat;
  const bool is_plain = x.is_cpu() && weight.is_cpu() && bias.is_cpu() && is_float && x.dim() >= 2 && x.numel() > 0 && groups > 0 && x.size(1) % groups == 0 && weight.numel() == x.size(1) &&
                        bias.numel() == x.size(1) && weight.is_contiguous() && bias.is_contiguous();
  const bool trains_weights = at::GradMode::is_enabled() && (weight.requires_grad() || bias.requires_grad());
  if (is_plain && !trains_weights) return GroupNormSilu::apply(x, weight, bias, groups, eps);
  return at::silu(at::group_norm(x, groups, weight, bias, eps, true));
}
