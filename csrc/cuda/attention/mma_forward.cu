// Attention, forward (Dao, arXiv 2307.08691): out = softmax(scale q k^T) v without a (T, T) matrix, by mma.sync.
//
// A block has 128 queries of a head, a warp 32 of them, and loops over tiles of 64 or 32 keys. Of a row it keeps the maximum m of
// the scores so far, the sum l = sum exp(s - m) and the output so far; a larger maximum m' scales both by exp(m - m').
// Exponentials are taken as exp2 with log2(e) in the scale, and the log-sum-exp is kept in base 2 for backward.
//
// Keys and values have a tile each in shared memory: the values arrive while the scores are computed, and the next keys while
// the values are multiplied. Scores, probabilities and the output stay in registers.

#include "cuda/attention/mma.h"

using namespace attention;

namespace {

constexpr int kQueries = 128;
template <int D>
constexpr int kKeysOf = D <= 96 ? 64 : 32;  // of a tile; with more, registers are spilled
template <int D>
constexpr size_t kBytes = (kQueries + 2 * kKeysOf<D>) * kPitch<D> * 16;

template <typename T, int D>
__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<T> out, float* lse, Problem p, float scale2) {
  DYNAMIC_SHARED(Chunk<T>, tiles);
  constexpr int kKeys = kKeysOf<D>, kM = kQueries / (16 * kWarps), kN = kKeys / 8;  // a warp's scores are (16 kM, 8 kN)
  constexpr int kQ = 0, kK = kQueries * kPitch<D>, kV = kK + kKeys * kPitch<D>;
  const int blocks = (p.T + kQueries - 1) / kQueries;
  const int q0 = (blocks - 1 - blockIdx.x % blocks) * kQueries;  // the longest rows of a causal mask first
  const int b = blockIdx.x / blocks / p.H, h = blockIdx.x / blocks % p.H, g = h / (p.H / p.G);
  const T *k_head = k.at(b, g), *v_head = v.at(b, g);
  const Span keys = span<kQueries>(p, b, q0, p.before, p.after);
  const int row0 = q0 + 16 * kM * warp();
  float acc[kM][D / 8][4] = {}, top[kM][2], total[kM][2] = {};
#pragma unroll
  for (int m = 0; m < kM; ++m) top[m][0] = top[m][1] = kLow;

  const int first = keys.first / 8 * 8;
  copy_rows<D, kQueries>(tiles, kQ, q.at(b, h), q.of_row, q0, p);
  copy_rows<D, kKeys>(tiles, kK, k_head, k.of_row, first, p);
  commit_copies();
  for (int k0 = first; k0 < keys.last; k0 += kKeys) {
    wait_for_copies<0>("this thread's copies of the keys have landed before anybody reads them");
    barrier("all keys are there, and nobody reads the last values any more, where the next ones land");
    copy_rows<D, kKeys>(tiles, kV, v_head, v.of_row, k0, p);
    commit_copies();
    uint32_t same[kM] = {};
    same_document<kQueries, kN>(same, p, b, q0, row0, k0);
    float s[kM][kN][4];
    multiply_tiles<T, D>(s, tiles, kQ, kK);
    wait_for_copies<0>("this thread's copies of the values have landed before anybody reads them");
    barrier("all values are there, and nobody reads the keys any more, where the next ones land");
    if (k0 + kKeys < keys.last) copy_rows<D, kKeys>(tiles, kK, k_head, k.of_row, k0 + kKeys, p);
    commit_copies();

    if (!all_visible<kQueries, kKeys>(p, q0, k0)) hide<false>(s, p, row0, k0);
    hide_documents(s, p, same);
    uint32_t probabilities[kM][kN][2];
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most = top[m][half];
#pragma unroll
        for (int n = 0; n < kN; ++n) most = fmaxf(most, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
        most = fmaxf(most, from_lane_xor(most, 1));
        most = fmaxf(most, from_lane_xor(most, 2));
        // A row without visible keys so far must get probabilities of 0, not exp2 of the rounding error of kLow - kLow.
        const float shift = most <= kLow ? 0.0f : most * scale2;
        const float shrink = exp2_fast(fmaf(top[m][half], scale2, -shift));
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          const float p0 = exp2_fast(fmaf(s[m][n][2 * half], scale2, -shift));
          const float p1 = exp2_fast(fmaf(s[m][n][2 * half + 1], scale2, -shift));
          sum += p0 + p1;
          probabilities[m][n][half] = packed<T>(p0, p1);
        }
        total[m][half] = total[m][half] * shrink + sum;  // of this lane's columns
        top[m][half] = most;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          acc[m][n][2 * half] *= shrink;
          acc[m][n][2 * half + 1] *= shrink;
        }
      }
    multiply_add_rows<T, D>(acc, probabilities, tiles, kV);
  }

#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      total[m][half] += from_lane_xor(total[m][half], 1);
      total[m][half] += from_lane_xor(total[m][half], 2);
      const int row = row0 + 16 * m + lane() / 4 + 8 * half;
      if (lane() % 4 == 0 && row < p.T)
        store(lse + (int64_t(b) * p.H + h) * p.T + row, top[m][half] * scale2 + log2f(total[m][half]));
    }
  // Over the queries: a barrier has passed since they were read last.
  put_rows<T, D>(tiles, kQ, acc, [&](int m, int half) { return reciprocal(total[m][half]); });
  barrier("the block's rows are whole before they are stored in one piece");
  store_rows<D, kQueries>(tiles, kQ, out.at(b, h), out.of_row, q0, p);
}

// q (B, T, H, D), k, v (B, T, G, D) -> out (B, T, H, D), lse (B, H, T) in base 2. ids and ranges: see Problem. window 0: none.
void attention_forward(const Tensor& q, const Tensor& k, const Tensor& v, std::optional<Tensor> ids,
                       std::optional<Tensor> ranges, const Tensor& out, const Tensor& lse, double scale, bool causal,
                       int64_t window) {
  const Problem p = problem(q, k, v, ids, ranges, causal, window);
  const int64_t heads_of_all = q.size(0) * p.H;
  check_heads(out, q, "out");
  CHECK_INPUT(out.size(2) == p.H && scale > 0, "emergence_cuda: out has q's heads, and the scale is positive");
  glue::check_vector(lse, heads_of_all * p.T, glue::ScalarType::Float, "lse");
  if (q.numel() == 0) return;
  by_type_and_width(q, [&](auto type, auto width) {
    using T = decltype(type);
    constexpr int D = width();
    glue::launch(&forward_kernel<T, D>, grid(heads_of_all * glue::divide_up(p.T, kQueries)), dim3(kThreads), kBytes<D>, q,
                 {&q, &k, &v, glue::given(ids), glue::given(ranges), &out, &lse}, heads<const T>(q), heads<const T>(k),
                 heads<const T>(v), heads<T>(out), glue::pointer<float>(lse), p, static_cast<float>(scale * kLog2e));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor? ids, Tensor? ranges, Tensor(a!) out, Tensor(b!) lse, float scale, "
      "bool causal, int window) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) { library.impl("attention", TORCH_BOX(&attention_forward)); }
