// See fused.cpp.
#pragma once

#include <ATen/core/Tensor.h>

// silu(group_norm(x)), fused into one pass if x is f32 on the CPU and the weights are not trained.
at::Tensor group_norm_silu(const at::Tensor& x, int64_t groups, const at::Tensor& weight, const at::Tensor& bias, double eps);
