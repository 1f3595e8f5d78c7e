// The emulated instructions of csrc/common/tensor_cores.h, by themselves: fragments against a plain product of matrices, and
// what the race detector says to copies that nobody waits for, and to additions to global memory. Prints a line a check;
// test_kernel_tensor_cores.py compiles and reads it.

#include <cstdio>

#include "common/tensor_cores.h"

using namespace tensor_cores;

namespace {

constexpr int kK = 32, kN = 16;  // C (16, 16) = A (16, 32) B (32, 16), by one warp

// a (16, 32) row by row; b (32, 16) row by row with TRANSPOSED, else column by column.
template <typename T, bool TRANSPOSED>
__global__ void product_kernel(const T* a, const T* b, float* c) {
  SHARED(Chunk<T>, a_tile, 16 * kK / 8);
  SHARED(Chunk<T>, b_tile, kK * kN / 8);
  for (int i = threadIdx.x; i < 16 * kK / 8; i += kWarp) a_tile[i] = load(reinterpret_cast<const Chunk<T>*>(a) + i);
  for (int i = threadIdx.x; i < kK * kN / 8; i += kWarp) b_tile[i] = load(reinterpret_cast<const Chunk<T>*>(b) + i);
  barrier("tiles");
  const int lane = threadIdx.x;
  float sum[2][4] = {};
  for (int k = 0; k < kK / 16; ++k) {
    uint32_t a_k[4], b_k[4];
    load_matrices<false>(a_k, a_tile, lane % 16 * (kK / 8) + 2 * k + lane / 16);
    if (TRANSPOSED)
      load_matrices<true>(b_k, b_tile, (16 * k + lane % 16) * (kN / 8) + lane / 16);
    else
      load_matrices<false>(b_k, b_tile, (lane % 8 + lane / 16 * 8) * (kK / 8) + 2 * k + lane / 8 % 2);
    multiply_add<T>(sum[0], a_k, b_k[0], b_k[1]);
    multiply_add<T>(sum[1], a_k, b_k[2], b_k[3]);
  }
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < 4; ++i) store(c + (lane / 4 + 8 * (i / 2)) * kN + 8 * n + 2 * (lane % 4) + i % 2, sum[n][i]);
}

template <typename T, bool TRANSPOSED>
void check_product(const char* name) {
  std::vector<T> a(16 * kK), b(kK * kN);
  std::vector<float> c(16 * kN, -1.0f);
  std::mt19937 random(7);
  for (T& x : a) x = from_float<T>(int(random() % 1024) / 256.0f - 2.0f);
  for (T& x : b) x = from_float<T>(int(random() % 1024) / 256.0f - 2.0f);
  emulate::run(1, kWarp, 0, {{a.data(), a.size() * 2}, {b.data(), b.size() * 2}, {c.data(), c.size() * 4}},
               [&] { product_kernel<T, TRANSPOSED>(a.data(), b.data(), c.data()); });
  double worst = 0.0;
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < kN; ++column) {
      double sum = 0.0;
      for (int k = 0; k < kK; ++k)
        sum += double(to_float(a[row * kK + k])) * to_float(TRANSPOSED ? b[k * kN + column] : b[column * kK + k]);
      worst = std::max(worst, std::abs(sum - c[row * kN + column]));
    }
  std::printf("%s: %s\n", name, worst < 1e-4 ? "ok" : "wrong");
}

enum class Use { kProper, kNoWait, kNoBarrier, kWaitForOneOfTwo, kOverwritten, kBeyond, kZeros, kLeft };

// Two groups of copies, each thread a chunk of each; then everybody reads what its neighbour copied.
__global__ void copies_kernel(const float* from, float* to, Use use) {
  DYNAMIC_SHARED(Chunk<float>, tile);
  const int thread = threadIdx.x, neighbour = (thread + 1) % kWarp;
  copy_async(tile, thread, from + 4 * thread, use != Use::kZeros);
  commit_copies();
  copy_async(tile, kWarp + thread + (use == Use::kBeyond), from + 4 * (kWarp + thread), true);
  commit_copies();
  if (use == Use::kLeft) return;
  if (use == Use::kOverwritten) tile[kWarp + thread] = Chunk<float>{};
  if (use == Use::kWaitForOneOfTwo)
    wait_for_copies<1>("one");
  else if (use != Use::kNoWait)
    wait_for_copies<0>("both");
  if (use != Use::kNoBarrier) barrier("copies");
  const Chunk<float> first = tile[neighbour];
  store(to + thread, first.v[3]);
  const Chunk<float> second = tile[kWarp + neighbour];
  store(to + kWarp + thread, second.v[3]);
  wait_for_copies<0>("at the end");
}

void check_copies(const char* name, Use use) {
  std::vector<float> from(8 * kWarp), to(2 * kWarp);
  for (size_t i = 0; i < from.size(); ++i) from[i] = float(i);
  std::string result = "ok";
  try {
    emulate::run(1, kWarp, 2 * kWarp * 16, {{from.data(), from.size() * 4}, {to.data(), to.size() * 4}},
                 [&] { copies_kernel(from.data(), to.data(), use); });
    for (int i = 0; i < 2 * kWarp; ++i) {
      const int source = i / kWarp * kWarp + (i % kWarp + 1) % kWarp;
      if (to[i] != (use == Use::kZeros && i < kWarp ? 0.0f : float(4 * source + 3))) result = "wrong";
    }
  } catch (const std::exception& error) {
    result = error.what();
  }
  std::printf("%s: %s\n", name, result.c_str());
}

enum class Adds { kAlone, kThenRead, kBeyond, kUneven };

// Two blocks add four numbers a thread to the same place.
__global__ void adds_kernel(float* sums, Adds how) {
  float* to = sums + (how == Adds::kBeyond ? 8 : how == Adds::kUneven ? 1 : 0);
  emulate::Machine::get().adds(to, 16);
  for (int i = 0; i < 4; ++i) to[i] += 1.0f;
  barrier("additions");
  if (how == Adds::kThenRead && threadIdx.x == 0) load(sums + 3);
}

void check_adds(const char* name, Adds how) {
  std::vector<float> sums(8);
  std::string result;
  try {
    emulate::run(2, kWarp, 0, {{sums.data(), sums.size() * 4}}, [&] { adds_kernel(sums.data(), how); });
    result = sums[3] == 2 * kWarp && sums[4] == 0 ? "ok" : "wrong";
  } catch (const std::exception& error) {
    result = error.what();
  }
  std::printf("%s: %s\n", name, result.c_str());
}

}  // namespace

int main() {
  check_product<bf16, false>("bfloat16, columns");
  check_product<bf16, true>("bfloat16, rows");
  check_product<f16, false>("float16, columns");
  check_product<f16, true>("float16, rows");
  check_copies("proper", Use::kProper);
  check_copies("zeros", Use::kZeros);
  check_copies("no wait", Use::kNoWait);
  check_copies("no barrier", Use::kNoBarrier);
  check_copies("one of two", Use::kWaitForOneOfTwo);
  check_copies("overwritten", Use::kOverwritten);
  check_copies("beyond", Use::kBeyond);
  check_copies("left", Use::kLeft);
  check_adds("additions", Adds::kAlone);
  check_adds("additions and a read", Adds::kThenRead);
  check_adds("additions beyond", Adds::kBeyond);
  check_adds("additions between", Adds::kUneven);
}
