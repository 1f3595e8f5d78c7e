// SwiGLU on a CPU. The formulas, and the arguments, are those of cuda/swiglu.cu.

#include "cpu/cpu.h"

namespace {

using cpu::Tensor;

struct Rows {
  const float *dy, *x;
  float* out;  // y or dx
  int64_t stride_dy, stride_x, stride_out, F;
};

inline float sigmoid(float x) {
  const float e = cpu::exp_negative(x < 0.0f ? x : -x);
  return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

CLONED void activate(const Rows& rows, int64_t begin, int64_t end) {
  const int64_t F = rows.F;
  for (int64_t r = begin; r < end; ++r) {
    const float* x = rows.x + r * rows.stride_x;
    float* y = rows.out + r * rows.stride_out;
#pragma omp simd
    for (int64_t i = 0; i < F; ++i) y[i] = x[i] * sigmoid(x[i]) * x[F + i];
  }
}

CLONED void gradient(const Rows& rows, int64_t begin, int64_t end) {
  const int64_t F = rows.F;
  for (int64_t r = begin; r < end; ++r) {
    const float *x = rows.x + r * rows.stride_x, *dy = rows.dy + r * rows.stride_dy;
    float* dx = rows.out + r * rows.stride_out;
#pragma omp simd
    for (int64_t i = 0; i < F; ++i) {
      const float g = x[i], d = dy[i], s = sigmoid(g);
      dx[i] = d * x[F + i] * s * (1.0f + g * (1.0f - s));
      dx[F + i] = d * g * s;
    }
  }
}

// x (N, 2F) -> y (N, F), both with adjacent features.
void swiglu(const Tensor& x, const Tensor& y) {
  cpu::check_rows(x, y.size(0), 2 * y.size(1), "x");
  operators::check_swiglu(x, y, 1, "y");
  cpu::check_apart(y);
  const Rows rows{nullptr, cpu::pointer<float>(x), cpu::pointer<float>(y), 0, x.stride(0), y.stride(0), y.size(1)};
  torch::stable::parallel_for(0, x.size(0), cpu::grain(rows.F), [&](int64_t a, int64_t b) { activate(rows, a, b); });
}

// dy (N, F), x -> dx (N, 2F), which may be x, all with adjacent features.
void swiglu_backward(const Tensor& dy, const Tensor& x, const Tensor& dx) {
  cpu::check_rows(x, dy.size(0), 2 * dy.size(1), "x");
  operators::check_swiglu(x, dy, 1, "dy");
  operators::check_swiglu(x, dx, 2, "dx");
  cpu::check_apart(dx);
  const Rows rows{cpu::pointer<float>(dy), cpu::pointer<float>(x), cpu::pointer<float>(dx), dy.stride(0), x.stride(0),
                  dx.stride(0),           dy.size(1)};
  torch::stable::parallel_for(0, x.size(0), cpu::grain(rows.F), [&](int64_t a, int64_t b) { gradient(rows, a, b); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cpu, library) {
  library.def(SWIGLU);
  library.def(SWIGLU_BACKWARD);
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cpu, CPU, library) {
  library.impl("swiglu", TORCH_BOX(&swiglu));
  library.impl("swiglu_backward", TORCH_BOX(&swiglu_backward));
}
