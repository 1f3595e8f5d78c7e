// What the GPU's and the processor's libraries have in common: the same operators under the same arguments, so that one
// Python module calls either, and checks of tensors. Host code, torch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#define LOSS_ROWS                                                                                                       \
  "loss_rows(Tensor z, Tensor(a!) dz, int V, Tensor targets, Tensor valid, Tensor? scale, Tensor(b!) loss, "            \
  "Tensor(c!) top, Tensor(d!) log_total, Tensor(e!)? correct, Tensor(f!)? entropy, float z_loss, float softcap) -> ()"
#define LOSS_ROWS_GRADIENT                                                                                              \
  "loss_rows_gradient(Tensor z, Tensor(a!) dz, int V, Tensor targets, Tensor valid, Tensor scale, Tensor top, "         \
  "Tensor log_total, float z_loss, float softcap) -> ()"
#define RMS_NORM                                                                                                        \
  "rms_norm(Tensor x, Tensor? residual, Tensor weight, Tensor(a!) y, Tensor(b!)? new_residual, Tensor(c!) rstd, "       \
  "float eps) -> ()"
#define RMS_NORM_BACKWARD                                                                                               \
  "rms_norm_backward(Tensor dy, Tensor? d_residual, Tensor x, Tensor weight, Tensor rstd, Tensor(a!) dx, "              \
  "Tensor(b!) dweight) -> ()"
#define ROTARY "rotary(Tensor x, Tensor cos, Tensor sin, Tensor(a!) out, float sign) -> ()"
#define POSITION_SUMS                                                                                                   \
  "position_sums(Tensor token_loss, Tensor valid, Tensor correct, Tensor entropy, Tensor(a!) count, "                   \
  "Tensor(b!) loss_sum, Tensor(c!) loss_sq_sum, Tensor(d!) correct_sum, Tensor(e!) entropy_sum) -> ()"

namespace operators {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <typename T>
T* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? pointer<T>(*tensor) : nullptr;
}

inline void check_vector(const Tensor& tensor, int64_t length, ScalarType type, const char* name) {
  STD_TORCH_CHECK(tensor.numel() == length && tensor.is_contiguous() && tensor.scalar_type() == type, "emergence_kernels: ",
                  name, " must be contiguous, of its type, and hold ", length, " values");
}

}  // namespace operators
