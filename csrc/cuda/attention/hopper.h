// Shared by attention's forward and backward passes for Hopper: masks, fragments, stores of results.
#pragma once

#include "common/tensor_map.h"
#include "common/wgmma.h"

namespace hopper_attention {

using namespace hopper;

struct Problem {
  int T, H, group, window;  // group: query heads that share a key head; window: T where there is none
  bool causal;
  float scale, scale2;  // of the scores, positive; times log2(e)
};

constexpr int kOwn = 1;  // number of the first warpgroup's own barrier

// Blocks and heads are both in the grid's first dimension, the only one that may exceed 65,535, with the blocks of a head
// adjacent, since they share keys and values in the L2 cache.
struct Place {
  int blocks, block, head;  // of a head; this one; of all heads of the batch
};
__device__ __forceinline__ Place place(int blocks) {
  return {blocks, int(blockIdx.x % unsigned(blocks)), int(blockIdx.x / unsigned(blocks))};
}

// What blocks of threads that stay, as many as there are multiprocessors, have to do: blocks of rows, the longest first, of some
// heads, then of some others, so that what heads share is in the L2 cache. Each begins with its own, and takes a next one when it
// can, which `taken` counts: it is 0 before the launch.
struct Order {
  int blocks, heads, together;  // of a head; of all sequences; of those that are begun together
  bool from_back;               // blocks of rows
  int* taken;
};

#if HOPPER_CODE

// A block of threads' way through them.
struct Walk {
  Order order;
  int now;

  __device__ __forceinline__ explicit Walk(const Order& order) : order(order), now(int(blockIdx.x)) {}
  __device__ __forceinline__ bool more() const { return now < order.blocks * order.heads; }
  __device__ __forceinline__ void advance() { now = int(gridDim.x) + count_global(order.taken); }
  __device__ __forceinline__ int head0() const { return now / (order.blocks * order.together) * order.together; }
  __device__ __forceinline__ int head() const {
    return head0() + (now - order.blocks * head0()) % min(order.together, order.heads - head0());
  }
  __device__ __forceinline__ int block() const {
    const int block = (now - order.blocks * head0()) / min(order.together, order.heads - head0());
    return order.from_back ? order.blocks - 1 - block : block;
  }
};

// Keys [low, high) that a query may see, regardless of documents.
__device__ __forceinline__ int lowest_key(const Problem& p, int query) { return max(query - p.window + 1, 0); }
__device__ __forceinline__ int highest_key(const Problem& p, int query) {
  return min(p.causal ? query + 1 : query + p.window, p.T);
}

// Queries [low, high) that may see a key.
__device__ __forceinline__ int lowest_query(const Problem& p, int key) { return p.causal ? key : max(key - p.window + 1, 0); }
__device__ __forceinline__ int highest_query(const Problem& p, int key) { return min(key + p.window, p.T); }

// A thread has two rows of a product, row and row + 8. They may see columns [low, high), of the same document.
struct Seen {
  int low[2], high[2];
  int64_t id[2];
};

// Scores of the columns from `first` on that a row may not see become kLow. LOW, HIGH: whether columns may be too low, too high.
template <bool DOCUMENTS, bool LOW, bool HIGH, int N>
__device__ __forceinline__ void hide_columns(float (&s)[N], const Seen& seen, const int64_t* ids, int T, int first) {
  first += threadIdx.x % 4 * 2;
  const int low[2] = {seen.low[0] - first, seen.low[1] - first}, high[2] = {seen.high[0] - first, seen.high[1] - first};
#pragma unroll
  for (int i = 0; i < N; i += 4)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int column = i * 2 + c;  // from `first` on: known to the compiler
      const int64_t id = DOCUMENTS ? load(ids + min(first + column, T - 1)) : 0;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const bool yes = (!LOW || column >= low[r]) && (!HIGH || column < high[r]) && (!DOCUMENTS || id == seen.id[r]);
        s[i + 2 * r + c] = yes ? s[i + 2 * r + c] : kLow;
      }
    }
}

// An accumulator as the left operand of a product: two neighbouring 8 columns of the one are laid out as 16 steps of k of
// the other.
template <typename T, int N>
__device__ __forceinline__ void narrow(const float (&s)[N], uint32_t (&p)[N / 8][4]) {
#pragma unroll
  for (int step = 0; step < N / 8; ++step)
#pragma unroll
    for (int i = 0; i < 4; ++i) p[step][i] = packed<T>(s[step * 8 + 2 * i], s[step * 8 + 2 * i + 1]);
}

// A warpgroup's 64 rows of results go to global memory by way of shared memory, so that whole rows are stored. `tile`: the
// first of its rows in a tile that it alone has used, `slab` from one 64 columns to the next.
template <typename T, int D>
__device__ __forceinline__ void put_rows(uint32_t tile, uint32_t slab, const float (&o)[D / 2], const float (&scale)[2]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x % kGroup / kWarp;
#pragma unroll
  for (int j = 0; j < D / 2; j += 2) {
    const int column = j / 4 * 8, r = j / 2 % 2;
    store_shared(in_tile(tile + column / 64 * slab, warp * 16 + lane / 4 + 8 * r, column % 64 / 8) + lane % 4 * 4,
                 packed<T>(o[j] * scale[r], o[j + 1] * scale[r]));
  }
}

// out: the first row's features. Rows are `stride` elements apart, and the first `rows` exist.
template <typename T, int D>
__device__ __forceinline__ void store_rows(uint32_t tile, uint32_t slab, T* out, int64_t stride, int rows) {
  const int thread = recomputed(threadIdx.x), lane = thread % kWarp, warp = thread % kGroup / kWarp;
#pragma unroll
  for (int j = 0; j < D / 16; ++j) {  // a warp's 16 rows of D / 8 packs
    const int pack = lane % 8, row = warp * 16 + j % 4 * 4 + lane / 8;
    if (row < rows)
      store(reinterpret_cast<Pack<uint32_t, 4>*>(out + row * stride + j / 4 * 64 + pack * 8),
            load_shared(in_tile(tile + j / 4 * slab, row, pack)));
  }
}

#endif

// ---- host ------------------------------------------------------------------------------------------------------------

using glue::Tensor;

// (batch, positions, heads, features) as q, of as many heads or, for keys, a divisor.
inline void check_heads(const Tensor& t, const Tensor& q, bool of_keys, const char* name) {
  CHECK_INPUT(t.dim() == 4 && t.size(0) == q.size(0) && t.size(1) == q.size(1) && t.size(3) == q.size(3) &&
                      t.size(2) > 0 && (of_keys ? q.size(2) % t.size(2) == 0 : q.size(2) == t.size(2)) &&
                      t.scalar_type() == q.scalar_type(),
                  "emergence_cuda: ", name, " must be (batch, positions, heads, features) of q's type and sizes");
}

inline void check_contiguous(const Tensor& t, const char* name) {
  CHECK_INPUT(t.is_contiguous() && glue::aligned(t.data_ptr(), 16), "emergence_cuda: ", name, " must be contiguous");
}

// scale > 0; window 0: none.
inline Problem problem_of(const Tensor& q, const Tensor& k, bool causal, double scale, int64_t window) {
  const int64_t T = q.size(1), D = q.size(3);
  CHECK_INPUT(D == 64 || D == 128, "emergence_cuda: Hopper's attention takes head dims 64 and 128");
  CHECK_INPUT(scale > 0 && window >= 0 && T < (int64_t(1) << 30), "emergence_cuda: attention: scale, window or positions");
  return {int(T), int(q.size(2)), int(q.size(2) / k.size(2)), int(window > 0 && window < T ? window : T),
          causal, float(scale),   float(scale * kLog2e)};
}

// `blocks` for each of `heads`: see Place.
inline dim3 grid(int64_t blocks, int64_t heads) {
  CHECK_INPUT(blocks * heads < (int64_t(1) << 31), "emergence_cuda: attention of too many blocks");
  return dim3(static_cast<unsigned>(blocks * heads));
}

#ifdef __CUDACC__
constexpr int64_t kCached = 16 << 20;  // bytes that stay in the L2 cache
#else
constexpr int64_t kCached = 160 << 10;  // so that a few short heads of a test are several groups, the last one smaller
#endif

// bytes: of a head, that its blocks of rows share.
inline Order order_of(int64_t blocks, int64_t heads, int64_t bytes, bool from_back, const Tensor& taken, int which) {
  glue::check_vector(taken, 2, glue::ScalarType::Int, "counts of blocks");
  CHECK_INPUT(blocks * heads < (int64_t(1) << 30), "emergence_cuda: attention of too many blocks");
  const int64_t together = std::clamp<int64_t>(kCached / std::max<int64_t>(bytes, 1), 1, std::max<int64_t>(heads, 1));
  return {int(blocks), int(heads), int(together), from_back, glue::pointer<int>(taken) + which};
}

inline dim3 resident(const Order& order, const Tensor& on) {
  return dim3(std::min<unsigned>(order.blocks * order.heads, glue::multiprocessors(on.get_device_index())));
}

template <typename F>
void by_type(const Tensor& q, F&& f) {
  if (q.scalar_type() == glue::ScalarType::BFloat16) return f(bf16{});
  CHECK_INPUT(q.scalar_type() == glue::ScalarType::Half, "emergence_cuda: Hopper's attention takes bfloat16 and float16");
  f(f16{});
}

}  // namespace hopper_attention
