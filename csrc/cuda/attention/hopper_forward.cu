// Attention's forward pass for Hopper (sm_90a), in one sweep over the keys without a (T, T) matrix (Dao, arXiv 2307.08691;
// Shah et al., arXiv 2407.08608, for Hopper). With s = scale log2(e) q k^T and m, l the maximum and
// sum so far of a row, a block of keys and values does
//
//   m' = max(m, max s)     p = 2^(s - m')     l' = l 2^(m - m') + sum p     o' = o 2^(m - m') + p v
//
// and at the end  out = o / l,  lse = m + log2 l  (base 2).
//
// A block of threads stays, and takes blocks of CONSUMERS x 64 rows of queries of one head (hopper.h: Order). Its first
// warpgroup, the producer, is one thread that loads queries in a ring of kQueries, and keys and values in a ring of kStages, by
// TMA; it releases registers to the others. Each other warpgroup multiplies 64 rows: wgmma for s from shared memory, the softmax in
// registers, wgmma for p v with p from registers. Two things keep the tensor cores busy during the softmax: a warpgroup issues s
// of the next keys, be they the first of the next block of rows, before p v of these, and does the softmax while p v runs; and
// the warpgroups take turns at issuing, so that the softmax of one overlaps with products of another.
//
// Per stage and tensor two mbarriers: `full` counts TMA's bytes, `empty` one arrival of each consumer warp.

#include "cuda/attention/hopper.h"

namespace {

using namespace hopper_attention;

constexpr int kKeys = 128;   // of a block of keys
constexpr int kQueries = 3;  // tiles of queries: a short block of rows is done with before another tile would have arrived

// A matrix of R rows lies in shared memory as D / 64 slabs of (R, 64).
template <int D, int CONSUMERS>
struct Layout {
  static constexpr int kRows = 64 * CONSUMERS, kThreads = kGroup * (CONSUMERS + 1), kSlabs = D / 64;
  static constexpr int kStages = 256 / D;
  static constexpr int kSlabQ = kRows * kSwizzleRow, kSlabK = kKeys * kSwizzleRow;
  static constexpr int kQ = kSlabs * kSlabQ, kK = kSlabs * kSlabK;  // bytes of a tile
  static constexpr int kBlocks = kQueries * kQ + 2 * kStages * kK;  // a Block for each tile of queries
  static constexpr int kBarriers = kBlocks + kQueries * 32;
  static constexpr int kBytes = kBarriers + 16 * kQueries + 32 * kStages;
  static_assert(kBytes <= 227 << 10);
  // Of 65536: as many as the block starts with, for a thread a multiple of 8.
  static constexpr int kForProducer = CONSUMERS == 2 ? 24 : 32, kForConsumers = CONSUMERS == 2 ? 240 : 160;
  static_assert(kGroup * (kForProducer + CONSUMERS * kForConsumers) <= 65536 / kThreads / 8 * 8 * kThreads);

  uint32_t base;
  __device__ uint32_t q(int which, int slab) const { return base + which * kQ + slab * kSlabQ; }
  __device__ uint32_t k(int stage, int slab) const { return base + kQueries * kQ + stage * 2 * kK + slab * kSlabK; }
  __device__ uint32_t v(int stage, int slab) const { return k(stage, slab) + kK; }
  __device__ uint32_t block(int which) const { return base + kBlocks + 32 * which; }
  __device__ uint32_t full_q(int which) const { return base + kBarriers + 16 * which; }
  __device__ uint32_t empty_q(int which) const { return full_q(which) + 8; }
  __device__ uint32_t full_k(int stage) const { return base + kBarriers + 16 * kQueries + 32 * stage; }
  __device__ uint32_t full_v(int stage) const { return full_k(stage) + 8; }
  __device__ uint32_t empty_k(int stage) const { return full_k(stage) + 16; }
  __device__ uint32_t empty_v(int stage) const { return full_k(stage) + 24; }
};

// What all blocks of rows share. ids (B, T), or null. ranges (B, blocks, 4): of each block of queries, the first block of keys
// and the one after the last that may share an id with it, and the same of those that share one id with all of it.
struct Inputs {
  Problem problem;
  const int64_t* ids;
  const int* ranges;
  Order order;
};

#if HOPPER_CODE

constexpr int kTurn = 4;  // number of the first warpgroup's turn to issue products, as a barrier

// A block of rows of queries, and blocks of keys [first, last), of which [free_low, free_high) share one id with all of them.
// The producer computes it, and tells the others by shared memory, for they are short of registers. last 0: there are no more.
struct Block {
  int q0, b, h, first, last, free_low, free_high;
};

template <int ROWS>
__device__ __forceinline__ Block block_of(const Walk& walk, const Inputs& inputs) {
  const Problem& problem = inputs.problem;
  const int head = walk.head(), block = walk.block(), b = head / problem.H;
  Block at{block * ROWS, b, head - b * problem.H, 0, 0, 0, 1 << 30};
  at.first = lowest_key(problem, at.q0) / kKeys;
  at.last = (highest_key(problem, min(at.q0 + ROWS, problem.T) - 1) + kKeys - 1) / kKeys;
  if (inputs.ids) {
    const int* ranges = inputs.ranges + (int64_t(b) * inputs.order.blocks + block) * 4;
    at.first = max(at.first, load(ranges));
    at.last = min(at.last, load(ranges + 1));
    at.free_low = load(ranges + 2);
    at.free_high = load(ranges + 3);
  }
  return at;
}

__device__ __forceinline__ void put_block(uint32_t to, const Block& at) {
  const int values[8] = {at.q0, at.b, at.h, at.first, at.last, at.free_low, at.free_high};
#pragma unroll
  for (int i = 0; i < 8; ++i) store_shared(to + 4 * i, values[i]);
}

__device__ __forceinline__ Block get_block(uint32_t from) {
  const Pack<uint32_t, 4> low = load_shared(from), high = load_shared(from + 16);
  return {int(low.v[0]), int(low.v[1]), int(low.v[2]), int(low.v[3]), int(high.v[0]), int(high.v[1]), int(high.v[2])};
}

template <int D, int CONSUMERS>
__device__ __forceinline__ void produce(const Layout<D, CONSUMERS>& tiles, const TensorMap& of_q, const TensorMap& of_k,
                                        const TensorMap& of_v, const Inputs& inputs) {
  constexpr int kSlabs = D / 64, kStages = tiles.kStages;
  prefetch(of_q);
  prefetch(of_k);
  prefetch(of_v);
  Walk walk(inputs.order);
  for (int i = 0, n = 0;; walk.advance(), ++n) {
    const int which = n % kQueries;
    wait(tiles.empty_q(which), (n / kQueries & 1) ^ 1, "results are stored before other queries overwrite them (wait)");
    if (!walk.more()) {
      put_block(tiles.block(which), {});
      arrive(tiles.full_q(which), "the end is known before it is read");
      return;
    }
    const Block at = block_of<64 * CONSUMERS>(walk, inputs);
    const int g = at.h / inputs.problem.group;
    put_block(tiles.block(which), at);
    arrive_expecting(tiles.full_q(which), tiles.kQ, "queries have arrived before they are multiplied (bytes)");
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab)
      load_tile(tiles.q(which, slab), of_q, tiles.full_q(which), slab * 64, at.q0, at.h, at.b);
    for (int block = at.first; block < at.last; ++block, ++i) {
      const int stage = i % kStages, parity = i / kStages & 1;
      wait(tiles.empty_k(stage), parity ^ 1, "keys are multiplied before others overwrite them (wait)");
      arrive_expecting(tiles.full_k(stage), tiles.kK, "keys have arrived before they are multiplied (bytes)");
#pragma unroll
      for (int slab = 0; slab < kSlabs; ++slab)
        load_tile(tiles.k(stage, slab), of_k, tiles.full_k(stage), slab * 64, block * kKeys, g, at.b);
      wait(tiles.empty_v(stage), parity ^ 1, "values are multiplied before others overwrite them (wait)");
      arrive_expecting(tiles.full_v(stage), tiles.kK, "values have arrived before they are multiplied (bytes)");
#pragma unroll
      for (int slab = 0; slab < kSlabs; ++slab)
        load_tile(tiles.v(stage, slab), of_v, tiles.full_v(stage), slab * 64, block * kKeys, g, at.b);
    }
  }
}

// s = q k^T, issued as a group.
template <typename T, int D, int CONSUMERS>
__device__ __forceinline__ void score(const Layout<D, CONSUMERS>& tiles, int which, int group, int stage,
                                      float (&s)[kKeys / 2]) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step)
    Products<T, kKeys>::template shared<0, 0>(
        s, rows_of_k(tiles.q(which, step / 4) + group * 64 * kSwizzleRow + step % 4 * 32),
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

// All of a warpgroup's rows may see blocks of keys [low, high). Only windows and documents have a low one: it is not kept.
__device__ __forceinline__ int free_high(const Block& at, int group, const Problem& problem) {
  return min(highest_key(problem, at.q0 + group * 64) / kKeys, at.free_high);
}

__device__ __forceinline__ bool below_free(uint32_t of, int group, int block, const Inputs& inputs) {
  if (!inputs.ids && inputs.problem.window == inputs.problem.T) return false;
  const Block at = get_block(of);
  return block < at.free_low || block * kKeys < lowest_key(inputs.problem, at.q0 + group * 64 + 63);
}

__device__ __forceinline__ void hide(float (&s)[kKeys / 2], int group, uint32_t of, int block, const Inputs& inputs) {
  const Problem& problem = inputs.problem;
  const Block at = get_block(of);
  const int64_t* ids = inputs.ids + int64_t(at.b) * problem.T;
  Seen seen;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = at.q0 + group * 64 + threadIdx.x % kGroup / kWarp * 16 + threadIdx.x % kWarp / 4 + 8 * r;
    seen.low[r] = lowest_key(problem, row);
    seen.high[r] = highest_key(problem, row);
    seen.id[r] = inputs.ids && row < problem.T ? load(ids + row) : 0;
  }
  if (inputs.ids)
    hide_columns<true, true, true>(s, seen, ids, problem.T, block * kKeys);
  else if (problem.window < problem.T)
    hide_columns<false, true, true>(s, seen, ids, problem.T, block * kKeys);
  else
    hide_columns<false, false, true>(s, seen, ids, problem.T, block * kKeys);
}

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

// Ends the softmax of a block of rows. scale: of its sums of values.
__device__ __forceinline__ void put_lse(uint32_t of, int group, const Online& rows, float* lse, const Problem& problem,
                                        float (&scale)[2]) {
  const Block at = get_block(of);
  const int lane = threadIdx.x % kWarp, row = at.q0 + group * 64 + threadIdx.x % kGroup / kWarp * 16 + lane / 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = rows.sum[r];
    sum += from_lane_xor(sum, 1);
    sum += from_lane_xor(sum, 2);
    scale[r] = 1.0f / sum;
    if (lane % 4 == 0 && row + 8 * r < problem.T)
      store(lse + (int64_t(at.b) * problem.H + at.h) * problem.T + row + 8 * r, rows.top[r] * problem.scale2 + log2f(sum));
  }
}

// Results go out by way of the tile of their queries, which is then free for others. All of the warpgroup have met since they
// waited for the last product of these queries: at its turn.
template <typename T, int D, int CONSUMERS>
__device__ __forceinline__ void put_results(const Layout<D, CONSUMERS>& tiles, int which, int group, const float (&o)[D / 2],
                                            T* out, const Problem& problem) {
  const float plain[2] = {1.0f, 1.0f};
  const uint32_t tile = tiles.q(which, 0) + group * 64 * kSwizzleRow;
  put_rows<T, D>(tile, tiles.kSlabQ, o, plain);
  fence_async("copies of other queries come after results");
  sync_some(kOwn + group, kGroup, "results are in shared memory before whole rows of them are stored");
  const Block at = get_block(tiles.block(which));
  const int row0 = at.q0 + group * 64;
  store_rows<T, D>(tile, tiles.kSlabQ, out + ((int64_t(at.b) * problem.T + row0) * problem.H + at.h) * D,
                   int64_t(problem.H) * D, problem.T - row0);
  sync_warp("a warp's results are stored before other queries overwrite them");
  if (threadIdx.x % kWarp == 0)
    arrive(tiles.empty_q(which), "results are stored before other queries overwrite them (arrival)");
}

template <typename T, int D, int CONSUMERS>
__device__ __forceinline__ void consume(const Layout<D, CONSUMERS>& tiles, int group, T* out, float* lse, const Inputs& inputs) {
  constexpr int kStages = tiles.kStages;
  const Problem& problem = inputs.problem;
  const bool leads = threadIdx.x % kWarp == 0;
  const int my_turn = kTurn + group, next_turn = group < CONSUMERS - 1 ? my_turn + 1 : kTurn;
  float s[kKeys / 2], o[D / 2], factor[2];
  uint32_t p[kKeys / 16][4];
  Online rows{{kLow, kLow}, {0.0f, 0.0f}};
  wait(tiles.full_q(0), 0, "queries have arrived before they are multiplied (wait)");
  wait(tiles.full_k(0), 0, "keys have arrived before they are multiplied (wait)");
  const Block start = get_block(tiles.block(0));
  int block = start.first, last = start.last;
  fence_products("registers are settled before products take them (scores)");
  score<T>(tiles, 0, group, 0, s);
  wait_products<0>("scores have arrived before the softmax reads them");
  hold(s);
  if (leads) arrive(tiles.empty_k(0), "keys are multiplied before others overwrite them (arrival)");
  int high = free_high(start, group, problem);
  if (block >= high || below_free(tiles.block(0), group, block, inputs)) hide(s, group, tiles.block(0), block, inputs);
  softmax(s, rows, problem.scale2, factor);
  narrow<T>(s, p);
  if (group == CONSUMERS - 1) arrive_some(next_turn, 2 * kGroup, "warpgroups issue in turns (first)");
  // Of values i - 1 with p, and keys i, the next ones.
  int i = 1, n = 0;
  bool adds = false;
  for (;; ++i) {
    const int stage = i % kStages, before = (i - 1) % kStages;
    const bool done = ++block == last;
    if (done) {
      ++n;
      wait(tiles.full_q(n % kQueries), n / kQueries & 1, "queries have arrived before they are multiplied (wait)");
      const Block next = get_block(tiles.block(n % kQueries));
      if (next.last == 0) break;
      block = next.first;
      last = next.last;
      high = free_high(next, group, problem);
    }
    wait(tiles.full_k(stage), i / kStages & 1, "keys have arrived before they are multiplied (wait)");
    // These values were requested before those keys; waiting here lets both products be issued together.
    wait(tiles.full_v(before), (i - 1) / kStages & 1, "values have arrived before they are multiplied (wait)");
    sync_some(my_turn, 2 * kGroup, "earlier queries are multiplied before results overwrite them; my turn");
    hold(s);
    hold(o);
    fence_products("registers are settled before products take them (scores and values)");
    score<T>(tiles, n % kQueries, group, stage, s);
    gather<T>(tiles, before, p, o, adds);
    adds = !done;
    arrive_some(next_turn, 2 * kGroup, "warpgroups issue in turns (passed on)");
    float scale[2];
    if (done) {
      put_lse(tiles.block((n - 1) % kQueries), group, rows, lse, problem, scale);
      rows = {{kLow, kLow}, {0.0f, 0.0f}};
    }
    wait_products<1>("scores have arrived before the softmax reads them");
    hold(s);
    if (leads) arrive(tiles.empty_k(stage), "keys are multiplied before others overwrite them (arrival)");
    const uint32_t of = tiles.block(n % kQueries);
    if (block >= high || below_free(of, group, block, inputs)) hide(s, group, of, block, inputs);
    softmax(s, rows, problem.scale2, factor);
    settle(rows.sum[0] + rows.sum[1]);
    wait_products<0>("sums of values have arrived before they are scaled, and p read before it is overwritten");
    hold(o);
    if (leads) arrive(tiles.empty_v(before), "values are multiplied before others overwrite them (arrival)");
#pragma unroll
    for (int j = 0; j < D / 2; ++j) o[j] *= done ? scale[j / 2 % 2] : factor[j / 2 % 2];
    if (done) put_results<T>(tiles, (n - 1) % kQueries, group, o, out, problem);
    narrow<T>(s, p);
  }
  const int before = (i - 1) % kStages;
  wait(tiles.full_v(before), (i - 1) / kStages & 1, "values have arrived before they are multiplied (wait)");
  sync_some(my_turn, 2 * kGroup, "the last queries are multiplied before results overwrite them; my turn");
  hold(o);
  fence_products("registers are settled before products take them (last values)");
  gather<T>(tiles, before, p, o, adds);
  if (group < CONSUMERS - 1) arrive_some(next_turn, 2 * kGroup, "warpgroups issue in turns (last passed on)");
  wait_products<0>("the last sums of values have arrived before they are stored");
  hold(o);
  put_lse(tiles.block((n - 1) % kQueries), group, rows, lse, problem, factor);
#pragma unroll
  for (int j = 0; j < D / 2; ++j) o[j] *= factor[j / 2 % 2];
  put_results<T>(tiles, (n - 1) % kQueries, group, o, out, problem);
}

#endif

template <typename T, int D, int CONSUMERS>
__global__ void __launch_bounds__(Layout<D, CONSUMERS>::kThreads, 1)
    forward_hopper(const __grid_constant__ TensorMap of_q, const __grid_constant__ TensorMap of_k,
                   const __grid_constant__ TensorMap of_v, T* out, float* lse, const Inputs inputs) {
#if HOPPER_CODE
  using Tiles = Layout<D, CONSUMERS>;
  TILES(memory);
  const Tiles tiles{memory};
  if (threadIdx.x == 0) {
    for (int which = 0; which < kQueries; ++which) {
      mbarrier_init(tiles.full_q(which), 1);
      mbarrier_init(tiles.empty_q(which), 4 * CONSUMERS);
    }
    for (int stage = 0; stage < Tiles::kStages; ++stage) {
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
    if (threadIdx.x == 0) produce(tiles, of_q, of_k, of_v, inputs);
  } else {
    take_registers<Tiles::kForConsumers>();
    consume<T>(tiles, warpgroup - 1, out, lse, inputs);
  }
#endif
}

// ---- host ------------------------------------------------------------------------------------------------------------

using glue::Tensor;

// q, out (B, T, H, D), k, v (B, T, G, D), lse (B, H, T) float32. taken (2): int32, zeros. rows: of queries in a block, 128, or
// 192 with D 64. scale > 0; window 0: none.
void attention_hopper(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                      const Tensor& taken, std::optional<Tensor> ids, std::optional<Tensor> ranges, int64_t rows, bool causal,
                      double scale, int64_t window) {
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
    const Order order = order_of(blocks, B * H, 4 * T * D, causal, taken, 0);
    glue::launch(&forward_hopper<E, features(), consumers()>, resident(order, q), dim3(Tiles::kThreads),
                 Tiles::kBytes, q,
                 {&q, &k, &v, &out, &lse, &taken, glue::given(ids), glue::given(ranges)}, tiles_of(q, Tiles::kRows),
                 tiles_of(k, kKeys), tiles_of(v, kKeys), glue::pointer<E>(out), glue::pointer<float>(lse),
                 Inputs{problem, glue::pointer<int64_t>(ids), glue::pointer<int>(ranges), order});
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
      "attention_hopper(Tensor q, Tensor k, Tensor v, Tensor(a!) out, Tensor(b!) lse, Tensor(c!) taken, Tensor? ids, "
      "Tensor? ranges, int rows, bool causal, float scale, int window) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("attention_hopper", TORCH_BOX(&attention_hopper));
}
