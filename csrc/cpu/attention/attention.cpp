// Attention on a CPU: causal or full, a window, documents, grouped queries.
//
// A block of queries has its scores of all keys in reach at once, so the softmax is a plain one; there are no scores of keys
// beyond a causal block. With S = scale q k^T and P = softmax(S):
//
//   out = P v,   dv = P^T dout,   dS = P * (dP - rowsum(dout * out)) with dP = dout v^T,   dq = scale dS k,   dk = dS^T (scale q)
//
// P is computed again in backward, from the rows' log-sum-exp. Five products a head, in products.h.

#include "cpu/attention/products.h"

#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>

namespace {

using cpu::ScalarType;
using cpu::Tensor;

constexpr int64_t kQueries = 32;  // a block of queries

struct View {  // (B, T, heads, D) with adjacent features
  float* data;
  int64_t b, t, h;

  explicit View(const Tensor& x) : data(cpu::pointer<float>(x)), b(x.stride(0)), t(x.stride(1)), h(x.stride(2)) {}
  float* head(int64_t batch, int64_t number) const { return data + batch * b + number * h; }
};

void check_heads(const Tensor& x, int64_t B, int64_t T, int64_t heads, int64_t D) {
  CHECK_INPUT(x.dim() == 4 && x.size(0) == B && x.size(1) == T && x.size(2) == heads && x.size(3) == D &&
                  (D == 1 || x.stride(3) == 1) && x.scalar_type() == ScalarType::Float,
              "emergence_cpu: float32 (", B, ", ", T, ", ", heads, ", ", D, ") with adjacent features expected");
}

struct Problem {
  View q, k, v, out;
  float* lse;                // (B, H, T)
  const int64_t* documents;  // (B, T), or null
  int64_t T, H, G, D;
  float scale;
  bool causal;
  int64_t window;  // query i reads keys with |i - j| < window
};

struct Gradients {
  View dout, dq, dk, dv;
  const float *cos, *sin;  // null, or of (B, T, R): dq and dk are rotated back by them
  int64_t batch_of_angles, R;
};

// factor x, rotated back: a row of dq or dk.
INLINED void write_row(const Gradients& g, float* x, float factor, int64_t b, int64_t t, int64_t D, float* out) {
#pragma omp simd
  for (int64_t d = 0; d < D; ++d) out[d] = factor * x[d];
  const int64_t at = b * g.batch_of_angles + t * g.R;
  if (g.cos) cpu::turn(out, g.cos + at, g.sin + at, -1.0f, g.R, D, out);
}

// Buffers of one thread, on cache lines.
class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : data_(static_cast<float*>(std::aligned_alloc(64, cpu::padded(4 * floats, 64)))) {
    CHECK_INPUT(data_ != nullptr, "emergence_cpu: no memory for ", floats, " values");
    next_ = data_.get();
  }
  void restart() { next_ = data_.get(); }
  float* take(int64_t floats) { return std::exchange(next_, next_ + floats); }

 private:
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  std::unique_ptr<float, Free> data_;
  float* next_;
};

// The keys that query i reads.
inline std::pair<int64_t, int64_t> reach(const Problem& p, int64_t i) {
  return {std::max<int64_t>(0, i - p.window + 1), p.causal ? i + 1 : std::min(p.T, i + p.window)};
}

// A block of queries, and the keys that any of them reads, from the start of a panel on.
template <int W>
struct Block {
  const Problem& p;
  int64_t start, count, rows, first, last;

  INLINED Block(const Problem& p, int64_t start)
      : p(p), start(start), count(std::min(kQueries, p.T - start)), rows(cpu::padded(count, cpu::kRows)),
        first(reach(p, start).first / cpu::panel<W>() * cpu::panel<W>()), last(reach(p, start + count - 1).second) {}
  INLINED int64_t keys() const { return last - first; }
  INLINED int64_t width() const { return cpu::padded(keys(), cpu::panel<W>()); }  // of a row of scores

  // Of keys, those that R queries from `row` on read; and of queries, those that read R keys from `key` on.
  INLINED std::pair<int64_t, int64_t> keys_of(int64_t row, int64_t R) const {
    return {reach(p, start + row).first - first, reach(p, start + std::min(row + R, count) - 1).second - first};
  }
  INLINED std::pair<int64_t, int64_t> queries_of(int64_t key, int64_t R) const {
    const int64_t distance = first + key - start;
    return {std::max<int64_t>(0, p.causal ? distance : distance - p.window + 1), std::min(count, distance + R - 1 + p.window)};
  }
};

// The sizes of a head's buffers.
template <int W>
struct Sizes {
  int64_t keys, features;  // padded

  INLINED explicit Sizes(const Problem& p) : keys(cpu::padded(p.T, cpu::panel<W>())), features(cpu::padded(p.D, cpu::panel<W>())) {}
};

// (rows, D) of factor x, the rows beyond `count` zero.
INLINED void copy_rows(const float* x, int64_t stride, int64_t count, int64_t rows, int64_t D, float factor, float* out) {
  for (int64_t r = 0; r < count; ++r)
#pragma omp simd
    for (int64_t d = 0; d < D; ++d) out[r * D + d] = factor * x[r * stride + d];
  std::fill(out + count * D, out + rows * D, 0.0f);
}

// The scores of query i, of the keys from `first` on, become exp(score - top), and 0 where it does not read a key. width: of the
// row, whole vectors. known_top: null for the greatest. -> {top, the sum}.
template <int W>
INLINED std::pair<float, float> exponentials(const Problem& p, const int64_t* documents, int64_t i, int64_t first,
                                             int64_t width, float* row, const float* known_top) {
  using Lanes = typename cpu::Vector<W>::type;
  using Integers = typename cpu::Vector<W>::integers;
  const auto [low, high] = reach(p, i);
  const int64_t begin = (low - first) / W, end = cpu::padded(high - first, W) / W;  // vectors
  std::fill(row, row + begin * W, 0.0f);
  std::fill(row + begin * W, row + (low - first), -INFINITY);
  std::fill(row + (high - first), row + end * W, -INFINITY);
  std::fill(row + end * W, row + width, 0.0f);
  if (documents)
    for (int64_t j = low; j < high; ++j) row[j - first] = documents[j] == documents[i] ? row[j - first] : -INFINITY;
  Lanes* lanes = reinterpret_cast<Lanes*>(row);
  float top;
  if (known_top) {
    top = *known_top;
  } else {
    Lanes greatest = lanes[begin];
    for (int64_t n = begin + 1; n < end; ++n) greatest = greatest < lanes[n] ? lanes[n] : greatest;
    top = cpu::reduced<W>(greatest, [](auto a, auto b) { return a < b ? b : a; });
  }
  Lanes sums{};
  for (int64_t n = begin; n < end; ++n) {
    lanes[n] = cpu::exponential<Lanes, Integers>(lanes[n] - top);
    sums += lanes[n];
  }
  return {top, cpu::reduced<W>(sums, [](auto a, auto b) { return a + b; })};
}

template <int W, int R>
INLINED void forward_head(const Problem& p, int64_t b, int64_t h, Scratch& scratch) {
  scratch.restart();
  const Sizes<W> size(p);
  const int64_t g = h / (p.H / p.G), D = p.D;
  const auto all = [=](int64_t) { return std::pair<int64_t, int64_t>{0, D}; };
  const int64_t* documents = p.documents ? p.documents + b * p.T : nullptr;
  float *keys = scratch.take(D * size.keys), *values = scratch.take(p.T * size.features);
  float *queries = scratch.take(kQueries * D), *scores = scratch.take(kQueries * size.keys);
  float* sums = scratch.take(kQueries * size.features);
  cpu::pack_transposed<W>(p.k.head(b, g), p.k.t, p.T, D, keys);
  cpu::pack<W>(p.v.head(b, g), p.v.t, p.T, D, 1.0f, values);
  for (int64_t start = 0; start < p.T; start += kQueries) {
    const Block<W> block(p, start);
    const int64_t width = block.width();
    const auto keys_of = [&](int64_t m) { return block.keys_of(m, R); };
    copy_rows(p.q.head(b, h) + start * p.q.t, p.q.t, block.count, block.rows, D, p.scale, queries);
    cpu::product<W, R>({queries, D, 1}, keys + block.first * D, D, 0, scores, width, block.rows, width, all, false);
    float of_row[kQueries];
    for (int64_t r = 0; r < block.count; ++r) {
      const auto [top, sum] = exponentials<W>(p, documents, start + r, block.first, width, scores + r * width, nullptr);
      p.lse[(b * p.H + h) * p.T + start + r] = top + std::log(sum);
      of_row[r] = 1.0f / sum;
    }
    cpu::product<W, R>({scores, width, 1}, values, p.T, block.first, sums, size.features, block.rows, size.features, keys_of, false);
    for (int64_t r = 0; r < block.count; ++r) {
      float* out = p.out.head(b, h) + (start + r) * p.out.t;
#pragma omp simd
      for (int64_t d = 0; d < D; ++d) out[d] = sums[r * size.features + d] * of_row[r];
    }
  }
}

template <int W, int R>
INLINED void backward_heads(const Problem& p, const Gradients& gradients, int64_t b, int64_t g, Scratch& scratch) {
  scratch.restart();
  const Sizes<W> size(p);
  const int64_t D = p.D, of_group = p.H / p.G;
  const auto all = [=](int64_t) { return std::pair<int64_t, int64_t>{0, D}; };
  const int64_t* documents = p.documents ? p.documents + b * p.T : nullptr;
  float *keys_t = scratch.take(D * size.keys), *values_t = scratch.take(D * size.keys);
  float *keys = scratch.take(p.T * size.features), *queries = scratch.take(p.T * size.features);
  float *douts = scratch.take(p.T * size.features), *dk = scratch.take(size.keys * size.features);
  float *dv = scratch.take(size.keys * size.features), *rows = scratch.take(kQueries * D);
  float *scores = scratch.take(kQueries * size.keys), *dscores = scratch.take(kQueries * size.keys);
  float* dq = scratch.take(kQueries * size.features);
  cpu::pack_transposed<W>(p.k.head(b, g), p.k.t, p.T, D, keys_t);
  cpu::pack_transposed<W>(p.v.head(b, g), p.v.t, p.T, D, values_t);
  cpu::pack<W>(p.k.head(b, g), p.k.t, p.T, D, 1.0f, keys);
  std::fill(dk, dk + size.keys * size.features, 0.0f);
  std::fill(dv, dv + size.keys * size.features, 0.0f);
  for (int64_t h = g * of_group; h < (g + 1) * of_group; ++h) {
    const float *dout = gradients.dout.head(b, h), *out = p.out.head(b, h);
    cpu::pack<W>(p.q.head(b, h), p.q.t, p.T, D, p.scale, queries);
    cpu::pack<W>(dout, gradients.dout.t, p.T, D, 1.0f, douts);
    for (int64_t start = 0; start < p.T; start += kQueries) {
      const Block<W> block(p, start);
      const int64_t width = block.width();
      const auto keys_of = [&](int64_t m) { return block.keys_of(m, R); };
      const auto queries_of = [&](int64_t m) { return block.queries_of(m, R); };
      copy_rows(p.q.head(b, h) + start * p.q.t, p.q.t, block.count, block.rows, D, p.scale, rows);
      cpu::product<W, R>({rows, D, 1}, keys_t + block.first * D, D, 0, scores, width, block.rows, width, all, false);
      copy_rows(dout + start * gradients.dout.t, gradients.dout.t, block.count, block.rows, D, 1.0f, rows);
      cpu::product<W, R>({rows, D, 1}, values_t + block.first * D, D, 0, dscores, width, block.rows, width, all, false);
      for (int64_t r = 0; r < block.count; ++r) {
        float *row = scores + r * width, *ds = dscores + r * width;
        const float top = p.lse[(b * p.H + h) * p.T + start + r];
        exponentials<W>(p, documents, start + r, block.first, width, row, &top);
        float delta = 0.0f;
#pragma omp simd reduction(+ : delta)
        for (int64_t d = 0; d < D; ++d) delta += rows[r * D + d] * out[(start + r) * p.out.t + d];
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) ds[j] = row[j] * (ds[j] - delta);
      }
      cpu::product<W, R>({dscores, width, 1}, keys, p.T, block.first, dq, size.features, block.rows, size.features, keys_of, false);
      for (int64_t r = 0; r < block.count; ++r)
        write_row(gradients, dq + r * size.features, p.scale, b, start + r, D,
                  gradients.dq.head(b, h) + (start + r) * gradients.dq.t);
      const int64_t offset = block.first * size.features;
      cpu::product<W, R>({dscores, 1, width}, queries, p.T, start, dk + offset, size.features, width, size.features, queries_of, true);
      cpu::product<W, R>({scores, 1, width}, douts, p.T, start, dv + offset, size.features, width, size.features, queries_of, true);
    }
  }
  for (int64_t j = 0; j < p.T; ++j) {
    write_row(gradients, dk + j * size.features, 1.0f, b, j, D, gradients.dk.head(b, g) + j * gradients.dk.t);
    std::copy_n(dv + j * size.features, D, gradients.dv.head(b, g) + j * gradients.dv.t);
  }
}

template <int W, int R>
INLINED void forward_range(const Problem& p, int64_t begin, int64_t end) {
  const Sizes<W> size(p);
  const int64_t floats = p.D * size.keys + p.T * size.features + kQueries * (p.D + size.keys + size.features);
  Scratch scratch(floats);
  for (int64_t i = begin; i < end; ++i) forward_head<W, R>(p, i / p.H, i % p.H, scratch);
}

template <int W, int R>
INLINED void backward_range(const Problem& p, const Gradients& gradients, int64_t begin, int64_t end) {
  const Sizes<W> size(p);
  const int64_t floats = 2 * p.D * size.keys + (3 * p.T + 2 * size.keys) * size.features +
                         kQueries * (p.D + 2 * size.keys + size.features);
  Scratch scratch(floats);
  for (int64_t i = begin; i < end; ++i) backward_heads<W, R>(p, gradients, i / p.G, i % p.G, scratch);
}

// Vectors of 16, 8 or 4 floats, by the CPU: as CLONED, but by hand, for what is inlined depends on their width.
// EMERGENCE_CPU_LANES is an upper bound, for tests.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_V4 __attribute__((target("arch=x86-64-v4")))
#define FOR_V3 __attribute__((target("arch=x86-64-v3")))
int supported() { return __builtin_cpu_supports("x86-64-v4") ? 16 : __builtin_cpu_supports("x86-64-v3") ? 8 : 4; }
#else
#define FOR_V4
#define FOR_V3
int supported() { return 4; }
#endif

FOR_V4 void forward_16(const Problem& p, int64_t begin, int64_t end) { forward_range<16, 8>(p, begin, end); }
FOR_V3 void forward_8(const Problem& p, int64_t begin, int64_t end) { forward_range<8, 4>(p, begin, end); }
void forward_4(const Problem& p, int64_t begin, int64_t end) { forward_range<4, 4>(p, begin, end); }
FOR_V4 void backward_16(const Problem& p, const Gradients& g, int64_t begin, int64_t end) { backward_range<16, 8>(p, g, begin, end); }
FOR_V3 void backward_8(const Problem& p, const Gradients& g, int64_t begin, int64_t end) { backward_range<8, 4>(p, g, begin, end); }
void backward_4(const Problem& p, const Gradients& g, int64_t begin, int64_t end) { backward_range<4, 4>(p, g, begin, end); }

int lanes(const Problem& p) {
  static const int most = [] {
    const char* bound = std::getenv("EMERGENCE_CPU_LANES");
    return bound ? std::min(supported(), std::atoi(bound)) : supported();
  }();
  return p.T <= cpu::panel<8>() ? std::min(most, 8) : most;  // of a wider panel half would be padding
}

// parallel_for that passes an exception on: torch's stable ABI would drop its message.
template <typename F>
void in_parallel(int64_t count, int64_t grain, const F& run) {
  std::exception_ptr failure;
  std::mutex mutex;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    try {
      run(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

Problem checked(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& documents, const Tensor& out,
                const Tensor& lse, double scale, bool causal, int64_t window) {
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), D = q.size(3), G = k.size(2);
  for (const Tensor* t : {&q, &k, &v, &out}) check_heads(*t, B, T, t == &q || t == &out ? H : G, D);
  CHECK_INPUT(G > 0 && H % G == 0 && window > 0, "emergence_cpu: key heads must divide query heads, and the window be positive");
  cpu::check_vector(lse, B * H * T, ScalarType::Float, "lse");
  if (documents) cpu::check_vector(*documents, B * T, ScalarType::Long, "document ids");
  return {View(q), View(k), View(v), View(out), cpu::pointer<float>(lse), cpu::pointer<int64_t>(documents),
          T, H, G, D, float(scale), causal, std::min(window, T)};
}

// q, out (B, T, H, D) and k, v (B, T, G, D) float32 with adjacent features; document ids (B, T) int64 -> out, lse (B, H, T).
void attention(const Tensor& q, const Tensor& k, const Tensor& v, std::optional<Tensor> documents, const Tensor& out,
               const Tensor& lse, double scale, bool causal, int64_t window) {
  const Problem p = checked(q, k, v, documents, out, lse, scale, causal, window);
  const auto run = lanes(p) == 16 ? forward_16 : lanes(p) == 8 ? forward_8 : forward_4;
  in_parallel(q.size(0) * p.H, cpu::grain(p.T * p.T), [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

// dout, dq (B, T, H, D) and dk, dv (B, T, G, D) float32 with adjacent features. cos, sin (T, R) or (B, T, R): dq and dk are
// rotated back by them.
void attention_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, std::optional<Tensor> documents,
                        const Tensor& out, const Tensor& lse, std::optional<Tensor> cos, std::optional<Tensor> sin,
                        const Tensor& dq, const Tensor& dk, const Tensor& dv, double scale, bool causal, int64_t window) {
  const Problem p = checked(q, k, v, documents, out, lse, scale, causal, window);
  if (cos) operators::check_rotary(q, *cos, *sin, dq);
  const int64_t R = cos ? cos->size(cos->dim() - 1) : 0;
  for (const Tensor* t : {&dout, &dq, &dk, &dv}) check_heads(*t, q.size(0), p.T, t == &dk || t == &dv ? p.G : p.H, p.D);
  const Gradients g{View(dout), View(dq), View(dk), View(dv), cpu::pointer<float>(cos), cpu::pointer<float>(sin),
                    cos && cos->dim() == 3 ? p.T * R : 0, R};
  const auto run = lanes(p) == 16 ? backward_16 : lanes(p) == 8 ? backward_8 : backward_4;
  in_parallel(q.size(0) * p.G, cpu::grain(p.T * p.T), [&](int64_t begin, int64_t end) { run(p, g, begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cpu, library) {
  library.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor? documents, Tensor(a!) out, Tensor(b!) lse, float scale, bool causal, "
      "int window) -> ()");
  library.def(
      "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor? documents, Tensor out, Tensor lse, "
      "Tensor? cos, Tensor? sin, Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv, float scale, bool causal, int window) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cpu, CPU, library) {
  library.impl("attention", TORCH_BOX(&attention));
  library.impl("attention_backward", TORCH_BOX(&attention_backward));
}
