// RMSNorm on a CPU. The formulas, and the arguments, are those of cuda/rms_norm.cu and cuda/rms_norm_backward.cu. One pass over
// every tensor.

#include "cpu/cpu.h"

namespace {

using cpu::ScalarType;
using cpu::Tensor;

struct Forward {
  const float *x, *residual, *weight;  // residual may be null
  float *y, *sum, *rstd;
  int64_t stride_x, stride_residual, D;
  float eps;
};

CLONED void forward(const Forward& f, int64_t begin, int64_t end) {
  const int64_t D = f.D;
  for (int64_t r = begin; r < end; ++r) {
    const float* x = f.x + r * f.stride_x;
    float* y = f.y + r * D;
    float squares = 0.0f;
    if (f.residual) {
      const float* residual = f.residual + r * f.stride_residual;
      float* sum = f.sum + r * D;
#pragma omp simd reduction(+ : squares)
      for (int64_t d = 0; d < D; ++d) {
        sum[d] = x[d] + residual[d];
        squares += sum[d] * sum[d];
      }
      x = sum;
    } else {
#pragma omp simd reduction(+ : squares)
      for (int64_t d = 0; d < D; ++d) squares += x[d] * x[d];
    }
    const float rstd = 1.0f / std::sqrt(squares / D + f.eps);
    f.rstd[r] = rstd;
#pragma omp simd
    for (int64_t d = 0; d < D; ++d) y[d] = x[d] * rstd * f.weight[d];
  }
}

// Rows whose dweight is summed together: few, so that a sum over thousands of rows is a sum of sums.
constexpr int64_t kRowsOfShare = 64;

struct Backward {
  const float *dy, *d_residual, *x, *weight, *rstd;  // d_residual may be null
  float *dx, *shares;                                // shares (rows / kRowsOfShare, D)
  int64_t stride_dy, stride_d_residual, stride_x, rows, D;
};

CLONED void backward(const Backward& b, int64_t begin, int64_t end) {
  const int64_t D = b.D;
  for (int64_t share = begin; share < end; ++share) {
    float* dw = b.shares + share * D;
    std::fill(dw, dw + D, 0.0f);
    for (int64_t r = share * kRowsOfShare; r < std::min(b.rows, (share + 1) * kRowsOfShare); ++r) {
      const float *dy = b.dy + r * b.stride_dy, *x = b.x + r * b.stride_x;
      float* dx = b.dx + r * D;
      const float rstd = b.rstd[r];
      float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
      for (int64_t d = 0; d < D; ++d) {
        const float product = dy[d] * x[d] * rstd;
        dot += product * b.weight[d];
        dw[d] += product;
      }
      const float mean = dot / D * rstd;  // times x is the mean's share of normed
      if (b.d_residual) {
        const float* passed = b.d_residual + r * b.stride_d_residual;
#pragma omp simd
        for (int64_t d = 0; d < D; ++d) dx[d] = rstd * (dy[d] * b.weight[d] - x[d] * mean) + passed[d];
      } else {
#pragma omp simd
        for (int64_t d = 0; d < D; ++d) dx[d] = rstd * (dy[d] * b.weight[d] - x[d] * mean);
      }
    }
  }
}

CLONED void add_up(const float* shares, float* dweight, int64_t count, int64_t D) {
  std::fill(dweight, dweight + D, 0.0f);
  for (int64_t share = 0; share < count; ++share)
#pragma omp simd
    for (int64_t d = 0; d < D; ++d) dweight[d] += shares[share * D + d];
}

void rms_norm(const Tensor& x, std::optional<Tensor> residual, const Tensor& weight, const Tensor& y,
              std::optional<Tensor> new_residual, const Tensor& rstd, double eps) {
  const int64_t rows = x.size(0), D = x.size(1);
  cpu::check_rows(x, rows, D, "x");
  cpu::check_vector(weight, D, ScalarType::Float, "weight");
  cpu::check_vector(y, rows * D, ScalarType::Float, "y");
  cpu::check_vector(rstd, rows, ScalarType::Float, "rstd");
  CHECK_INPUT(residual.has_value() == new_residual.has_value(), "emergence_cpu: a residual needs room for its sum");
  if (residual) {
    cpu::check_rows(*residual, rows, D, "residual");
    cpu::check_vector(*new_residual, rows * D, ScalarType::Float, "new_residual");
  }
  const Forward f{cpu::pointer<float>(x),
                  cpu::pointer<float>(residual),
                  cpu::pointer<float>(weight),
                  cpu::pointer<float>(y),
                  cpu::pointer<float>(new_residual),
                  cpu::pointer<float>(rstd),
                  x.stride(0),
                  residual ? residual->stride(0) : 0,
                  D,
                  float(eps)};
  torch::stable::parallel_for(0, rows, cpu::grain(D), [&](int64_t begin, int64_t end) { forward(f, begin, end); });
}

void rms_norm_backward(const Tensor& dy, std::optional<Tensor> d_residual, const Tensor& x, const Tensor& weight,
                       const Tensor& rstd, const Tensor& dx, const Tensor& dweight) {
  const int64_t rows = x.size(0), D = x.size(1), count = (rows + kRowsOfShare - 1) / kRowsOfShare;
  cpu::check_rows(x, rows, D, "x");
  cpu::check_rows(dy, rows, D, "dy");
  if (d_residual) cpu::check_rows(*d_residual, rows, D, "d_residual");
  cpu::check_vector(weight, D, ScalarType::Float, "weight");
  cpu::check_vector(rstd, rows, ScalarType::Float, "rstd");
  cpu::check_vector(dx, rows * D, ScalarType::Float, "dx");
  cpu::check_vector(dweight, D, ScalarType::Float, "dweight");
  const std::array<int64_t, 2> size{count, D};
  const Tensor shares = torch::stable::new_empty(x, size, ScalarType::Float);
  const Backward b{cpu::pointer<float>(dy),
                   cpu::pointer<float>(d_residual),
                   cpu::pointer<float>(x),
                   cpu::pointer<float>(weight),
                   cpu::pointer<float>(rstd),
                   cpu::pointer<float>(dx),
                   cpu::pointer<float>(shares),
                   dy.stride(0),
                   d_residual ? d_residual->stride(0) : 0,
                   x.stride(0),
                   rows,
                   D};
  torch::stable::parallel_for(0, count, cpu::grain(D * kRowsOfShare),
                              [&](int64_t begin, int64_t end) { backward(b, begin, end); });
  add_up(b.shares, cpu::pointer<float>(dweight), count, D);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cpu, library) {
  library.def(RMS_NORM);
  library.def(RMS_NORM_BACKWARD);
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cpu, CPU, library) {
  library.impl("rms_norm", TORCH_BOX(&rms_norm));
  library.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
}
