// Attention, backward (Dao, arXiv 2307.08691), by mma.sync. With s = scale q k^T, p = exp(s - lse) and delta = rowsum(out dout):
//
//   dv = p^T dout     dp = dout v^T     ds = p (dp - delta)     dq = scale ds k     dk = scale ds^T q
//
// A block of keys_kernel has 64 keys, iterates over the queries that may see them, of all heads of the group, and keeps dk and
// dv in registers. With ALL it also adds its keys' part of dq to float32 sums, by atomics in any order: five products. For
// deterministic gradients dq is queries_kernel's instead, whose blocks have 64 or 128 queries and iterate over their keys: s and
// dp are computed twice (seven products), and every sum has a fixed order, the same bits in every run.
//
// A block's own rows are operands in registers; the tiles that it walks over are double-buffered: the next ones arrive
// while these are multiplied.

#include <array>

#include "cuda/attention/mma.h"

using namespace attention;

namespace {

constexpr int kPadding = 128;  // sequences in `terms` are padded to a multiple of this

// The log-sum-exp and delta of a row. Infinity and 0 beyond T make p and ds 0 there.
using Terms = Pack<float, 2>;

// The Terms of B H rows of T, padded. 16 threads a row, a chunk of 8 values each. The row's `width` sums of dq become 0.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    terms_kernel(Heads<const T> out, Heads<const T> grad, const float* lse, Terms* terms, float* sums, int width, int64_t rows,
                 int padded, Problem p) {
  const int64_t row = int64_t(blockIdx.x) * (kThreads / 16) + threadIdx.x / 16;
  const int chunk = threadIdx.x % 16, t = row % padded;
  const int64_t head = row / padded, b = head / p.H, h = head % p.H;
  const bool inside = row < rows && t < p.T;
  if (row < rows)
    for (int i = 4 * chunk; i < width; i += 64) store(reinterpret_cast<Pack<float, 4>*>(sums + row * width + i), Pack<float, 4>{});
  float delta = 0.0f;
  if (inside && chunk * 8 < p.head_dim) {
    const auto o = load(reinterpret_cast<const Chunk<T>*>(out.at(b, h) + t * out.of_row) + chunk);
    const auto d = load(reinterpret_cast<const Chunk<T>*>(grad.at(b, h) + t * grad.of_row) + chunk);
#pragma unroll
    for (int i = 0; i < 8; ++i) delta += to_float(o.v[i]) * to_float(d.v[i]);
  }
#pragma unroll
  for (int bits = 8; bits > 0; bits /= 2) delta += from_lane_xor(delta, bits);
  if (row < rows && chunk == 0) store(terms + row, Terms{{inside ? load(lse + head * p.T + t) : HUGE_VALF, delta}});
}

// All of this warp's 16 MT rows of a tile as A's, [k] for its columns 16 k ...
template <int D, int MT, typename Array>
__device__ __forceinline__ void load_all(uint32_t (&a)[D / 16][MT][4], Array& tiles, int tile) {
  const int at = my_place<D>(false);
#pragma unroll
  for (int k = 0; k < D / 16; ++k) load_a<D>(a[k], tiles, tile, at, k);
}

// s (16 MT, 8 NT) = a b^T with a in registers.
template <typename T, int D, int MT, int NT, typename Array>
__device__ __forceinline__ void multiply_kept(float (&s)[MT][NT][4], const uint32_t (&a)[D / 16][MT][4], Array& tiles, int tile) {
  multiply_by_rows<T, D, D / 16>(s, [&](int k, auto& a_k) {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) a_k[m][i] = a[k][m][i];
  }, tiles, tile);
}

// ---- dk and dv -------------------------------------------------------------------------------------------------------

constexpr int kKeys = 64;
template <int D>
constexpr int kQueriesOf = D <= 64 ? 64 : 32;  // of a tile
template <int D, bool ALL>
constexpr size_t kKeysBytes = ((2 * kKeys + 4 * kQueriesOf<D>) * kPitch<D> + (ALL ? kKeys * kPitch<64> : 0)) * 16;

// Sums of dq for 16 queries of one head by 8 features: value i of lane l at 32 i + l.
constexpr int kPart = 128;
template <int D>
__device__ __forceinline__ float* part_of_dq(float* sums, int64_t head, int padded, int query, int feature) {
  return sums + ((head * padded + query) / 16 * (D / 8) + feature / 8) * kPart + lane();
}

// Adds scale^-1 dq = ds k of a tile of queries and the block's keys to the sums of the head. ds lies transposed at `scores`, a
// row a key, as in tiles of head dim 64. A warp has 16 queries and, where the tile is half as long, half of the features.
template <typename T, int D, typename Array>
__device__ __forceinline__ void add_queries(Array& tiles, int scores, int keys, float* sums, int64_t head, int padded, int q0) {
  constexpr int kAcross = kQueriesOf<D> / 16, kN = D / 8 / (kWarps / kAcross);
  const int m = warp() % kAcross, first = warp() / kAcross * kN;  // of its features' chunks
  const int at_a = my_place<64>(true), at_b = my_place<D>(false);
  float part[kN][4] = {};
#pragma unroll 2  // no more: addresses would fill the registers
  for (int k = 0; k < kKeys / 16; ++k) {
    uint32_t a[4];
    load_matrices<true>(a, tiles, scores + (at_a ^ 2 * m) + 16 * k * kPitch<64>);
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      load_matrices<true>(b, tiles, keys + (at_b ^ (first + n)) + 16 * k * kPitch<D>);
      multiply_add<T>(part[n], a, b[0], b[1]);
      multiply_add<T>(part[n + 1], a, b[2], b[3]);
    }
  }
  float* to = part_of_dq<D>(sums, head, padded, q0 + 16 * m, 8 * first);
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) add_global(to + n * kPart + 32 * i, part[n][i]);
}

template <typename T, int D, bool ALL>
__global__ void __launch_bounds__(kThreads, 2)
    keys_kernel(Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<const T> grad, const Terms* terms, Heads<T> dk,
                Heads<T> dv, float* dq_sums, int padded, Problem p, float scale, float scale2) {
  constexpr int kQueries = kQueriesOf<D>, kN = kQueries / 8, kTile = kQueries * kPitch<D>;
  constexpr int kK = 0, kV = kKeys * kPitch<D>, kQ = 2 * kV, kGrad = kQ + 2 * kTile;  // the latter two twice
  [[maybe_unused]] constexpr int kScores = kGrad + 2 * kTile;
  DYNAMIC_SHARED(Chunk<T>, tiles);
  SHARED(Chunk<float>, of_queries, 2 * kQueries / 2);  // the Terms of two queries each, twice
  const int blocks = (p.T + kKeys - 1) / kKeys, group = p.H / p.G;
  const int k0 = blockIdx.x % blocks * kKeys;  // causal: the first keys, which most queries see, come first
  const int b = blockIdx.x / blocks / p.G, g = blockIdx.x / blocks % p.G;
  const Span queries = span<kKeys>(p, b, k0, p.after, p.before);
  const int first = queries.first / kQueries * kQueries, row0 = k0 + 16 * warp();  // whole tiles, as `terms` is padded to

  copy_rows<D, kKeys>(tiles, kK, k.at(b, g), k.of_row, k0, p);
  copy_rows<D, kKeys>(tiles, kV, v.at(b, g), v.of_row, k0, p);
  commit_copies();
  const auto fetch = [&](int h, int q0, int buffer) {
    copy_rows<D, kQueries>(tiles, kQ + buffer * kTile, q.at(b, h), q.of_row, q0, p);
    copy_rows<D, kQueries>(tiles, kGrad + buffer * kTile, grad.at(b, h), grad.of_row, q0, p);
    if (threadIdx.x < kQueries / 2)
      copy_async(of_queries, buffer * kQueries / 2 + threadIdx.x,
                 terms + (int64_t(b) * p.H + h) * padded + q0 + 2 * threadIdx.x, true);
    commit_copies();
  };
  fetch(g * group, first, 0);
  wait_for_copies<1>("this thread's copies of its keys and values have landed before anybody reads them");
  barrier("all of the block's keys and values have arrived before a warp takes its rows into registers");
  constexpr bool kKeep = D <= (ALL ? 64 : 96);  // its rows in registers; else they are read again and again, for want of registers
  uint32_t keys[kKeep ? D / 16 : 1][1][4], values[kKeep ? D / 16 : 1][1][4];
  if constexpr (kKeep) {
    load_all<D>(keys, tiles, kK);
    load_all<D>(values, tiles, kV);
  }

  float dk_acc[1][D / 8][4] = {}, dv_acc[1][D / 8][4] = {};
  int buffer = 0;
  for (int h = g * group, q0 = first; h < (g + 1) * group; buffer ^= 1) {
    wait_for_copies<0>("this thread's copies of the queries have landed before anybody reads them");
    barrier("all queries are there, and nobody reads the other buffer any more, where the next ones land");
    int next_h = h, next = q0 + kQueries;
    if (next >= queries.last) {
      ++next_h;
      next = first;
    }
    if (next_h < (g + 1) * group) fetch(next_h, next, buffer ^ 1);

    float s[1][kN][4], dp[1][kN][4];
    const int q_tile = kQ + buffer * kTile, grad_tile = kGrad + buffer * kTile;
    if constexpr (kKeep)
      multiply_kept<T, D>(s, keys, tiles, q_tile);
    else
      multiply_tiles<T, D>(s, tiles, kK, q_tile);
    if (!all_visible<kQueries, kKeys>(p, q0, k0)) hide<true>(s, p, q0, row0);
    hide_documents<kKeys>(s, p, b, k0, row0, q0);
    if constexpr (kKeep)
      multiply_kept<T, D>(dp, values, tiles, grad_tile);
    else
      multiply_tiles<T, D>(dp, tiles, kV, grad_tile);
    uint32_t probabilities[1][kN][2], ds[1][kN][2];
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      const Chunk<float> of_two = of_queries[buffer * kQueries / 2 + 4 * n + lane() % 4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float p0 = exp2_fast(fmaf(s[0][n][2 * half], scale2, -of_two.v[0]));
        const float p1 = exp2_fast(fmaf(s[0][n][2 * half + 1], scale2, -of_two.v[2]));
        probabilities[0][n][half] = packed<T>(p0, p1);
        ds[0][n][half] = packed<T>(p0 * (dp[0][n][2 * half] - of_two.v[1]), p1 * (dp[0][n][2 * half + 1] - of_two.v[3]));
      }
    }
    if constexpr (ALL) {
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          store_pair(tiles, kScores + place<64>(16 * warp() + lane() / 4 + 8 * half, n), lane() % 4, ds[0][n][half]);
    }
    multiply_add_rows<T, D>(dv_acc, probabilities, tiles, grad_tile);
    multiply_add_rows<T, D>(dk_acc, ds, tiles, q_tile);
    if constexpr (ALL) {
      barrier("ds of all the block's keys is there before it is multiplied by them");
      add_queries<T, D>(tiles, kScores, kK, dq_sums, int64_t(b) * p.H + h, padded, q0);
    }
    h = next_h;
    q0 = next;
  }
  barrier("nobody reads the values any more, where dv is put, nor the keys, where dk is");
  put_rows<T, D>(tiles, kK, dk_acc, [&](int, int) { return scale; });
  put_rows<T, D>(tiles, kV, dv_acc, [](int, int) { return 1.0f; });
  barrier("the block's rows of dk and dv are whole before they are stored in one piece");
  store_rows<D, kKeys>(tiles, kK, dk.at(b, g), dk.of_row, k0, p);
  store_rows<D, kKeys>(tiles, kV, dv.at(b, g), dv.of_row, k0, p);
}

// ---- dq --------------------------------------------------------------------------------------------------------------

constexpr int kTileKeys = 32;
template <int D>
constexpr int kRowsOf = D <= 64 ? 128 : 64;  // queries of a block
template <int D>
constexpr size_t kQueriesBytes = (2 * kRowsOf<D> + 4 * kTileKeys) * kPitch<D> * 16;

template <typename T, int D>
__global__ void __launch_bounds__(kThreads, 2)
    queries_kernel(Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<const T> grad, const Terms* terms, Heads<T> dq,
                   int padded, Problem p, float scale, float scale2) {
  constexpr int kRows = kRowsOf<D>, kM = kRows / (16 * kWarps), kN = kTileKeys / 8, kTile = kTileKeys * kPitch<D>;
  constexpr int kQ = 0, kGrad = kRows * kPitch<D>, kK = 2 * kGrad, kV = kK + 2 * kTile;  // the latter two twice
  DYNAMIC_SHARED(Chunk<T>, tiles);
  const int blocks = (p.T + kRows - 1) / kRows;
  const int q0 = (blocks - 1 - blockIdx.x % blocks) * kRows;  // the longest rows of a causal mask first
  const int b = blockIdx.x / blocks / p.H, h = blockIdx.x / blocks % p.H, g = h / (p.H / p.G);
  const Span keys = span<kRows>(p, b, q0, p.before, p.after);
  const int first = keys.first / 8 * 8, row0 = q0 + 16 * kM * warp();

  copy_rows<D, kRows>(tiles, kQ, q.at(b, h), q.of_row, q0, p);
  copy_rows<D, kRows>(tiles, kGrad, grad.at(b, h), grad.of_row, q0, p);
  commit_copies();
  const auto fetch = [&](int k0, int buffer) {
    copy_rows<D, kTileKeys>(tiles, kK + buffer * kTile, k.at(b, g), k.of_row, k0, p);
    copy_rows<D, kTileKeys>(tiles, kV + buffer * kTile, v.at(b, g), v.of_row, k0, p);
    commit_copies();
  };
  fetch(first, 0);
  Terms of_rows[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      of_rows[m][half] = load(terms + (int64_t(b) * p.H + h) * padded + row0 + 16 * m + 8 * half + lane() / 4);
  wait_for_copies<1>("this thread's copies of its queries have landed before anybody reads them");
  barrier("all of the block's queries have arrived before a warp takes its rows into registers");
  constexpr bool kKeep = kM == 1;  // dout in registers; else it is read again and again, for want of them
  uint32_t queries[D / 16][kM][4], upstream[kKeep ? D / 16 : 1][kM][4];
  load_all<D>(queries, tiles, kQ);
  if constexpr (kKeep) load_all<D>(upstream, tiles, kGrad);

  float acc[kM][D / 8][4] = {};
  int buffer = 0;
  for (int k0 = first; k0 < keys.last; k0 += kTileKeys, buffer ^= 1) {
    wait_for_copies<0>("this thread's copies of the keys and values have landed before anybody reads them");
    barrier("all keys and values are there, and nobody reads the other buffer any more, where the next ones land");
    if (k0 + kTileKeys < keys.last) fetch(k0 + kTileKeys, buffer ^ 1);

    float s[kM][kN][4], dp[kM][kN][4];
    multiply_kept<T, D>(s, queries, tiles, kK + buffer * kTile);
    if (!all_visible<kRows, kTileKeys>(p, q0, k0)) hide<false>(s, p, row0, k0);
    hide_documents<kRows>(s, p, b, q0, row0, k0);
    if constexpr (kKeep)
      multiply_kept<T, D>(dp, upstream, tiles, kV + buffer * kTile);
    else
      multiply_tiles<T, D>(dp, tiles, kGrad, kV + buffer * kTile);
    uint32_t ds[kM][kN][2];
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Terms row = of_rows[m][half];
          const float p0 = exp2_fast(fmaf(s[m][n][2 * half], scale2, -row.v[0]));
          const float p1 = exp2_fast(fmaf(s[m][n][2 * half + 1], scale2, -row.v[0]));
          ds[m][n][half] = packed<T>(p0 * (dp[m][n][2 * half] - row.v[1]), p1 * (dp[m][n][2 * half + 1] - row.v[1]));
        }
    multiply_add_rows<T, D>(acc, ds, tiles, kK + buffer * kTile);
  }
  // Over the queries: a barrier has passed since they went into registers.
  put_rows<T, D>(tiles, kQ, acc, [&](int, int) { return scale; });
  barrier("the block's rows of dq are whole before they are stored in one piece");
  store_rows<D, kRows>(tiles, kQ, dq.at(b, h), dq.of_row, q0, p);
}

// dq = scale times its sums, rounded. A block has 64 queries of a head.
template <typename T, int D>
__global__ void __launch_bounds__(kThreads) dq_kernel(float* sums, Heads<T> dq, int padded, Problem p, float scale) {
  constexpr int kRows = 16 * kWarps;
  DYNAMIC_SHARED(Chunk<T>, tiles);
  const int blocks = (p.T + kRows - 1) / kRows, q0 = blockIdx.x % blocks * kRows;
  const int64_t head = blockIdx.x / blocks;
  const float* from = part_of_dq<D>(sums, head, padded, q0 + 16 * warp(), 0);
  float acc[1][D / 8][4];
#pragma unroll
  for (int n = 0; n < D / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[0][n][i] = load(from + n * kPart + 32 * i);
  put_rows<T, D>(tiles, 0, acc, [&](int, int) { return scale; });
  barrier("the block's rows of dq are whole before they are stored in one piece");
  store_rows<D, kRows>(tiles, 0, dq.at(head / p.H, head % p.H), dq.of_row, q0, p);
}

// ---- host ------------------------------------------------------------------------------------------------------------

// As attention; grad is the gradient of out. -> dq, dk, dv. deterministic: the same bits in every run.
void attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                        const Tensor& lse, std::optional<Tensor> ids, std::optional<Tensor> ranges, const Tensor& dq,
                        const Tensor& dk, const Tensor& dv, double scale, bool causal, int64_t window, bool deterministic) {
  const Problem p = problem(q, k, v, ids, ranges, causal, window);
  const int64_t B = q.size(0), heads_of_all = B * p.H;
  check_heads(grad, q, "grad");
  check_heads(out, q, "out");
  check_heads(dq, q, "dq");
  check_heads(dk, q, "dk");
  check_heads(dv, q, "dv");
  CHECK_INPUT(grad.size(2) == p.H && out.size(2) == p.H && dq.size(2) == p.H && dk.size(2) == p.G && dv.size(2) == p.G &&
                      scale > 0,
                  "emergence_cuda: grad, out and dq have q's heads, dk and dv those of k and v, and the scale is positive");
  glue::check_vector(lse, heads_of_all * p.T, glue::ScalarType::Float, "lse");
  if (q.numel() == 0) return;
  const int padded = glue::divide_up(p.T, kPadding) * kPadding;
  const std::array<int64_t, 2> size{heads_of_all * padded, 2};
  const Tensor made = torch::stable::new_empty(q, size, glue::ScalarType::Float);
  Terms* terms = glue::pointer<Terms>(made);
  const float scale2 = static_cast<float>(scale * kLog2e);
  by_type_and_width(q, [&](auto type, auto width) {
    using T = decltype(type);
    constexpr int D = width();
    const std::array<int64_t, 1> sums_of_all{deterministic ? 0 : size[0] * D};
    const Tensor sums = torch::stable::new_empty(q, sums_of_all, glue::ScalarType::Float);
    float* dq_sums = glue::pointer<float>(sums);
    glue::launch(&terms_kernel<T>, grid((size[0] + 7) / 8), dim3(kThreads), 0, q, {&out, &grad, &lse, &made, &sums},
                 heads<const T>(out), heads<const T>(grad), glue::pointer<float>(lse), terms, dq_sums, deterministic ? 0 : D,
                 size[0], padded, p);
    const std::vector<const Tensor*> tensors{&q,  &k,  &v,  &grad, glue::given(ids), glue::given(ranges), &made, &sums,
                                             &dq, &dk, &dv};
    const auto of_keys = [&](auto all) {
      glue::launch(&keys_kernel<T, D, all()>, grid(B * p.G * glue::divide_up(p.T, kKeys)), dim3(kThreads), kKeysBytes<D, all()>,
                   q, tensors, heads<const T>(q), heads<const T>(k), heads<const T>(v), heads<const T>(grad), terms,
                   heads<T>(dk), heads<T>(dv), dq_sums, padded, p, static_cast<float>(scale), scale2);
    };
    if (!deterministic) {
      of_keys(std::true_type{});
      glue::launch(&dq_kernel<T, D>, grid(heads_of_all * glue::divide_up(p.T, 64)), dim3(kThreads), 64 * kPitch<D> * 16, q,
                   {&sums, &dq}, dq_sums, heads<T>(dq), padded, p, static_cast<float>(scale));
      return;
    }
    of_keys(std::false_type{});
    glue::launch(&queries_kernel<T, D>, grid(heads_of_all * glue::divide_up(p.T, kRowsOf<D>)), dim3(kThreads),
                 kQueriesBytes<D>, q, tensors, heads<const T>(q), heads<const T>(k), heads<const T>(v), heads<const T>(grad),
                 terms, heads<T>(dq), padded, p, static_cast<float>(scale), scale2);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def(
      "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? ids, Tensor? ranges, "
      "Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv, float scale, bool causal, int window, bool deterministic) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("attention_backward", TORCH_BOX(&attention_backward));
}
