// RMSNorm (Zhang and Sennrich, arXiv 1910.07467), with the residual addition fused. Llama's casting: the mean square and
// x / rms in float32, the result rounded to x's type, then multiplied by the weight.
//
// A row is held in registers by blockDim.x threads, P packs of N values each; a block has blockDim.y rows. x is read once.

#include "cuda/rms_norm.h"

namespace {

using namespace norm_rows;

template <typename T, int N, int P, bool RESIDUAL>
__global__ void __launch_bounds__(kMaxWarps * kWarp) forward_kernel(
    const T* x, const T* residual, const T* weight, T* y, T* new_residual, float* rstd, int64_t stride_x,
    int64_t stride_residual, int64_t rows, int D, float eps) {
  SHARED(float, share, 2 * kMaxWarps);
  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool inside = row < rows;
  Pack<T, N> values[P], scales[P];
  load_row(x + row * stride_x, inside, D, values);
  if (RESIDUAL) {
    Pack<T, N> added[P];
    load_row(residual + row * stride_residual, inside, D, added);
#pragma unroll
    for (int p = 0; p < P; ++p)
#pragma unroll
      for (int i = 0; i < N; ++i)  // what is normalised is the sum as stored
        values[p].v[i] = from_float<T>(to_float(values[p].v[i]) + to_float(added[p].v[i]));
    store_row(new_residual + row * D, inside, D, values);
  }
  load_row(weight, true, D, scales);
  float squares = 0.0f;
#pragma unroll
  for (int p = 0; p < P; ++p)
#pragma unroll
    for (int i = 0; i < N; ++i) squares += to_float(values[p].v[i]) * to_float(values[p].v[i]);
  const float r = reciprocal_root(row_sum(squares, share, 0) / D + eps);
  if (inside && threadIdx.x == 0) store(rstd + row, r);
#pragma unroll
  for (int p = 0; p < P; ++p)
#pragma unroll
    for (int i = 0; i < N; ++i)
      values[p].v[i] =
          from_float<T>(to_float(from_float<T>(to_float(values[p].v[i]) * r)) * to_float(scales[p].v[i]));
  store_row(y + row * D, inside, D, values);
}

// ---- host ------------------------------------------------------------------------------------------------------------

// x, residual (rows, D) with adjacent features, weight (D,) -> y, new_residual (rows, D), rstd (rows,) float32.
void rms_norm(const Tensor& x, std::optional<Tensor> residual, const Tensor& weight, const Tensor& y,
              std::optional<Tensor> new_residual, const Tensor& rstd, double eps) {
  const int64_t rows = x.size(0), D = x.size(1);
  if (rows == 0) return;
  const Tensor *added = glue::given(residual), *sum = glue::given(new_residual);
  check_rows(&x, x, "x");
  check_rows(added, x, "residual");
  check_rows(&y, x, "y");
  check_rows(sum, x, "new_residual");
  glue::check_vector(weight, D, x.scalar_type(), "weight");
  glue::check_vector(rstd, rows, glue::ScalarType::Float, "rstd");
  CHECK_INPUT(y.is_contiguous() && (added == nullptr) == (sum == nullptr) && (sum == nullptr || sum->is_contiguous()),
                  "emergence_cuda: rms_norm writes contiguous tensors, and a new residual where there is one");
  const std::vector<const Tensor*> all{&x, added, &weight, &y, sum, &rstd};
  by_packing(x, {&x, added, &weight, &y, sum}, [&](auto of_x, auto n, auto p) {
    using T = decltype(of_x);
    const Shape s = shape(rows, D, n, p);
    auto run = [&](auto kernel) {
      glue::launch(kernel, dim3(s.blocks), s.block, 0, x, all, glue::pointer<T>(x), glue::pointer<T>(residual),
                   glue::pointer<T>(weight), glue::pointer<T>(y), glue::pointer<T>(new_residual), glue::pointer<float>(rstd),
                   x.stride(0), added ? added->stride(0) : 0, rows, static_cast<int>(D), static_cast<float>(eps));
    };
    if (added)
      run(&forward_kernel<T, n(), p(), true>);
    else
      run(&forward_kernel<T, n(), p(), false>);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) { library.def(RMS_NORM); }

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) { library.impl("rms_norm", TORCH_BOX(&rms_norm)); }
