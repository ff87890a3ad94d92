// Sums and rows between GPUs by NVIDIA's NCCL, whose library libtorch's CUDA part has loaded: nothing is linked.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/Store.hpp>

struct NcclLibrary;

// Another process is gone: NCCL noticed, or waited for it in vain.
struct NcclPeerError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The GPUs of a group of processes, one of each. All processes call the same functions in the same order, and each function waits
// until the GPU has done it.
class Nccl {
 public:
  // Connects this process's GPU with those of the others, whom it meets in the store.
  Nccl(c10d::Store& store, int rank, int size, at::Device device, std::chrono::milliseconds timeout);
  ~Nccl();
  Nccl(const Nccl&) = delete;
  Nccl& operator=(const Nccl&) = delete;

  at::Device device() const { return device_; }

  // Waits until the GPU has done all that was launched on it.
  void wait_for_gpu() const;

  // Replaces a contiguous tensor by its sum over the processes.
  void sum(at::Tensor& tensor);

  // Sends rows of a contiguous tensor, in order, `sent[i]` of them to process i, and receives `received[i]` of it into `into`.
  void exchange_rows(const at::Tensor& rows, at::Tensor& into, const std::vector<int64_t>& sent,
                     const std::vector<int64_t>& received);

 private:
  void check_usable() const;
  void check(int result, const char* what) const;
  void wait(const char* what);
  void abort();

  const NcclLibrary& library_;
  at::Device device_;
  std::chrono::milliseconds timeout_;
  void* communicator_ = nullptr;
};
