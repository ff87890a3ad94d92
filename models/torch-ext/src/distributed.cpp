// Several processes that work together, by PyTorch's c10d: a key-value store over TCP, and Gloo's collectives on CPU tensors.
// The functions follow the conventions of shim.cpp.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Logging.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "guarded.h"

namespace {

struct Store {
  c10::intrusive_ptr<c10d::TCPStore> tcp;
  // The same store, in which the keys of one start of the processes are under a prefix.
  c10::intrusive_ptr<c10d::Store> store;
};

using Gloo = c10::intrusive_ptr<c10d::ProcessGroupGloo>;

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
char* ext_gloo_new(Store* store, const char* host, int32_t rank, int32_t size, int64_t timeout_ms, Gloo** out) {
  return guarded([&] {
    auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::milliseconds(timeout_ms));
    const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
    if (interface != nullptr && *interface != '\0') {
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(interface));
    } else if (is_local(host)) {
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
    } else {
      options->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
    }
    *out = new Gloo(c10::make_intrusive<c10d::ProcessGroupGloo>(store->store, rank, size, options));
  });
}

void ext_gloo_free(Gloo* gloo) { delete gloo; }

// Replaces a tensor by its sum over the processes.
char* ext_gloo_sum(Gloo* gloo, at::Tensor* tensor) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    (*gloo)->allreduce(tensors)->wait();
  });
}

// Hands out the tensors of all processes, stacked by rank; they have one shape.
char* ext_gloo_gather(Gloo* gloo, const at::Tensor* tensor, at::Tensor** out) {
  return guarded([&] {
    std::vector<int64_t> shape{(*gloo)->getSize()};
    shape.insert(shape.end(), tensor->sizes().begin(), tensor->sizes().end());
    at::Tensor gathered = at::empty(shape, tensor->options());
    std::vector<std::vector<at::Tensor>> outputs{gathered.unbind(0)};
    std::vector<at::Tensor> inputs{*tensor};
    (*gloo)->allgather(outputs, inputs)->wait();
    *out = new at::Tensor(std::move(gathered));
  });
}

// As ext_gloo_gather, for the first process; the others get null.
char* ext_gloo_gather_to_first(Gloo* gloo, const at::Tensor* tensor, at::Tensor** out) {
  return guarded([&] {
    *out = nullptr;
    std::vector<at::Tensor> inputs{*tensor};
    std::vector<std::vector<at::Tensor>> outputs;
    at::Tensor gathered;
    if ((*gloo)->getRank() == 0) {
      std::vector<int64_t> shape{(*gloo)->getSize()};
      shape.insert(shape.end(), tensor->sizes().begin(), tensor->sizes().end());
      gathered = at::empty(shape, tensor->options());
      outputs.push_back(gathered.unbind(0));
    }
    (*gloo)->gather(outputs, inputs)->wait();
    if (gathered.defined()) *out = new at::Tensor(std::move(gathered));
  });
}

// Replaces a tensor by that of the first process.
char* ext_gloo_broadcast(Gloo* gloo, at::Tensor* tensor) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    (*gloo)->broadcast(tensors)->wait();
  });
}

}  // extern "C"
