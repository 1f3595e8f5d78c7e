// Shared by the kernels of attention: tiles in shared memory, products of tiles, masks.
//
// A tile has a row of D values a position, in chunks of 16 bytes. Chunk c of row r lies at place c ^ (r % 8) of its row, so
// that the eight rows that ldmatrix reads at a time lie in different banks, down a column of chunks as well as along a row.
#pragma once

#include "common/tensor_cores.h"
#include "common/torch_glue.h"

namespace attention {

using namespace tensor_cores;

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRangeBlock = 64;      // positions that share an entry of Problem::ranges
constexpr int kUnbounded = 1 << 29;  // in the place of a distance; sequences are shorter

// 1 / x to 1 ulp. A division proper calls a function for rare cases, for which registers would be spilled.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDACC__
  return __fdividef(1.0f, x);
#else
  return 1.0f / x;
#endif
}

// A tensor (B, T, heads, head_dim), head_dim adjacent.
template <typename T>
struct Heads {
  T* data;
  int64_t of_batch, of_row, of_head;  // strides
  __device__ T* at(int64_t b, int64_t h) const { return data + b * of_batch + h * of_head; }
};

struct Problem {
  int T, H, G, head_dim;
  int before, after;   // query i sees keys i - before ... i + after
  const int64_t* ids;  // (B, T), or null: the document of each position
  // With ids, (B, blocks of 64 positions, 4): blocks [first, last) that may share an id with a block, and blocks [first, last)
  // all of whose positions have the one id that all of the block's have.
  const int32_t* ranges;
};

__device__ __forceinline__ int lane() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warp() { return threadIdx.x / kWarp; }

// x. What follows from it is computed where it is needed: the compiler would do so before the loop, and fill the registers.
__device__ __forceinline__ int unforeseen(int x) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// ---- masks -----------------------------------------------------------------------------------------------------------

struct Span {
  int first, last;  // [first, last)
};

// Problem::ranges of [start, start + N), in positions: those that may share a document with them lie in `overlap`, and in
// `equal` are all of one document with all of them.
template <int N>
__device__ __forceinline__ void document_spans(const Problem& p, int b, int start, Span& overlap, Span& equal) {
  static_assert(N <= 2 * kRangeBlock);
  using Range = Pack<int32_t, 4>;
  const int blocks = (p.T + kRangeBlock - 1) / kRangeBlock;
  const Range* range = reinterpret_cast<const Range*>(p.ranges) + int64_t(b) * blocks + start / kRangeBlock;
  Range r = load(range);
  if (N > kRangeBlock && start + kRangeBlock < p.T) {
    const Range other = load(range + 1);
    r = {{min(r.v[0], other.v[0]), max(r.v[1], other.v[1]), max(r.v[2], other.v[2]), min(r.v[3], other.v[3])}};
  }
  overlap = {r.v[0] * kRangeBlock, r.v[1] * kRangeBlock};
  equal = {r.v[2] * kRangeBlock, r.v[3] * kRangeBlock};
}

// The keys that some query of [start, start + N) may see. With `before` and `after` exchanged: the queries that may see a key.
template <int N>
__device__ __forceinline__ Span span(const Problem& p, int b, int start, int before, int after) {
  Span s{max(0, start - before), min(p.T, start + N + after)}, overlap, equal;
  if (p.ids != nullptr) {
    document_spans<N>(p, b, start, overlap, equal);
    s = {max(s.first, overlap.first), min(s.last, overlap.last)};
  }
  return s;
}

// Whether all NQ queries from q on see all NK keys from k on, as far as documents let them. Queries beyond T are harmless: their
// results are not stored.
template <int NQ, int NK>
__device__ __forceinline__ bool all_visible(const Problem& p, int q, int k) {
  return q + NQ - 1 - k <= p.before && k + NK - 1 - q <= p.after && k + NK <= p.T;
}

// Calls f(row, column, value) for what this lane holds of C, (16 MT, 8 NT).
template <int MT, int NT, typename F>
__device__ __forceinline__ void for_each(float (&c)[MT][NT][4], F&& f) {
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(16 * m + lane() / 4 + 8 * (i / 2), 8 * n + 2 * (lane() % 4) + i % 2, c[m][n][i]);
}

// same[m]: bit 4 n + i says whether the row and the column of C's [m][n][i] lie in the same document. The block has ROWS rows
// from `start` on, this warp's begin at `row`. In a loop that is not unrolled, and before there are scores where those are
// many: ids would fill the registers.
template <int ROWS, int NT, int MT>
__device__ __forceinline__ void same_document(uint32_t (&same)[MT], const Problem& p, int b, int start, int row, int column) {
  static_assert(NT <= 8);
  if (p.ids == nullptr) return;
  Span overlap, equal;
  document_spans<ROWS>(p, b, start, overlap, equal);
  const bool all = equal.first <= column && column + 8 * NT <= equal.last;
#pragma unroll
  for (int m = 0; m < MT; ++m) same[m] = all ? ~0u : 0u;
  if (all) return;
  const int64_t* ids = p.ids + int64_t(b) * p.T;
  const int last = p.T - 1;
  int64_t of_row[2 * MT];
#pragma unroll
  for (int m = 0; m < 2 * MT; ++m) of_row[m] = load(ids + min(row + 8 * m + lane() / 4, last));
#pragma unroll 1
  for (int n = 0; n < NT; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t of_column = load(ids + min(column + 8 * n + 2 * (lane() % 4) + i, last));
#pragma unroll
      for (int m = 0; m < 2 * MT; ++m) same[m / 2] |= (of_row[m] == of_column ? 1u : 0u) << (4 * n + m % 2 * 2 + i);
    }
}

// Sets to kLow the scores of keys that their query may not see. C has a row a query, or with KEYS_FIRST a row a key; its
// first query and key are q and k.
template <bool KEYS_FIRST, int MT, int NT>
__device__ __forceinline__ void hide(float (&s)[MT][NT][4], const Problem& p, int q, int k) {
  for_each(s, [&](int row, int column, float& value) {
    const int query = q + (KEYS_FIRST ? column : row), key = k + (KEYS_FIRST ? row : column);
    if (query - key > p.before || key - query > p.after || key >= p.T) value = kLow;
  });
}

// The same for keys of other documents, with `same` at hand.
template <int MT, int NT>
__device__ __forceinline__ void hide_documents(float (&s)[MT][NT][4], const Problem& p, const uint32_t (&same)[MT]) {
  if (p.ids == nullptr) return;
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (!(same[m] >> (4 * n + i) & 1)) s[m][n][i] = kLow;
}

template <int ROWS, int MT, int NT>
__device__ __forceinline__ void hide_documents(float (&s)[MT][NT][4], const Problem& p, int b, int start, int row, int column) {
  if (p.ids == nullptr) return;
  uint32_t same[MT];
  same_document<ROWS, NT>(same, p, b, start, row, column);
  hide_documents(s, p, same);
}

// ---- tiles -----------------------------------------------------------------------------------------------------------

template <int D>
constexpr int kPitch = D <= 64 ? 8 : 16;  // chunks from row to row: a power of two, for the exchange of places

template <int D>
__device__ __forceinline__ int place(int row, int chunk) {
  return row * kPitch<D> + (chunk ^ (row & 7));
}

// Calls f(row, chunk, address) for what this thread copies of rows first, first + 1 ... of a head. 8 or 16 threads share a row,
// and row % 8 stays the same.
template <int D, int ROWS, typename T, typename F>
__device__ __forceinline__ void for_my_chunks(T* head, int64_t stride, int first, F&& f) {
  constexpr int kStep = kThreads / kPitch<D>;
  static_assert(ROWS % kStep == 0 && kStep % 8 == 0);
  const int thread = unforeseen(threadIdx.x), row = thread / kPitch<D>, chunk = thread % kPitch<D>;
  T* address = head + (first + row) * stride + chunk * 8;
#pragma unroll
  for (int i = 0; i < ROWS; i += kStep, address += kStep * stride) f(row + i, chunk, address);
}

// Where this lane reads what load_matrices takes 16 rows of two chunks of, from row 0 and chunk 0 on: matrices in the order of
// (rows, chunks) 0 0, 8 0, 0 1, 8 1, or with `across` 0 0, 0 1, 8 0, 8 1. Even chunk c, row r: (place ^ c) + r * kPitch.
template <int D>
__device__ __forceinline__ int my_place(bool across) {
  return unforeseen(across ? place<D>(lane() % 8 + lane() / 16 * 8, lane() / 8 % 2) : place<D>(lane() % 16, lane() / 16));
}

// Starts the copy of rows first, first + 1 ... of a head to the tile at `tile`; zeros beyond T and head_dim.
template <int D, int ROWS, typename Array, typename T>
__device__ __forceinline__ void copy_rows(Array& tiles, int tile, const T* head, int64_t stride, int first, const Problem& p) {
  for_my_chunks<D, ROWS>(head, stride, first, [&](int row, int chunk, const T* address) {
    const bool there = first + row < p.T && chunk * 8 < p.head_dim;
    if (chunk < D / 8) copy_async(tiles, tile + place<D>(row, chunk), there ? address : head, there);
  });
}

// c (16 MT of this warp's rows, D) * factor(m, half) into the tile, rounded.
template <typename T, int D, int MT, typename Array, typename F>
__device__ __forceinline__ void put_rows(Array& tiles, int tile, const float (&c)[MT][D / 8][4], F&& factor) {
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * (MT * warp() + m) + lane() / 4 + 8 * half;
      const float by = factor(m, half);
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        store_pair(tiles, tile + place<D>(row, n), lane() % 4, packed<T>(c[m][n][2 * half] * by, c[m][n][2 * half + 1] * by));
    }
}

// The tile to rows first, first + 1 ... of a head.
template <int D, int ROWS, typename Array, typename T>
__device__ __forceinline__ void store_rows(Array& tiles, int tile, T* head, int64_t stride, int first, const Problem& p) {
  for_my_chunks<D, ROWS>(head, stride, first, [&](int row, int chunk, T* address) {
    if (first + row < p.T && chunk * 8 < p.head_dim) {
      const Chunk<T> values = tiles[tile + place<D>(row, chunk)];
      store(reinterpret_cast<Chunk<T>*>(address), values);
    }
  });
}

// ---- products --------------------------------------------------------------------------------------------------------

// Columns 16 k ... of this warp's 16 MT rows of a tile, as an A. at: my_place(false).
template <int D, int MT, typename Array>
__device__ __forceinline__ void load_a(uint32_t (&a)[MT][4], Array& tiles, int tile, int at, int k) {
#pragma unroll
  for (int m = 0; m < MT; ++m) load_matrices<false>(a[m], tiles, tile + (at ^ 2 * k) + 16 * (MT * warp() + m) * kPitch<D>);
}

// s (16 MT, 8 NT) = a b^T: a(k, registers) gives A's columns 16 k ...; b is a tile of 8 NT rows, which are B's columns.
// UNROLL: of the loop over k; all of it where a() picks registers.
template <typename T, int D, int UNROLL, int MT, int NT, typename A, typename Array>
__device__ __forceinline__ void multiply_by_rows(float (&s)[MT][NT][4], A&& a, Array& tiles, int tile) {
  for_each(s, [](int, int, float& value) { value = 0.0f; });
  const int at = my_place<D>(true);
#pragma unroll UNROLL
  for (int k = 0; k < D / 16; ++k) {
    uint32_t a_k[MT][4];
    a(k, a_k);
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
      uint32_t b[4];
      load_matrices<false>(b, tiles, tile + (at ^ 2 * k) + 8 * n * kPitch<D>);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        multiply_add<T>(s[m][n], a_k[m], b[0], b[1]);
        multiply_add<T>(s[m][n + 1], a_k[m], b[2], b[3]);
      }
    }
  }
}

// The same with a this warp's rows of the tile `of_a`. A short loop: unrolled, it would take registers for what is next.
template <typename T, int D, int MT, int NT, typename Array>
__device__ __forceinline__ void multiply_tiles(float (&s)[MT][NT][4], Array& tiles, int of_a, int of_b) {
  const int at = my_place<D>(false);
  multiply_by_rows<T, D, 2>(s, [&](int k, auto& a) { load_a<D>(a, tiles, of_a, at, k); }, tiles, of_b);
}

// c (16 MT, D) += a b: a is C's layout, (16 MT, 8 NT), each half row of two values packed; b is a tile of 8 NT rows.
template <typename T, int D, int MT, int NT, typename Array>
__device__ __forceinline__ void multiply_add_rows(float (&c)[MT][D / 8][4], const uint32_t (&a)[MT][NT][2], Array& tiles,
                                                  int tile) {
  const int at = my_place<D>(false);
#pragma unroll
  for (int k = 0; k < NT; k += 2) {
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      uint32_t b[4];
      load_matrices<true>(b, tiles, tile + (at ^ n) + 8 * k * kPitch<D>);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        const uint32_t a_k[4] = {a[m][k][0], a[m][k][1], a[m][k + 1][0], a[m][k + 1][1]};
        multiply_add<T>(c[m][n], a_k, b[0], b[1]);
        multiply_add<T>(c[m][n + 1], a_k, b[2], b[3]);
      }
    }
  }
}

// ---- host ------------------------------------------------------------------------------------------------------------

using glue::Tensor;

template <typename T>
Heads<T> heads(const Tensor& t) {
  return {glue::pointer<std::remove_const_t<T>>(t), t.stride(0), t.stride(1), t.stride(2)};
}

inline void check_heads(const Tensor& t, const Tensor& like, const char* name) {
  bool fine = t.dim() == 4 && t.scalar_type() == like.scalar_type() && t.size(0) == like.size(0) && t.size(1) == like.size(1) &&
              t.size(3) == like.size(3) && t.stride(3) == 1 && glue::aligned(t.data_ptr(), 16);
  for (int d = 0; fine && d < 3; ++d) fine = t.size(d) < 2 || t.stride(d) % 8 == 0;
  CHECK_INPUT(fine, "emergence_cuda: ", name,
                  " must be (batch, seq, heads, head_dim) of q's type, in rows that start at multiples of 16 bytes");
}

inline Problem problem(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& ids,
                       const std::optional<Tensor>& ranges, bool causal, int64_t window) {
  check_heads(q, q, "q");
  check_heads(k, q, "k");
  check_heads(v, q, "v");
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), D = q.size(3), G = k.size(2);
  CHECK_INPUT(v.size(2) == G && G > 0 && H % G == 0 && D % 8 == 0 && D <= 128 && T < kUnbounded,
                  "emergence_cuda: attention of ", H, " query heads, ", G, " key heads, head dim ", D, ", ", T, " tokens");
  CHECK_INPUT(ids.has_value() == ranges.has_value(), "emergence_cuda: document ids come with their ranges");
  if (ids) {
    glue::check_vector(*ids, B * T, glue::ScalarType::Long, "document ids");
    CHECK_INPUT(glue::aligned(ranges->data_ptr(), 16), "emergence_cuda: ranges must be aligned to 16 bytes");
    glue::check_vector(*ranges, B * glue::divide_up(T, kRangeBlock) * 4, glue::ScalarType::Int, "ranges");
  }
  const int reach = window > 0 ? static_cast<int>(std::min<int64_t>(window - 1, kUnbounded)) : kUnbounded;
  return {int(T), int(H), int(G), int(D), reach, causal ? 0 : reach, glue::pointer<int64_t>(ids), glue::pointer<int32_t>(ranges)};
}

inline dim3 grid(int64_t blocks) {
  CHECK_INPUT(blocks < (int64_t(1) << 31), "emergence_cuda: attention of too many blocks");
  return dim3(static_cast<unsigned>(blocks));
}

// Calls f(T, D): the type, and the narrowest of the head dims that the kernels are compiled for.
template <typename F>
void by_type_and_width(const Tensor& q, F&& f) {
  auto by_width = [&](auto type) {
    if (q.size(3) <= 64)
      f(type, std::integral_constant<int, 64>{});
    else if (q.size(3) <= 96)
      f(type, std::integral_constant<int, 96>{});
    else
      f(type, std::integral_constant<int, 128>{});
  };
  if (q.scalar_type() == glue::ScalarType::BFloat16)
    by_width(bf16{});
  else if (q.scalar_type() == glue::ScalarType::Half)
    by_width(f16{});
  else
    CHECK_INPUT(false, "emergence_cuda: attention takes bfloat16 or float16");
}

}  // namespace attention
