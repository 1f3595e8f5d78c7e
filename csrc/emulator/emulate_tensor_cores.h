// ldmatrix, mma.sync and cp.async for emulate.h, after the PTX ISA (tensor_cores.h states the layouts).
//
// An asynchronous copy happens when it is issued or when it is waited for, at random. The race detector records a write at both
// times, so that an access to the bytes in between, also of the thread that issued the copy, is a race.
#pragma once

#include "emulator/emulate.h"

namespace emulate {

// Each lane's row of 16 bytes is read on its behalf; then the warp's values are distributed. Of fewer than four matrices the
// lanes that name no row have null.
template <int MATRICES>
void load_matrices(uint32_t (&to)[MATRICES], const void* row, bool transposed) {
  Machine& m = Machine::get();
  if (reinterpret_cast<uintptr_t>(row) % 16) m.fail("ldmatrix: a row must be aligned to 16 bytes");
  if (row) m.touch(row, 16, false, true);
  struct Operands {
    const uint16_t* row;
    uint32_t* to;
  } mine{static_cast<const uint16_t*>(row), to};
  m.together(kLanes, mine, [transposed](const std::vector<Operands*>& lanes) {
    for (int lane = 0; lane < kLanes; ++lane)
      for (int matrix = 0; matrix < MATRICES; ++matrix) {
        const int g = lane / 4, t = lane % 4;
        const auto at = [&](int r, int c) { return uint32_t(lanes[8 * matrix + r]->row[c]); };
        const uint32_t low = transposed ? at(2 * t, g) : at(g, 2 * t), high = transposed ? at(2 * t + 1, g) : at(g, 2 * t + 1);
        lanes[lane]->to[matrix] = low | high << 16;
      }
  });
}

// The other way round: the values of a lane are distributed to the rows, and each lane that names one writes its row. `agrees`: as in
// Machine::touch.
template <int MATRICES>
void store_matrices(void* row, const uint32_t (&from)[MATRICES], bool transposed, bool agrees) {
  Machine& m = Machine::get();
  if (reinterpret_cast<uintptr_t>(row) % 16) m.fail("stmatrix: a row must be aligned to 16 bytes");
  struct Operands {
    const uint32_t* from;
    uint16_t row[8];
  } mine{from, {}};
  m.together(kLanes, mine, [transposed](const std::vector<Operands*>& lanes) {
    for (int lane = 0; lane < kLanes; ++lane)
      for (int matrix = 0; matrix < MATRICES; ++matrix)
        for (int half = 0; half < 2; ++half) {
          const int g = lane / 4, t = 2 * (lane % 4) + half;
          lanes[8 * matrix + (transposed ? t : g)]->row[transposed ? g : t] = lanes[lane]->from[matrix] >> 16 * half;
        }
  });
  if (row == nullptr) return;
  m.touch(row, 16, true, true, agrees ? reinterpret_cast<const unsigned char*>(mine.row) : nullptr);
  std::memcpy(row, mine.row, 16);
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

// c (16, 8) += a (16, 8) b (8, 8) of tf32, float32 without its lower 13 bits. A lane holds of a rows g and
// g + 8 in column t, then in column t + 4; of b rows t and t + 4 in column g.
inline void multiply_add_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operands {
    float* c;
    uint32_t a[4], b[2];
  } mine{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  Machine::get().together(kLanes, mine, [](const std::vector<Operands*>& lanes) {
    const auto value = [](uint32_t bits) {
      bits &= 0xffffe000;
      float x;
      std::memcpy(&x, &bits, 4);
      return x;
    };
    for (int lane = 0; lane < kLanes; ++lane)
      for (int i = 0; i < 4; ++i) {
        const int g = lane / 4, column = 2 * (lane % 4) + i % 2;
        float sum = 0.0f;
        for (int k = 0; k < 8; ++k)
          sum += value(lanes[4 * g + k % 4]->a[i / 2 + k / 4 * 2]) * value(lanes[4 * column + k % 4]->b[k / 4]);
        lanes[lane]->c[i] += sum;
      }
  });
}

struct Copies {
  struct Copy {
    unsigned char* to;
    const void* from;
    size_t bytes, there;  // the rest are zeros
    bool landed;
    void land() {
      if (there) std::memcpy(to, from, there);
      std::memset(to + there, 0, bytes - there);
      landed = true;
    }
  };
  // Whether wgmma may read copied data without fence.proxy.async. The PTX ISA does not guarantee it; Triton relies on it.
  static inline bool for_both_proxies = false;

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

inline void copy_async(void* to, const void* from, size_t bytes, size_t there) {
  Machine& m = Machine::get();
  if (reinterpret_cast<uintptr_t>(to) % bytes) m.fail("cp.async: shared memory must be aligned to the bytes of the copy");
  if (reinterpret_cast<uintptr_t>(from) % bytes && there) m.fail("cp.async: the source must be aligned to the bytes of the copy");
  if (there > bytes) m.fail("cp.async: more bytes are there than are copied");
  if (there) m.global_part(from, there);
  m.touch(to, bytes, true, true);
  Copies::Copy copy{static_cast<unsigned char*>(to), from, bytes, there, false};
  if (m.random() % 2) copy.land();
  for (size_t piece = 0; piece < bytes; piece += 4) m.arriving.insert((reinterpret_cast<uintptr_t>(to) + piece) / 4);
  Copies::mine().back().push_back(copy);
}

inline void copy_async(void* to, const void* from, bool there) { copy_async(to, from, 16, there ? 16 : 0); }

inline void commit_copies() { Copies::mine().emplace_back(); }

inline void wait_for_copies(size_t but, const char* reason) {
  Machine& m = Machine::get();
  if (m.drops(reason)) return;
  auto& groups = Copies::mine();
  while (groups.size() > but + 1) {
    for (Copies::Copy& copy : groups.front()) {
      const Actor actor{m.current->id, m.current->clock, &m.current->knows, false, Copies::for_both_proxies};
      if (copy.there) m.touch(actor, copy.from, copy.there, false, false);
      for (size_t piece = 0; piece < copy.bytes; piece += 4) m.arriving.erase((reinterpret_cast<uintptr_t>(copy.to) + piece) / 4);
      m.touch(actor, copy.to, copy.bytes, true, true);
      if (!copy.landed) copy.land();
    }
    groups.pop_front();
  }
}

}  // namespace emulate
