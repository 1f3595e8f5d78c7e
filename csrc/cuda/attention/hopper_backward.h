// Attention's backward pass for Hopper: what a block of threads works on, shared memory, and the producer that fills it.
#pragma once

#include "cuda/attention/hopper.h"

namespace hopper_attention::backward {

constexpr int kStages = 3;

// Queries of kAll's passing tile.
template <int D>
constexpr int kQueries = D == 64 ? 128 : 64;

enum Gradients { kOfQueries, kOfKeys, kAll };

// A block of rows of one head, and tiles of columns [first, last) for each query head, of which [free_low, free_high) share one
// id with all rows. The producer computes it, and tells the others by shared memory. row0 -1: there are no more.
struct Work {
  int row0, first, last, b, head, free_low, free_high, unused;
};

// What all blocks of rows share. statistics (B, H, padded, 2): lse and delta. ids (B, T), or null. ranges (B, blocks, 4): as in
// hopper_forward.cu, of rows and tiles of columns.
struct Inputs {
  Problem problem;
  const float* statistics;
  int padded;
  const int64_t* ids;
  const int* ranges;
  Order order;
};

template <int D, int CONSUMERS, Gradients OF>
struct Layout {
  static constexpr int kRows = 64 * CONSUMERS, kThreads = kGroup * (CONSUMERS + 1), kSlabs = D / 64;
  static constexpr int kColumns = OF == kAll ? kQueries<D> : 64;  // of a passing tile
  static constexpr int kStatistics = kColumns * 8;                // bytes: lse and delta of each query
  static constexpr int kSlabKept = kRows * kSwizzleRow, kSlabPassing = kColumns * kSwizzleRow;
  static constexpr int kKept = kSlabs * kSlabKept, kPassing = kSlabs * kSlabPassing;  // bytes of a tile
  static constexpr int kRing = 2 * kKept, kOfStatistics = kRing + kStages * 2 * kPassing;
  // kAll: two tiles of ds, so that one is written while the other is multiplied.
  static constexpr int kOfScores = (kOfStatistics + kStages * kStatistics + 1023) / 1024 * 1024;
  static constexpr int kSlabScores = kRows * kSwizzleRow, kScores = kColumns / 64 * kSlabScores;
  static constexpr int kWork = OF == kAll ? kOfScores + 2 * kScores : kOfStatistics + kStages * kStatistics;
  static constexpr int kBarriers = kWork + 2 * sizeof(Work);
  static constexpr int kBytes = kBarriers + 8 * (2 + 2 * kStages);
  static constexpr int kForProducer = CONSUMERS == 2 ? 24 : 32, kForConsumers = CONSUMERS == 2 ? 240 : 160;
  static_assert(kGroup * (kForProducer + CONSUMERS * kForConsumers) <= 65536 / kThreads / 8 * 8 * kThreads);

  uint32_t base;
  // which: 0 is k or q, 1 is v or do.
  __device__ uint32_t kept(int which, int slab) const { return base + which * kKept + slab * kSlabKept; }
  __device__ uint32_t passing(int which, int stage, int slab) const {
    return base + kRing + (2 * stage + which) * kPassing + slab * kSlabPassing;
  }
  __device__ uint32_t statistics(int stage) const { return base + kOfStatistics + stage * kStatistics; }
  __device__ uint32_t scores(int which) const { return base + kOfScores + which * kScores; }
  __device__ uint32_t work(int which) const { return base + kWork + which * int(sizeof(Work)); }
  __device__ uint32_t full_kept() const { return base + kBarriers; }
  __device__ uint32_t empty_kept() const { return base + kBarriers + 8; }
  __device__ uint32_t full(int stage) const { return base + kBarriers + 16 + 16 * stage; }
  __device__ uint32_t empty(int stage) const { return full(stage) + 8; }
};

// Addresses of dq, dk or dv, with adjacent heads; they may be slices of one tensor.
struct Results {
  int64_t stride_b, stride_t;
};

// Of the rotary embedding: cos and sin (T, pairs), or (B, T, pairs) where sequences are stride_b apart; pairs 0: there is none.
// dq and dk are rotated back before they are rounded, in pairs of features (i, i + pairs). With a multiple of 8 pairs, both are in
// one thread's registers: see Products.
struct Angles {
  const float *cos, *sin;
  int pairs;
  int64_t stride_b;
};

// Of 16 queries, lse and then delta, each in the order of accumulators' columns: 0, 1, 8, 9, 2, 3, 10, 11 and so on, so that a
// thread loads four at once.
__device__ __forceinline__ int64_t place_of_lse(int64_t query) {
  return query / 16 * 32 + query % 8 / 2 * 4 + query % 16 / 8 * 2 + query % 2;
}

#if HOPPER_CODE

// A warpgroup's part of dq, 64 queries by 64 features: 4096 sums in the order in which its threads hold them.
constexpr int kPart = 64 * 64;

template <int D>
__device__ __forceinline__ float* part_of_dq(float* sums, const Problem& p, int b, int head, int part, int slab) {
  const int64_t parts = (p.T + kQueries<D> - 1) / kQueries<D> * (kQueries<D> / 64);
  return sums + (((int64_t(b) * p.H + head) * parts + part) * (D / 64) + slab) * kPart;
}

// An accumulator of a warpgroup, its rows from row0 on. PAIRS: a constant, since registers have no addresses.
template <int D, int PAIRS = 8>
__device__ __forceinline__ void rotate_back(float (&sum)[D / 2], const Angles& angles, int b, int row0, int T) {
  if (angles.pairs > PAIRS) {
    if constexpr (PAIRS < D / 2) rotate_back<D, PAIRS + 8>(sum, angles, b, row0, T);
    return;
  }
  const int thread = recomputed(threadIdx.x), lane = thread % kWarp, warp = thread % kGroup / kWarp;
  const int64_t first = b * angles.stride_b + lane % 4 * 2;
  int64_t from[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) from[r] = first + int64_t(min(row0 + warp * 16 + lane / 4 + 8 * r, T - 1)) * PAIRS;
#pragma unroll
  for (int j = 0; j < PAIRS / 2; j += 2) {
    const int64_t at = from[j / 2 % 2] + j / 4 * 8;
    const Pack<float, 2> cos = load(reinterpret_cast<const Pack<float, 2>*>(angles.cos + at));
    const Pack<float, 2> sin = load(reinterpret_cast<const Pack<float, 2>*>(angles.sin + at));
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float low = sum[j + e], high = sum[j + e + PAIRS / 2];
      sum[j + e] = low * cos.v[e] + high * sin.v[e];
      sum[j + e + PAIRS / 2] = high * cos.v[e] - low * sin.v[e];
    }
  }
}

template <int D, int CONSUMERS, Gradients OF>
__device__ __forceinline__ Work work_of(const Walk& walk, const Inputs& inputs) {
  using Tiles = Layout<D, CONSUMERS, OF>;
  constexpr bool KEYS = OF != kOfQueries;
  const Problem& problem = inputs.problem;
  const int heads = KEYS ? problem.H / problem.group : problem.H, block = walk.block(), b = walk.head() / heads;
  Work at{block * Tiles::kRows, 0, 0, b, walk.head() - b * heads, 0, 1 << 30, 0};
  const int last = min(at.row0 + Tiles::kRows, problem.T) - 1;
  at.first = (KEYS ? lowest_query(problem, at.row0) : lowest_key(problem, at.row0)) / Tiles::kColumns;
  at.last = ((KEYS ? highest_query(problem, last) : highest_key(problem, last)) + Tiles::kColumns - 1) / Tiles::kColumns;
  if (inputs.ids) {
    const int* ranges = inputs.ranges + (int64_t(b) * inputs.order.blocks + block) * 4;
    at.first = max(at.first, load(ranges));
    at.last = min(at.last, load(ranges + 1));
    at.free_low = load(ranges + 2);
    at.free_high = load(ranges + 3);
  }
  return at;
}

__device__ __forceinline__ void put_work(uint32_t to, const Work& at) {
  const int values[8] = {at.row0, at.first, at.last, at.b, at.head, at.free_low, at.free_high, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) store_shared(to + 4 * i, values[i]);
}

__device__ __forceinline__ Work get_work(uint32_t from) {
  const Pack<uint32_t, 4> low = load_shared(from), high = load_shared(from + 16);
  return {int(low.v[0]), int(low.v[1]), int(low.v[2]), int(low.v[3]), int(high.v[0]), int(high.v[1]), int(high.v[2]), 0};
}

template <int D, int CONSUMERS, Gradients OF>
__device__ __forceinline__ void produce(const Layout<D, CONSUMERS, OF>& tiles, const TensorMap& kept_0, const TensorMap& kept_1,
                                        const TensorMap& passing_0, const TensorMap& passing_1, const Inputs& inputs) {
  constexpr int kSlabs = D / 64, kColumns = tiles.kColumns;
  constexpr bool KEYS = OF != kOfQueries;
  const int group = inputs.problem.group;
  Walk walk(inputs.order);
  for (int i = 0, n = 0;; walk.advance(), ++n) {
    wait(tiles.empty_kept(), (n & 1) ^ 1, "what is kept is done with before more overwrites it (wait)");
    if (!walk.more()) {
      put_work(tiles.work(n % 2), {-1, 0, 0, 0, 0, 0, 0, 0});
      arrive(tiles.full_kept(), "the end is known before it is read");
      return;
    }
    const Work at = work_of<D, CONSUMERS, OF>(walk, inputs);
    put_work(tiles.work(n % 2), at);
    arrive_expecting(tiles.full_kept(), 2 * tiles.kKept, "what is kept has arrived before it is multiplied (bytes)");
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
      load_tile(tiles.kept(0, slab), kept_0, tiles.full_kept(), slab * 64, at.row0, at.head, at.b);
      load_tile(tiles.kept(1, slab), kept_1, tiles.full_kept(), slab * 64, at.row0, at.head, at.b);
    }
    const int head0 = KEYS ? at.head * group : at.head / group;
    for (int head = head0; head < head0 + (KEYS ? group : 1); ++head)
      for (int block = at.first; block < at.last; ++block, ++i) {
        const int stage = i % kStages, column = block * kColumns;
        wait(tiles.empty(stage), (i / kStages & 1) ^ 1, "what passes is multiplied before more overwrites it (wait)");
        arrive_expecting(tiles.full(stage), 2 * tiles.kPassing + (KEYS ? tiles.kStatistics : 0),
                         "what passes has arrived before it is multiplied (bytes)");
#pragma unroll
        for (int slab = 0; slab < kSlabs; ++slab) {
          load_tile(tiles.passing(0, stage, slab), passing_0, tiles.full(stage), slab * 64, column, head, at.b);
          load_tile(tiles.passing(1, stage, slab), passing_1, tiles.full(stage), slab * 64, column, head, at.b);
        }
        if (KEYS) {
          const int64_t row = (int64_t(at.b) * inputs.problem.H + head) * inputs.padded + column;
          load_bytes(tiles.statistics(stage), inputs.statistics + 2 * row, tiles.kStatistics, tiles.full(stage));
        }
      }
  }
}

#endif

}  // namespace hopper_attention::backward
