// Several processes that work together, by PyTorch's c10d: a key-value store over TCP, and Gloo's collectives on CPU tensors.
// NCCL carries sums and rows between GPUs; Gloo still says who is there. The functions follow the conventions of shim.cpp.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Logging.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "guarded.h"
#include "nccl.h"

namespace {

struct Store {
  c10::intrusive_ptr<c10d::TCPStore> tcp;
  // The same store, in which the keys of one start of the processes are under a prefix.
  c10::intrusive_ptr<c10d::Store> store;
};

// What is smaller goes by Gloo, which has to wait for all processes before an operation of NCCL anyway.
constexpr size_t kSmall = 64 << 10;

struct Group {
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
  // Whether an operation failed, after which the processes are no longer in step.
  std::shared_ptr<std::atomic<bool>> broken;
  // The network interface that the user or the store's address names, as NCCL takes it, or nothing.
  std::string interface;
  // None unless each process has a GPU of its own.
  std::shared_ptr<Nccl> nccl;

  // Starts an operation of Gloo and waits for it.
  template <typename F>
  void run_gloo(const F& operation) const {
    try {
      operation(*gloo)->wait();
    } catch (...) {
      *broken = true;
      throw;
    }
  }

  // Runs an operation of NCCL. What fails on this GPU alone is this process's own failure.
  template <typename F>
  void run_nccl(const F& operation) const {
    // Gloo finds a process that is gone at once; NCCL would wait for it until the timeout.
    if (nccl != nullptr) nccl->wait_for_gpu();
    std::vector<at::Tensor> nothing{at::zeros({1}, at::kByte)};
    run_gloo([&](c10d::ProcessGroupGloo& gloo) { return gloo.allreduce(nothing); });
    try {
      operation();
    } catch (const NcclPeerError&) {
      *broken = true;
      throw;
    }
  }

  bool has_nccl_for(const at::Tensor& tensor) const { return nccl != nullptr && tensor.device() == nccl->device(); }

  // Replaces a contiguous tensor by its sum over the processes.
  void sum(at::Tensor& tensor) const {
    if (has_nccl_for(tensor) && tensor.nbytes() >= kSmall) {
      run_nccl([&] { nccl->sum(tensor); });
      return;
    }
    std::vector<at::Tensor> tensors{tensor.cpu()};
    run_gloo([&](c10d::ProcessGroupGloo& gloo) { return gloo.allreduce(tensors); });
    if (!tensor.is_cpu()) tensor.copy_(tensors[0]);
  }
};

// What a node of autograd keeps of a group.
struct Kept : torch::CustomClassHolder {
  Group group;
  explicit Kept(Group group) : group(std::move(group)) {}
};

// The sum of a tensor over the processes. Each process has a loss of its own; the gradient is that of the sum of their losses,
// so that it is the sum over the processes too, and has a gradient itself.
struct SumOverProcesses : torch::autograd::Function<SumOverProcesses> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& tensor, const Group& group) {
    context->saved_data["group"] = c10::IValue::make_capsule(c10::make_intrusive<Kept>(group));
    // A copy, which the operation replaces.
    at::Tensor sum = tensor.detach().clone(at::MemoryFormat::Contiguous);
    group.sum(sum);
    return sum;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto kept = c10::static_intrusive_pointer_cast<Kept>(context->saved_data["group"].toCapsule());
    return {SumOverProcesses::apply(gradients[0], kept->group), at::Tensor()};
  }
};

// Without c10d's recorder of the last operations, which nobody reads: it costs time in each, and groups in several threads, as
// tests have them, would write to it at once. It asks for this variable before the first operation.
const int no_recorder = setenv("TORCH_FR_BUFFER_SIZE", "0", 0);

bool is_local(const std::string& host) { return host == "localhost" || host == "::1" || host.rfind("127.", 0) == 0; }

}  // namespace

extern "C" {

char* ext_store_new(const char* host, uint16_t port, bool serves, const char* prefix, int64_t timeout_ms, Store** out) {
  return guarded([&] {
    // What c10d logs on stderr, its exceptions say too.
    FLAGS_caffe2_log_level = c10::GLOG_FATAL;
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serves;
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    auto tcp = c10::make_intrusive<c10d::TCPStore>(host, options);
    c10::intrusive_ptr<c10d::Store> store = tcp;
    if (*prefix != '\0') store = c10::make_intrusive<c10d::PrefixStore>(prefix, store);
    *out = new Store{std::move(tcp), std::move(store)};
  });
}

void ext_store_free(Store* store) { delete store; }

uint16_t ext_store_port(const Store* store) { return store->tcp->getPort(); }

char* ext_store_set(Store* store, const char* key, const uint8_t* value, size_t length) {
  return guarded([&] { store->store->set(key, std::vector<uint8_t>(value, value + length)); });
}

// Hands out the value of a key, as a string to be freed with ext_free_message, or null if it is not set. Never waits for it.
char* ext_store_get(Store* store, const char* key, char** out) {
  return guarded([&] {
    *out = nullptr;
    if (!store->store->check({key})) return;
    const std::vector<uint8_t> value = store->store->get(key);
    *out = copy_message(std::string(value.begin(), value.end()));
  });
}

// Connects `size` processes, each of which calls this with its own rank.
char* ext_group_new(Store* store, const char* host, int32_t rank, int32_t size, int64_t timeout_ms, Group** out) {
  return guarded([&] {
    auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::milliseconds(timeout_ms));
    const char* named = std::getenv("GLOO_SOCKET_IFNAME");
    std::string interface;
    if (named != nullptr && *named != '\0') {
      interface = std::string("=") + named;
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(named));
    } else if (is_local(host)) {
      interface = "=lo";
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
    } else {
      options->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
    }
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(store->store, rank, size, options);
    *out = new Group{std::move(gloo), std::make_shared<std::atomic<bool>>(false), std::move(interface), nullptr};
  });
}

// Lets NCCL carry what is on a GPU, of which each process has its own. Every process calls this.
char* ext_group_use_nccl(Group* group, Store* store, int8_t device, int64_t timeout_ms) {
  return guarded([&] {
    const at::Device gpu(device < 0 ? at::kCPU : at::kCUDA, device);
    const std::chrono::milliseconds timeout(timeout_ms);
    // As for Gloo, unless the user names another one.
    if (!group->interface.empty()) setenv("NCCL_SOCKET_IFNAME", group->interface.c_str(), 0);
    group->run_nccl([&] {
      group->nccl =
          std::make_shared<Nccl>(*store->store, group->gloo->getRank(), group->gloo->getSize(), gpu, timeout);
    });
  });
}

bool ext_group_has_nccl(const Group* group) { return group->nccl != nullptr; }

void ext_group_free(Group* group) { delete group; }

Group* ext_group_clone(const Group* group) { return new Group(*group); }

bool ext_group_is_broken(const Group* group) { return *group->broken; }

// Hands out the sum of a tensor over the processes, with its gradient.
char* ext_group_differentiable_sum(const Group* group, const at::Tensor* tensor, at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(SumOverProcesses::apply(*tensor, *group)); });
}

// Replaces a tensor by its sum over the processes.
char* ext_group_sum(Group* group, at::Tensor* tensor) {
  return guarded([&] { group->sum(*tensor); });
}

// Hands out the tensors of all processes, stacked by rank; they have one shape.
char* ext_group_gather(Group* group, const at::Tensor* tensor, at::Tensor** out) {
  return guarded([&] {
    std::vector<int64_t> shape{group->gloo->getSize()};
    shape.insert(shape.end(), tensor->sizes().begin(), tensor->sizes().end());
    at::Tensor gathered = at::empty(shape, tensor->options());
    std::vector<std::vector<at::Tensor>> outputs{gathered.unbind(0)};
    std::vector<at::Tensor> inputs{*tensor};
    group->run_gloo([&](c10d::ProcessGroupGloo& gloo) { return gloo.allgather(outputs, inputs); });
    *out = new at::Tensor(std::move(gathered));
  });
}

// As ext_group_gather, for the first process; the others get null.
char* ext_group_gather_to_first(Group* group, const at::Tensor* tensor, at::Tensor** out) {
  return guarded([&] {
    *out = nullptr;
    std::vector<at::Tensor> inputs{*tensor};
    std::vector<std::vector<at::Tensor>> outputs;
    at::Tensor gathered;
    if (group->gloo->getRank() == 0) {
      std::vector<int64_t> shape{group->gloo->getSize()};
      shape.insert(shape.end(), tensor->sizes().begin(), tensor->sizes().end());
      gathered = at::empty(shape, tensor->options());
      outputs.push_back(gathered.unbind(0));
    }
    group->run_gloo([&](c10d::ProcessGroupGloo& gloo) { return gloo.gather(outputs, inputs); });
    if (gathered.defined()) *out = new at::Tensor(std::move(gathered));
  });
}

// Hands out the rows [n, ...] that the processes send to this one, by rank, `received` of each. Of the rows of `tensor`, in order,
// `sent` go to each of them.
char* ext_group_exchange_rows(Group* group, const at::Tensor* tensor, const int64_t* sent, const int64_t* received,
                             at::Tensor** out) {
  return guarded([&] {
    const int64_t count = group->gloo->getSize();
    std::vector<int64_t> to(sent, sent + count), from(received, received + count);
    std::vector<int64_t> shape = tensor->sizes().vec();
    shape[0] = std::accumulate(from.begin(), from.end(), int64_t{0});
    if (group->has_nccl_for(*tensor)) {
      at::Tensor rows = at::empty(shape, tensor->options());
      group->run_nccl([&] { group->nccl->exchange_rows(*tensor, rows, to, from); });
      *out = new at::Tensor(std::move(rows));
      return;
    }
    at::Tensor input = tensor->cpu();
    at::Tensor rows = at::empty(shape, input.options());
    group->run_gloo([&](c10d::ProcessGroupGloo& gloo) { return gloo.alltoall_base(rows, input, from, to); });
    *out = new at::Tensor(rows.to(tensor->device()));
  });
}

// Replaces a tensor by that of the first process.
char* ext_group_broadcast(Group* group, at::Tensor* tensor) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    group->run_gloo([&](c10d::ProcessGroupGloo& gloo) { return gloo.broadcast(tensors); });
  });
}

}  // extern "C"
