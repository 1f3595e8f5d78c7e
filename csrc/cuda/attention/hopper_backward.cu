// Attention's backward pass for Hopper (sm_90a). Of s = scale q k^T, p = 2^(s log2(e) - lse), delta = rowsum(out do):
//
//   dv = p^T do      ds = p (do v^T - delta)      dq = scale ds k      dk = scale ds^T q
//
// A block of threads keeps rows, and iterates over columns in a ring buffer:
//
//   kOfKeys:     rows are keys, columns queries (and the query heads that share the keys): s^T = k q^T, dp^T = v do^T,
//                dv += p^T do, dk += ds^T q
//   kOfQueries:  rows are queries, columns keys: s = q k^T, dp = do v^T, dq += ds k
//   kAll:        as kOfKeys, and dq += ds k for the queries in the ring: five products in all
//
// Either kAll, whose dq has parts from all blocks of keys, added in float32 by atomics in any order; or, for deterministic
// gradients, the other two, which compute s and do v^T twice (seven products), so that every sum has one owner and a fixed
// order.
//
// p and ds are rows by columns, in registers, which is the layout of wgmma's left operand: neither goes through shared memory,
// except for kAll's ds, whose transpose is multiplied too. A producer warpgroup loads the kept pair (k and v, or q and do) and
// the pair in the ring by TMA.

#include "cuda/attention/hopper.h"

namespace {

using namespace hopper_attention;

constexpr int kColumns = 64;  // of a passing tile
constexpr int kStages = 3;
constexpr int kStatistics = kColumns * 8;  // bytes: lse and delta of each query, adjacent

enum Gradients { kOfQueries, kOfKeys, kAll };

template <int D, int CONSUMERS, Gradients OF>
struct Layout {
  static constexpr int kRows = 64 * CONSUMERS, kThreads = kGroup * (CONSUMERS + 1), kSlabs = D / 64;
  static constexpr int kSlabKept = kRows * kSwizzleRow, kSlabPassing = kColumns * kSwizzleRow;
  static constexpr int kKept = kSlabs * kSlabKept, kPassing = kSlabs * kSlabPassing;  // bytes of a tile
  static constexpr int kRing = 2 * kKept, kOfStatistics = kRing + kStages * 2 * kPassing;
  // kAll: two tiles of ds, so that one is written while the other is multiplied.
  static constexpr int kOfScores = (kOfStatistics + kStages * kStatistics + 1023) / 1024 * 1024, kScores = kRows * kSwizzleRow;
  static constexpr int kBarriers = OF == kAll ? kOfScores + 2 * kScores : kOfStatistics + kStages * kStatistics;
  static constexpr int kBytes = kBarriers + 8 * (1 + 2 * kStages);
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
  __device__ uint32_t full_kept() const { return base + kBarriers; }
  __device__ uint32_t full(int stage) const { return base + kBarriers + 8 + 16 * stage; }
  __device__ uint32_t empty(int stage) const { return full(stage) + 8; }
};

// The work of a block of threads: its rows, and [first, last) of the tiles of columns, for each of `heads` query heads.
struct Work {
  int row0, first, last, b, head_kept, head_passing, heads;
};

// Addresses of dq, dk or dv, with adjacent heads; they may be slices of one tensor.
struct Results {
  int64_t stride_b, stride_t;
};

#if HOPPER_CODE

// A warpgroup's part of a tile's dq, 64 queries by 64 features: 4096 sums in the order in which its threads hold them.
constexpr int kPart = 64 * 64;

template <int D>
__device__ __forceinline__ float* part_of_dq(float* sums, const Problem& p, int b, int head, int tile, int slab) {
  const int64_t tiles = (p.T + kColumns - 1) / kColumns;
  return sums + (((int64_t(b) * p.H + head) * tiles + tile) * (D / 64) + slab) * kPart;
}

template <int D, int CONSUMERS, Gradients OF>
__device__ __forceinline__ void produce(const Layout<D, CONSUMERS, OF>& tiles, const TensorMap& kept_0, const TensorMap& kept_1,
                                        const TensorMap& passing_0, const TensorMap& passing_1, const float* statistics,
                                        int padded, int H, const Work& work) {
  constexpr int kSlabs = D / 64;
  constexpr bool KEYS = OF != kOfQueries;
  arrive_expecting(tiles.full_kept(), 2 * tiles.kKept, "what is kept has arrived before it is multiplied (bytes)");
#pragma unroll
  for (int slab = 0; slab < kSlabs; ++slab) {
    load_tile(tiles.kept(0, slab), kept_0, tiles.full_kept(), slab * 64, work.row0, work.head_kept, work.b);
    load_tile(tiles.kept(1, slab), kept_1, tiles.full_kept(), slab * 64, work.row0, work.head_kept, work.b);
  }
  int i = 0;
  for (int head = work.head_passing; head < work.head_passing + work.heads; ++head)
    for (int block = work.first; block < work.last; ++block, ++i) {
      const int stage = i % kStages, column = block * kColumns;
      wait(tiles.empty(stage), (i / kStages & 1) ^ 1, "what passes is multiplied before more overwrites it (wait)");
      arrive_expecting(tiles.full(stage), 2 * tiles.kPassing + (KEYS ? kStatistics : 0),
                       "what passes has arrived before it is multiplied (bytes)");
#pragma unroll
      for (int slab = 0; slab < kSlabs; ++slab) {
        load_tile(tiles.passing(0, stage, slab), passing_0, tiles.full(stage), slab * 64, column, head, work.b);
        load_tile(tiles.passing(1, stage, slab), passing_1, tiles.full(stage), slab * 64, column, head, work.b);
      }
      if (KEYS)
        load_bytes(tiles.statistics(stage), statistics + 2 * ((int64_t(work.b) * H + head) * padded + column), kStatistics,
                   tiles.full(stage));
    }
}

// s = kept passing^T, of the pair's first or second, issued as a group.
template <typename T, int D, int CONSUMERS, Gradients OF>
__device__ __forceinline__ void score(const Layout<D, CONSUMERS, OF>& tiles, int which, int group, int stage,
                                      float (&s)[kColumns / 2]) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step)
    Products<T, kColumns>::template shared<0, 0>(
        s, rows_of_k(tiles.kept(which, step / 4) + group * 64 * kSwizzleRow + step % 4 * 32),
        rows_of_k(tiles.passing(which, stage, step / 4) + step % 4 * 32), step > 0);
  commit_products("scores are waited for as a group");
}

// sum += p passing, issued as a group.
template <typename T, int D, int CONSUMERS, Gradients OF>
__device__ __forceinline__ void gather(const Layout<D, CONSUMERS, OF>& tiles, int which, int stage,
                                       const uint32_t (&p)[kColumns / 16][4], float (&sum)[D / 2], bool add) {
#pragma unroll
  for (int step = 0; step < kColumns / 16; ++step)
    Products<T, D>::template registers<1>(
        sum, p[step], columns_of_k(tiles.passing(which, stage, 0) + step * 16 * kSwizzleRow, tiles.kSlabPassing), add || step > 0);
  commit_products("sums are waited for as a group");
}

// A part of dq = ds k: the tile's 64 queries by `slab`'s 64 features, over all of the block's keys. Issued as a group.
template <typename T, int D, int CONSUMERS, Gradients OF>
__device__ __forceinline__ void gather_queries(const Layout<D, CONSUMERS, OF>& tiles, int which, int slab, float (&sum)[32]) {
#pragma unroll
  for (int step = 0; step < 4 * CONSUMERS; ++step)
    Products<T, 64>::template shared<1, 1>(sum, columns_of_k(tiles.scores(which) + step * 16 * kSwizzleRow, 0),
                                           columns_of_k(tiles.kept(0, slab) + step * 16 * kSwizzleRow, 0), step > 0);
  commit_products("parts of dq are waited for as a group");
}

// lse and delta of the queries that an accumulator's elements i, i + 1 (and i + 2, i + 3) belong to.
__device__ __forceinline__ Pack<float, 4> of_columns(uint32_t statistics, int i) {
  const Pack<uint32_t, 4> raw = load_shared(statistics + i * 16 + threadIdx.x % 4 * 16);
  Pack<float, 4> out;
#pragma unroll
  for (int j = 0; j < 4; ++j) out.v[j] = as_float(raw.v[j]);
  return out;
}

template <typename T, int D, int CONSUMERS, Gradients OF>
__device__ __forceinline__ void consume(const Layout<D, CONSUMERS, OF>& tiles, int group, T* d0, T* d1, float* dq_sums,
                                        const float* statistics, int padded, const int64_t* ids, const int* unmasked,
                                        const Problem& problem, const Results& to, const Work& work) {
  constexpr int N = kColumns / 2;
  constexpr bool KEYS = OF != kOfQueries;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x % kGroup / kWarp;
  const int row0 = work.row0 + group * 64, row = row0 + warp * 16 + lane / 4;
  Seen seen;
  float lse[2] = {}, delta[2] = {};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int mine = row + 8 * r;
    seen.low[r] = KEYS ? lowest_query(problem, mine) : lowest_key(problem, mine);
    seen.width[r] = max((KEYS ? highest_query(problem, mine) : highest_key(problem, mine)) - seen.low[r], 0);
    seen.id[r] = ids && mine < problem.T ? load(ids + mine) : 0;
    if (!KEYS) {  // what is beyond the last query has lse = inf, so p = 0; blocks are no longer than what it is padded to
      const float* of_row = statistics + 2 * ((int64_t(work.b) * problem.H + work.head_kept) * padded + mine);
      lse[r] = load(of_row);
      delta[r] = load(of_row + 1);
    }
  }
  // Tiles of columns [free_low, free_high) are seen by all 64 rows.
  int free_low = ((KEYS ? lowest_query(problem, row0 + 63) : lowest_key(problem, row0 + 63)) + kColumns - 1) / kColumns;
  int free_high = (KEYS ? highest_query(problem, row0) : highest_key(problem, row0)) / kColumns;
  if (ids) {
    free_low = max(free_low, unmasked[0]);
    free_high = min(free_high, unmasked[1]);
  }

  float s[N], dp[N], sum0[D / 2], sum1[KEYS ? D / 2 : 1];
  uint32_t p[kColumns / 16][4];
  wait(tiles.full_kept(), 0, "what is kept has arrived before it is multiplied (wait)");
  const float plain[2] = {1.0f, 1.0f};
  const int count = work.heads * (work.last - work.first);
  int head = work.head_passing;
  for (int i = 0, block = work.first; i < count; ++i) {
    const int stage = i % kStages;
    wait(tiles.full(stage), i / kStages & 1, "what passes has arrived before it is multiplied (wait)");
    hold(s);
    hold(dp);
    fence_products("registers are settled before products take them (scores)");
    score<T>(tiles, 0, group, stage, s);
    score<T>(tiles, 1, group, stage, dp);
    wait_products<1>("scores have arrived before p is computed");
    hold(s);
    if (block < free_low || block >= free_high) {
      if (ids)
        hide<true>(s, seen, ids, problem.T, block * kColumns);
      else
        hide<false>(s, seen, ids, problem.T, block * kColumns);
    }
#pragma unroll
    for (int j = 0; j < N; j += 4) {
      Pack<float, 4> of;
      if constexpr (KEYS) of = of_columns(tiles.statistics(stage), j);
#pragma unroll
      for (int e = 0; e < 4; ++e) s[j + e] = exp2_fast(s[j + e] * problem.scale2 - (KEYS ? of.v[e % 2 * 2] : lse[e / 2]));
    }
    if constexpr (!KEYS) settle(s);
    if constexpr (KEYS) {
      narrow<T>(s, p);
      hold(sum1);
      fence_products("registers are settled before products take them (p)");
      gather<T>(tiles, 1, stage, p, sum1, i > 0);
    }
    wait_products<KEYS ? 1 : 0>("products of upstream gradients have arrived before ds is computed");
    hold(dp);
#pragma unroll
    for (int j = 0; j < N; j += 4) {
      Pack<float, 4> of;
      if constexpr (KEYS) of = of_columns(tiles.statistics(stage), j);
#pragma unroll
      for (int e = 0; e < 4; ++e) dp[j + e] = s[j + e] * (dp[j + e] - (KEYS ? of.v[e % 2 * 2 + 1] : delta[e / 2]));
    }
    if constexpr (KEYS) {  // registers are short: ds takes those of p
      wait_products<0>("sums of upstream gradients are there, and p read before ds overwrites it");
      hold(sum1);
    }
    narrow<T>(dp, p);
    if constexpr (OF == kAll) {
      // Rows of ds^T are k of the product with the keys, and a tile of ds is 64 queries wide. Who is here has done with what
      // was multiplied a tile ago, so that the next ds may be written over it.
      put_rows<T, 64>(tiles.scores(i % 2) + group * 64 * kSwizzleRow, 0, dp, plain);
      fence_async("products see ds in shared memory");
      sync_some(kOwn + CONSUMERS, kGroup * CONSUMERS, "ds of all the block's keys has arrived before it is multiplied by them");
    }
    // A tile's dq has a part for each warpgroup, or they take turns.
    const bool adds = OF == kAll && (D > 64 || i % CONSUMERS == group);
    float part[32];
    hold(sum0);
    if constexpr (OF == kAll) hold(part);
    fence_products("registers are settled before products take them (ds)");
    gather<T>(tiles, 0, stage, p, sum0, i > 0);
    if (adds) {
      if constexpr (D == 64) fence_products("registers are settled before products take them (ds)");  // a new branch
      gather_queries<T>(tiles, i % 2, D > 64 ? group : 0, part);
    }
    wait_products<(OF == kAll && D > 64 ? 1 : 0)>("sums are there, and what they read, before the tile is given back");
    hold(sum0);
    if constexpr (OF == kOfKeys) sync_warp("statistics are read before others overwrite them");  // kAll: by the barrier for ds
    if (lane == 0) arrive(tiles.empty(stage), "what passes is multiplied before more overwrites it (arrival)");
    if (adds) {
      if constexpr (D > 64) wait_products<0>("a part of dq has arrived before it is added");
      hold(part);
      float* to = part_of_dq<D>(dq_sums, problem, work.b, head, block, D > 64 ? group : 0) + threadIdx.x % kGroup * 4;
#pragma unroll
      for (int j = 0; j < 32; j += 4) add_global(to + j * kGroup, {{part[j], part[j + 1], part[j + 2], part[j + 3]}});
    }
    if (++block == work.last) {
      block = work.first;
      ++head;
    }
  }

  // Results go out by way of the kept tiles, of which a warpgroup reads its own rows, but for dq all.
  if constexpr (OF == kAll)
    sync_some(kOwn + CONSUMERS, kGroup * CONSUMERS, "what is kept is multiplied by all before results overwrite it");
  else
    sync_some(kOwn + group, kGroup, "what is kept is multiplied before results overwrite it");
  const float by_scale[2] = {problem.scale, problem.scale};
  const int64_t out = work.b * to.stride_b + row0 * to.stride_t + work.head_kept * D;
  const uint32_t tile0 = tiles.kept(0, 0) + group * 64 * kSwizzleRow, tile1 = tiles.kept(1, 0) + group * 64 * kSwizzleRow;
  put_rows<T, D>(tile0, tiles.kSlabKept, sum0, by_scale);
  if constexpr (KEYS) put_rows<T, D>(tile1, tiles.kSlabKept, sum1, plain);
  sync_some(kOwn + group, kGroup, "results are in shared memory before whole rows of them are stored");
  store_rows<T, D>(tile0, tiles.kSlabKept, d0 + out, to.stride_t, problem.T - row0);
  if constexpr (KEYS) store_rows<T, D>(tile1, tiles.kSlabKept, d1 + out, to.stride_t, problem.T - row0);
}

#endif

// kept and passing: of k, v, q and do, or of q, do, k and v. d0, d1: dk and dv, or dq and nothing. dq_sums: kAll's, parts of
// dq. statistics (B, H, padded, 2): lse and delta. ids (B, T), or null. ranges (B, blocks, 4): as in hopper_forward.cu, of
// rows and tiles of columns.
template <typename T, int D, int CONSUMERS, Gradients OF>
__global__ void __launch_bounds__(Layout<D, CONSUMERS, OF>::kThreads, 1)
    backward_hopper(const __grid_constant__ TensorMap kept_0, const __grid_constant__ TensorMap kept_1,
                    const __grid_constant__ TensorMap passing_0, const __grid_constant__ TensorMap passing_1, T* d0, T* d1,
                    float* dq_sums, const float* statistics, int padded, const int64_t* ids, const int* ranges,
                    const Problem problem, const Results to) {
#if HOPPER_CODE
  constexpr bool KEYS = OF != kOfQueries;
  using Tiles = Layout<D, CONSUMERS, OF>;
  TILES(memory);
  const Tiles tiles{memory};
  // The longest rows first: the last causal queries, the first causal keys.
  const Place at = place((problem.T + Tiles::kRows - 1) / Tiles::kRows);
  const int block = problem.causal && !KEYS ? at.blocks - 1 - at.block : at.block;
  const int heads = KEYS ? problem.H / problem.group : problem.H;
  const int b = at.head / heads, head = at.head % heads;
  Work work{block * Tiles::kRows, 0, 0, b, head, KEYS ? head * problem.group : head / problem.group, KEYS ? problem.group : 1};
  const int last = min(work.row0 + Tiles::kRows, problem.T) - 1;
  work.first = (KEYS ? lowest_query(problem, work.row0) : lowest_key(problem, work.row0)) / kColumns;
  work.last = ((KEYS ? highest_query(problem, last) : highest_key(problem, last)) + kColumns - 1) / kColumns;
  int unmasked[2] = {0, 0};
  if (ids) {
    ids += int64_t(b) * problem.T;
    ranges += (int64_t(b) * at.blocks + block) * 4;
    work.first = max(work.first, load(ranges));
    work.last = min(work.last, load(ranges + 1));
    unmasked[0] = load(ranges + 2);
    unmasked[1] = load(ranges + 3);
  }
  if (threadIdx.x == 0) {
    mbarrier_init(tiles.full_kept(), 1);
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(tiles.full(stage), 1);
      mbarrier_init(tiles.empty(stage), 4 * CONSUMERS);
    }
    fence_mbarrier_init("copies know of the mbarriers that they tell");
  }
  barrier("mbarriers are initialised before anybody waits for them");
  const int warpgroup = uniform(threadIdx.x / kGroup);
  if (warpgroup == 0) {
    give_registers<Tiles::kForProducer>();
    if (threadIdx.x == 0)
      produce(tiles, kept_0, kept_1, passing_0, passing_1, statistics, padded, problem.H, work);
  } else {
    take_registers<Tiles::kForConsumers>();
    consume<T>(tiles, warpgroup - 1, d0, d1, dq_sums, statistics, padded, ids, unmasked, problem, to, work);
  }
#endif
}

// statistics (B, H, padded, 2): lse and delta = rowsum(out do) of every query; beyond the last one inf, for p = 0, and 0.
// D / 8 lanes hold a row.
template <typename T, int D>
__global__ void __launch_bounds__(256) delta_kernel(const T* out, const T* d_out, const float* lse, float* statistics, int H,
                                                         int Tq, int padded, int64_t stride_b, int64_t stride_t,
                                                         int64_t stride_h) {
  constexpr int kLanes = D / 8, kRows = 256 / kLanes;
  const Place at = place((padded + kRows - 1) / kRows);
  const int t = at.block * kRows + threadIdx.x / kLanes, column = threadIdx.x % kLanes * 8;
  const int b = at.head / H, h = at.head % H;
  float sum = 0.0f;
  if (t < Tq) {
    const auto o = load(reinterpret_cast<const Pack<T, 8>*>(out + ((int64_t(b) * Tq + t) * H + h) * D + column));
    const auto d = load(reinterpret_cast<const Pack<T, 8>*>(d_out + b * stride_b + t * stride_t + h * stride_h + column));
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += to_float(o.v[i]) * to_float(d.v[i]);
  }
#pragma unroll
  for (int bits = kLanes / 2; bits > 0; bits /= 2) sum += from_lane_xor(sum, bits);
  if (column == 0 && t < padded) {
    float* to = statistics + 2 * (int64_t(at.head) * padded + t);
    store(reinterpret_cast<Pack<float, 2>*>(to), {{t < Tq ? load(lse + int64_t(at.head) * Tq + t) : INFINITY, sum}});
  }
}

// dq = scale times its sums, rounded. A block a part.
template <typename T, int D>
__global__ void __launch_bounds__(kGroup) dq_kernel(float* sums, T* dq, const Problem problem, const Results to) {
#if HOPPER_CODE
  TILES(memory);
  const Place at = place((problem.T + kColumns - 1) / kColumns * (D / 64));
  const int tile = at.block / (D / 64), slab = at.block % (D / 64);
  const int b = at.head / problem.H, head = at.head % problem.H, row0 = tile * kColumns;
  const float* from = part_of_dq<D>(sums, problem, b, head, tile, slab) + threadIdx.x * 4;
  float part[32];
#pragma unroll
  for (int j = 0; j < 32; j += 4) {
    const Pack<float, 4> four = load(reinterpret_cast<const Pack<float, 4>*>(from + j * kGroup));
#pragma unroll
    for (int e = 0; e < 4; ++e) part[j + e] = four.v[e];
  }
  const float by_scale[2] = {problem.scale, problem.scale};
  put_rows<T, 64>(memory, 0, part, by_scale);
  barrier("a part of dq is in shared memory before whole rows of it are stored");
  store_rows<T, 64>(memory, 0, dq + b * to.stride_b + row0 * to.stride_t + head * D + slab * 64, to.stride_t, problem.T - row0);
#endif
}

// ---- host ------------------------------------------------------------------------------------------------------------

Results results(const Tensor& t) { return {t.stride(0), t.stride(1)}; }

// d_out, q, out, dq (B, T, H, D); k, v, dk, dv (B, T, G, D); lse (B, H, T) and statistics (B, H, padded, 2) float32. dq_sums:
// zeros, float32, as many as dq has with its positions padded to whole tiles of 64; without them the gradients have fixed
// orders of sums.
void attention_hopper_backward(const Tensor& d_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                               const Tensor& lse, const Tensor& statistics, const Tensor& dq, const Tensor& dk,
                               const Tensor& dv, std::optional<Tensor> dq_sums, std::optional<Tensor> ids,
                               std::optional<Tensor> ranges_of_queries, std::optional<Tensor> ranges_of_keys, bool causal,
                               double scale, int64_t window) {
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), G = k.size(2), D = q.size(3);
  check_heads(k, q, true, "k");
  for (const Tensor* t : {&v, &dk, &dv}) check_heads(*t, k, false, "v, dk and dv");
  for (const Tensor* t : {&d_out, &out, &dq}) check_heads(*t, q, false, "do, out and dq");
  check_contiguous(out, "out");
  for (const Tensor* t : {&dq, &dk, &dv})
    CHECK_INPUT(t->stride(3) == 1 && t->stride(2) == D && t->stride(0) % 8 == 0 && t->stride(1) % 8 == 0 &&
                        glue::aligned(t->data_ptr(), 16),
                    "emergence_cuda: dq, dk and dv must have adjacent heads, and positions that start at multiples of 16 bytes");
  CHECK_INPUT(dk.stride(0) == dv.stride(0) && dk.stride(1) == dv.stride(1), "emergence_cuda: dk and dv differ in strides");
  const Problem problem = problem_of(q, k, causal, scale, window);
  glue::check_vector(lse, B * H * T, glue::ScalarType::Float, "lse");
  CHECK_INPUT(statistics.dim() == 4 && statistics.size(2) >= T, "emergence_cuda: statistics must be (B, H, padded, 2)");
  const int64_t padded = statistics.size(2);
  glue::check_vector(statistics, B * H * padded * 2, glue::ScalarType::Float, "statistics");
  if (ids) glue::check_vector(*ids, B * T, glue::ScalarType::Long, "document ids");
  CHECK_INPUT(ids.has_value() == ranges_of_keys.has_value() && (ids && !dq_sums) == ranges_of_queries.has_value(),
                  "emergence_cuda: document ids need their ranges");
  if (B * H * T == 0) return;
  const unsigned tiles = glue::divide_up(T, kColumns);
  if (dq_sums) glue::check_vector(*dq_sums, B * H * tiles * kColumns * D, glue::ScalarType::Float, "sums of dq");
  const auto run = [&](auto of_q, auto features, auto consumers, auto of, const std::optional<Tensor>& ranges) {
    using E = decltype(of_q);
    using Tiles = Layout<features(), consumers(), of()>;
    constexpr bool keys = of() != kOfQueries;
    const unsigned blocks = glue::divide_up(T, Tiles::kRows);
    CHECK_INPUT(padded >= int64_t(keys ? tiles * kColumns : blocks * Tiles::kRows),
                    "emergence_cuda: statistics must be padded to whole blocks");
    if (ranges) glue::check_vector(*ranges, B * blocks * 4, glue::ScalarType::Int, "ranges");
    const Tensor &kept_0 = keys ? k : q, &kept_1 = keys ? v : d_out, &passing_0 = keys ? q : k,
                 &passing_1 = keys ? d_out : v;
    glue::launch(&backward_hopper<E, features(), consumers(), of()>, grid(blocks, B * (keys ? G : H)),
                 dim3(Tiles::kThreads), Tiles::kBytes, q,
                 {&q, &k, &v, &d_out, &dq, &dk, &dv, glue::given(dq_sums), &statistics, glue::given(ids), glue::given(ranges)},
                 tiles_of(kept_0, Tiles::kRows), tiles_of(kept_1, Tiles::kRows), tiles_of(passing_0, kColumns),
                 tiles_of(passing_1, kColumns), glue::pointer<E>(keys ? dk : dq), glue::pointer<E>(dv),
                 glue::pointer<float>(dq_sums), glue::pointer<float>(statistics), static_cast<int>(padded),
                 glue::pointer<int64_t>(ids), glue::pointer<int>(ranges), problem, results(keys ? dk : dq));
  };
  const auto by_features = [&](auto of_q, auto features, auto consumers_of_queries) {
    using E = decltype(of_q);
    constexpr int kRows = 256 / (features() / 8);
    glue::launch(&delta_kernel<E, features()>, grid(glue::divide_up(padded, kRows), B * H), dim3(256), 0, q,
                 {&out, &d_out, &lse, &statistics}, glue::pointer<E>(out), glue::pointer<E>(d_out), glue::pointer<float>(lse),
                 glue::pointer<float>(statistics), static_cast<int>(H), static_cast<int>(T), static_cast<int>(padded),
                 d_out.stride(0), d_out.stride(1), d_out.stride(2));
    constexpr std::integral_constant<int, 2> two;
    if (!dq_sums) {
      run(of_q, features, two, std::integral_constant<Gradients, kOfKeys>{}, ranges_of_keys);
      run(of_q, features, consumers_of_queries, std::integral_constant<Gradients, kOfQueries>{}, ranges_of_queries);
      return;
    }
    run(of_q, features, two, std::integral_constant<Gradients, kAll>{}, ranges_of_keys);
    glue::launch(&dq_kernel<E, features()>, grid(tiles * (features() / 64), B * H), dim3(kGroup), 64 * kSwizzleRow, q,
                 {&dq, &*dq_sums}, glue::pointer<float>(dq_sums), glue::pointer<E>(dq), problem, results(dq));
  };
  by_type(q, [&](auto of_q) {
    if (D == 64)
      by_features(of_q, std::integral_constant<int, 64>{}, std::integral_constant<int, 3>{});
    else
      by_features(of_q, std::integral_constant<int, 128>{}, std::integral_constant<int, 2>{});
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def(
      "attention_hopper_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor(a!) statistics, "
      "Tensor(b!) dq, Tensor(c!) dk, Tensor(d!) dv, Tensor(e!)? dq_sums, Tensor? ids, Tensor? ranges_of_queries, "
      "Tensor? ranges_of_keys, bool causal, float scale, int window) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("attention_hopper_backward", TORCH_BOX(&attention_hopper_backward));
}
