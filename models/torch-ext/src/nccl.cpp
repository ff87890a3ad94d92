// NCCL's C interface (nccl.h of version 2), found at run time.

#include "nccl.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <dlfcn.h>

#include <future>
#include <thread>

namespace {

constexpr int kSuccess = 0;
constexpr int kInProgress = 7;
constexpr int kSum = 0;
// CUDA's default stream, on which all work of this program runs.
constexpr void* kDefaultStream = nullptr;
// A wait asks again at once for so long, and then with pauses.
constexpr std::chrono::milliseconds kBusy{2};
constexpr std::chrono::microseconds kPause{100};

struct UniqueId {
  char bytes[128];
};

int type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kByte: return 1;
    case at::kInt: return 2;
    case at::kLong: return 4;
    case at::kHalf: return 6;
    case at::kFloat: return 7;
    case at::kDouble: return 8;
    case at::kBFloat16: return 9;
    default: TORCH_CHECK(false, "NCCL has no type ", tensor.scalar_type());
  }
}

}  // namespace

struct NcclLibrary {
  const char* (*error_string)(int);
  int (*unique_id)(UniqueId*);
  int (*init)(void**, int, UniqueId, int);
  int (*abort)(void*);
  int (*async_error)(void*, int*);
  int (*all_reduce)(const void*, void*, size_t, int, int, void*, void*);
  int (*send)(const void*, size_t, int, int, void*, void*);
  int (*receive)(void*, size_t, int, int, void*, void*);
  int (*group_start)();
  int (*group_end)();

  NcclLibrary() {
    // libtorch_cuda, which is loaded with global symbols, needs NCCL.
    find(error_string, "ncclGetErrorString");
    find(unique_id, "ncclGetUniqueId");
    find(init, "ncclCommInitRank");
    find(abort, "ncclCommAbort");
    find(async_error, "ncclCommGetAsyncError");
    find(all_reduce, "ncclAllReduce");
    find(send, "ncclSend");
    find(receive, "ncclRecv");
    find(group_start, "ncclGroupStart");
    find(group_end, "ncclGroupEnd");
  }

  template <typename F>
  static void find(F& function, const char* name) {
    function = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
    TORCH_CHECK(function != nullptr, "NCCL is not loaded: libtorch's CUDA libraries have no ", name);
  }

  static const NcclLibrary& get() {
    static const NcclLibrary library;
    return library;
  }
};

Nccl::Nccl(c10d::Store& store, int rank, int size, at::Device device, std::chrono::milliseconds timeout)
    : library_(NcclLibrary::get()), device_(device), timeout_(timeout) {
  UniqueId id{};
  if (rank == 0) {
    check(library_.unique_id(&id), "an identifier");
    store.set("nccl", std::vector<uint8_t>(id.bytes, id.bytes + sizeof(id.bytes)));
  } else {
    const std::vector<uint8_t> bytes = store.get("nccl");
    TORCH_CHECK(bytes.size() == sizeof(id.bytes), "the store holds no identifier of NCCL");
    std::copy(bytes.begin(), bytes.end(), id.bytes);
  }
  // It waits for all others without end, so it gets a thread that may be left behind.
  auto connected = std::make_shared<std::promise<std::pair<int, void*>>>();
  auto future = connected->get_future();
  std::thread([connected, init = library_.init, id, rank, size, device] {
    void* communicator = nullptr;
    int result = kSuccess;
    try {
      const c10::DeviceGuard guard(device);
      result = init(&communicator, size, id, rank);
      connected->set_value({result, communicator});
    } catch (...) {
      connected->set_exception(std::current_exception());
    }
  }).detach();
  TORCH_CHECK(future.wait_for(timeout) == std::future_status::ready, "NCCL: connecting the GPUs timed out");
  const auto [result, communicator] = future.get();
  check(result, "connecting the GPUs");
  communicator_ = communicator;
}

Nccl::~Nccl() {
  if (communicator_ != nullptr) library_.abort(communicator_);
}

void Nccl::check(int result, const char* what) const {
  TORCH_CHECK(result == kSuccess || result == kInProgress, "NCCL: ", what, " failed: ", library_.error_string(result));
}

// Waits for what was launched. The timeout is that of a GPU whose process is gone in the middle of an operation.
void Nccl::wait(const char* what) {
  const c10::impl::VirtualGuardImpl device(device_.type());
  const c10::Stream stream = device.getStream(device_);
  TORCH_CHECK(stream.id() == 0, "NCCL: the work before is on another stream than the default one");
  const auto begin = std::chrono::steady_clock::now();
  while (!device.queryStream(stream)) {
    int error = kSuccess;
    library_.async_error(communicator_, &error);
    const auto waited = std::chrono::steady_clock::now() - begin;
    if ((error != kSuccess && error != kInProgress) || waited > timeout_) {
      library_.abort(communicator_);
      communicator_ = nullptr;
      check(error, what);
      TORCH_CHECK(false, "NCCL: ", what, " timed out");
    }
    if (waited > kBusy) std::this_thread::sleep_for(kPause);
  }
}

void Nccl::sum(at::Tensor& tensor) {
  TORCH_CHECK(communicator_ != nullptr, "NCCL: the connection is broken");
  const c10::DeviceGuard guard(device_);
  void* data = tensor.mutable_data_ptr();
  check(library_.all_reduce(data, data, tensor.numel(), type_of(tensor), kSum, communicator_, kDefaultStream), "a sum");
  wait("a sum");
}

void Nccl::exchange_rows(const at::Tensor& rows, at::Tensor& into, const std::vector<int64_t>& sent,
                         const std::vector<int64_t>& received) {
  TORCH_CHECK(communicator_ != nullptr, "NCCL: the connection is broken");
  const c10::DeviceGuard guard(device_);
  const int64_t width = c10::multiply_integers(rows.sizes().slice(1));
  const int type = type_of(rows);
  const char* from = static_cast<const char*>(rows.const_data_ptr());
  char* to = static_cast<char*>(into.mutable_data_ptr());
  const char* what = "an exchange of rows";
  check(library_.group_start(), what);
  for (size_t i = 0; i < sent.size(); ++i) {
    const int64_t out = sent[i] * width, in = received[i] * width;
    if (out > 0) check(library_.send(from, out, type, static_cast<int>(i), communicator_, kDefaultStream), what);
    if (in > 0) check(library_.receive(to, in, type, static_cast<int>(i), communicator_, kDefaultStream), what);
    from += out * rows.element_size();
    to += in * into.element_size();
  }
  check(library_.group_end(), what);
  wait(what);
}
