// Shared by the GPU's and the CPU's libraries: operators with the same arguments, so that one Python module calls either,
// and checks of tensors. Host code, torch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "common/check.h"

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
#define SWIGLU "swiglu(Tensor x, Tensor(a!) y) -> ()"
#define SWIGLU_BACKWARD "swiglu_backward(Tensor dy, Tensor x, Tensor(a!) dx) -> ()"
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
  CHECK_INPUT(tensor.numel() == length && tensor.is_contiguous() && tensor.scalar_type() == type, "emergence_kernels: ",
                  name, " must be contiguous, of its type, and hold ", length, " values");
}

// x (B, T, H, D), cos and sin (T, R) or (B, T, R) float32, out as x, which it may be, in whatever strides.
inline void check_rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& out) {
  CHECK_INPUT(x.dim() == 4 && (x.stride(3) == 1 || x.size(3) == 1),
                  "emergence_kernels: x must be (batch, positions, heads, features) with adjacent features");
  const int64_t B = x.size(0), T = x.size(1), R = cos.size(cos.dim() - 1);
  for (const Tensor* angle : {&cos, &sin})
    check_vector(*angle, (cos.dim() == 3 ? B : 1) * T * R, ScalarType::Float, "cos and sin");
  CHECK_INPUT(out.dim() == 4 && (out.stride(3) == 1 || out.size(3) == 1) && out.scalar_type() == x.scalar_type(),
                  "emergence_kernels: out must be as x, with adjacent features");
  for (int64_t d = 0; d < 4; ++d) CHECK_INPUT(out.size(d) == x.size(d), "emergence_kernels: out must have x's shape");
  for (int64_t d = 0; d < 3; ++d)  // threads write them
    CHECK_INPUT(out.size(d) < 2 || out.stride(d) >= out.size(3), "emergence_kernels: the result's rows overlap");
  CHECK_INPUT(2 * R <= x.size(3), "emergence_kernels: more angles than pairs of features");
}

// x (N, 2F) with adjacent features; other (N, halves F), of x's type, likewise.
inline void check_swiglu(const Tensor& x, const Tensor& other, int64_t halves, const char* name) {
  for (const Tensor* t : {&x, &other})
    CHECK_INPUT(t->dim() == 2 && (t->stride(1) == 1 || t->size(1) == 1) && t->scalar_type() == x.scalar_type(),
                    "emergence_kernels: x and ", name, " must be rows of adjacent features, of one type");
  CHECK_INPUT(other.size(0) == x.size(0) && 2 * other.size(1) == halves * x.size(1) && x.size(1) < (int64_t(1) << 31),
                  "emergence_kernels: ", name, " does not fit x");
}

// token_loss, entropy (B, T) float32; valid, correct (B, T) bool; counts (T,) int64, sums (T,) float64.
inline void check_position_sums(const Tensor& token_loss, const Tensor& valid, const Tensor& correct, const Tensor& entropy,
                                const Tensor& count, const Tensor& loss_sum, const Tensor& loss_sq_sum,
                                const Tensor& correct_sum, const Tensor& entropy_sum) {
  CHECK_INPUT(token_loss.dim() == 2, "emergence_kernels: token losses must be (batch, positions)");
  const int64_t T = token_loss.size(1), tokens = token_loss.numel();
  for (const Tensor* t : {&token_loss, &entropy}) check_vector(*t, tokens, ScalarType::Float, "token losses");
  for (const Tensor* t : {&valid, &correct}) check_vector(*t, tokens, ScalarType::Bool, "token flags");
  for (const Tensor* t : {&count, &correct_sum}) check_vector(*t, T, ScalarType::Long, "counts");
  for (const Tensor* t : {&loss_sum, &loss_sq_sum, &entropy_sum}) check_vector(*t, T, ScalarType::Double, "sums");
}

}  // namespace operators
