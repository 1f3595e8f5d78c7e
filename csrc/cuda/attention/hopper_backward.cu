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

#include "cuda/attention/hopper_backward.h"

namespace {

using namespace hopper_attention;
using namespace hopper_attention::backward;

#if HOPPER_CODE

// s = kept passing^T, of the pair's first or second, issued as a group.
template <typename T, int D, int CONSUMERS, Gradients OF>
__device__ __forceinline__ void score(const Layout<D, CONSUMERS, OF>& tiles, int which, int group, int stage,
                                      float (&s)[Layout<D, CONSUMERS, OF>::kColumns / 2]) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step)
    Products<T, tiles.kColumns>::template shared<0, 0>(
        s, rows_of_k(tiles.kept(which, step / 4) + group * 64 * kSwizzleRow + step % 4 * 32),
        rows_of_k(tiles.passing(which, stage, step / 4) + step % 4 * 32), step > 0);
  commit_products("scores are waited for as a group");
}

// sum += p passing, issued as a group.
template <typename T, int D, int CONSUMERS, Gradients OF>
__device__ __forceinline__ void gather(const Layout<D, CONSUMERS, OF>& tiles, int which, int stage,
                                       const uint32_t (&p)[Layout<D, CONSUMERS, OF>::kColumns / 16][4], float (&sum)[D / 2],
                                       bool add) {
#pragma unroll
  for (int step = 0; step < tiles.kColumns / 16; ++step)
    Products<T, D>::template registers<1>(
        sum, p[step], columns_of_k(tiles.passing(which, stage, 0) + step * 16 * kSwizzleRow, tiles.kSlabPassing), add || step > 0);
  commit_products("sums are waited for as a group");
}

// A part of dq = ds k: 64 of the tile's queries by `slab`'s 64 features, over all of the block's keys. Issued as a group.
template <typename T, int D, int CONSUMERS, Gradients OF>
__device__ __forceinline__ void gather_queries(const Layout<D, CONSUMERS, OF>& tiles, int which, int queries, int slab,
                                               float (&sum)[32]) {
#pragma unroll
  for (int step = 0; step < 4 * CONSUMERS; ++step)
    Products<T, 64>::template shared<1, 1>(
        sum, columns_of_k(tiles.scores(which) + queries * tiles.kSlabScores + step * 16 * kSwizzleRow, 0),
        columns_of_k(tiles.kept(0, slab) + step * 16 * kSwizzleRow, 0), step > 0);
  commit_products("parts of dq are waited for as a group");
}

// lse or delta of the queries of an accumulator's elements i to i + 7, that of element i + j in v[of_element(j)].
__device__ __forceinline__ Pack<float, 4> of_columns(uint32_t statistics, int i, bool delta) {
  const Pack<uint32_t, 4> raw = load_shared(statistics + i * 16 + (delta ? 64 : 0) + threadIdx.x % 4 * 16);
  Pack<float, 4> out;
#pragma unroll
  for (int j = 0; j < 4; ++j) out.v[j] = as_float(raw.v[j]);
  return out;
}
__device__ constexpr int of_element(int j) { return j / 4 * 2 + j % 2; }

// Of a warpgroup's rows from row0 on, keys or queries, and columns from `first` on. Beyond the last query lse is inf, so p is 0.
template <bool KEYS, int N>
__device__ __forceinline__ void hide(float (&s)[N], int row0, int first, int b, const Inputs& inputs) {
  const Problem& problem = inputs.problem;
  const int64_t* ids = inputs.ids + int64_t(b) * problem.T;
  Seen seen;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = row0 + threadIdx.x % kGroup / kWarp * 16 + threadIdx.x % kWarp / 4 + 8 * r;
    seen.low[r] = KEYS ? lowest_query(problem, row) : lowest_key(problem, row);
    seen.high[r] = KEYS ? highest_query(problem, row) : highest_key(problem, row);
    seen.id[r] = inputs.ids && row < problem.T ? load(ids + row) : 0;
  }
  if (inputs.ids)
    hide_columns<true, true, true>(s, seen, ids, problem.T, first);
  else if (problem.window < problem.T)
    hide_columns<false, true, true>(s, seen, ids, problem.T, first);
  else
    hide_columns<false, KEYS, !KEYS>(s, seen, ids, problem.T, first);
}

// Of a block of rows. i: tiles of columns so far.
template <typename T, int D, int CONSUMERS, Gradients OF>
__device__ __forceinline__ void sum_up(const Layout<D, CONSUMERS, OF>& tiles, int group, int which, float* dq_sums,
                                       const Inputs& inputs, int& i, float (&sum0)[D / 2],
                                       float (&sum1)[OF == kOfQueries ? 1 : D / 2]) {
  constexpr int kColumns = tiles.kColumns, N = kColumns / 2;
  constexpr bool KEYS = OF != kOfQueries, WIDE = kColumns > 64;
  const Problem& problem = inputs.problem;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x % kGroup / kWarp;
  const Work work = get_work(tiles.work(which));
  const int row0 = work.row0 + group * 64;
  float lse[2] = {}, delta[2] = {};
  if constexpr (!KEYS) {  // what is beyond the last query has lse = inf, so p = 0; blocks are no longer than what it is padded to
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t rows = (int64_t(work.b) * problem.H + work.head) * inputs.padded;
      const float* of_row = inputs.statistics + 2 * rows + place_of_lse(row0 + warp * 16 + lane / 4 + 8 * r);
      lse[r] = load(of_row);
      delta[r] = load(of_row + 16);
    }
  }
  // Tiles of columns [free_low, free_high) are seen by all 64 rows.
  const int low = KEYS ? lowest_query(problem, row0 + 63) : lowest_key(problem, row0 + 63);
  const int free_low = max((low + kColumns - 1) / kColumns, work.free_low);
  const int free_high = min((KEYS ? highest_query(problem, row0) : highest_key(problem, row0)) / kColumns, work.free_high);
  const float plain[2] = {1.0f, 1.0f};

  float s[N], dp[N];
  uint32_t p[kColumns / 16][4], ds[kColumns / 16][4];
  int head = KEYS ? work.head * problem.group : 0;
  bool adds = false;
  for (int left = (KEYS ? problem.group : 1) * (work.last - work.first), block = work.first; left > 0; --left, ++i) {
    const int stage = i % kStages;
    wait(tiles.full(stage), i / kStages & 1, "what passes has arrived before it is multiplied (wait)");
    hold(s);
    hold(dp);
    fence_products("registers are settled before products take them (scores)");
    score<T>(tiles, 0, group, stage, s);
    score<T>(tiles, 1, group, stage, dp);
    wait_products<1>("scores have arrived before p is computed");
    hold(s);
    if (block < free_low || block >= free_high) hide<KEYS>(s, row0, block * kColumns, work.b, inputs);
#pragma unroll
    for (int j = 0; j < N; j += 8) {
      Pack<float, 4> of;
      if constexpr (KEYS) of = of_columns(tiles.statistics(stage), j, false);
#pragma unroll
      for (int e = 0; e < 8; ++e)
        s[j + e] = exp2_fast(s[j + e] * problem.scale2 - (KEYS ? of.v[of_element(e)] : lse[e / 2 % 2]));
    }
    if constexpr (!KEYS) settle(s);
    if constexpr (KEYS) {
      narrow<T>(s, p);
      hold(sum1);
      fence_products("registers are settled before products take them (p)");
      gather<T>(tiles, 1, stage, p, sum1, adds);
    }
    wait_products<KEYS ? 1 : 0>("products of upstream gradients have arrived before ds is computed");
    hold(dp);
#pragma unroll
    for (int j = 0; j < N; j += 8) {
      Pack<float, 4> of;
      if constexpr (KEYS) of = of_columns(tiles.statistics(stage), j, true);
#pragma unroll
      for (int e = 0; e < 8; ++e)
        dp[j + e] = (WIDE ? unpacked<T>(p[(j + e) / 8][e / 2], e % 2) : s[j + e]) *
                    (dp[j + e] - (KEYS ? of.v[of_element(e)] : delta[e / 2 % 2]));
    }
    narrow<T>(dp, ds);
    if constexpr (OF == kAll) {
      // Rows of ds^T are k of the product with the keys, and a slab of ds is 64 queries wide. Who is here has done with what
      // was multiplied a tile ago, so that the next ds may be written over it.
      put_rows<T, kColumns>(tiles.scores(i % 2) + group * 64 * kSwizzleRow, tiles.kSlabScores, dp, plain);
      fence_async("products see ds in shared memory");
      sync_some(kOwn + CONSUMERS, kGroup * CONSUMERS, "ds of all the block's keys has arrived before it is multiplied by them");
    }
    float part[32];
    hold(sum0);
    if constexpr (OF == kAll) hold(part);
    fence_products("registers are settled before products take them (ds)");
    gather<T>(tiles, 0, stage, ds, sum0, adds);
    adds = true;
    if constexpr (OF == kAll) gather_queries<T>(tiles, i % 2, WIDE ? group : 0, WIDE ? 0 : group, part);
    wait_products<OF == kAll ? 1 : 0>("sums are there, and what they read, before the tile is given back");
    if constexpr (KEYS) hold(sum1);
    hold(sum0);
    if constexpr (OF == kOfKeys) sync_warp("statistics are read before others overwrite them");  // kAll: by the barrier for ds
    if (lane == 0) arrive(tiles.empty(stage), "what passes is multiplied before more overwrites it (arrival)");
    if constexpr (OF == kAll) {
      wait_products<0>("a part of dq has arrived before it is added");
      hold(part);
      float* to = part_of_dq<D>(dq_sums, problem, work.b, head, WIDE ? 2 * block + group : block, WIDE ? 0 : group);
      to += threadIdx.x % kGroup * 4;
#pragma unroll
      for (int j = 0; j < 32; j += 4) add_global(to + j * kGroup, {{part[j], part[j + 1], part[j + 2], part[j + 3]}});
    }
    if (++block == work.last) {
      block = work.first;
      ++head;
    }
  }
}

// 64 rows of dq, dk or dv, by way of a tile that only this warpgroup uses now. COPIED: copies will overwrite it.
template <typename T, int D, bool COPIED>
__device__ __forceinline__ void put_results(uint32_t tile, uint32_t slab, int group, const float (&sum)[D / 2], float scale,
                                            T* to, int64_t stride, int rows) {
  const float by_scale[2] = {scale, scale};
  put_rows<T, D>(tile, slab, sum, by_scale);
  if constexpr (COPIED) fence_async("copies into the tile come after results");
  sync_some(kOwn + group, kGroup, "results are in shared memory before whole rows of them are stored");
  store_rows<T, D>(tile, slab, to, stride, rows);
}

template <typename T, int D, int CONSUMERS, Gradients OF>
__device__ __forceinline__ void consume(const Layout<D, CONSUMERS, OF>& tiles, int group, T* d0, T* d1, float* dq_sums,
                                        const Inputs& inputs, const Angles& angles, const Results& to) {
  constexpr bool KEYS = OF != kOfQueries;
  const int T_ = inputs.problem.T;
  const float scale = inputs.problem.scale;
  for (int i = 0, n = 0;; ++n) {
    wait(tiles.full_kept(), n & 1, "what is kept has arrived before it is multiplied (wait)");
    if (get_work(tiles.work(n % 2)).row0 < 0) return;
    float sum0[D / 2], sum1[KEYS ? D / 2 : 1];
    sum_up<T>(tiles, group, n % 2, dq_sums, inputs, i, sum0, sum1);
    const bool leads = threadIdx.x % kWarp == 0;
    const Work work = get_work(tiles.work(n % 2));
    const int rows = T_ - work.row0 - group * 64;
    const int64_t out = work.b * to.stride_b + (work.row0 + group * 64) * to.stride_t + work.head * D;
    if constexpr (OF == kAll) {  // by way of the tiles of ds; what is kept is free for the next block of rows
      sync_some(kOwn + CONSUMERS, kGroup * CONSUMERS, "ds is multiplied by all before results overwrite it");
      if (leads) arrive(tiles.empty_kept(), "what is kept is done with before more overwrites it (arrival)");
      const uint32_t tile = tiles.scores(group);
      put_results<T, D, false>(tile, 64 * kSwizzleRow, group, sum1, 1.0f, d1 + out, to.stride_t, rows);
      if (angles.pairs) rotate_back<D>(sum0, angles, work.b, work.row0 + group * 64, T_);
      sync_some(kOwn + group, kGroup, "results are stored before others overwrite them");
      put_results<T, D, false>(tile, 64 * kSwizzleRow, group, sum0, scale, d0 + out, to.stride_t, rows);
      sync_some(kOwn + CONSUMERS, kGroup * CONSUMERS, "results are stored before ds overwrites them");
    } else {  // by way of what is kept, of which a warpgroup reads its own rows
      sync_some(kOwn + group, kGroup, "what is kept is multiplied before results overwrite it");
      const uint32_t tile = group * 64 * kSwizzleRow;
      if constexpr (KEYS)
        put_results<T, D, true>(tiles.kept(1, 0) + tile, tiles.kSlabKept, group, sum1, 1.0f, d1 + out, to.stride_t, rows);
      if (angles.pairs) rotate_back<D>(sum0, angles, work.b, work.row0 + group * 64, T_);
      put_results<T, D, true>(tiles.kept(0, 0) + tile, tiles.kSlabKept, group, sum0, scale, d0 + out, to.stride_t, rows);
      sync_warp("results are stored before others overwrite them");
      if (leads) arrive(tiles.empty_kept(), "what is kept is done with before more overwrites it (arrival)");
    }
  }
}

#endif

// kept and passing: of k, v, q and do, or of q, do, k and v. d0, d1: dk and dv, or dq and nothing. dq_sums: kAll's, parts of
// dq.
template <typename T, int D, int CONSUMERS, Gradients OF>
__global__ void __launch_bounds__(Layout<D, CONSUMERS, OF>::kThreads, 1)
    backward_hopper(const __grid_constant__ TensorMap kept_0, const __grid_constant__ TensorMap kept_1,
                    const __grid_constant__ TensorMap passing_0, const __grid_constant__ TensorMap passing_1, T* d0, T* d1,
                    float* dq_sums, const Inputs inputs, const Angles angles, const Results to) {
#if HOPPER_CODE
  using Tiles = Layout<D, CONSUMERS, OF>;
  TILES(memory);
  const Tiles tiles{memory};
  if (threadIdx.x == 0) {
    mbarrier_init(tiles.full_kept(), 1);
    mbarrier_init(tiles.empty_kept(), 4 * CONSUMERS);
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
    if (threadIdx.x == 0) produce(tiles, kept_0, kept_1, passing_0, passing_1, inputs);
  } else {
    take_registers<Tiles::kForConsumers>();
    consume<T>(tiles, warpgroup - 1, d0, d1, dq_sums, inputs, angles, to);
  }
#endif
}

// statistics (B, H, padded, 2): lse and delta = rowsum(out do) of every query; beyond the last one inf, for p = 0, and 0.
// D / 8 lanes hold a row. Where there are sums of dq, `sums` of each head, they become 0,
// and so does what counts the blocks of the launches that follow.
template <typename T, int D>
__global__ void __launch_bounds__(256) delta_kernel(const T* out, const T* d_out, const float* lse, float* statistics,
                                                    float* dq_sums, int* taken, int sums, int H, int Tq, int padded,
                                                    int64_t stride_b, int64_t stride_t, int64_t stride_h) {
  constexpr int kLanes = D / 8, kRows = 256 / kLanes;
  const Place at = place((padded + kRows - 1) / kRows);
  const int t = at.block * kRows + threadIdx.x / kLanes, column = threadIdx.x % kLanes * 8;
  const int b = at.head / H, h = at.head % H;
  if (blockIdx.x == 0 && threadIdx.x < 2) store(taken + threadIdx.x, 0);
  float sum = 0.0f;
  Pack<T, 8> o{}, d{};
  if (t < Tq) {
    o = load(reinterpret_cast<const Pack<T, 8>*>(out + ((int64_t(b) * Tq + t) * H + h) * D + column));
    d = load(reinterpret_cast<const Pack<T, 8>*>(d_out + b * stride_b + t * stride_t + h * stride_h + column));
  }
  if (dq_sums) {  // kRows x D of them a block
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int place = ((at.block * 2 + i) * 256 + int(threadIdx.x)) * 4;
      if (place < sums) store(reinterpret_cast<Pack<float, 4>*>(dq_sums + int64_t(at.head) * sums + place), Pack<float, 4>{});
    }
  }
  if (t < Tq) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += to_float(o.v[i]) * to_float(d.v[i]);
  }
#pragma unroll
  for (int bits = kLanes / 2; bits > 0; bits /= 2) sum += from_lane_xor(sum, bits);
  if (column == 0 && t < padded) {
    float* to = statistics + 2 * int64_t(at.head) * padded + place_of_lse(t);
    store(to, t < Tq ? load(lse + int64_t(at.head) * Tq + t) : INFINITY);
    store(to + 16, sum);
  }
}

// dq = scale times its sums, rotated back and rounded. A block of threads: 64 queries, of kHeads heads, which share angles.
constexpr int kHeads = 2;

template <typename T, int D>
__global__ void __launch_bounds__(kGroup) dq_kernel(float* sums, T* dq, const Problem problem, const Angles angles,
                                                    const Results to) {
#if HOPPER_CODE
  TILES(memory);
  const int heads = (problem.H + kHeads - 1) / kHeads;
  const Place at = place((problem.T + 63) / 64);
  const int b = at.head / heads, head0 = at.head % heads * kHeads, row0 = at.block * 64;
#pragma unroll
  for (int head = head0; head < head0 + kHeads; ++head) {
    if (head >= problem.H) return;
    const float* from = part_of_dq<D>(sums, problem, b, head, at.block, 0) + threadIdx.x * 4;
    float sum[D / 2];
#pragma unroll
    for (int j = 0; j < D / 2; j += 4) {
      const Pack<float, 4> four = load(reinterpret_cast<const Pack<float, 4>*>(from + j * kGroup));
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[j + e] = four.v[e];
    }
    if (angles.pairs) rotate_back<D>(sum, angles, b, row0, problem.T);
    const float by_scale[2] = {problem.scale, problem.scale};
    const uint32_t tile = memory + (head - head0) * D * kSwizzleRow;
    put_rows<T, D>(tile, 64 * kSwizzleRow, sum, by_scale);
    sync_warp("a warp's rows of dq are in shared memory before they are stored");
    store_rows<T, D>(tile, 64 * kSwizzleRow, dq + b * to.stride_b + row0 * to.stride_t + head * D, to.stride_t, problem.T - row0);
  }
#endif
}

// ---- host ------------------------------------------------------------------------------------------------------------

Results results(const Tensor& t) { return {t.stride(0), t.stride(1)}; }

Angles angles_of(const std::optional<Tensor>& cos, const std::optional<Tensor>& sin, int64_t B, int64_t T, int64_t D) {
  CHECK_INPUT(cos.has_value() == sin.has_value(), "emergence_cuda: cos and sin come together");
  if (!cos) return {nullptr, nullptr, 0, 0};
  const int64_t R = cos->size(cos->dim() - 1), each = cos->dim() == 3 ? T * R : 0;
  CHECK_INPUT(R > 0 && R % 8 == 0 && 2 * R <= D, "emergence_cuda: attention rotates back a multiple of 8 pairs of features");
  for (const Tensor* t : {&*cos, &*sin}) {
    glue::check_vector(*t, each ? B * each : T * R, glue::ScalarType::Float, "cos and sin");
    CHECK_INPUT(glue::aligned(t->data_ptr(), 8), "emergence_cuda: cos and sin must start at multiples of 8 bytes");
  }
  return {glue::pointer<float>(cos), glue::pointer<float>(sin), int(R), each};
}

// d_out, q, out, dq (B, T, H, D); k, v, dk, dv (B, T, G, D); lse (B, H, T) and statistics (B, H, padded, 2) float32. taken (2)
// int32. dq_sums: float32, as many as dq has with its positions padded to whole tiles, of 128 at head dim 64 and of 64 at 128; without them the
// gradients have fixed orders of sums. cos and sin (T, R) or (B, T, R) float32: dq and dk are rotated back.
void attention_hopper_backward(const Tensor& d_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                               const Tensor& lse, const Tensor& statistics, const Tensor& taken, const Tensor& dq,
                               const Tensor& dk, const Tensor& dv, std::optional<Tensor> dq_sums, std::optional<Tensor> ids,
                               std::optional<Tensor> ranges_of_queries, std::optional<Tensor> ranges_of_keys, bool causal,
                               double scale, int64_t window, std::optional<Tensor> cos, std::optional<Tensor> sin) {
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
  const Angles angles = angles_of(cos, sin, B, T, D);
  if (B * H * T == 0) return;
  const int queries = D == 64 ? kQueries<64> : kQueries<128>;
  const int64_t sums = int64_t(glue::divide_up(T, queries)) * queries * D;  // of a head
  CHECK_INPUT(sums < (int64_t(1) << 31), "emergence_cuda: attention of too many positions");
  if (dq_sums) glue::check_vector(*dq_sums, B * H * sums, glue::ScalarType::Float, "sums of dq");
  const auto run = [&](auto of_q, auto features, auto consumers, auto of, const std::optional<Tensor>& ranges) {
    using E = decltype(of_q);
    using Tiles = Layout<features(), consumers(), of()>;
    constexpr bool keys = of() != kOfQueries;
    const unsigned blocks = glue::divide_up(T, Tiles::kRows);
    constexpr int block_of_queries = keys ? Tiles::kColumns : Tiles::kRows;
    CHECK_INPUT(padded % 16 == 0 && padded >= int64_t(glue::divide_up(T, block_of_queries)) * block_of_queries,
                "emergence_cuda: statistics must be padded to whole blocks");
    if (ranges) glue::check_vector(*ranges, B * blocks * 4, glue::ScalarType::Int, "ranges");
    const Tensor &kept_0 = keys ? k : q, &kept_1 = keys ? v : d_out, &passing_0 = keys ? q : k,
                 &passing_1 = keys ? d_out : v;
    // Blocks share queries and upstream gradients, 2 bytes each, and sums of dq; or keys and values.
    const int64_t bytes = T * D * (keys ? 8 * problem.group : 4);
    const Order order = order_of(blocks, B * (keys ? G : H), bytes, causal && !keys, taken, keys);
    const Inputs inputs{problem, glue::pointer<float>(statistics), static_cast<int>(padded), glue::pointer<int64_t>(ids),
                        glue::pointer<int>(ranges), order};
    glue::launch(&backward_hopper<E, features(), consumers(), of()>, resident(order, q), dim3(Tiles::kThreads),
                 Tiles::kBytes, q,
                 {&q, &k, &v, &d_out, &dq, &dk, &dv, glue::given(dq_sums), &statistics, &taken, glue::given(ids),
                  glue::given(ranges), glue::given(cos), glue::given(sin)},
                 tiles_of(kept_0, Tiles::kRows), tiles_of(kept_1, Tiles::kRows), tiles_of(passing_0, Tiles::kColumns),
                 tiles_of(passing_1, Tiles::kColumns), glue::pointer<E>(keys ? dk : dq), glue::pointer<E>(dv),
                 glue::pointer<float>(dq_sums), inputs, angles, results(keys ? dk : dq));
  };
  const auto by_features = [&](auto of_q, auto features, auto consumers_of_queries) {
    using E = decltype(of_q);
    constexpr int kRows = 256 / (features() / 8);
    glue::launch(&delta_kernel<E, features()>, grid(glue::divide_up(padded, kRows), B * H), dim3(256), 0, q,
                 {&out, &d_out, &lse, &statistics, &taken, glue::given(dq_sums)}, glue::pointer<E>(out),
                 glue::pointer<E>(d_out), glue::pointer<float>(lse), glue::pointer<float>(statistics),
                 glue::pointer<float>(dq_sums), glue::pointer<int>(taken),
                 static_cast<int>(sums), static_cast<int>(H), static_cast<int>(T), static_cast<int>(padded),
                 d_out.stride(0), d_out.stride(1), d_out.stride(2));
    constexpr std::integral_constant<int, 2> two;
    if (!dq_sums) {
      run(of_q, features, two, std::integral_constant<Gradients, kOfKeys>{}, ranges_of_keys);
      run(of_q, features, consumers_of_queries, std::integral_constant<Gradients, kOfQueries>{}, ranges_of_queries);
      return;
    }
    run(of_q, features, two, std::integral_constant<Gradients, kAll>{}, ranges_of_keys);
    glue::launch(&dq_kernel<E, features()>, grid(glue::divide_up(T, 64), B * glue::divide_up(H, kHeads)), dim3(kGroup),
                 kHeads * features() * kSwizzleRow, q, {&dq, &*dq_sums, glue::given(cos), glue::given(sin)},
                 glue::pointer<float>(dq_sums), glue::pointer<E>(dq), problem, angles, results(dq));
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
      "Tensor(f!) taken, Tensor(b!) dq, Tensor(c!) dk, Tensor(d!) dv, Tensor(e!)? dq_sums, Tensor? ids, "
      "Tensor? ranges_of_queries, Tensor? ranges_of_keys, bool causal, float scale, int window, Tensor? cos=None, "
      "Tensor? sin=None) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("attention_hopper_backward", TORCH_BOX(&attention_hopper_backward));
}
