// Semantics of one wgmma, for emulate_hopper.h: descriptors and swizzles of shared memory, fragments, sums.
#pragma once

#include "emulator/emulate.h"

namespace emulate {

using Convert = float (*)(const unsigned char*);

// One wgmma of a warpgroup, as a thread issues it: D (64, N) = A (64, K) B (K, N) + D, where K elements have 32 bytes.
struct Product {
  float* d;
  const uint32_t* a;  // registers, or null: descriptor_a
  uint64_t descriptor_a, descriptor_b;
  int N;
  bool transposed_a, transposed_b, accumulate;
  Convert convert;
  int element = 2;  // bytes; 4 of tf32, which is never transposed
  bool same(const Product& o) const {
    return descriptor_a == o.descriptor_a && descriptor_b == o.descriptor_b && N == o.N && transposed_a == o.transposed_a &&
           transposed_b == o.transposed_b && accumulate == o.accumulate && !a == !o.a && element == o.element;
  }
};

struct Wgmma {
  static constexpr uint32_t kBase = 3 << 10;  // where dynamic shared memory starts: not 0, so that a missing offset is detected
  static constexpr int kGroup = 128;
  using Fragments = std::array<std::array<uint32_t, 4>, kGroup>;  // A's registers of a warpgroup

  static unsigned char* shared(uint32_t address, size_t bytes) {
    Machine& m = Machine::get();
    if (address < kBase || address - kBase + bytes > m.dynamic.size()) m.fail("shared address out of bounds");
    return m.dynamic.data() + (address - kBase);
  }

  // Which 16 bytes of a span of 128, 64 or 32 ("Swizzling Modes"): by the 128 bytes that the address lies in, whoever made it.
  static uint32_t swizzled(uint32_t address, uint32_t span) { return address ^ (address >> 7 & (span / 16 - 1)) << 4; }

  static float poison() {
    const uint32_t bits = 0x7fc0dead;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }

  static bool poisoned(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits == 0x7fc0dead;
  }

  // 16 bytes along the side of a matrix that is adjacent in memory. With rows of `span` bytes:
  //   K adjacent:   (row, k)  at  start + row % 8 * span + row / 8 * stride + k * element     k < 32 / element
  //   MN adjacent:  (mn, k)   at  start + mn % (span / 2) * 2 + mn / (span / 2) * leading + k % 8 * span + k / 8 * stride
  // Without swizzle a row is 16 bytes: the next eight k, if K is adjacent, are `leading` further, and if MN is, the two offsets
  // change their parts.
  static const unsigned char* chunk(uint64_t descriptor, bool mn_adjacent, int mn, int k, int element, const Actor& actor) {
    Machine& m = Machine::get();
    const uint32_t start = (descriptor & 0x3fff) << 4;
    uint32_t leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 49 & 7) m.fail("only base offset 0 is emulated");
    const uint32_t span = descriptor >> 62 ? 256 >> (descriptor >> 62) : 16;
    const int elements = span / 2;
    uint32_t address;
    if (mn_adjacent) {
      if (span == 16) std::swap(leading, stride);
      address = start + mn % elements * 2 + mn / elements * leading + k % 8 * span + k / 8 * stride;
    } else {
      address = start + mn % 8 * span + mn / 8 * stride + (span == 16 ? k * element / 16 * leading : k * element);
    }
    const unsigned char* where = shared(swizzled(address, span), 16);
    m.touch(actor, where, 16, false, true);
    return where;
  }

  // Into out[k][mn].
  static void read(const Product& p, uint64_t descriptor, bool mn_adjacent, int size, std::vector<float>& out,
                   const Actor& actor) {
    const int K = 32 / p.element, adjacent = 16 / p.element;
    out.resize(K * size);
    for (int mn = 0; mn < size; mn += mn_adjacent ? adjacent : 1)
      for (int k = 0; k < K; k += mn_adjacent ? 1 : adjacent) {
        const unsigned char* bytes = chunk(descriptor, mn_adjacent, mn, k, p.element, actor);
        for (int i = 0; i < adjacent; ++i)
          out[(mn_adjacent ? k : k + i) * size + (mn_adjacent ? mn + i : mn)] = p.convert(bytes + p.element * i);
      }
  }

  __attribute__((optimize("O3"))) static void multiply(const Product& p, const Fragments* fragments,
                                                       std::vector<float>* d, const Actor& actor) {
    std::vector<float> a(16 * 64), b, sums(64 * p.N);
    if (fragments) {
      const int per = 4 / p.element;  // values in a register
      for (int lane = 0; lane < kGroup; ++lane)
        for (int i = 0; i < 4 * per; ++i) {  // register i / per holds row g or g + 8, of one half of the columns or the other
          const auto* bytes = reinterpret_cast<const unsigned char*>((*fragments)[lane].data());
          const int row = lane / 32 * 16 + lane % 32 / 4 + i / per % 2 * 8;
          const int k = lane % 4 * per + i % per + i / (2 * per) * 4 * per;
          a[k * 64 + row] = p.convert(bytes + p.element * i);
        }
    } else {
      read(p, p.descriptor_a, p.transposed_a, 64, a, actor);
    }
    read(p, p.descriptor_b, p.transposed_b, p.N, b, actor);
    const int N = p.N;
    for (int row = 0; row < 64; ++row) {
      float* sum = sums.data() + row * N;
      for (int k = 0; k < 32 / p.element; ++k) {
        const float factor = a[k * 64 + row];
        const float* of_k = b.data() + k * N;
        for (int n = 0; n < N; ++n) sum[n] += factor * of_k[n];
      }
    }
    for (int lane = 0; lane < kGroup; ++lane)
      for (int i = 0; i < N / 2; ++i) {
        const int row = lane / 32 * 16 + lane % 32 / 4 + i / 2 % 2 * 8, n = i / 4 * 8 + lane % 4 * 2 + i % 2;
        d[lane][i] = (p.accumulate ? d[lane][i] : 0.0f) + sums[row * N + n];
      }
  }
};

}  // namespace emulate
