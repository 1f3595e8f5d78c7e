// SwiGLU: rows of 2F features, a gate's first, and with s = sigmoid(gate)
//
//   y = gate s up        d_gate = dy up s (1 + gate (1 - s))        d_up = dy gate s
//
// A thread has packs of N features, the same of gate and up. Short rows share a block; a long one is shared by several.

#include "common/torch_glue.h"

using namespace portable;

namespace {

constexpr int kThreads = 128;

struct Rows {
  int64_t rows, stride_x, stride_dy;
  int F;
};

// exp of a non-positive argument cannot overflow, and the sigmoid of a large negative gate stays accurate.
__device__ __forceinline__ float sigmoid(float x) {
  const float e = exp_fast(-fabsf(x));
  return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) swiglu_kernel(const T* x, T* y, Rows of) {
  using Values = Pack<T, N>;
  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= of.rows) return;
  x += row * of.stride_x;
  y += row * of.F;
  for (int i = (blockIdx.y * blockDim.x + threadIdx.x) * N; i < of.F; i += gridDim.y * blockDim.x * N) {
    Values gate = load(reinterpret_cast<const Values*>(x + i));
    const Values up = load(reinterpret_cast<const Values*>(x + of.F + i));
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float g = to_float(gate.v[j]);
      gate.v[j] = from_float<T>(g * sigmoid(g) * to_float(up.v[j]));
    }
    store(reinterpret_cast<Values*>(y + i), gate);
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) swiglu_backward_kernel(const T* dy, const T* x, T* dx, Rows of) {
  using Values = Pack<T, N>;
  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= of.rows) return;
  dy += row * of.stride_dy;
  x += row * of.stride_x;
  dx += row * 2 * of.F;
  for (int i = (blockIdx.y * blockDim.x + threadIdx.x) * N; i < of.F; i += gridDim.y * blockDim.x * N) {
    Values gate = load(reinterpret_cast<const Values*>(x + i));
    Values up = load(reinterpret_cast<const Values*>(x + of.F + i));
    const Values grad = load(reinterpret_cast<const Values*>(dy + i));
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float g = to_float(gate.v[j]), d = to_float(grad.v[j]), s = sigmoid(g);
      gate.v[j] = from_float<T>(d * to_float(up.v[j]) * s * (1.0f + g * (1.0f - s)));
      up.v[j] = from_float<T>(d * g * s);
    }
    store(reinterpret_cast<Values*>(dx + i), gate);
    store(reinterpret_cast<Values*>(dx + of.F + i), up);
  }
}

using glue::Tensor;

// Calls launch(pack width, grid, block) for rows of F features, of which `tensors` have the first at any address.
template <typename E, typename F>
void by_width(int64_t rows, int64_t features, std::initializer_list<const Tensor*> tensors, F&& launch) {
  constexpr int kWide = 16 / sizeof(E);
  bool wide = features % kWide == 0;
  for (const Tensor* t : tensors)
    wide = wide && glue::aligned(t->data_ptr(), 16) && (t->size(0) < 2 || t->stride(0) % kWide == 0);
  const int64_t packs = wide ? features / kWide : features;
  unsigned across = 8;
  while (across < kThreads && across < packs) across *= 2;
  const dim3 grid(glue::divide_up(rows, kThreads / across), std::min<int64_t>(glue::divide_up(packs, across), 1024));
  const dim3 block(across, kThreads / across);
  if (wide)
    launch(std::integral_constant<int, kWide>{}, grid, block);
  else
    launch(std::integral_constant<int, 1>{}, grid, block);
}

// x (N, 2F) with adjacent features -> y (N, F) contiguous.
void swiglu(const Tensor& x, const Tensor& y) {
  operators::check_swiglu(x, y, 1, "y");
  glue::check_vector(y, y.numel(), x.scalar_type(), "y");
  if (x.numel() == 0) return;
  const Rows of{x.size(0), x.stride(0), 0, int(y.size(1))};
  glue::by_type(x, [&](auto type) {
    using E = decltype(type);
    by_width<E>(of.rows, of.F, {&x, &y}, [&](auto width, dim3 grid, dim3 block) {
      glue::launch(&swiglu_kernel<E, width()>, grid, block, 0, x, {&x, &y}, glue::pointer<E>(x), glue::pointer<E>(y), of);
    });
  });
}

// dy (N, F) and x with adjacent features -> dx (N, 2F) contiguous.
void swiglu_backward(const Tensor& dy, const Tensor& x, const Tensor& dx) {
  operators::check_swiglu(x, dy, 1, "dy");
  operators::check_swiglu(x, dx, 2, "dx");
  glue::check_vector(dx, dx.numel(), x.scalar_type(), "dx");
  if (x.numel() == 0) return;
  const Rows of{x.size(0), x.stride(0), dy.stride(0), int(dy.size(1))};
  glue::by_type(x, [&](auto type) {
    using E = decltype(type);
    by_width<E>(of.rows, of.F, {&dy, &x, &dx}, [&](auto width, dim3 grid, dim3 block) {
      glue::launch(&swiglu_backward_kernel<E, width()>, grid, block, 0, x, {&dy, &x, &dx}, glue::pointer<E>(dy),
                   glue::pointer<E>(x), glue::pointer<E>(dx), of);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def(SWIGLU);
  library.def(SWIGLU_BACKWARD);
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("swiglu", TORCH_BOX(&swiglu));
  library.impl("swiglu_backward", TORCH_BOX(&swiglu_backward));
}
