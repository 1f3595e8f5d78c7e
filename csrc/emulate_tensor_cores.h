// ldmatrix, mma.sync and cp.async for emulate.h, after the PTX ISA (tensor_cores.h states the layouts).
//
// An asynchronous copy lands when it is issued or when it is waited for, as a coin falls. The referee sees a write at both
// times, and whoever touches the bytes in between, the thread that issued the copy included, is in a race.
#pragma once

#include "emulate.h"

namespace emulate {

// Each lane's row of 16 bytes is read on its behalf; then the warp's values are dealt out.
inline void load_matrices(uint32_t (&to)[4], const void* row, bool transposed) {
  Machine& m = Machine::get();
  if (reinterpret_cast<uintptr_t>(row) % 16) m.fail("ldmatrix: a row must be aligned to 16 bytes");
  m.touch(row, 16, false, true);
  struct Operands {
    const uint16_t* row;
    uint32_t* to;
  } mine{static_cast<const uint16_t*>(row), to};
  m.together(kLanes, mine, [transposed](const std::vector<Operands*>& lanes) {
    for (int lane = 0; lane < kLanes; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix) {
        const int g = lane / 4, t = lane % 4;
        const auto at = [&](int r, int c) { return uint32_t(lanes[8 * matrix + r]->row[c]); };
        const uint32_t low = transposed ? at(2 * t, g) : at(g, 2 * t), high = transposed ? at(2 * t + 1, g) : at(g, 2 * t + 1);
        lanes[lane]->to[matrix] = low | high << 16;
      }
  });
}

// value(bits): the 16-bit number as a float.
template <typename Value>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Value value) {
  struct Operands {
    float* c;
    uint32_t a[4], b[2];
  } mine{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  Machine::get().together(kLanes, mine, [value](const std::vector<Operands*>& lanes) {
    float A[16][16], B[16][8];
    for (int lane = 0; lane < kLanes; ++lane)
      for (int half = 0; half < 2; ++half) {
        const int g = lane / 4, t = 2 * (lane % 4) + half;
        for (int i = 0; i < 4; ++i) A[g + 8 * (i % 2)][t + 8 * (i / 2)] = value(lanes[lane]->a[i] >> 16 * half & 0xffff);
        for (int i = 0; i < 2; ++i) B[t + 8 * i][g] = value(lanes[lane]->b[i] >> 16 * half & 0xffff);
      }
    for (int lane = 0; lane < kLanes; ++lane)
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        float sum = 0.0f;
        for (int k = 0; k < 16; ++k) sum += A[row][k] * B[k][column];
        lanes[lane]->c[i] += sum;
      }
  });
}

struct Copies {
  struct Copy {
    void* to;
    const void* from;  // null: zeros
    bool landed;
    void land() {
      from ? std::memcpy(to, from, 16) : std::memset(to, 0, 16);
      landed = true;
    }
  };
  uint64_t block = 0;
  std::vector<std::deque<std::vector<Copy>>> of_thread;  // groups, the last one not yet committed

  static std::deque<std::vector<Copy>>& mine() {
    static Copies copies;
    Machine& m = Machine::get();
    if (copies.block != m.blocks_run) {
      copies.block = m.blocks_run;
      copies.of_thread.assign(m.threads.size(), std::deque<std::vector<Copy>>(1));
    }
    return copies.of_thread[m.current->id];
  }
};

inline void copy_async(void* to, const void* from, bool there) {
  Machine& m = Machine::get();
  if (reinterpret_cast<uintptr_t>(to) % 16) m.fail("cp.async: shared memory must be aligned to 16 bytes");
  if (there) m.global(from, 16, false);
  m.touch(to, 16, true, true);
  Copies::Copy copy{to, there ? from : nullptr, false};
  if (m.random() % 2) copy.land();
  m.arriving.insert(reinterpret_cast<uintptr_t>(to) / 16);
  Copies::mine().back().push_back(copy);
}

inline void commit_copies() { Copies::mine().emplace_back(); }

inline void wait_for_copies(size_t but, const char* reason) {
  Machine& m = Machine::get();
  if (m.drops(reason)) return;
  auto& groups = Copies::mine();
  while (groups.size() > but + 1) {
    for (Copies::Copy& copy : groups.front()) {
      const Actor actor{m.current->id, m.current->clock, &m.current->knows};
      if (copy.from) m.touch(actor, copy.from, 16, false, false);
      m.arriving.erase(reinterpret_cast<uintptr_t>(copy.to) / 16);
      m.touch(actor, copy.to, 16, true, true);
      if (!copy.landed) copy.land();
    }
    groups.pop_front();
  }
}

}  // namespace emulate
