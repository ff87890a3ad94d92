// The C side of this crate: each function catches every exception and returns its message (to be freed with
// ext_free_message), or null on success. Tensors are passed as at::Tensor*, as in torch-sys; the caller owns a returned
// tensor.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <dlfcn.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <climits>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "fused.h"
#include "guarded.h"
#include "profile.h"

namespace {

at::IntArrayRef shape_of(const int64_t* shape, size_t dims) { return at::IntArrayRef(shape, dims); }

at::Tensor* hand_out(at::Tensor tensor) { return new at::Tensor(std::move(tensor)); }

at::TensorOptions float_options() { return at::TensorOptions().dtype(at::kFloat); }

at::TensorOptions long_options() { return at::TensorOptions().dtype(at::kLong); }

struct AutocastState {
  at::DeviceType device;
  bool enabled;
  at::ScalarType dtype;
};

}  // namespace

extern "C" {

void ext_free_message(char* message) { std::free(message); }

char* ext_config(char** out) {
  return guarded([&] { *out = copy_message(at::show_config()); });
}

bool ext_grad_enabled() { return at::GradMode::is_enabled(); }

// The file of the libtorch_cpu that this process runs, or null if the dynamic linker does not know it.
char* ext_library_path(char** out) {
  return guarded([&] {
    Dl_info info;
    auto* function = reinterpret_cast<void*>(&at::show_config);
    *out = dladdr(function, &info) != 0 && info.dli_fname != nullptr ? copy_message(info.dli_fname) : nullptr;
  });
}

// glibc returns large blocks to the kernel as soon as they are free and requests them again for the next tensor, page by
// page; with these settings it keeps them.
void ext_keep_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}

char* ext_group_norm_silu(const at::Tensor* x, int64_t groups, const at::Tensor* weight, const at::Tensor* bias, double eps,
                          at::Tensor** out) {
  return guarded([&] { *out = hand_out(group_norm_silu(*x, groups, *weight, *bias, eps)); });
}

char* ext_leaky_relu(at::Tensor* x, double slope, at::Tensor** out) {
  return guarded([&] { *out = hand_out(at::leaky_relu_(*x, slope)); });
}

char* ext_generator_new(uint64_t seed, at::Generator** out) {
  return guarded([&] { *out = new at::Generator(at::detail::createCPUGenerator(seed)); });
}

void ext_generator_free(at::Generator* generator) { delete generator; }

char* ext_generator_normal(at::Generator* generator, const int64_t* shape, size_t dims, at::Tensor** out) {
  return guarded([&] { *out = hand_out(at::randn(shape_of(shape, dims), *generator, float_options())); });
}

char* ext_generator_uniform(at::Generator* generator, const int64_t* shape, size_t dims, at::Tensor** out) {
  return guarded([&] { *out = hand_out(at::rand(shape_of(shape, dims), *generator, float_options())); });
}

char* ext_generator_permutation(at::Generator* generator, int64_t n, at::Tensor** out) {
  return guarded([&] { *out = hand_out(at::randperm(n, *generator, long_options())); });
}

char* ext_generator_integers(at::Generator* generator, int64_t low, int64_t high, const int64_t* shape, size_t dims,
                             at::Tensor** out) {
  return guarded(
      [&] { *out = hand_out(at::randint(low, high, shape_of(shape, dims), *generator, long_options())); });
}

char* ext_generator_state(const at::Generator* generator, at::Tensor** out) {
  return guarded([&] { *out = hand_out(generator->get_state()); });
}

char* ext_generator_set_state(at::Generator* generator, const at::Tensor* state) {
  return guarded([&] { generator->set_state(*state); });
}

// Parameters whose gradient is undefined are skipped, with their moments and step counts.
char* ext_adamw_step(const at::Tensor* const* parameters, const at::Tensor* const* exp_avgs,
                     const at::Tensor* const* exp_avg_sqs, const at::Tensor* const* steps, size_t count,
                     double learning_rate, double beta1, double beta2, double weight_decay, double epsilon) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> p, g, m, v, t;
    for (size_t i = 0; i < count; ++i) {
      const at::Tensor& gradient = parameters[i]->grad();
      if (!gradient.defined()) continue;
      p.push_back(*parameters[i]);
      g.push_back(gradient);
      m.push_back(*exp_avgs[i]);
      v.push_back(*exp_avg_sqs[i]);
      t.push_back(*steps[i]);
    }
    if (p.empty()) return;
    at::_foreach_add_(t, 1);
    at::_fused_adamw_(p, g, m, v, {}, t, learning_rate, beta1, beta2, weight_decay, epsilon, /*amsgrad=*/false,
                      /*maximize=*/false);
    // Unlike other operations in place, this one does not count itself as a change of the parameters.
    for (const at::Tensor& parameter : p) parameter.unsafeGetTensorImpl()->bump_version();
  });
}

char* ext_lerp(const at::Tensor* const* tensors, const at::Tensor* const* targets, size_t count, double weight) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> from, to;
    for (size_t i = 0; i < count; ++i) {
      from.push_back(*tensors[i]);
      to.push_back(*targets[i]);
    }
    if (!from.empty()) at::_foreach_lerp_(from, to, weight);
  });
}

char* ext_clear_gradient(const at::Tensor* tensor) {
  return guarded([&] {
    if (tensor->grad().defined()) tensor->mutable_grad() = at::Tensor();
  });
}

char* ext_clip_grad_norm(const at::Tensor* const* parameters, size_t count, double max_norm, at::Tensor** out) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    // Gradients by device, since a foreach operation needs one device.
    std::map<std::pair<int, int>, std::vector<at::Tensor>> groups;
    for (size_t i = 0; i < count; ++i) {
      const at::Tensor& gradient = parameters[i]->grad();
      if (!gradient.defined()) continue;
      const at::Device device = gradient.device();
      groups[{static_cast<int>(device.type()), static_cast<int>(device.index())}].push_back(gradient);
    }
    if (groups.empty()) {
      *out = hand_out(at::zeros({}, float_options()));
      return;
    }
    const at::Device first = groups.begin()->second.front().device();
    std::vector<at::Tensor> norms;
    for (const auto& group : groups) {
      for (const at::Tensor& norm : at::_foreach_norm(group.second, 2)) {
        norms.push_back(norm.to(at::TensorOptions().device(first).dtype(at::kFloat)));
      }
    }
    const at::Tensor total = at::linalg_vector_norm(at::stack(norms), 2);
    const at::Tensor scale = at::Tensor((total + 1e-6).reciprocal() * max_norm).clamp_max(1.0);
    for (auto& group : groups) {
      at::_foreach_mul_(group.second, scale.to(group.second.front().device()));
    }
    *out = hand_out(total);
  });
}

// Adds the gradients of parameters to `sum`, one after the other, and clears them. An undefined gradient is zero.
char* ext_add_gradients(const at::Tensor* const* parameters, size_t count, at::Tensor* sum) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> flat;
    for (size_t i = 0; i < count; ++i) {
      const at::Tensor& gradient = parameters[i]->grad();
      flat.push_back(gradient.defined() ? gradient.reshape(-1) : at::zeros(parameters[i]->numel(), parameters[i]->options()));
      parameters[i]->mutable_grad() = at::Tensor();
    }
    sum->add_(at::cat(flat));
  });
}

// Makes the parts of `sum`, one after the other, the gradients of parameters.
char* ext_set_gradients(const at::Tensor* const* parameters, size_t count, const at::Tensor* sum) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    int64_t start = 0;
    const at::Tensor rounded = count == 0 ? *sum : sum->to(parameters[0]->scalar_type());
    for (size_t i = 0; i < count; ++i) {
      const int64_t length = parameters[i]->numel();
      parameters[i]->mutable_grad() = rounded.narrow(0, start, length).view(parameters[i]->sizes());
      start += length;
    }
  });
}

char* ext_autocast_enter(int8_t device_type, int8_t dtype, AutocastState** out) {
  return guarded([&] {
    const auto device = static_cast<at::DeviceType>(device_type);
    const auto kind = static_cast<at::ScalarType>(dtype);
    *out = new AutocastState{device, at::autocast::is_autocast_enabled(device),
                             at::autocast::get_autocast_dtype(device)};
    at::autocast::set_autocast_dtype(device, kind);
    at::autocast::set_autocast_enabled(device, kind != at::kFloat);
    at::autocast::increment_nesting();
  });
}

char* ext_autocast_leave(AutocastState* state) {
  return guarded([&] {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(state->device, state->enabled);
    at::autocast::set_autocast_dtype(state->device, state->dtype);
    delete state;
  });
}

// cuBLAS computes the same on every run only with a workspace of its own for each stream, which it reads from the
// environment.
char* ext_set_numerics(bool tf32, bool benchmark, bool deterministic) {
  return guarded([&] {
    at::Context& context = at::globalContext();
    context.setAllowTF32CuBLAS(tf32);
    context.setAllowTF32CuDNN(tf32);
    context.setBenchmarkCuDNN(benchmark);
    context.setDeterministicCuDNN(deterministic);
    context.setDeterministicAlgorithms(deterministic, /*warn_only=*/false);
    // Memory that is not written yet is not read either.
    context.setDeterministicFillUninitializedMemory(false);
    if (deterministic) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  });
}

char* ext_numerics(bool* tf32, bool* benchmark, bool* deterministic) {
  return guarded([&] {
    const at::Context& context = at::globalContext();
    *tf32 = context.allowTF32CuBLAS() && context.allowTF32CuDNN();
    *benchmark = context.benchmarkCuDNN();
    *deterministic = context.deterministicCuDNN() && context.deterministicAlgorithms();
  });
}

// The largest sum of bytes that libtorch has reserved on a CUDA device, of which tensors take their parts.
char* ext_cuda_peak(int8_t device, uint64_t* out) {
  return guarded([&] {
    const auto stats = c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(device);
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *out = static_cast<uint64_t>(stats.reserved_bytes[all].peak);
  });
}

char* ext_channels_last(const at::Tensor* tensor, at::Tensor** out) {
  return guarded([&] { *out = hand_out(tensor->contiguous(at::MemoryFormat::ChannelsLast)); });
}

char* ext_profile_start(Profile** out) {
  return guarded([&] { *out = start_profile(); });
}

// `visit` receives `data` with each operator's name, counts, seconds and FLOP; it is null if they are not wanted.
char* ext_profile_stop(Profile* profile, void (*visit)(void*, const char*, uint64_t, uint64_t, double, double), void* data) {
  return guarded([&] {
    stop_profile(profile, [&](const std::string& name, const OperatorTotals& totals) {
      if (visit != nullptr) visit(data, name.c_str(), totals.outer, totals.nested, totals.seconds, totals.flops);
    });
  });
}

}  // extern "C"
