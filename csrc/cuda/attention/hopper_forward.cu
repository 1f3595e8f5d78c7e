// Attention's forward pass for Hopper (sm_90a), in one sweep over the keys without a (T, T) matrix (Dao, arXiv 2307.08691;
// Shah et al., arXiv 2407.08608, for Hopper). With s = scale log2(e) q k^T and m, l the maximum and
// sum so far of a row, a block of keys and values does
//
//   m' = max(m, max s)     p = 2^(s - m')     l' = l 2^(m - m') + sum p     o' = o 2^(m - m') + p v
//
// and at the end  out = o / l,  lse = m + log2 l  (base 2).
//
// A block of threads has CONSUMERS x 64 rows of queries of one head. Its first warpgroup, the producer, is one thread that
// loads queries, and keys and values in a ring of kStages, by TMA; it releases registers to the others. Each other
// warpgroup multiplies 64 rows: wgmma for s from shared memory, the softmax in registers, wgmma for p v with p from
// registers. Two things keep the tensor cores busy during the softmax: a warpgroup issues s of the next keys before p v of these
// and does the softmax while p v runs; and the warpgroups take turns at issuing, so that the softmax of one overlaps with products of another.
//
// Per stage and tensor two mbarriers: `full` counts TMA's bytes, `empty` one arrival of each consumer warp.

#include "cuda/attention/hopper.h"

namespace {

using namespace hopper_attention;

constexpr int kKeys = 128;  // of a block of keys
constexpr int kStages = 2;

// A matrix of R rows lies in shared memory as D / 64 slabs of (R, 64).
template <int D, int CONSUMERS>
struct Layout {
  static constexpr int kRows = 64 * CONSUMERS, kThreads = kGroup * (CONSUMERS + 1), kSlabs = D / 64;
  static constexpr int kSlabQ = kRows * kSwizzleRow, kSlabK = kKeys * kSwizzleRow;
  static constexpr int kQ = kSlabs * kSlabQ, kK = kSlabs * kSlabK;  // bytes of a tile
  static constexpr int kBarriers = kQ + 2 * kStages * kK;
  static constexpr int kBytes = kBarriers + 8 * (1 + 4 * kStages);
  // Of 65536: as many as the block starts with, for a thread a multiple of 8.
  static constexpr int kForProducer = CONSUMERS == 2 ? 24 : 32, kForConsumers = CONSUMERS == 2 ? 240 : 160;
  static_assert(kGroup * (kForProducer + CONSUMERS * kForConsumers) <= 65536 / kThreads / 8 * 8 * kThreads);

  uint32_t base;
  __device__ uint32_t q(int slab) const { return base + slab * kSlabQ; }
  __device__ uint32_t k(int stage, int slab) const { return base + kQ + stage * 2 * kK + slab * kSlabK; }
  __device__ uint32_t v(int stage, int slab) const { return k(stage, slab) + kK; }
  __device__ uint32_t full_q() const { return base + kBarriers; }
  __device__ uint32_t full_k(int stage) const { return base + kBarriers + 8 + 32 * stage; }
  __device__ uint32_t full_v(int stage) const { return full_k(stage) + 8; }
  __device__ uint32_t empty_k(int stage) const { return full_k(stage) + 16; }
  __device__ uint32_t empty_v(int stage) const { return full_k(stage) + 24; }
};

#if HOPPER_CODE

constexpr int kTurn = 4;  // number of the first warpgroup's turn to issue products, as a barrier

template <int D, int CONSUMERS>
__device__ __forceinline__ void produce(const Layout<D, CONSUMERS>& tiles, const TensorMap& of_q, const TensorMap& of_k,
                                        const TensorMap& of_v, int q0, int first, int last, int h, int g, int b) {
  constexpr int kSlabs = D / 64;
  prefetch(of_q);
  prefetch(of_k);
  prefetch(of_v);
  arrive_expecting(tiles.full_q(), tiles.kQ, "queries have arrived before they are multiplied (bytes)");
#pragma unroll
  for (int slab = 0; slab < kSlabs; ++slab) load_tile(tiles.q(slab), of_q, tiles.full_q(), slab * 64, q0, h, b);
  for (int block = first, i = 0; block < last; ++block, ++i) {
    const int stage = i % kStages, parity = i / kStages & 1;
    wait(tiles.empty_k(stage), parity ^ 1, "keys are multiplied before others overwrite them (wait)");
    arrive_expecting(tiles.full_k(stage), tiles.kK, "keys have arrived before they are multiplied (bytes)");
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab)
      load_tile(tiles.k(stage, slab), of_k, tiles.full_k(stage), slab * 64, block * kKeys, g, b);
    wait(tiles.empty_v(stage), parity ^ 1, "values are multiplied before others overwrite them (wait)");
    arrive_expecting(tiles.full_v(stage), tiles.kK, "values have arrived before they are multiplied (bytes)");
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab)
      load_tile(tiles.v(stage, slab), of_v, tiles.full_v(stage), slab * 64, block * kKeys, g, b);
  }
}

// s = q k^T, issued as a group.
template <typename T, int D, int CONSUMERS>
__device__ __forceinline__ void score(const Layout<D, CONSUMERS>& tiles, int group, int stage, float (&s)[kKeys / 2]) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step)
    Products<T, kKeys>::template shared<0, 0>(
        s, rows_of_k(tiles.q(step / 4) + group * 64 * kSwizzleRow + step % 4 * 32),
        rows_of_k(tiles.k(stage, step / 4) + step % 4 * 32), step > 0);
  commit_products("scores are waited for as a group");
}

// o += p v, issued as a group.
template <typename T, int D, int CONSUMERS>
__device__ __forceinline__ void gather(const Layout<D, CONSUMERS>& tiles, int stage, const uint32_t (&p)[kKeys / 16][4],
                                       float (&o)[D / 2], bool add) {
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step)
    Products<T, D>::template registers<1>(
        o, p[step], columns_of_k(tiles.v(stage, 0) + step * 16 * kSwizzleRow, tiles.kSlabK), add || step > 0);
  commit_products("sums of values are waited for as a group");
}

// The softmax so far of a thread's two rows.
struct Online {
  float top[2], sum[2];
};

// s becomes p; factor: that of the sums over earlier keys. A row without visible keys so far has p = 0.
__device__ __forceinline__ void softmax(float (&s)[kKeys / 2], Online& rows, float scale2, float (&factor)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = rows.top[r];
#pragma unroll
    for (int i = 0; i < kKeys / 2; i += 4) top = fmaxf(top, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
    top = fmaxf(top, from_lane_xor(top, 1));  // a row's columns are spread over four lanes
    top = fmaxf(top, from_lane_xor(top, 2));
    const float shift = top == kLow ? 0.0f : top * scale2;
    factor[r] = exp2_fast(rows.top[r] * scale2 - shift);
    rows.top[r] = top;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kKeys / 2; i += 4)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& value = s[i + 2 * r + c];
        value = exp2_fast(value * scale2 - shift);
        sum += value;
      }
    rows.sum[r] = rows.sum[r] * factor[r] + sum;  // of this lane's columns: added up over the lanes at the end
  }
}

template <typename T, int D, int CONSUMERS>
__device__ __forceinline__ void consume(const Layout<D, CONSUMERS>& tiles, int group, T* out, float* lse, const int64_t* ids,
                                        const int* unmasked, const Problem& problem, int q0, int first, int last, int h,
                                        int b) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x % kGroup / kWarp;
  const int row0 = q0 + group * 64;
  const int row = row0 + warp * 16 + lane / 4;
  Seen seen;
  Online rows;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    seen.low[r] = lowest_key(problem, row + 8 * r);
    seen.width[r] = max(highest_key(problem, row + 8 * r) - seen.low[r], 0);
    seen.id[r] = ids && row + 8 * r < problem.T ? load(ids + row + 8 * r) : 0;
    rows.top[r] = kLow;
    rows.sum[r] = 0.0f;
  }
  // Blocks of keys [free_low, free_high) are seen by all 64 rows.
  int free_low = (lowest_key(problem, row0 + 63) + kKeys - 1) / kKeys, free_high = highest_key(problem, row0) / kKeys;
  if (ids) {
    free_low = max(free_low, unmasked[0]);
    free_high = min(free_high, unmasked[1]);
  }
  const auto hide_block = [&](int block, float(&s)[kKeys / 2]) {
    if (block >= free_low && block < free_high) return;
    if (ids)
      hide<true>(s, seen, ids, problem.T, block * kKeys);
    else
      hide<false>(s, seen, ids, problem.T, block * kKeys);
  };
  const int my_turn = kTurn + group, next_turn = kTurn + (group + 1) % CONSUMERS;

  float s[kKeys / 2], o[D / 2], factor[2];
  uint32_t p[kKeys / 16][4];
  wait(tiles.full_q(), 0, "queries have arrived before they are multiplied (wait)");
  wait(tiles.full_k(0), 0, "keys have arrived before they are multiplied (wait)");
  fence_products("registers are settled before products take them (scores)");
  score<T>(tiles, group, 0, s);
  wait_products<0>("scores have arrived before the softmax reads them");
  hold(s);
  if (lane == 0) arrive(tiles.empty_k(0), "keys are multiplied before others overwrite them (arrival)");
  hide_block(first, s);
  softmax(s, rows, problem.scale2, factor);
  narrow<T>(s, p);
  if (last - first > 1 && group == CONSUMERS - 1) arrive_some(next_turn, 2 * kGroup, "warpgroups issue in turns (first)");
  int i = 1;
  for (int block = first + 1; block < last; ++block, ++i) {
    const int stage = i % kStages, before = (i - 1) % kStages;
    wait(tiles.full_k(stage), i / kStages & 1, "keys have arrived before they are multiplied (wait)");
    // These values were requested before those keys; waiting here lets both products be issued together.
    wait(tiles.full_v(before), (i - 1) / kStages & 1, "values have arrived before they are multiplied (wait)");
    sync_some(my_turn, 2 * kGroup, "warpgroups issue in turns (wait)");
    hold(s);
    hold(o);
    fence_products("registers are settled before products take them (scores and values)");
    score<T>(tiles, group, stage, s);
    gather<T>(tiles, before, p, o, i > 1);
    if (group < CONSUMERS - 1 || block + 1 < last) arrive_some(next_turn, 2 * kGroup, "warpgroups issue in turns (passed on)");
    wait_products<1>("scores have arrived before the softmax reads them");
    hold(s);
    if (lane == 0) arrive(tiles.empty_k(stage), "keys are multiplied before others overwrite them (arrival)");
    hide_block(block, s);
    softmax(s, rows, problem.scale2, factor);
    settle(rows.sum[0] + rows.sum[1]);
    wait_products<0>("sums of values have arrived before they are scaled, and p read before it is overwritten");
    hold(o);
    if (lane == 0) arrive(tiles.empty_v(before), "values are multiplied before others overwrite them (arrival)");
#pragma unroll
    for (int j = 0; j < D / 2; ++j) o[j] *= factor[j / 2 % 2];
    narrow<T>(s, p);
  }
  const int before = (i - 1) % kStages;
  wait(tiles.full_v(before), (i - 1) / kStages & 1, "values have arrived before they are multiplied (wait)");
  hold(o);
  fence_products("registers are settled before products take them (last values)");
  gather<T>(tiles, before, p, o, i > 1);
  wait_products<0>("the last sums of values have arrived before they are stored");
  hold(o);

  // Results go out by way of the tile of queries.
  sync_some(kOwn + group, kGroup, "queries are multiplied before results overwrite them");
  float scale[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = rows.sum[r];
    sum += from_lane_xor(sum, 1);
    sum += from_lane_xor(sum, 2);
    scale[r] = 1.0f / sum;
    if (lane % 4 == 0 && row + 8 * r < problem.T)
      store(lse + (int64_t(b) * problem.H + h) * problem.T + row + 8 * r, rows.top[r] * problem.scale2 + log2f(sum));
  }
  const uint32_t tile = tiles.q(0) + group * 64 * kSwizzleRow;
  put_rows<T, D>(tile, tiles.kSlabQ, o, scale);
  sync_some(kOwn + group, kGroup, "results are in shared memory before whole rows of them are stored");
  store_rows<T, D>(tile, tiles.kSlabQ, out + ((int64_t(b) * problem.T + row0) * problem.H + h) * D, int64_t(problem.H) * D,
                   problem.T - row0);
}

#endif

// ids (B, T), or null. ranges (B, blocks, 4): of each block of queries, the first block of keys and the one after the last
// that may share an id with it, and the same of those that share one id with all of it.
template <typename T, int D, int CONSUMERS>
__global__ void __launch_bounds__(Layout<D, CONSUMERS>::kThreads, 1)
    forward_hopper(const __grid_constant__ TensorMap of_q, const __grid_constant__ TensorMap of_k,
                   const __grid_constant__ TensorMap of_v, T* out, float* lse, const int64_t* ids, const int* ranges,
                   const Problem problem) {
#if HOPPER_CODE
  using Tiles = Layout<D, CONSUMERS>;
  TILES(memory);
  const Tiles tiles{memory};
  const Place at = place((problem.T + Tiles::kRows - 1) / Tiles::kRows);
  const int block = problem.causal ? at.blocks - 1 - at.block : at.block;  // the longest rows first
  const int b = at.head / problem.H, h = at.head % problem.H, g = h / problem.group;
  const int q0 = block * Tiles::kRows;
  const int row_last = min(q0 + Tiles::kRows, problem.T) - 1;
  int first = lowest_key(problem, q0) / kKeys, last = (highest_key(problem, row_last) + kKeys - 1) / kKeys;
  int unmasked[2] = {0, 0};
  if (ids) {
    ids += int64_t(b) * problem.T;
    ranges += (int64_t(b) * at.blocks + block) * 4;
    first = max(first, load(ranges));
    last = min(last, load(ranges + 1));
    unmasked[0] = load(ranges + 2);
    unmasked[1] = load(ranges + 3);
  }
  if (threadIdx.x == 0) {
    mbarrier_init(tiles.full_q(), 1);
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(tiles.full_k(stage), 1);
      mbarrier_init(tiles.full_v(stage), 1);
      mbarrier_init(tiles.empty_k(stage), 4 * CONSUMERS);
      mbarrier_init(tiles.empty_v(stage), 4 * CONSUMERS);
    }
    fence_mbarrier_init("copies know of the mbarriers that they tell");
  }
  barrier("mbarriers are initialised before anybody waits for them");
  const int warpgroup = uniform(threadIdx.x / kGroup);
  if (warpgroup == 0) {
    give_registers<Tiles::kForProducer>();
    if (threadIdx.x == 0) produce(tiles, of_q, of_k, of_v, q0, first, last, h, g, b);
  } else {
    take_registers<Tiles::kForConsumers>();
    consume<T>(tiles, warpgroup - 1, out, lse, ids, unmasked, problem, q0, first, last, h, b);
  }
#endif
}

// ---- host ------------------------------------------------------------------------------------------------------------

using glue::Tensor;

// q, out (B, T, H, D), k, v (B, T, G, D), lse (B, H, T) float32. rows: of queries in a block, 128, or 192 with D 64. scale > 0;
// window 0: none.
void attention_hopper(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                      std::optional<Tensor> ids, std::optional<Tensor> ranges, int64_t rows, bool causal, double scale,
                      int64_t window) {
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), D = q.size(3);
  check_heads(k, q, true, "k");
  check_heads(v, k, false, "v");
  check_heads(out, q, false, "out");
  check_contiguous(out, "out");
  const Problem problem = problem_of(q, k, causal, scale, window);
  glue::check_vector(lse, B * H * T, glue::ScalarType::Float, "lse");
  if (ids) glue::check_vector(*ids, B * T, glue::ScalarType::Long, "document ids");
  CHECK_INPUT(ids.has_value() == ranges.has_value(), "emergence_cuda: document ids need their ranges");
  CHECK_INPUT(rows == 128 || (rows == 192 && D == 64), "emergence_cuda: blocks have 128 rows, or 192 with head dim 64");
  if (B * H * T == 0) return;
  const auto run = [&](auto of_q, auto features, auto consumers) {
    using E = decltype(of_q);
    using Tiles = Layout<features(), consumers()>;
    const unsigned blocks = glue::divide_up(T, Tiles::kRows);
    if (ranges) glue::check_vector(*ranges, B * blocks * 4, glue::ScalarType::Int, "ranges");
    glue::launch(&forward_hopper<E, features(), consumers()>, grid(blocks, B * H), dim3(Tiles::kThreads), Tiles::kBytes, q,
                 {&q, &k, &v, &out, &lse, glue::given(ids), glue::given(ranges)}, tiles_of(q, Tiles::kRows),
                 tiles_of(k, kKeys), tiles_of(v, kKeys), glue::pointer<E>(out), glue::pointer<float>(lse),
                 glue::pointer<int64_t>(ids), glue::pointer<int>(ranges), problem);
  };
  by_type(q, [&](auto of_q) {
    if (D == 64 && rows == 192)
      run(of_q, std::integral_constant<int, 64>{}, std::integral_constant<int, 3>{});
    else if (D == 64)
      run(of_q, std::integral_constant<int, 64>{}, std::integral_constant<int, 2>{});
    else
      run(of_q, std::integral_constant<int, 128>{}, std::integral_constant<int, 2>{});
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def(
      "attention_hopper(Tensor q, Tensor k, Tensor v, Tensor(a!) out, Tensor(b!) lse, Tensor? ids, Tensor? ranges, "
      "int rows, bool causal, float scale, int window) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("attention_hopper", TORCH_BOX(&attention_hopper));
}
