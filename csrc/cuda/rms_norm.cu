// RMSNorm (Zhang and Sennrich, arXiv 1910.07467), with the residual addition fused. Llama's casting: the mean square and
// x / rms in float32, the result rounded to x's type, then multiplied by the weight.
//
// With r = 1 / sqrt(mean(x^2) + eps), n = x r and g = dy * weight:
//
//   dx = r * (g - n * mean(g n)) + d new_residual          dweight = sum over rows of dy * round(n)
//
// A row is held in registers by blockDim.x threads, P packs of N values each; a block has blockDim.y rows. Forward and backward
// read x (and dy) once. Backward is persistent: a block loops over rows, keeps its share of dweight in registers in float32,
// and writes it once at the end; sum_shares adds the shares. All sums have a fixed order.

#include <array>

#include "common/torch_glue.h"

using namespace portable;

namespace {

constexpr int kPerThread = 16;  // values of a row that a thread holds; half as many where they are loaded singly
constexpr int kMaxWarps = 16;   // threads of a block: 512 may have 128 registers each, and backward needs about 90

// The sum over the threads of a row. All rows of the block advance together, so the barrier is for the whole block. `share` is
// double-buffered: the next row writes the other half while slow warps still read this one, which saves a second barrier.
template <typename Shares>
__device__ __forceinline__ float row_sum(float value, Shares& share, int parity) {
  value = warp_sum(value);
  const int warps = blockDim.x / kWarp;
  if (warps == 1) return value;
  const int first = parity * kMaxWarps + threadIdx.y * warps;
  if (threadIdx.x % kWarp == 0) share[first + threadIdx.x / kWarp] = value;
  barrier("every warp's share of the row has arrived before it is added up");
  float sum = share[first];
  for (int warp = 1; warp < warps; ++warp) sum += share[first + warp];
  return sum;
}

// P packs of a row, zeros beyond its end and where `inside` is false.
template <typename T, int N, int P>
__device__ __forceinline__ void load_row(const T* row, bool inside, int D, Pack<T, N> (&out)[P]) {
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int column = (p * blockDim.x + threadIdx.x) * N;
    if (inside && column < D) {
      out[p] = load(reinterpret_cast<const Pack<T, N>*>(row + column));
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) out[p].v[i] = from_float<T>(0.0f);
    }
  }
}

template <typename T, int N, int P>
__device__ __forceinline__ void store_row(T* row, bool inside, int D, const Pack<T, N> (&values)[P]) {
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int column = (p * blockDim.x + threadIdx.x) * N;
    if (inside && column < D) store(reinterpret_cast<Pack<T, N>*>(row + column), values[p]);
  }
}

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

// x is what was normalised. shares (gridDim.x, D): each block's share of dweight.
template <typename T, int N, int P, bool RESIDUAL>
__global__ void __launch_bounds__(kMaxWarps * kWarp) backward_kernel(
    const T* dy, const T* d_residual, const T* x, const T* weight, const float* rstd, T* dx, float* shares,
    int64_t stride_dy, int64_t stride_d_residual, int64_t stride_x, int64_t rows, int D) {
  SHARED(float, share, 2 * kMaxWarps);
  DYNAMIC_SHARED(float, of_rows);  // (blockDim.y, D) where a block has more than one row
  Pack<T, N> x_next[P], dy_next[P];
  float dw[P][N] = {};
  const int64_t step = int64_t(gridDim.x) * blockDim.y;
  int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  load_row(x + row * stride_x, row < rows, D, x_next);
  load_row(dy + row * stride_dy, row < rows, D, dy_next);
  int parity = 0;
  // By the block's first row, so that all of its threads make as many rounds.
  for (int64_t first = row - threadIdx.y; first < rows; first += step, row += step, parity ^= 1) {
    const bool inside = row < rows;
    Pack<T, N> x_row[P], dy_row[P], scales[P];
#pragma unroll
    for (int p = 0; p < P; ++p) {
      x_row[p] = x_next[p];
      dy_row[p] = dy_next[p];
    }
    // The next rows are loaded while these are reduced.
    load_row(x + (row + step) * stride_x, row + step < rows, D, x_next);
    load_row(dy + (row + step) * stride_dy, row + step < rows, D, dy_next);
    load_row(weight, true, D, scales);  // from the L1 cache: registers are short
    const float r = inside ? load(rstd + row) : 0.0f;
    float dot = 0.0f;
#pragma unroll
    for (int p = 0; p < P; ++p)
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float normed = to_float(x_row[p].v[i]) * r, upstream = to_float(dy_row[p].v[i]);
        dot += upstream * to_float(scales[p].v[i]) * normed;
        dw[p][i] += upstream * to_float(from_float<T>(normed));
      }
    const float mean = row_sum(dot, share, parity) / D;
    Pack<T, N> passed[RESIDUAL ? P : 1];
    if constexpr (RESIDUAL) load_row(d_residual + row * stride_d_residual, inside, D, passed);
#pragma unroll
    for (int p = 0; p < P; ++p)
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float normed = to_float(x_row[p].v[i]) * r;
        const float g = to_float(dy_row[p].v[i]) * to_float(scales[p].v[i]);
        float gradient = r * (g - normed * mean);
        if constexpr (RESIDUAL) gradient += to_float(passed[p].v[i]);
        x_row[p].v[i] = from_float<T>(gradient);
      }
    store_row(dx + row * D, inside, D, x_row);
  }
  // The block's rows are added up in order, by the threads of its first row.
  if (blockDim.y > 1) {
#pragma unroll
    for (int p = 0; p < P; ++p)
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int column = (p * blockDim.x + threadIdx.x) * N + i;
        if (column < D) of_rows[threadIdx.y * D + column] = dw[p][i];
      }
    barrier("every row's share of dweight has arrived before they are added up");
  }
  if (threadIdx.y > 0) return;
#pragma unroll
  for (int p = 0; p < P; ++p)
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int column = (p * blockDim.x + threadIdx.x) * N + i;
      if (column >= D) continue;
      for (unsigned other = 1; other < blockDim.y; ++other) dw[p][i] += of_rows[other * D + column];
      store(shares + int64_t(blockIdx.x) * D + column, dw[p][i]);
    }
}

// dweight (D,) = sum of shares (blocks, D). A block has 32 columns; warp w adds the shares w, w + blockDim.y, ...
template <typename T>
__global__ void sum_shares_kernel(const float* shares, T* dweight, int blocks, int D) {
  SHARED(float, of_warp, kMaxWarps* kWarp);
  const int column = blockIdx.x * kWarp + threadIdx.x;
  float sum = 0.0f;
  if (column < D)
    for (int block = threadIdx.y; block < blocks; block += blockDim.y) sum += load(shares + int64_t(block) * D + column);
  of_warp[threadIdx.y * kWarp + threadIdx.x] = sum;
  barrier("every warp's sum has arrived before they are added up");
  if (threadIdx.y > 0 || column >= D) return;
  for (unsigned warp = 1; warp < blockDim.y; ++warp) sum += of_warp[warp * kWarp + threadIdx.x];
  store(dweight + column, from_float<T>(sum));
}

// ---- host ------------------------------------------------------------------------------------------------------------

using glue::Tensor;

struct Shape {
  dim3 block;
  unsigned blocks;  // that cover all rows
};

// One row for as many threads as hold it, P packs of N each; at least 8 warps a block, by several rows of few threads.
Shape shape(int64_t rows, int64_t D, int N, int P) {
  const int warps = static_cast<int>(glue::divide_up(D, int64_t(kWarp) * N * P));
  CHECK_INPUT(warps <= kMaxWarps, "emergence_cuda: rms_norm of ", D, " features: at most ", kMaxWarps * kWarp * N * P,
                  " where they are loaded ", N, " at a time");
  const int per_block = std::max(1, 8 / warps);
  return {dim3(warps * kWarp, per_block), glue::divide_up(rows, per_block)};
}

bool packs(const Tensor* t, int64_t D, int N) {
  if (t == nullptr) return true;
  const bool rows_aligned = t->dim() < 2 || t->size(0) < 2 || t->stride(0) % N == 0;
  return D % N == 0 && rows_aligned && glue::aligned(t->data_ptr(), 16);
}

void check_rows(const Tensor* t, const Tensor& like, const char* name) {
  if (t == nullptr) return;
  CHECK_INPUT(t->dim() == 2 && t->size(0) == like.size(0) && t->size(1) == like.size(1) && t->stride(1) == 1 &&
                      t->scalar_type() == like.scalar_type(),
                  "emergence_cuda: ", name, " must be (rows, features) with adjacent features, as x is");
}

// Calls f(T, N, P): packs of 16 bytes where every tensor allows it, else single values.
template <typename F>
void by_packing(const Tensor& x, const std::vector<const Tensor*>& tensors, F&& f) {
  glue::by_type(x, [&](auto of_x) {
    using T = decltype(of_x);
    constexpr int N = 16 / sizeof(T);
    bool wide = true;
    for (const Tensor* t : tensors) wide = wide && packs(t, x.size(1), N);
    if (wide)
      f(of_x, std::integral_constant<int, N>{}, std::integral_constant<int, kPerThread / N>{});
    else
      f(of_x, std::integral_constant<int, 1>{}, std::integral_constant<int, kPerThread / 2>{});
  });
}

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

// dy, d_residual, x (what was normalised) (rows, D), rstd (rows,) -> dx (rows, D) contiguous, dweight (D,).
void rms_norm_backward(const Tensor& dy, std::optional<Tensor> d_residual, const Tensor& x, const Tensor& weight,
                       const Tensor& rstd, const Tensor& dx, const Tensor& dweight) {
  const int64_t rows = x.size(0), D = x.size(1);
  const Tensor* passed = glue::given(d_residual);
  check_rows(&x, x, "x");
  check_rows(&dy, x, "dy");
  check_rows(passed, x, "d_residual");
  check_rows(&dx, x, "dx");
  CHECK_INPUT(dx.is_contiguous(), "emergence_cuda: dx must be contiguous");
  glue::check_vector(weight, D, x.scalar_type(), "weight");
  glue::check_vector(dweight, D, x.scalar_type(), "dweight");
  glue::check_vector(rstd, rows, glue::ScalarType::Float, "rstd");
  by_packing(x, {&x, &dy, passed, &weight, &dx}, [&](auto of_x, auto n, auto p) {
    using T = decltype(of_x);
    const Shape s = shape(rows, D, n, p);
    // As many blocks as are resident at once: about 1024 threads a multiprocessor at the registers that this takes.
    const unsigned resident = glue::multiprocessors(x.get_device_index()) * std::max(1u, 1024 / (s.block.x * s.block.y));
    const unsigned blocks = std::min(s.blocks, resident);
    const std::array<int64_t, 2> size{std::max(1u, blocks), D};
    const Tensor shares = torch::stable::new_empty(x, size, glue::ScalarType::Float);
    if (rows > 0) {
      auto run = [&](auto kernel) {
        glue::launch(kernel, dim3(blocks), s.block, s.block.y > 1 ? s.block.y * D * sizeof(float) : 0, x,
                     {&dy, passed, &x, &weight, &rstd, &dx, &shares}, glue::pointer<T>(dy), glue::pointer<T>(d_residual),
                     glue::pointer<T>(x), glue::pointer<T>(weight), glue::pointer<float>(rstd), glue::pointer<T>(dx),
                     glue::pointer<float>(shares), dy.stride(0), passed ? passed->stride(0) : 0, x.stride(0), rows,
                     static_cast<int>(D));
      };
      if (passed)
        run(&backward_kernel<T, n(), p(), true>);
      else
        run(&backward_kernel<T, n(), p(), false>);
    }
    glue::launch(&sum_shares_kernel<T>, dim3(glue::divide_up(D, kWarp)), dim3(kWarp, 16), 0, x, {&shares, &dweight},
                 glue::pointer<float>(shares), glue::pointer<T>(dweight), static_cast<int>(blocks), static_cast<int>(D));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def(RMS_NORM);
  library.def(RMS_NORM_BACKWARD);
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("rms_norm", TORCH_BOX(&rms_norm));
  library.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
}
