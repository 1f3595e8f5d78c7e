// Rotary position embedding (Su et al., arXiv 2104.09864): pairs (i, i + R) of the first 2R features of a head are rotated by an
// angle that depends on the position and on i; the rest is copied. Its gradient is the inverse rotation.
//
//   out_i = x_i cos_i - x_{i+R} sin_i      out_{i+R} = x_{i+R} cos_i + x_i sin_i
//
// A row of threads has one token, so that its angles, which all heads share, come from the L1 cache; a thread has packs of N
// pairs, or of N features that are copied. Short tokens share a block.

#include "common/torch_glue.h"

using namespace portable;

namespace {

constexpr int kThreads = 128;

struct Turn {
  int64_t stride_b, stride_t, stride_h, out_b, out_t, out_h, stride_angle_b, places;  // places: B T
  int T, H, D, R;
  float sign;
};

// N values in float32, by the widest accesses possible.
template <int N>
__device__ __forceinline__ void load_angles(float (&out)[N], const float* from) {
  constexpr int kWide = N < 4 ? N : 4;
#pragma unroll
  for (int i = 0; i < N; i += kWide) {
    const auto pack = load(reinterpret_cast<const Pack<float, kWide>*>(from + i));
#pragma unroll
    for (int j = 0; j < kWide; ++j) out[i + j] = pack.v[j];
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) rotary_kernel(const T* x, const float* cos, const float* sin, T* out, Turn turn) {
  using Values = Pack<T, N>;
  const int64_t place = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (place >= turn.places) return;
  const int64_t b = place / turn.T, t = place % turn.T;
  x += b * turn.stride_b + t * turn.stride_t;
  out += b * turn.out_b + t * turn.out_t;
  cos += b * turn.stride_angle_b + t * turn.R;
  sin += b * turn.stride_angle_b + t * turn.R;
  const int pairs = turn.R / N, packs = pairs + (turn.D - 2 * turn.R) / N;  // of a head
  for (int i = threadIdx.x; i < turn.H * packs; i += blockDim.x) {
    const int h = i / packs, pack = i % packs;
    const T* from = x + h * turn.stride_h;
    T* to = out + h * turn.out_h;  // or where `from` is: a thread writes what it alone has read
    if (pack >= pairs) {
      const int at = 2 * turn.R + (pack - pairs) * N;
      store(reinterpret_cast<Values*>(to + at), load(reinterpret_cast<const Values*>(from + at)));
      continue;
    }
    Values first = load(reinterpret_cast<const Values*>(from + pack * N));
    Values second = load(reinterpret_cast<const Values*>(from + turn.R + pack * N));
    float c[N], s[N];
    load_angles(c, cos + pack * N);
    load_angles(s, sin + pack * N);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float a = to_float(first.v[j]), d = to_float(second.v[j]), turned = turn.sign * s[j];
      first.v[j] = from_float<T>(a * c[j] - d * turned);
      second.v[j] = from_float<T>(d * c[j] + a * turned);
    }
    store(reinterpret_cast<Values*>(to + pack * N), first);
    store(reinterpret_cast<Values*>(to + turn.R + pack * N), second);
  }
}

using glue::Tensor;

// x (B, T, H, D) with adjacent features, cos and sin (T, R) or (B, T, R) contiguous float32 -> out (B, T, H, D) with
// adjacent features, which may be x.
void rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& out, double sign) {
  operators::check_rotary(x, cos, sin, out);
  const int64_t B = x.size(0), T = x.size(1), H = x.size(2), D = x.size(3), R = cos.size(cos.dim() - 1);
  const bool batched = cos.dim() == 3;
  CHECK_INPUT(H * D < (int64_t(1) << 31), "emergence_cuda: a token of ", H * D, " features");
  if (x.numel() == 0) return;
  const Turn turn{x.stride(0),   x.stride(1),         x.stride(2), out.stride(0), out.stride(1), out.stride(2),
                  batched ? T * R : 0, B * T, int(T), int(H), int(D), int(R), float(sign)};
  glue::by_type(x, [&](auto of_x) {
    using E = decltype(of_x);
    constexpr int kWide = 16 / sizeof(E);
    bool wide = R % kWide == 0 && D % kWide == 0;
    for (const Tensor* t : {&x, &out})
      for (int64_t d = 0; d < 3; ++d) wide = wide && (t->size(d) < 2 || t->stride(d) % kWide == 0);
    for (const Tensor* t : {&x, &cos, &sin, &out}) wide = wide && glue::aligned(t->data_ptr(), 16);
    const auto run = [&](auto kernel, int64_t packs) {
      unsigned across = 8;
      while (across < kThreads && across < packs) across *= 2;
      glue::launch(kernel, dim3(glue::divide_up(B * T, kThreads / across)), dim3(across, kThreads / across), 0, x,
                   {&x, &cos, &sin, &out}, glue::pointer<E>(x), glue::pointer<float>(cos), glue::pointer<float>(sin),
                   glue::pointer<E>(out), turn);
    };
    if (wide)
      run(&rotary_kernel<E, kWide>, H * (D - R) / kWide);
    else
      run(&rotary_kernel<E, 1>, H * (D - R));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def(ROTARY);
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("rotary", TORCH_BOX(&rotary));
}
