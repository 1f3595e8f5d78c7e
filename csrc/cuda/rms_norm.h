// Shared by RMSNorm's kernels: rows in registers, and the host's checks.
#pragma once

#include "common/torch_glue.h"

namespace norm_rows {

using namespace portable;

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

// ---- host ------------------------------------------------------------------------------------------------------------

using glue::Tensor;

struct Shape {
  dim3 block;
  unsigned blocks;  // that cover all rows
};

// One row for as many threads as hold it, P packs of N each; at least 8 warps a block, by several rows of few threads.
inline Shape shape(int64_t rows, int64_t D, int N, int P) {
  const int warps = static_cast<int>(glue::divide_up(D, int64_t(kWarp) * N * P));
  CHECK_INPUT(warps <= kMaxWarps, "emergence_cuda: rms_norm of ", D, " features: at most ", kMaxWarps * kWarp * N * P,
                  " where they are loaded ", N, " at a time");
  const int per_block = std::max(1, 8 / warps);
  return {dim3(warps * kWarp, per_block), glue::divide_up(rows, per_block)};
}

inline bool packs(const Tensor* t, int64_t D, int N) {
  if (t == nullptr) return true;
  const bool rows_aligned = t->dim() < 2 || t->size(0) < 2 || t->stride(0) % N == 0;
  return D % N == 0 && rows_aligned && glue::aligned(t->data_ptr(), 16);
}

inline void check_rows(const Tensor* t, const Tensor& like, const char* name) {
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

}  // namespace norm_rows
