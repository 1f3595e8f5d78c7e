// Products for Hopper (sm_90a) whose results are worked on before they reach memory. Shared by SwiGLU's forward.cu and backward.cu
// and by rotary.cu: the loop over products, and what brings their operands.
//
// A block of threads stays, and takes tiles of kRows x kColumns results. Its first warpgroup, which releases registers to the
// others, has three threads at work: one loads operands by TMA into a ring of stages, kDepth deep along k; two serve
// one consumer warpgroup each, and move its results, and what these are combined with, between slots of shared memory and global
// memory by TMA. A consumer warpgroup multiplies 64 rows by all columns, since wgmma reads 80 bytes of shared memory a clock that
// way, and 96 with half of the columns, of 128.
//
// The sums of a finished tile are rounded to T at once, into half of their registers, and what becomes of them is computed in
// parts in some steps of the next tile, while the tensor cores multiply for that.
//
// Per stage two mbarriers: `full` counts TMA's bytes, `empty` one arrival of each consumer warp. Per slot two: `ready` for the
// consumers, `done` with one arrival of each of their warps. In a cluster the blocks take tiles of the same columns, so each
// loads its share of the weights for all: a stage is empty when it is so in all of them.
#pragma once

#include "common/tensor_map.h"
#include "common/wgmma.h"

namespace hopper_feed_forward {

using namespace hopper;

constexpr int kRows = 128, kColumns = 256, kDepth = 64, kConsumers = kRows / 64;
constexpr int kThreads = kGroup * (1 + kConsumers);
constexpr int kA = kRows * kSwizzleRow, kB = kColumns * kSwizzleRow;  // bytes of a stage
constexpr int kSlab = 64 * kSwizzleRow;                               // of 64 rows of 64 values
constexpr int kWords = kColumns / 4;                                  // of a thread's rounded results, two each
// kTogether: tiles of rows that are taken together, for all columns, so that the weights stay in the L2 cache.
#ifdef __CUDACC__
constexpr int kCluster = 2, kTogether = 16;  // kCluster: blocks
#else
constexpr int kCluster = 1, kTogether = 2;  // the emulator has one block at a time, and few rows
#endif
constexpr int kForProducer = 24, kForConsumers = 240;
static_assert(kGroup * (kForProducer + kConsumers * kForConsumers) <= 65536);

// SLOTS of a consumer warpgroup, of SLABS each.
template <int STAGES, int SLOTS, int SLABS>
struct Layout {
  static constexpr int kStages = STAGES, kSlots = SLOTS, kSlot = SLABS * kSlab;
  static constexpr int kRing = STAGES * (kA + kB);
  static constexpr int kBarriers = kRing + kConsumers * SLOTS * kSlot;
  static constexpr int kBytes = kBarriers + 16 * STAGES + 16 * kConsumers * SLOTS;
  static_assert(kBytes <= 227 << 10);

  uint32_t base;
  __device__ uint32_t a(int stage) const { return base + stage * (kA + kB); }
  __device__ uint32_t b(int stage) const { return a(stage) + kA; }
  __device__ uint32_t slot(int group, int which) const { return base + kRing + (group * SLOTS + which) * kSlot; }
  __device__ uint32_t full(int stage) const { return base + kBarriers + 16 * stage; }
  __device__ uint32_t empty(int stage) const { return full(stage) + 8; }
  __device__ uint32_t ready(int group, int which) const {
    return base + kBarriers + 16 * STAGES + 16 * (group * SLOTS + which);
  }
  __device__ uint32_t done(int group, int which) const { return ready(group, which) + 8; }
};

// Tiles of results by rows, of all blocks of a cluster together, and by columns; steps along k.
struct Problem {
  int rows, columns, steps;
};

template <int N>
using number = std::integral_constant<int, N>;

#if HOPPER_CODE

constexpr int kTurn = 1;  // a barrier's number

// A block's way through the tiles.
struct Walk {
  Problem problem;
  int now;
  int row, column;  // the first ones of the tile, but for the width of a column's tile

  __device__ __forceinline__ explicit Walk(const Problem& problem) : problem(problem), now(int(blockIdx.x) / kCluster) { find(); }
  __device__ __forceinline__ bool more() const { return now < problem.rows * problem.columns; }
  __device__ __forceinline__ void advance() {
    now += int(gridDim.x) / kCluster;
    find();
  }
  __device__ __forceinline__ void find() {
    constexpr int kHigh = kTogether / kCluster;
    const int first = now / (kHigh * problem.columns) * kHigh, within = now - first * problem.columns;
    const int high = min(kHigh, problem.rows - first);
    column = within / max(high, 1);
    row = ((first + within - column * high) * kCluster + rank_in_cluster()) * kRows;
  }
};

// The number of a block's tiles.
__device__ __forceinline__ int count_tiles(const Problem& problem) {
  const int first = int(blockIdx.x) / kCluster, stride = int(gridDim.x) / kCluster;
  return (problem.rows * problem.columns - first + stride - 1) / stride;
}

struct Ring {
  int stage = 0, phase = 0;
  template <int STAGES>
  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// All threads begin with this.
template <typename Tiles>
__device__ __forceinline__ void init_mbarriers(const Tiles& tiles) {
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Tiles::kStages; ++stage) {
      mbarrier_init(tiles.full(stage), 1);
      mbarrier_init(tiles.empty(stage), 4 * kConsumers * kCluster);
    }
    for (int group = 0; group < kConsumers; ++group)
      for (int which = 0; which < Tiles::kSlots; ++which) {
        mbarrier_init(tiles.ready(group, which), 1);
        mbarrier_init(tiles.done(group, which), 4);
      }
    fence_mbarrier_init("copies know of the mbarriers that they tell");
  }
  sync_cluster("mbarriers are initialised before anybody waits for them");
}

// And end with it.
__device__ __forceinline__ void finish() {
  if (kCluster > 1) sync_cluster("no block ends while another still reaches it");
}

// load_b(stage, k, column): the part of b that this block loads, for all of the cluster.
template <typename Tiles, typename F>
__device__ __forceinline__ void produce(const Tiles& tiles, const TensorMap& of_a, const Problem& problem, F&& load_b) {
  Ring ring;
  for (Walk walk(problem); walk.more(); walk.advance())
    for (int k = 0; k < problem.steps; ++k) {
      const int stage = ring.stage;
      wait(tiles.empty(stage), ring.phase ^ 1, "operands are multiplied before others overwrite them (wait)");
      arrive_expecting(tiles.full(stage), kA + kB, "operands have arrived before they are multiplied (bytes)");
      load_tile(tiles.a(stage), of_a, tiles.full(stage), k * kDepth, walk.row, 0, 0);
      load_b(stage, k, walk.column);
      ring.advance<Tiles::kStages>();
    }
}

// A step of products, issued as a group.
template <typename T, bool TRANSPOSED_B, typename Tiles>
__device__ __forceinline__ void multiply(const Tiles& tiles, int group, const Ring& ring, bool add, float (&sums)[kColumns / 2]) {
  wait(tiles.full(ring.stage), ring.phase, "operands have arrived before they are multiplied (wait)");
  const uint32_t a = tiles.a(ring.stage) + group * kSlab, b = tiles.b(ring.stage);
  fence_products("registers are settled before products take them");
#pragma unroll
  for (int step = 0; step < kDepth / 16; ++step)
    Products<T, kColumns>::template shared<0, TRANSPOSED_B>(
        sums, rows_of_k(a + step * 32),
        TRANSPOSED_B ? columns_of_k(b + step * 16 * kSwizzleRow, kSlab) : rows_of_k(b + step * 32), add || step > 0);
  commit_products("a step of products is waited for as a group");
}

template <typename Tiles>
__device__ __forceinline__ void release(const Tiles& tiles, int stage) {
  const int lane = threadIdx.x % kWarp;
  if (lane < kCluster) arrive_at(tiles.empty(stage), lane, "operands are multiplied before others overwrite them (arrival)");
}

// How a tile's words are cut into chunks, and when these have their turn. kInOrder: by columns, in the next tile's first steps, each with
// instructions of its own. kPaired: the same, but a chunk has columns of both halves. kSpread: by columns, evenly over all steps of
// the next tile, in a loop: unrolled they are 50 KB of instructions, and up to 4% slower.
enum Chunking : int { kInOrder, kPaired, kSpread };

// What becomes of a tile is computed in CHUNKS of its words, each over STEPS of the next tile: part(chunk, i, n, words) for
// i = 2 x step ahead of the wait for the step before, and i + 1 after it, so that its operands are released early. words: of the
// block's tile n, the chunk's in front. Chunks are numbered from `start` on, and round.
template <typename T, bool TRANSPOSED_B, int CHUNKS, int STEPS, Chunking CHUNKING, typename Tiles, typename F>
__device__ __forceinline__ void consume(const Tiles& tiles, int group, const Problem& problem, F&& part, int start = 0) {
  constexpr int kChunk = kWords / CHUNKS;
  [[maybe_unused]] constexpr int kUnroll = CHUNKING == kSpread ? 1 : CHUNKS;
  const int count = count_tiles(problem);
  float sums[kColumns / 2];
  uint32_t words[kWords];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) sums[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = 0;
  Ring ring;
  int before = 0;
  const auto multiply_on = [&](int steps) {
    for (int k = 0; k < steps; ++k) {
      multiply<T, TRANSPOSED_B>(tiles, group, ring, true, sums);
      wait_products<1>("the step before is multiplied before its operands are released");
      release(tiles, before);
      before = ring.stage;
      ring.template advance<Tiles::kStages>();
    }
  };
  const int between = CHUNKING == kSpread ? (problem.steps - CHUNKS * STEPS) / CHUNKS : 0;
  const auto next_chunk = [&] {
#pragma unroll
    for (int i = 0; i < kWords - kChunk; ++i) words[i] = words[i + kChunk];
  };
  if (group == 1) sync_some(kTurn, kConsumers * kGroup, "warpgroups start in turns (wait)");
  for (int n = 0; n < count; ++n) {
    hold(sums);
#pragma unroll kUnroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
        const bool first = chunk == 0 && step == 0;
        multiply<T, TRANSPOSED_B>(tiles, group, ring, !first, sums);
        if (step == 1 && chunk == 0 && group == 0 && n == 0)
          arrive_some(kTurn, kConsumers * kGroup, "warpgroups start in turns (arrival)");
        if (n > 0) part(chunk, 2 * step, n - 1, words);
        wait_products<1>("the step before is multiplied before its operands are released");
        if (!first) release(tiles, before);
        if (n > 0) part(chunk, 2 * step + 1, n - 1, words);
        before = ring.stage;
        ring.template advance<Tiles::kStages>();
      }
      next_chunk();
      if (CHUNKING == kSpread) multiply_on(between);
    }
    multiply_on(problem.steps - CHUNKS * (STEPS + between));
    wait_products<0>("a tile is multiplied before its sums are read");
    hold(sums);
    release(tiles, before);
#pragma unroll
    for (int first = 0; first < CHUNKS; ++first)
      if (first == start)
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
          const int at = (i + first * kChunk) % kWords;
          const int paired = at / kChunk * (kChunk / 2) + at % kChunk / (kChunk / 2) * (kWords / 2) + at % (kChunk / 2);
          const int from = CHUNKING == kPaired ? paired : at;
          words[i] = packed<T>(sums[2 * from], sums[2 * from + 1]);
        }
  }
#pragma unroll kUnroll
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
#pragma unroll
    for (int i = 0; i < 2 * STEPS; ++i) part(chunk, i, count - 1, words);
    next_chunk();
  }
}

// Of the word i of a thread's 64 rows x 64 columns: where it lies in its slab.
__device__ __forceinline__ uint32_t word_in_slab(int i) {
  const int lane = threadIdx.x % kWarp, row = threadIdx.x % kGroup / kWarp * 16 + lane / 4 + i % 2 * 8;
  return in_tile(0, row, i / 2) + lane % 4 * 4;
}

// A warp is done with a slot.
__device__ __forceinline__ void finish_slot(uint32_t done) {
  fence_async("results reach the copies that store them");
  sync_warp("a warp's results are in shared memory before they are stored");
  if (threadIdx.x % kWarp == 0) arrive(done, "results are in shared memory before they are stored (arrival)");
}

// The sigmoid. Where 2^-x is infinite it is 0, and NaN stays NaN.
__device__ __forceinline__ float sigmoid(float x) {
  return reciprocal_fast(1.0f + exp2_fast(-kLog2e * x));
}

// What the threads of a block do: one loads operands, by load_b(stage, k, column) as in produce; one for each consumer warpgroup is
// its move(group); the warpgroups are work(group).
template <typename Tiles, typename L, typename M, typename W>
__device__ __forceinline__ void run(const Tiles& tiles, const TensorMap& of_a, const Problem& problem, L&& load_b, M&& move,
                                    W&& work) {
  init_mbarriers(tiles);
  const int warpgroup = uniform(threadIdx.x / kGroup);
  if (warpgroup == 0) {
    give_registers<kForProducer>();
    const int warp = uniform(threadIdx.x / kWarp);
    if (threadIdx.x == 0)
      produce(tiles, of_a, problem, load_b);
    else if (threadIdx.x % kWarp == 0 && warp <= kConsumers)
      move(warp - 1);
  } else {
    take_registers<kForConsumers>();
    work(warpgroup - 1);
  }
  finish();
}

#endif

// ---- host ------------------------------------------------------------------------------------------------------------

using glue::Tensor;

// Rows of adjacent values, of `like`'s type.
inline void check_rows(const Tensor& t, const Tensor& like, int64_t rows, int64_t columns, const char* name) {
  CHECK_INPUT(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns && t.scalar_type() == like.scalar_type(),
                  "emergence_cuda: ", name, " must be (", rows, ", ", columns, ") of the others' type");
  CHECK_INPUT(rows < (int64_t(1) << 31) - 2 * kRows && columns < (int64_t(1) << 30), "emergence_cuda: ", name, " is too large");
}

// A matrix (N, K), or `halves` of one side by side, or of a weight above each other, as boxes of 64 columns. Coordinates: column,
// row, half, 0.
inline TensorMap boxes_of_rows(const Tensor& t, int rows) {
  return boxes_of(t, {{t.size(1), t.size(0), 1, 1}, {t.stride(0), 0, 0}}, rows);
}
inline TensorMap boxes_of_halves(const Tensor& t, int rows) {
  const int64_t F = t.size(1) / 2;
  return boxes_of(t, {{F, t.size(0), 2, 1}, {t.stride(0), F, 0}}, rows);
}
inline TensorMap boxes_of_stacked(const Tensor& t, int rows) {
  const int64_t F = t.size(0) / 2;
  return boxes_of(t, {{t.size(1), F, 2, 1}, {t.stride(0), F * t.stride(0), 0}}, rows);
}

// features: of a tile of columns. least: steps that a tile has in any case; operands outside of their tensors are zeros.
inline Problem problem_of(int64_t N, int64_t columns, int64_t features, int64_t K, int least) {
  const Problem problem{int(glue::divide_up(N, kRows * kCluster)), int(glue::divide_up(columns, features)),
                        std::max<int>(glue::divide_up(K, kDepth), least)};
  CHECK_INPUT(int64_t(problem.rows) * problem.columns < (int64_t(1) << 30), "emergence_cuda: a product of too many tiles");
  return problem;
}

inline dim3 resident(const Problem& problem, const Tensor& on) {
  const int clusters = glue::multiprocessors(on.get_device_index()) / kCluster;
  return dim3(std::min(problem.rows * problem.columns, clusters) * kCluster);
}

template <typename F>
void by_type(const Tensor& t, F&& f) {
  if (t.scalar_type() == glue::ScalarType::BFloat16) return f(bf16{});
  CHECK_INPUT(t.scalar_type() == glue::ScalarType::Half, "emergence_cuda: Hopper's products take bfloat16 and float16");
  f(f16{});
}

}  // namespace hopper_feed_forward
