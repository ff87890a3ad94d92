"""SiLU after GroupNorm on channels-last feature maps in bf16: fused kernels against libtorch's operations, on a GPU.

libtorch's GroupNorm on CUDA works on contiguous maps alone, so a channels-last network pays for two transpositions around
each of its norms, and SiLU is a pass of its own. The kernels here read a map twice and write it once, in the order of its
memory, and add partial sums in a fixed order, so that equal inputs give equal bits. The program does not use them yet:
this script says what they would bring at the sizes of Stable Diffusion 2's UNet, and how exact they are.

    python3 bench/group_norm_silu.py                    # needs torch and cupy with CUDA
"""
import os

import cupy
import torch
import torch.nn.functional as F

GROUPS, EPS = 32, 1e-5
# The maps [n, channels, side, side] of a call of 16 rows at 512 px.
MAPS = [(16, 320, 64), (16, 640, 64), (16, 960, 64), (16, 640, 32), (16, 1920, 32), (16, 1280, 16), (16, 2560, 16), (16, 2560, 8)]

# A block reads some pixels of one row, all channels of them; a thread reads eight channels at a time (16 bytes). x, y, dy
# and dx are [n, pixels, channels]; `sums` is [n, blocks, groups, 2], `moments` (mean and 1 / deviation) [n, groups, 2].
SOURCE = r"""
#include <cuda_bf16.h>
typedef __nv_bfloat16 T;

__device__ void load(const T* from, float* to) {
  const uint4 bits = *(const uint4*)from;
  const __nv_bfloat162* pairs = (const __nv_bfloat162*)&bits;
  for (int i = 0; i < 4; i++) {
    const float2 pair = __bfloat1622float2(pairs[i]);
    to[2 * i] = pair.x;
    to[2 * i + 1] = pair.y;
  }
}

__device__ void store(T* to, const float* from) {
  uint4 bits;
  __nv_bfloat162* pairs = (__nv_bfloat162*)&bits;
  for (int i = 0; i < 4; i++) pairs[i] = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
  *(uint4*)to = bits;
}

struct Place {
  int lanes, rows, row, c, n, begin, end;  // lanes: threads per pixel; c: this thread's first channel
  __device__ Place(int pixels, int channels, int per_block) {
    lanes = channels / 8;
    rows = blockDim.x / lanes;
    row = threadIdx.x / lanes;
    c = threadIdx.x % lanes * 8;
    n = blockIdx.y;
    begin = blockIdx.x * per_block + row;
    end = min(pixels, (int)(blockIdx.x + 1) * per_block);
  }
};

// Adds the channels' values of all threads up to two sums per group.
__device__ void sum_groups(const Place& at, const float* a, const float* b, int channels, int groups, float* sums) {
  extern __shared__ float shared[];
  float *of_a = shared, *of_b = shared + channels * at.rows;
  for (int i = 0; i < 8; i++) {
    of_a[at.row * channels + at.c + i] = a[i];
    of_b[at.row * channels + at.c + i] = b[i];
  }
  __syncthreads();
  const int width = channels / groups;
  float* to = sums + ((long)at.n * gridDim.x + blockIdx.x) * groups * 2;
  for (int g = threadIdx.x; g < groups; g += blockDim.x) {
    float sum_a = 0, sum_b = 0;
    for (int row = 0; row < at.rows; row++)
      for (int c = g * width; c < (g + 1) * width; c++) {
        sum_a += of_a[row * channels + c];
        sum_b += of_b[row * channels + c];
      }
    to[2 * g] = sum_a;
    to[2 * g + 1] = sum_b;
  }
}

// The means over a group of what all blocks summed, into shared memory [groups, 2].
__device__ float* means(const float* sums, int n, int groups, float count) {
  extern __shared__ float shared[];
  for (int i = threadIdx.x; i < 2 * groups; i += blockDim.x) {
    float sum = 0;
    for (int block = 0; block < gridDim.x; block++) sum += sums[((long)n * gridDim.x + block) * groups * 2 + i];
    shared[i] = sum / count;
  }
  __syncthreads();
  return shared;
}

extern "C" __global__ void forward_sums(const T* x, float* sums, int pixels, int channels, int groups, int per_block) {
  const Place at(pixels, channels, per_block);
  float sum[8] = {0}, squares[8] = {0}, value[8];
  for (int p = at.begin; p < at.end; p += at.rows) {
    load(x + ((long)at.n * pixels + p) * channels + at.c, value);
    for (int i = 0; i < 8; i++) {
      sum[i] += value[i];
      squares[i] += value[i] * value[i];
    }
  }
  sum_groups(at, sum, squares, channels, groups, sums);
}

extern "C" __global__ void forward(const T* x, const T* weight, const T* bias, const float* sums, float* moments, T* y,
                                   int pixels, int channels, int groups, int per_block, float eps) {
  const Place at(pixels, channels, per_block);
  const int width = channels / groups;
  float* mean = means(sums, at.n, groups, (float)pixels * width);
  float scale[8], shift[8], value[8];
  for (int i = 0; i < 8; i++) {
    const int c = at.c + i, g = c / width;
    const float inverse = rsqrtf(fmaxf(mean[2 * g + 1] - mean[2 * g] * mean[2 * g], 0.f) + eps);
    scale[i] = __bfloat162float(weight[c]) * inverse;
    shift[i] = __bfloat162float(bias[c]) - mean[2 * g] * scale[i];
    if (blockIdx.x == 0 && at.row == 0) {
      moments[((long)at.n * groups + g) * 2] = mean[2 * g];
      moments[((long)at.n * groups + g) * 2 + 1] = inverse;
    }
  }
  for (int p = at.begin; p < at.end; p += at.rows) {
    const long offset = ((long)at.n * pixels + p) * channels + at.c;
    load(x + offset, value);
    for (int i = 0; i < 8; i++) {
      const float z = value[i] * scale[i] + shift[i];
      value[i] = z / (1.f + __expf(-z));
    }
    store(y + offset, value);
  }
}

struct Gradient {
  float mean[8], inverse[8], weight[8], bias[8];
  __device__ Gradient(const Place& at, const T* w, const T* b, const float* moments, int channels, int groups) {
    for (int i = 0; i < 8; i++) {
      const int c = at.c + i;
      const float* of_group = moments + ((long)at.n * groups + c / (channels / groups)) * 2;
      mean[i] = of_group[0];
      inverse[i] = of_group[1];
      weight[i] = __bfloat162float(w[c]);
      bias[i] = __bfloat162float(b[c]);
    }
  }
  // The normalized value, and the gradient with respect to it.
  __device__ void at_channel(int i, float x, float dy, float& normal, float& gradient) const {
    normal = (x - mean[i]) * inverse[i];
    const float z = normal * weight[i] + bias[i], s = 1.f / (1.f + __expf(-z));
    gradient = dy * s * (1.f + z * (1.f - s)) * weight[i];
  }
};

extern "C" __global__ void backward_sums(const T* x, const T* dy, const T* weight, const T* bias, const float* moments,
                                         float* sums, int pixels, int channels, int groups, int per_block) {
  const Place at(pixels, channels, per_block);
  const Gradient of(at, weight, bias, moments, channels, groups);
  float sum[8] = {0}, products[8] = {0}, value[8], above[8];
  for (int p = at.begin; p < at.end; p += at.rows) {
    const long offset = ((long)at.n * pixels + p) * channels + at.c;
    load(x + offset, value);
    load(dy + offset, above);
    for (int i = 0; i < 8; i++) {
      float normal, gradient;
      of.at_channel(i, value[i], above[i], normal, gradient);
      sum[i] += gradient;
      products[i] += gradient * normal;
    }
  }
  sum_groups(at, sum, products, channels, groups, sums);
}

extern "C" __global__ void backward(const T* x, const T* dy, const T* weight, const T* bias, const float* moments,
                                    const float* sums, T* dx, int pixels, int channels, int groups, int per_block) {
  const Place at(pixels, channels, per_block);
  const int width = channels / groups;
  const Gradient of(at, weight, bias, moments, channels, groups);
  const float* mean = means(sums, at.n, groups, (float)pixels * width);
  float value[8], above[8];
  for (int p = at.begin; p < at.end; p += at.rows) {
    const long offset = ((long)at.n * pixels + p) * channels + at.c;
    load(x + offset, value);
    load(dy + offset, above);
    for (int i = 0; i < 8; i++) {
      float normal, gradient;
      const int g = (at.c + i) / width;
      of.at_channel(i, value[i], above[i], normal, gradient);
      value[i] = of.inverse[i] * (gradient - mean[2 * g] - normal * mean[2 * g + 1]);
    }
    store(dx + offset, value);
  }
}
"""


class Kernels:
    def __init__(self):
        folders = ["/usr/local/cuda/include", os.path.join(os.path.dirname(torch.__file__), "../nvidia/cu13/include")]
        options = tuple("-I" + folder for folder in folders if os.path.isdir(folder)) + ("-std=c++17",)
        self.module = cupy.RawModule(code=SOURCE, backend="nvrtc", options=options)
        self.stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)

    def launch(self, name, x, tensors, *numbers):
        """Launches a kernel on channels-last `x`; the sums' kernels need shared memory for two numbers a channel."""
        n, channels, height, width = x.shape
        rows, blocks, per_block = plan(x)
        shared = 8 * (channels * rows if name.endswith("sums") else GROUPS)
        pointers = [cupy.uint64(tensor.data_ptr()) for tensor in tensors]
        sizes = [cupy.int32(size) for size in (height * width, channels, GROUPS, per_block)]
        with self.stream:
            self.module.get_function(name)((blocks, n), (channels // 8 * rows,), (*pointers, *sizes, *numbers), shared_mem=shared)

    def forward(self, x, weight, bias):
        """Returns the output and the moments that the backward pass needs."""
        n, (_, blocks, _) = len(x), plan(x)
        sums, moments = (torch.empty(n, of, GROUPS, 2, device=x.device) for of in (blocks, 1))
        y = torch.empty_like(x)
        self.launch("forward_sums", x, [x, sums])
        self.launch("forward", x, [x, weight, bias, sums, moments, y], cupy.float32(EPS))
        return y, moments

    def backward(self, x, dy, weight, bias, moments):
        sums, dx = torch.empty(len(x), plan(x)[1], GROUPS, 2, device=x.device), torch.empty_like(x)
        self.launch("backward_sums", x, [x, dy, weight, bias, moments, sums])
        self.launch("backward", x, [x, dy, weight, bias, moments, sums, dx])
        return dx


def plan(x):
    """Returns pixels that a block reads at once, blocks per row, and pixels per block: about four blocks a processor."""
    n, channels, height, width = x.shape
    pixels = height * width
    rows = max(1, 512 // (channels // 8))
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    per_block = -(-pixels // max(1, min(-(-pixels // rows), 4 * processors // n)))
    return rows, -(-pixels // per_block), per_block


def microseconds(f, repeats=20):
    for _ in range(3):
        f()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        f()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / repeats * 1e3


def error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def main():
    kernels = Kernels()
    print(torch.cuda.get_device_name(), "; microseconds and relative errors, kernels against libtorch", sep="")
    for n, channels, side in MAPS:
        generator = torch.Generator("cuda").manual_seed(1)

        def normal(*shape):
            tensor = torch.randn(shape, device="cuda", generator=generator).bfloat16()
            return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor

        x, dy, weight, bias = normal(n, channels, side, side) * 2 + 1, normal(n, channels, side, side), normal(channels), normal(channels)
        y, moments = kernels.forward(x, weight, bias)
        dx = kernels.backward(x, dy, weight, bias, moments)
        again = torch.equal(kernels.forward(x, weight, bias)[0], y)

        exact = x.double().requires_grad_(True)
        exact_y = F.silu(F.group_norm(exact, GROUPS, weight.double(), bias.double(), EPS))
        exact_y.backward(dy.double())
        theirs = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(True)

        def library():
            return F.silu(F.group_norm(theirs, GROUPS, weight, bias, EPS)).contiguous(memory_format=torch.channels_last)

        def library_both():
            theirs.grad = None
            library().backward(dy)

        library_both()
        errors = [error(y, exact_y.detach()), error(library().detach(), exact_y.detach()), error(dx, exact.grad),
                  error(theirs.grad, exact.grad)]
        forward = microseconds(lambda: kernels.forward(x, weight, bias)), microseconds(library)
        backward = microseconds(lambda: kernels.backward(x, dy, weight, bias, moments)), microseconds(library_both) - forward[1]
        print(f"{n} x {channels} x {side} x {side}: forward {forward[0]:.0f} against {forward[1]:.0f}, backward {backward[0]:.0f} "
              f"against {backward[1]:.0f}; errors {errors[0]:.1e} against {errors[1]:.1e}, backward {errors[2]:.1e} against "
              f"{errors[3]:.1e}; {'equal' if again else 'OTHER'} bits again", flush=True)


if __name__ == "__main__":
    main()
