// NCCL's C interface (nccl.h of version 2), found at run time.

#include "nccl.h"

#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <future>
#include <memory>
#include <thread>
#include <utility>

namespace {

constexpr int kSuccess = 0;
constexpr int kRemoteError = 6;
constexpr int kInProgress = 7;
constexpr int kByte = 1;
constexpr int kSum = 0;
// CUDA's default stream, on which all work of this program runs.
constexpr void* kDefaultStream = nullptr;
// A wait asks again at once for so long, and then with pauses.
constexpr std::chrono::milliseconds kBusy{2};
constexpr std::chrono::microseconds kPause{100};
// How long a connection may take to close.
constexpr std::chrono::milliseconds kAbort{5000};

struct UniqueId {
  char bytes[128];
};

int type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kByte: return kByte;
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
  const char* (*last_error)(void*);
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
    find(last_error, "ncclGetLastError");
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

namespace {

// Runs what may wait for other processes without end in a thread that may be left behind; whether it ended in time.
template <typename F>
bool ended_in_time(F work, std::chrono::milliseconds timeout) {
  auto done = std::make_shared<std::promise<void>>();
  auto future = done->get_future();
  std::thread([done, work = std::move(work)]() mutable {
    try {
      work();
      done->set_value();
    } catch (...) {
      done->set_exception(std::current_exception());
    }
  }).detach();
  if (future.wait_for(timeout) != std::future_status::ready) return false;
  future.get();
  return true;
}

[[noreturn]] void did_not_end(const char* what, std::chrono::milliseconds timeout) {
  throw NcclPeerError("NCCL: " + std::string(what) + " did not end within " +
                      std::to_string(std::chrono::duration_cast<std::chrono::seconds>(timeout).count()) + " s");
}

}  // namespace

Nccl::Nccl(c10d::Store& store, int rank, int size, at::Device device, std::chrono::milliseconds timeout)
    : library_(NcclLibrary::get()), device_(device), timeout_(timeout) {
  constexpr const char* kWhat = "connecting the GPUs";
  UniqueId id{};
  if (rank == 0) {
    check(library_.unique_id(&id), kWhat);
    store.set("nccl", std::vector<uint8_t>(id.bytes, id.bytes + sizeof(id.bytes)));
  } else {
    store.wait({"nccl"}, timeout);
    const std::vector<uint8_t> bytes = store.get("nccl");
    TORCH_CHECK(bytes.size() == sizeof(id.bytes), "the store holds no identifier of NCCL");
    std::copy(bytes.begin(), bytes.end(), id.bytes);
  }
  struct Connected {
    void* communicator = nullptr;
    int result = kSuccess;
  };
  auto connected = std::make_shared<Connected>();
  // All ways are connected here: later operations would wait for that in a call without a timeout. For sums a variable says so,
  // and each process sends a byte to each.
  setenv("NCCL_RUNTIME_CONNECT", "0", 0);
  const at::Tensor bytes = at::zeros({2 * size}, at::TensorOptions().dtype(at::kByte).device(device));
  wait_for_gpu();
  const bool in_time = ended_in_time(
      [connected, library = &library_, bytes, id, rank, size, device] {
        const c10::DeviceGuard guard(device);
        int result = library->init(&connected->communicator, size, id, rank);
        const auto then = [&](int next) {
          if (result == kSuccess) result = next;
        };
        char* data = static_cast<char*>(bytes.mutable_data_ptr());
        if (result == kSuccess) {
          void* communicator = connected->communicator;
          result = library->group_start();
          for (int peer = 0; peer < size; ++peer) {
            then(library->send(data + peer, 1, kByte, peer, communicator, kDefaultStream));
            then(library->receive(data + size + peer, 1, kByte, peer, communicator, kDefaultStream));
          }
          const int end = library->group_end();
          then(end);
        }
        connected->result = result;
      },
      timeout);
  if (!in_time) did_not_end(kWhat, timeout);
  communicator_ = connected->communicator;
  check(connected->result, kWhat);
  wait(kWhat);
}

Nccl::~Nccl() { abort(); }

// NCCL may wait for the other processes in it, too.
void Nccl::abort() {
  if (communicator_ == nullptr) return;
  ended_in_time([abort = library_.abort, communicator = communicator_] { abort(communicator); }, kAbort);
  communicator_ = nullptr;
}

void Nccl::check(int result, const char* what) const {
  if (result == kSuccess || result == kInProgress) return;
  const char* detail = library_.last_error(communicator_);
  std::string text = "NCCL: " + std::string(what) + " failed: " + library_.error_string(result);
  if (detail != nullptr && *detail != '\0') text += " (" + std::string(detail) + ")";
  if (result == kRemoteError) throw NcclPeerError(text);
  TORCH_CHECK(false, text);
}

void Nccl::check_usable() const {
  TORCH_CHECK(communicator_ != nullptr, "NCCL: the connection is closed");
  const c10::Stream stream = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
  TORCH_CHECK(stream.id() == 0, "NCCL: the work before is on another stream than the default one");
}

void Nccl::wait_for_gpu() const {
  const c10::impl::VirtualGuardImpl device(device_.type());
  device.synchronizeStream(device.getStream(device_));
}

// Waits for an operation. The timeout is that of a GPU whose process is gone in the middle of it.
void Nccl::wait(const char* what) {
  const c10::impl::VirtualGuardImpl device(device_.type());
  const c10::Stream stream = device.getStream(device_);
  const auto begin = std::chrono::steady_clock::now();
  while (!device.queryStream(stream)) {
    int error = kSuccess;
    library_.async_error(communicator_, &error);
    const auto waited = std::chrono::steady_clock::now() - begin;
    if ((error != kSuccess && error != kInProgress) || waited > timeout_) {
      abort();
      check(error, what);
      did_not_end(what, timeout_);
    }
    if (waited > kBusy) std::this_thread::sleep_for(kPause);
  }
}

void Nccl::sum(at::Tensor& tensor) {
  check_usable();
  const c10::DeviceGuard guard(device_);
  void* data = tensor.mutable_data_ptr();
  check(library_.all_reduce(data, data, tensor.numel(), type_of(tensor), kSum, communicator_, kDefaultStream), "a sum");
  wait("a sum");
}

void Nccl::exchange_rows(const at::Tensor& rows, at::Tensor& into, const std::vector<int64_t>& sent,
                         const std::vector<int64_t>& received) {
  check_usable();
  const c10::DeviceGuard guard(device_);
  const int64_t width = c10::multiply_integers(rows.sizes().slice(1));
  const int type = type_of(rows);
  const char* from = static_cast<const char*>(rows.const_data_ptr());
  char* to = static_cast<char*>(into.mutable_data_ptr());
  const char* what = "an exchange of rows";
  int result = library_.group_start();
  for (size_t i = 0; i < sent.size(); ++i) {
    const int peer = static_cast<int>(i);
    const int64_t out = sent[i] * width, in = received[i] * width;
    if (result == kSuccess && out > 0) result = library_.send(from, out, type, peer, communicator_, kDefaultStream);
    if (result == kSuccess && in > 0) result = library_.receive(to, in, type, peer, communicator_, kDefaultStream);
    from += out * rows.element_size();
    to += in * into.element_size();
  }
  // A group is ended also if something in it failed.
  const int end = library_.group_end();
  check(result == kSuccess ? end : result, what);
  wait(what);
}
