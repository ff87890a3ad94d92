// NCCL's functions between threads of one process, on CPU memory: the test of nccl.cpp on a machine without a GPU.

#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace {

struct UniqueId {
  char bytes[128];
};

struct Communicator {
  int rank;
  int size;
};

struct Sum {
  int joined = 0;
  int left = 0;
  std::vector<double> total;
};

constexpr int kByte = 1, kInt32 = 2, kInt64 = 4, kFloat64 = 8;

std::mutex mutex;
std::condition_variable changed;
Sum sum;
std::map<std::pair<int, int>, std::deque<std::vector<char>>> messages;
// What a group of sends and receives does at its end: NCCL demands no order of them.
thread_local std::vector<std::function<void()>> sends, receives;

size_t size_of(int type) { return type == kByte ? 1 : type == kInt64 || type == kFloat64 ? 8 : 4; }

}  // namespace

extern "C" {

const char* ncclGetErrorString(int result) { return result == 5 ? "invalid usage" : "remote process exited"; }

const char* ncclGetLastError(void*) { return ""; }

int ncclGetUniqueId(UniqueId* id) {
  std::memset(id->bytes, 7, sizeof(id->bytes));
  return 0;
}

int ncclCommInitRank(void** out, int size, UniqueId id, int rank) {
  if (id.bytes[127] != 7) return 5;
  *out = new Communicator{rank, size};
  return 0;
}

int ncclCommAbort(void* communicator) {
  delete static_cast<Communicator*>(communicator);
  return 0;
}

int ncclCommGetAsyncError(void*, int* error) {
  *error = 0;
  return 0;
}

int ncclAllReduce(const void* from, void* to, size_t count, int type, int operation, void* communicator, void*) {
  if (operation != 0) return 5;
  // A sum of i32 fails, as that of a GPU whose peer is gone.
  if (type == kInt32) return 6;
  if (type != kFloat64) return 5;
  const int size = static_cast<Communicator*>(communicator)->size;
  const double* values = static_cast<const double*>(from);
  std::unique_lock<std::mutex> lock(mutex);
  changed.wait(lock, [] { return sum.left == 0; });
  sum.total.resize(count, 0);
  for (size_t i = 0; i < count; ++i) sum.total[i] += values[i];
  if (++sum.joined == size) sum.left = size;
  changed.notify_all();
  changed.wait(lock, [] { return sum.left > 0; });
  std::memcpy(to, sum.total.data(), count * sizeof(double));
  if (--sum.left == 0) sum = Sum();
  changed.notify_all();
  return 0;
}

int ncclSend(const void* from, size_t count, int type, int peer, void* communicator, void*) {
  const int rank = static_cast<Communicator*>(communicator)->rank;
  const char* bytes = static_cast<const char*>(from);
  std::vector<char> message(bytes, bytes + count * size_of(type));
  sends.push_back([rank, peer, message] {
    const std::lock_guard<std::mutex> lock(mutex);
    messages[{rank, peer}].push_back(message);
    changed.notify_all();
  });
  return 0;
}

int ncclRecv(void* to, size_t count, int type, int peer, void* communicator, void*) {
  const int rank = static_cast<Communicator*>(communicator)->rank;
  receives.push_back([=] {
    std::unique_lock<std::mutex> lock(mutex);
    auto& queue = messages[{peer, rank}];
    changed.wait(lock, [&] { return !queue.empty(); });
    if (queue.front().size() == count * size_of(type)) std::memcpy(to, queue.front().data(), queue.front().size());
    queue.pop_front();
  });
  return 0;
}

int ncclGroupStart() {
  sends.clear();
  receives.clear();
  return 0;
}

int ncclGroupEnd() {
  for (const auto& send : sends) send();
  for (const auto& receive : receives) receive();
  return 0;
}

}  // extern "C"
