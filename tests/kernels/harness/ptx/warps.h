// Instructions that the threads of a warp or a block execute together: barriers, shuffles, ldmatrix, mma.sync.
#pragma once

#include "memory.h"

namespace ptx {

constexpr uint32_t kAll = 0xffffffff;

inline void need_all_lanes(uint32_t mask) {
  if (mask != kAll) Machine::get().fail("only warps of which all lanes take part are emulated");
}

// ---- shuffles --------------------------------------------------------------------------------------------------------

enum Shuffle { kUp, kDown, kButterfly, kIndex };

// Operands: d, or d and p; then a, b, c, and the lanes that take part.
template <Shuffle KIND>
void shuffle(Frame& f, const Instruction& i) {
  const uint32_t* at = i.at + i.count - 4;
  need_all_lanes(get<uint32_t>(f, at[3]));
  struct Operands {
    uint32_t value, b, c, result;
    bool valid;
  } mine{get<uint32_t>(f, at[0]), get<uint32_t>(f, at[1]), get<uint32_t>(f, at[2]), 0, false};
  Machine::get().together(emulate::kLanes, mine, [](const std::vector<Operands*>& lanes) {
    for (int lane = 0; lane < emulate::kLanes; ++lane) {
      Operands& o = *lanes[lane];
      const int b = o.b & 0x1f, segment = o.c >> 8 & 0x1f;
      const int last = (lane & segment) | ((o.c & 0x1f) & ~segment);
      int from;
      if (KIND == kUp) from = lane - b, o.valid = from >= last;
      if (KIND == kDown) from = lane + b, o.valid = from <= last;
      if (KIND == kButterfly) from = lane ^ b, o.valid = from <= last;
      if (KIND == kIndex) from = (lane & segment) | (b & ~segment), o.valid = from <= last;
      o.result = lanes[o.valid ? from : lane]->value;
    }
  });
  put(f, i.at[0], mine.result);
  if (i.count == 6) put(f, i.at[1], mine.valid);
}

// ---- barriers --------------------------------------------------------------------------------------------------------

inline void barrier(Frame& f, const Instruction& i, bool waits) {
  Machine& m = Machine::get();
  const uint32_t id = get<uint32_t>(f, i.at[0]);
  if (id > 15) m.fail("a block has barriers 0 to 15");
  if (i.count == 1 && id == 0 && waits) return m.barrier(i.place);
  const uint32_t count = i.count > 1 ? get<uint32_t>(f, i.at[1]) : uint32_t(m.threads.size());
  m.named_barrier(id, count, waits, i.place);
}

// ---- matrices --------------------------------------------------------------------------------------------------------

template <int MATRICES, bool TRANSPOSED>
void load_matrices(Frame& f, const Instruction& i) {
  uint32_t to[MATRICES];
  const int lane = Machine::get().current->id % emulate::kLanes;
  const void* row = lane < 8 * MATRICES ? shared(f, i.at + MATRICES, 16) : nullptr;
  emulate::load_matrices(to, row, TRANSPOSED);
  for (int m = 0; m < MATRICES; ++m) put(f, i.at[m], to[m]);
}

template <int MATRICES, bool TRANSPOSED>
void store_matrices(Frame& f, const Instruction& i) {
  uint32_t from[MATRICES];
  for (int m = 0; m < MATRICES; ++m) from[m] = get<uint32_t>(f, i.at[2 + m]);
  const int lane = Machine::get().current->id % emulate::kLanes;
  emulate::store_matrices(lane < 8 * MATRICES ? shared(f, i.at, 16) : nullptr, from, TRANSPOSED, tiles_agree());
}

template <bool BFLOAT>
float value_of(uint16_t bits) {
  return float(widened(bits, BFLOAT));
}

enum Kind { kHalf, kBfloat, kTf32 };

template <Kind KIND>
void multiply_add(Frame& f, const Instruction& i) {
  float c[4];
  uint32_t a[4];
  for (int k = 0; k < 4; ++k) a[k] = get<uint32_t>(f, i.at[4 + k]), c[k] = get<float>(f, i.at[10 + k]);
  const uint32_t b0 = get<uint32_t>(f, i.at[8]), b1 = get<uint32_t>(f, i.at[9]);
  if constexpr (KIND == kTf32)
    emulate::multiply_add_tf32(c, a, b0, b1);
  else
    emulate::multiply_add(c, a, b0, b1, value_of<KIND == kBfloat>);
  for (int k = 0; k < 4; ++k) put(f, i.at[k], c[k]);
}

template <int MATRICES>
void add_matrices(Table& t, const std::string& space) {
  const std::string plain = ".sync.aligned.m8n8.x" + std::to_string(MATRICES) + ".", type = space + ".b16";
  t.exact["ldmatrix" + plain + type] = load_matrices<MATRICES, false>;
  t.exact["ldmatrix" + plain + "trans." + type] = load_matrices<MATRICES, true>;
  t.exact["stmatrix" + plain + type] = store_matrices<MATRICES, false>;
  t.exact["stmatrix" + plain + "trans." + type] = store_matrices<MATRICES, true>;
}

inline void add_warps(Table& t) {
  t.exact["shfl.sync.up.b32"] = shuffle<kUp>;
  t.exact["shfl.sync.down.b32"] = shuffle<kDown>;
  t.exact["shfl.sync.bfly.b32"] = shuffle<kButterfly>;
  t.exact["shfl.sync.idx.b32"] = shuffle<kIndex>;
  // The lane that is elected is the same each time, and which one is left open. Triton 3.7 counts on the first.
  t.exact["elect.sync"] = [](Frame& f, const Instruction& i) {
    need_all_lanes(get<uint32_t>(f, i.at[2]));
    Machine& m = Machine::get();
    const uint32_t leader = tiles_agree() ? 0 : m.block_number * 7 % emulate::kLanes;
    put(f, i.at[0], leader);
    put(f, i.at[1], m.current->id % emulate::kLanes == leader);
  };
  for (const std::string name : {"bar", "barrier"})
    for (const std::string aligned : {"", ".aligned"})
      for (const std::string scope : {"", ".cta"}) {
        t.exact[name + scope + ".sync" + aligned] = [](Frame& f, const Instruction& i) { barrier(f, i, true); };
        t.exact[name + scope + ".arrive" + aligned] = [](Frame& f, const Instruction& i) { barrier(f, i, false); };
      }
  t.exact["bar.warp.sync"] = [](Frame& f, const Instruction& i) {
    need_all_lanes(get<uint32_t>(f, i.at[0]));
    Machine::get().warp_barrier(i.place);
  };
  for (const std::string space : {"shared", "shared::cta"}) {
    add_matrices<1>(t, space);
    add_matrices<2>(t, space);
    add_matrices<4>(t, space);
  }
  t.exact["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"] = multiply_add<kBfloat>;
  t.exact["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"] = multiply_add<kHalf>;
  t.exact["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"] = multiply_add<kTf32>;
}

}  // namespace ptx
