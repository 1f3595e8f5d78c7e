// The gradients of RMSNorm (rms_norm.cu). With r = 1 / sqrt(mean(x^2) + eps), n = x r and g = dy * weight:
//
//   dx = r * (g - n * mean(g n)) + d new_residual          dweight = sum over rows of dy * round(n)
//
// Blocks stay: they loop over rows, keep their share of dweight in registers in float32, and write it once at the end;
// sum_shares adds the shares. All sums have a fixed order, and x, dy and d new_residual are read once.
//
// backward_packs_kernel is for rows of packs of 16 bytes; backward_kernel for the others, and for the longest in float32.

#include <array>

#include "common/tensor_cores.h"
#include "cuda/rms_norm.h"

namespace {

using namespace norm_rows;

// ---- rows of packs ---------------------------------------------------------------------------------------------------

// A row is held by `warps` warps, kPacks packs a lane, and what it is made of comes by asynchronous copies, kAhead rows ahead: a
// thread reads what it copied, so that rows wait for no barrier but their own warps' (none where a warp holds a row).
constexpr int kWarps = 8, kThreads = kWarps * kWarp;  // of a block
constexpr int kPacks = 4, kAhead = 2;

template <typename T>
constexpr int kOfWarp = kWarp * kPacks * 16 / int(sizeof(T));  // values of a row

// As row_sum, of a row whose warps meet at a barrier of their own.
template <typename Shares>
__device__ __forceinline__ float sum_of_warps(float value, Shares& share, int parity, int warps) {
  value = warp_sum(value);
  if (warps == 1) return value;
  const int warp = threadIdx.x / kWarp, first = warp / warps * warps;
  if (threadIdx.x % kWarp == 0) share[parity * kWarps + warp] = value;
  barrier_among(1 + warp / warps, warps * kWarp, "every warp's share of its row has arrived before it is added up");
  float sum = share[parity * kWarps + first];
  for (int other = 1; other < warps; ++other) sum += share[parity * kWarps + first + other];
  return sum;
}

// x is what was normalised. shares (gridDim.x, D): each block's share of dweight. warps: of a row, a power of two.
template <typename T, bool RESIDUAL>
__global__ void __launch_bounds__(kThreads, 2) backward_packs_kernel(
    const T* dy, const T* d_residual, const T* x, const T* weight, const float* rstd, T* dx, float* shares, int64_t stride_dy,
    int64_t stride_d_residual, int64_t stride_x, int rows, int D, int warps) {
  constexpr int N = 16 / sizeof(T), kTensors = RESIDUAL ? 3 : 2;
  SHARED(float, share, 2 * kWarps);
  DYNAMIC_SHARED(tensor_cores::Chunk<T>, ring);  // [kAhead][kTensors][kPacks][kThreads]
  DYNAMIC_SHARED(float, of_rows);                // in its place afterwards: (kWarps / warps, width)
  const int warp = threadIdx.x / kWarp, slot = warp / warps, slots = kWarps / warps;
  const float share_of_one = 1.0f / D;
  const int first = (warp % warps * kWarp + int(threadIdx.x) % kWarp) * N, apart = warps * kWarp * N;  // of a lane's packs
  Pack<T, N> scales[kPacks];
#pragma unroll
  for (int p = 0; p < kPacks; ++p)
    scales[p] = first + p * apart < D ? load(reinterpret_cast<const Pack<T, N>*>(weight + first + p * apart)) : Pack<T, N>{};
  // Neighbouring rows go to different blocks, so that multiprocessors have equally many, to one.
  const int step = int(gridDim.x) * slots;
  int row = slot * int(gridDim.x) + int(blockIdx.x);
  const auto place_of = [&](int stage, int tensor, int p) {
    return ((stage * kTensors + tensor) * kPacks + p) * kThreads + int(threadIdx.x);
  };
  const auto copy_row = [&](int row, int stage) {
    const int width = row < rows ? D : 0;
    const int64_t at = row < rows ? row : 0;
#pragma unroll
    for (int tensor = 0; tensor < kTensors; ++tensor) {
      const T* from = tensor == 0 ? x + at * stride_x : tensor == 1 ? dy + at * stride_dy : d_residual + at * stride_d_residual;
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        const int column = first + p * apart;
        tensor_cores::copy_async(ring, place_of(stage, tensor, p), column < width ? from + column : from, column < width);
      }
    }
    tensor_cores::commit_copies();
  };
  const auto rstd_of = [&](int row) { return row < rows ? load(rstd + row) : 0.0f; };
  float dw[kPacks][N] = {}, r_ahead[kAhead];
#pragma unroll
  for (int stage = 0; stage < kAhead; ++stage) {
    copy_row(row + stage * step, stage);
    r_ahead[stage] = rstd_of(row + stage * step);
  }
  for (int stage = 0; row < rows; row += step, stage = (stage + 1) % kAhead) {
    const float r = r_ahead[0];
#pragma unroll
    for (int i = 0; i + 1 < kAhead; ++i) r_ahead[i] = r_ahead[i + 1];
    r_ahead[kAhead - 1] = rstd_of(row + kAhead * step);
    tensor_cores::wait_for_copies<kAhead - 1>("a row has arrived before it is read");
    float dot = 0.0f;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const Pack<T, N> of_x = ring[place_of(stage, 0, p)], of_dy = ring[place_of(stage, 1, p)];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float normed = to_float(of_x.v[i]) * r, upstream = to_float(of_dy.v[i]);
        dot += upstream * to_float(scales[p].v[i]) * normed;
        dw[p][i] += upstream * to_float(from_float<T>(normed));
      }
    }
    const float mean = sum_of_warps(dot, share, stage % 2, warps) * share_of_one;
    forget_loads();
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const Pack<T, N> of_x = ring[place_of(stage, 0, p)], of_dy = ring[place_of(stage, 1, p)];
      Pack<T, N> passed{}, gradients;
      if (RESIDUAL) passed = ring[place_of(stage, 2, p)];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float normed = to_float(of_x.v[i]) * r, g = to_float(of_dy.v[i]) * to_float(scales[p].v[i]);
        float gradient = r * (g - normed * mean);
        if (RESIDUAL) gradient += to_float(passed.v[i]);
        gradients.v[i] = from_float<T>(gradient);
      }
      const int column = first + p * apart;
      if (column < D) store(reinterpret_cast<Pack<T, N>*>(dx + int64_t(row) * D + column), gradients);
    }
    copy_row(row + kAhead * step, stage);
  }
  tensor_cores::wait_for_copies<0>("copies of what is beyond the last row are done before shares overwrite them");
  barrier("all rows are read before shares overwrite them");
  // Value i of a lane's pack lies apart from i + 1, beside the other lanes', in banks of their own.
  const int width = kPacks * warps * kWarp * N;
#pragma unroll
  for (int p = 0; p < kPacks; ++p)
#pragma unroll
    for (int i = 0; i < N; ++i)
      of_rows[slot * width + ((p * warps + warp % warps) * N + i) * kWarp + threadIdx.x % kWarp] = dw[p][i];
  barrier("every row's share of dweight has arrived before they are added up in order");
  for (int at = threadIdx.x; at < width; at += kThreads) {
    const int column = (at / kWarp / N * kWarp + at % kWarp) * N + at / kWarp % N;
    if (column >= D) continue;
    float sum = of_rows[at];
    for (int other = 1; other < slots; ++other) sum += of_rows[other * width + at];
    store(shares + int64_t(blockIdx.x) * D + column, sum);
  }
}

// ---- rows of single values -------------------------------------------------------------------------------------------

// A row is held in registers by blockDim.x threads, P packs of N values each; a block has blockDim.y rows.
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

// ---- shares ----------------------------------------------------------------------------------------------------------

// dweight (D,) = sum of shares (blocks, D), in a fixed order. A block has 8 columns, 32 bytes of each share.
constexpr int kColumns = 8;

template <typename T>
__global__ void __launch_bounds__(kThreads) sum_shares_kernel(const float* shares, T* dweight, int blocks, int D) {
  SHARED(float, of_warp, kWarps * kColumns);
  const int column = blockIdx.x * kColumns + threadIdx.x % kColumns;
  float sum = 0.0f;
  if (column < D) {
#pragma unroll 8
    for (int block = threadIdx.x / kColumns; block < blocks; block += kThreads / kColumns)
      sum += load(shares + int64_t(block) * D + column);
  }
#pragma unroll
  for (int bits = kColumns; bits < kWarp; bits *= 2) sum += from_lane_xor(sum, bits);
  if (threadIdx.x % kWarp < kColumns) of_warp[threadIdx.x / kWarp * kColumns + threadIdx.x % kColumns] = sum;
  barrier("every warp's sum has arrived before they are added up");
  if (threadIdx.x >= kColumns || column >= D) return;
  for (int warp = 1; warp < kWarps; ++warp) sum += of_warp[warp * kColumns + threadIdx.x];
  store(dweight + column, from_float<T>(sum));
}

// ---- host ------------------------------------------------------------------------------------------------------------

// Launches backward_packs_kernel. -> (blocks, D), its shares of dweight.
template <typename T>
Tensor backward_by_packs(const Tensor& dy, const std::optional<Tensor>& d_residual, const Tensor& x, const Tensor& weight,
                         const Tensor& rstd, const Tensor& dx) {
  const int64_t rows = x.size(0), D = x.size(1);
  const Tensor* passed = glue::given(d_residual);
  const int bytes = kAhead * (passed ? 3 : 2) * kPacks * kThreads * 16, device = x.get_device_index();
  int warps = 1;
  while (warps * kOfWarp<T> < D) warps *= 2;
  const int resident = std::clamp(glue::shared_bytes_per_multiprocessor(device) / (bytes + 2048), 1, 2);
  const int64_t blocks = std::min<int64_t>(glue::divide_up(rows, kWarps / warps), glue::multiprocessors(device) * resident);
  const std::array<int64_t, 2> size{blocks, D};
  const Tensor shares = torch::stable::new_empty(x, size, glue::ScalarType::Float);
  if (rows == 0) return shares;
  const auto run = [&](auto kernel) {
    glue::launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), bytes, x, {&dy, passed, &x, &weight, &rstd, &dx, &shares},
                 glue::pointer<T>(dy), glue::pointer<T>(d_residual), glue::pointer<T>(x), glue::pointer<T>(weight),
                 glue::pointer<float>(rstd), glue::pointer<T>(dx), glue::pointer<float>(shares), dy.stride(0),
                 passed ? passed->stride(0) : 0, x.stride(0), static_cast<int>(rows), static_cast<int>(D), warps);
  };
  if (passed)
    run(&backward_packs_kernel<T, true>);
  else
    run(&backward_packs_kernel<T, false>);
  return shares;
}

// Launches backward_kernel. -> (blocks, D), its shares of dweight.
template <typename T, int N, int P>
Tensor backward_by_values(const Tensor& dy, const std::optional<Tensor>& d_residual, const Tensor& x, const Tensor& weight,
                          const Tensor& rstd, const Tensor& dx) {
  const int64_t rows = x.size(0), D = x.size(1);
  const Tensor* passed = glue::given(d_residual);
  const Shape s = shape(rows, D, N, P);
  // As many blocks as are resident at once: about 1024 threads a multiprocessor at the registers that this takes.
  const unsigned resident = glue::multiprocessors(x.get_device_index()) * std::max(1u, 1024 / (s.block.x * s.block.y));
  const unsigned blocks = std::min(s.blocks, resident);
  const std::array<int64_t, 2> size{blocks, D};
  const Tensor shares = torch::stable::new_empty(x, size, glue::ScalarType::Float);
  if (rows == 0) return shares;
  const auto run = [&](auto kernel) {
    glue::launch(kernel, dim3(blocks), s.block, s.block.y > 1 ? s.block.y * D * sizeof(float) : 0, x,
                 {&dy, passed, &x, &weight, &rstd, &dx, &shares}, glue::pointer<T>(dy), glue::pointer<T>(d_residual),
                 glue::pointer<T>(x), glue::pointer<T>(weight), glue::pointer<float>(rstd), glue::pointer<T>(dx),
                 glue::pointer<float>(shares), dy.stride(0), passed ? passed->stride(0) : 0, x.stride(0), rows,
                 static_cast<int>(D));
  };
  if (passed)
    run(&backward_kernel<T, N, P, true>);
  else
    run(&backward_kernel<T, N, P, false>);
  return shares;
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
    const bool by_packs = n() > 1 && D <= kWarps * kOfWarp<T> && rows < (int64_t(1) << 30);
    const Tensor shares = by_packs ? backward_by_packs<T>(dy, d_residual, x, weight, rstd, dx)
                                   : backward_by_values<T, n(), p()>(dy, d_residual, x, weight, rstd, dx);
    glue::launch(&sum_shares_kernel<T>, dim3(glue::divide_up(D, kColumns)), dim3(kThreads), 0, x, {&shares, &dweight},
                 glue::pointer<float>(shares), glue::pointer<T>(dweight), static_cast<int>(shares.size(0)),
                 static_cast<int>(D));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) { library.def(RMS_NORM_BACKWARD); }

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
}
