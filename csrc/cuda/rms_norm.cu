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

#include "common/tensor_cores.h"
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

// ---- backward, where rows are packs ----------------------------------------------------------------------------------

// A row is held by `warps` warps, kPacks packs a lane, and what it is made of comes by asynchronous copies, kAhead rows ahead: a
// thread reads what it copied, so that rows wait for no barrier but their own warps' (none where a warp holds a row).
constexpr int kWarps = 8, kThreads = kWarps * kWarp;  // of a block
constexpr int kPacks = 4;

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
template <typename T, bool RESIDUAL, int kAhead>
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

// Launches backward_packs_kernel. -> (blocks, D), its shares of dweight.
template <typename T, int kAhead>
Tensor backward_by_packs(const Tensor& dy, const std::optional<Tensor>& d_residual, const Tensor& x, const Tensor& weight,
                         const Tensor& rstd, const Tensor& dx, int most) {
  const int64_t rows = x.size(0), D = x.size(1);
  const Tensor* passed = glue::given(d_residual);
  const int bytes = kAhead * (passed ? 3 : 2) * kPacks * kThreads * 16, device = x.get_device_index();
  int warps = 1;
  while (warps * kOfWarp<T> < D) warps *= 2;
  const int resident = std::clamp(glue::shared_bytes_per_multiprocessor(device) / (bytes + 2048), 1, most);
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
    run(&backward_packs_kernel<T, true, kAhead>);
  else
    run(&backward_packs_kernel<T, false, kAhead>);
  return shares;
}

// dweight = the sum of shares, in order.
template <typename T>
void sum_shares(const Tensor& shares, const Tensor& dweight) {
  const int64_t D = shares.size(1);
  glue::launch(&sum_shares_kernel<T>, dim3(glue::divide_up(D, kColumns)), dim3(kThreads), 0, dweight, {&shares, &dweight},
               glue::pointer<float>(shares), glue::pointer<T>(dweight), static_cast<int>(shares.size(0)), static_cast<int>(D));
}

// dy, d_residual, x (what was normalised) (rows, D), rstd (rows,) -> dx (rows, D) contiguous, dweight (D,).
void backward_in_a_way(const Tensor& dy, std::optional<Tensor> d_residual, const Tensor& x, const Tensor& weight,
                       const Tensor& rstd, const Tensor& dx, const Tensor& dweight, int64_t way) {
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
    if (way > 0 && n() > 1 && D <= kWarps * kOfWarp<T> && rows < (int64_t(1) << 30)) {
      if (way == 1) return sum_shares<T>(backward_by_packs<T, 2>(dy, d_residual, x, weight, rstd, dx, 2), dweight);
      if (way == 2) return sum_shares<T>(backward_by_packs<T, 2>(dy, d_residual, x, weight, rstd, dx, 1), dweight);
      return sum_shares<T>(backward_by_packs<T, 3>(dy, d_residual, x, weight, rstd, dx, 1), dweight);
    }
    const Shape s = shape(rows, D, n, p);
    // As many blocks as are resident at once: about 1024 threads a multiprocessor at the registers that this takes.
    const unsigned resident = glue::multiprocessors(x.get_device_index()) * std::max(1u, 1024 / (s.block.x * s.block.y));
    const unsigned blocks = std::min(s.blocks, resident);
    const std::array<int64_t, 2> size{blocks, D};
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
    sum_shares<T>(shares, dweight);
  });
}

void rms_norm_backward(const Tensor& dy, std::optional<Tensor> d_residual, const Tensor& x, const Tensor& weight,
                       const Tensor& rstd, const Tensor& dx, const Tensor& dweight) {
  backward_in_a_way(dy, d_residual, x, weight, rstd, dx, dweight, 1);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def(RMS_NORM);
  library.def(RMS_NORM_BACKWARD);
  library.def(
      "rms_norm_backward_way(Tensor dy, Tensor? d_residual, Tensor x, Tensor weight, Tensor rstd, Tensor(a!) dx, "
      "Tensor(b!) dweight, int way) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("rms_norm", TORCH_BOX(&rms_norm));
  library.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
  library.impl("rms_norm_backward_way", TORCH_BOX(&backward_in_a_way));
}
