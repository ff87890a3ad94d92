// Counts and times the operators that libtorch's dispatcher runs.

#include "profile.h"

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <chrono>
#include <map>
#include <mutex>
#include <utility>

namespace {

using Clock = std::chrono::steady_clock;

// Not PROFILER_STATE, from which libtorch's allocators expect their own class.
constexpr auto KIND = c10::DebugInfoKind::PRODUCER_INFO;

// libtorch passes it to the threads of backward passes.
struct Recorded : c10::DebugInfoBase {
  std::mutex mutex;
  std::map<std::string, OperatorTotals> totals;
};

struct Call : at::ObserverContext {
  std::string name;
  Call* parent;
  Clock::time_point start;
  double flops;
};

thread_local Call* innermost = nullptr;

const at::Tensor* tensor_at(c10::ArrayRef<const c10::IValue> inputs, size_t i) {
  return i < inputs.size() && inputs[i].isTensor() ? &inputs[i].toTensor() : nullptr;
}

double elements(const at::Tensor& tensor) { return static_cast<double>(tensor.numel()); }

// Two operations per multiply-add of a product of matrices, a convolution or a fused attention; 0 for any other operator.
double flops_of(const std::string& name, c10::ArrayRef<const c10::IValue> inputs) {
  const auto product = [&](size_t first) {
    const at::Tensor *a = tensor_at(inputs, first), *b = tensor_at(inputs, first + 1);
    return a == nullptr || b == nullptr || b->dim() < 2 ? 0 : 2 * elements(*a) * static_cast<double>(b->size(-1));
  };
  // 2 · the elements of one side of the convolution · the weights that each of them meets.
  const auto convolution = [&](double output, const at::Tensor& weight) {
    return 2 * output * elements(weight) / static_cast<double>(weight.size(0));
  };
  const auto attention = [&](size_t first, int products) {
    const at::Tensor *q = tensor_at(inputs, first), *k = tensor_at(inputs, first + 1);
    return q == nullptr || k == nullptr ? 0 : 2 * products * elements(*q) * static_cast<double>(k->size(-2));
  };
  if (name == "aten::mm" || name == "aten::bmm") return product(0);
  if (name == "aten::addmm" || name == "aten::addmm_" || name == "aten::baddbmm") return product(1);
  if (name == "aten::convolution") {
    const at::Tensor *x = tensor_at(inputs, 0), *weight = tensor_at(inputs, 1);
    const bool is_plain = x != nullptr && weight != nullptr && weight->dim() > 2 && x->dim() == weight->dim() &&
                          inputs.size() > 6;
    if (!is_plain) return 0;
    // A transposed convolution: every element of the input meets the weights of its channel.
    if (inputs[6].toBool()) return convolution(elements(*x), *weight);
    const auto stride = inputs[3].toDimVector(), padding = inputs[4].toDimVector(), dilation = inputs[5].toDimVector();
    double output = static_cast<double>(x->size(0) * weight->size(0));
    for (int64_t i = 2; i < x->dim(); i++) {
      const auto of = [&](const at::DimVector& list) { return list[list.size() == 1 ? 0 : i - 2]; };
      output *= static_cast<double>((x->size(i) + 2 * of(padding) - of(dilation) * (weight->size(i) - 1) - 1) / of(stride) + 1);
    }
    return convolution(output, *weight);
  }
  if (name == "aten::convolution_backward") {
    const at::Tensor *gradient = tensor_at(inputs, 0), *x = tensor_at(inputs, 1), *weight = tensor_at(inputs, 2);
    if (gradient == nullptr || x == nullptr || weight == nullptr || inputs.size() < 11) return 0;
    const auto wanted = inputs[10].toBoolList();
    return convolution(elements(inputs[7].toBool() ? *x : *gradient), *weight) * (int(wanted[0]) + int(wanted[1]));
  }
  const bool is_attention = name.rfind("aten::_scaled_dot_product_", 0) == 0 && name.find("_math") == std::string::npos;
  if (!is_attention) return 0;
  // Backward: the scores again, and the gradients of scores, queries, keys and values.
  return name.find("_backward") == std::string::npos ? attention(0, 2) : attention(1, 5);
}

// Of the operators, the engine of backward passes is none.
std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction& function) {
  if (std::string(function.name()).rfind("autograd::", 0) == 0) return nullptr;
  auto call = std::make_unique<Call>();
  call->name = function.name();
  const std::string overload = function.overload_name();
  if (!overload.empty()) call->name += "." + overload;
  // libtorch has one overload for moves to a device and for changes of the type, which alone name a type.
  const bool is_move = call->name == "aten::to.dtype_layout" && function.inputs().size() > 1 && function.inputs()[1].isNone();
  if (is_move) call->name = "aten::to.device";
  call->parent = innermost;
  call->flops = flops_of(function.name(), function.inputs());
  innermost = call.get();
  call->start = Clock::now();
  return call;
}

void leave(const at::RecordFunction&, at::ObserverContext* context) {
  const auto end = Clock::now();
  auto* call = static_cast<Call*>(context);
  if (call == nullptr) return;
  innermost = call->parent;
  auto* recorded = static_cast<Recorded*>(c10::ThreadLocalDebugInfo::get(KIND));
  if (recorded == nullptr) return;
  const std::lock_guard<std::mutex> lock(recorded->mutex);
  OperatorTotals& totals = recorded->totals[call->name];
  if (call->parent != nullptr) {
    call->parent->flops += call->flops;
    totals.nested++;
    return;
  }
  totals.outer++;
  totals.seconds += std::chrono::duration<double>(end - call->start).count();
  totals.flops += call->flops;
}

}  // namespace

struct Profile {
  std::shared_ptr<Recorded> recorded;
  at::CallbackHandle handle;
};

Profile* start_profile() {
  auto recorded = std::make_shared<Recorded>();
  c10::ThreadLocalDebugInfo::_push(KIND, recorded);
  auto callback = at::RecordFunctionCallback(enter, leave).needsInputs(true).scopes({at::RecordScope::FUNCTION});
  return new Profile{std::move(recorded), at::addThreadLocalCallback(callback)};
}

void stop_profile(Profile* profile, const std::function<void(const std::string&, const OperatorTotals&)>& visit) {
  const std::unique_ptr<Profile> ended(profile);
  at::removeCallback(ended->handle);
  c10::ThreadLocalDebugInfo::_pop(KIND);
  const std::lock_guard<std::mutex> lock(ended->recorded->mutex);
  for (const auto& [name, totals] : ended->recorded->totals) visit(name, totals);
}
