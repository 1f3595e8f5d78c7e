// Rotary position embedding on a CPU. The formulas, and the arguments, are those of cuda/rotary.cu.

#include "cpu/cpu.h"

namespace {

using cpu::ScalarType;
using cpu::Tensor;

struct Turn {
  const float *x, *cos, *sin;
  float* out;  // or x
  int64_t stride_b, stride_t, stride_h, out_b, out_t, out_h, stride_angle_b, T, H, D, R;
  float sign;
};

CLONED void turn(const Turn& t, int64_t begin, int64_t end) {
  for (int64_t place = begin; place < end; ++place) {  // (sequence, position)
    const int64_t b = place / t.T, position = place % t.T;
    const float* cos = t.cos + b * t.stride_angle_b + position * t.R;
    const float* sin = t.sin + b * t.stride_angle_b + position * t.R;
    for (int64_t h = 0; h < t.H; ++h) {
      const float* x = t.x + b * t.stride_b + position * t.stride_t + h * t.stride_h;
      float* out = t.out + b * t.out_b + position * t.out_t + h * t.out_h;
      cpu::turn(x, cos, sin, t.sign, t.R, t.D, out);
    }
  }
}

// x (B, T, H, D) with adjacent features, cos and sin (T, R) or (B, T, R) contiguous -> out (B, T, H, D) with adjacent features,
// which may be x.
void rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& out, double sign) {
  CHECK_INPUT(x.scalar_type() == ScalarType::Float, "emergence_cpu: x must be float32");
  operators::check_rotary(x, cos, sin, out);
  const int64_t B = x.size(0), T = x.size(1), H = x.size(2), D = x.size(3), R = cos.size(cos.dim() - 1);
  const bool batched = cos.dim() == 3;
  const Turn t{cpu::pointer<float>(x),
               cpu::pointer<float>(cos),
               cpu::pointer<float>(sin),
               cpu::pointer<float>(out),
               x.stride(0),
               x.stride(1),
               x.stride(2),
               out.stride(0),
               out.stride(1),
               out.stride(2),
               batched ? T * R : 0,
               T,
               H,
               D,
               R,
               float(sign)};
  torch::stable::parallel_for(0, B * T, cpu::grain(H * D), [&](int64_t begin, int64_t end) { turn(t, begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cpu, library) {
  library.def(ROTARY);
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cpu, CPU, library) { library.impl("rotary", TORCH_BOX(&rotary)); }
