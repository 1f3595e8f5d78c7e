// Loads, stores and copies of PTX: every access is bounded, aligned to its whole width, and shown to the race detector.
#pragma once

#include "arithmetic.h"

namespace ptx {

// What the launch hands over, at the address that ld.param and mov see.
const unsigned char* parameters(size_t& bytes);

inline unsigned char* shared(const Frame& f, const uint32_t* at, uint32_t bytes) {
  Machine& m = Machine::get();
  const uint32_t where = shared_address(f, at);
  if (where % bytes) m.fail("shared address not aligned to the " + std::to_string(bytes) + " bytes of the access");
  return emulate::Hopper::shared(where, bytes);
}

// Whether threads that hold copies of a value may all store it, with nothing to order them.
bool tiles_agree();

enum Space { kGlobal, kShared, kParameter };

// i.a: values, i.b: bytes of each.
template <Space SPACE>
unsigned char* accessed(const Frame& f, const Instruction& i, const uint32_t* at, const unsigned char* value = nullptr) {
  Machine& m = Machine::get();
  const uint32_t bytes = i.a * i.b;
  if constexpr (SPACE == kShared) {
    unsigned char* where = shared(f, at, bytes);
    m.touch(where, bytes, value, true, tiles_agree() ? value : nullptr);
    return where;
  } else {
    auto* where = reinterpret_cast<unsigned char*>(address(f, at));
    if constexpr (SPACE == kGlobal) {
      m.global(where, bytes, value, tiles_agree() ? value : nullptr);
    } else {
      size_t size;
      const unsigned char* first = parameters(size);
      if (where < first || where + bytes > first + size) m.fail("a parameter is read beyond the last one");
    }
    return where;
  }
}

// Signed values are widened to their register.
template <Space SPACE, bool SIGNED>
void load(Frame& f, const Instruction& i) {
  const uint32_t values = i.a, bytes = i.b & 0xff, width = i.target;
  const Instruction whole{.a = values, .b = bytes};
  const unsigned char* from = accessed<SPACE>(f, whole, i.at + values);
  for (uint32_t v = 0; v < values; ++v) {
    uint64_t value = 0;
    std::memcpy(&value, from + v * bytes, bytes);
    if (SIGNED && bytes < 8 && value >> (8 * bytes - 1)) value |= ~uint64_t(0) << 8 * bytes;
    f.r[i.at[v]] = width < 8 ? value & ((uint64_t(1) << 8 * width) - 1) : value;
  }
}

template <Space SPACE>
void store(Frame& f, const Instruction& i) {
  const uint32_t values = i.a, bytes = i.b;
  unsigned char from[16];
  for (uint32_t v = 0; v < values; ++v) {
    const uint64_t value = f.r[i.at[2 + v]];
    if (bytes <= 4 && value >> 32) held();
    std::memcpy(from + v * bytes, &value, bytes);
  }
  std::memcpy(accessed<SPACE>(f, i, i.at, from), from, values * bytes);
}

inline void access(Parsed& p, Instruction& i, bool loads) {
  const std::string space = p.one_of({"global", "shared", "shared::cta", "param"});
  for (const char* hint : {"nc", "ca", "cg", "cs", "L1::evict_last", "L1::evict_first", "L1::no_allocate"}) p.takes(hint);
  i.a = p.takes("v4") ? 4 : p.takes("v2") ? 2 : 1;
  const std::string type =
      p.one_of({"b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64"});
  p.finish();
  i.b = std::stoi(type.substr(1)) / 8;
  const size_t value = loads ? 0 : 1;
  if (p.operands.size() != 2 || p.size(value) != i.a || p.size(1 - value) != 2) p.refuse("operands do not fit");
  if (loads) {
    i.target = p.width(p.operands[0][0]);
    const bool is_signed = type[0] == 's';
    if (space == "global") i.run = is_signed ? load<kGlobal, true> : load<kGlobal, false>;
    else if (space == "param") i.run = is_signed ? load<kParameter, true> : load<kParameter, false>;
    else i.run = is_signed ? load<kShared, true> : load<kShared, false>;
  } else {
    if (space == "param") p.refuse("parameters are not written");
    i.run = space == "global" ? store<kGlobal> : store<kShared>;
  }
}

// cp.async of 4, 8 or 16 bytes; of these `there` are read, where that operand is given, and the rest are zeros.
inline void copy(Frame& f, const Instruction& i) {
  Machine& m = Machine::get();
  const uint32_t bytes = get<uint32_t>(f, i.at[4]), there = i.count > 5 ? get<uint32_t>(f, i.at[5]) : bytes;
  if (bytes != 4 && bytes != 8 && bytes != 16) m.fail("cp.async copies 4, 8 or 16 bytes");
  emulate::copy_async(shared(f, i.at, bytes), reinterpret_cast<const void*>(address(f, i.at + 2)), bytes, there);
}

template <int VALUES>
void add_global(Frame& f, const Instruction& i) {
  auto* to = reinterpret_cast<float*>(address(f, i.at));
  Machine::get().adds(to, 4 * VALUES);
  for (int v = 0; v < VALUES; ++v) to[v] += get<float>(f, i.at[2 + v]);
}

inline void add_memory(Table& t) {
  t.families["ld"] = [](Parsed& p, Instruction& i) { access(p, i, true); };
  t.families["st"] = [](Parsed& p, Instruction& i) { access(p, i, false); };
  for (const std::string space : {"shared", "shared::cta"}) {
    t.exact["cp.async.cg." + space + ".global"] = [](Frame& f, const Instruction& i) {
      if (get<uint32_t>(f, i.at[4]) != 16) Machine::get().fail("cp.async.cg copies 16 bytes");
      copy(f, i);
    };
    t.exact["cp.async.ca." + space + ".global"] = copy;
  }
  t.exact["red.relaxed.gpu.global.add.f32"] = add_global<1>;
  t.exact["red.relaxed.gpu.global.add.v4.f32"] = add_global<4>;
  t.exact["atom.relaxed.gpu.global.add.u32"] = [](Frame& f, const Instruction& i) {
    auto* to = reinterpret_cast<uint32_t*>(address(f, i.at + 1));
    Machine::get().adds(to, 4);
    f.r[i.at[0]] = *to;
    *to += get<uint32_t>(f, i.at[3]);
  };
  t.exact["cp.async.commit_group"] = [](Frame&, const Instruction&) { emulate::commit_copies(); };
  t.exact["cp.async.wait_group"] = [](Frame& f, const Instruction& i) {
    emulate::wait_for_copies(get<uint32_t>(f, i.at[0]), i.place);
  };
  t.exact["cp.async.wait_all"] = [](Frame&, const Instruction& i) {
    emulate::commit_copies();
    emulate::wait_for_copies(0, i.place);
  };
}

}  // namespace ptx
