// Moves, conversions, selections and branches of PTX.
#pragma once

#include "arithmetic.h"

namespace ptx {

// Registers that were given a token (products.h).
std::vector<uint32_t>& holders();

// Width of each part, in bits, of what is packed or unpacked.
template <int BITS>
void pack(Frame& f, const Instruction& i) {
  uint64_t out = 0;
  for (uint32_t part = 0; part + 1 < i.count; ++part) {
    uint64_t value = f.r[i.at[1 + part]];
    if (BITS == 32 && value >> 32) held();
    out |= (value & ((uint64_t(1) << BITS) - 1)) << BITS * part;
  }
  f.r[i.at[0]] = out;
}

template <int BITS>
void unpack(Frame& f, const Instruction& i) {
  const uint64_t value = f.r[i.at[i.count - 1]];
  if (BITS * (i.count - 1) == 32 && value >> 32) held();
  for (uint32_t part = 0; part + 1 < i.count; ++part)
    f.r[i.at[part]] = value >> BITS * part & ((uint64_t(1) << BITS) - 1);
}

template <int BYTES>
void move(Frame& f, const Instruction& i) {
  const uint64_t value = f.r[i.at[1]];
  f.r[i.at[0]] = BYTES == 8 || BYTES == 4 ? value : value & ((uint64_t(1) << 8 * BYTES) - 1);
  if (BYTES == 4 && value >> 32) holders().push_back(i.at[0]);
}

inline void add_move(Parsed& p, Instruction& i) {
  const std::string type = p.one_of({"pred", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64"});
  p.finish();
  if (p.operands.size() != 2) p.refuse("two operands");
  const int bits = type == "pred" ? 8 : std::stoi(type.substr(1));
  const size_t out = p.size(0), in = p.size(1);
  if (out == 1 && in == 1) {
    i.run = bits == 64 ? move<8> : bits == 32 ? move<4> : bits == 16 ? move<2> : move<1>;
    return;
  }
  const size_t parts = std::max(out, in);
  if (std::min(out, in) != 1 || bits % parts) p.refuse("a vector of this length");
  const int part = bits / int(parts);
  if (out > 1)
    i.run = part == 32 ? unpack<32> : part == 16 ? unpack<16> : unpack<8>;
  else
    i.run = part == 32 ? pack<32> : part == 16 ? pack<16> : pack<8>;
  if (part != 32 && part != 16 && part != 8) p.refuse("a vector of this length");
}

template <typename To, typename From>
void add_integer_conversion(Table& t, const std::string& to, const std::string& from) {
  t.exact["cvt." + to + "." + from] = unary<From, [](From a) { return To(a); }>;
}

template <typename To>
void add_integer_conversions(Table& t, const std::string& to) {
  add_integer_conversion<To, int8_t>(t, to, "s8"), add_integer_conversion<To, uint8_t>(t, to, "u8");
  add_integer_conversion<To, int16_t>(t, to, "s16"), add_integer_conversion<To, uint16_t>(t, to, "u16");
  add_integer_conversion<To, int32_t>(t, to, "s32"), add_integer_conversion<To, uint32_t>(t, to, "u32");
  add_integer_conversion<To, int64_t>(t, to, "s64"), add_integer_conversion<To, uint64_t>(t, to, "u64");
}

inline void add_conversions(Table& t) {
  add_integer_conversions<int16_t>(t, "s16"), add_integer_conversions<uint16_t>(t, "u16");
  add_integer_conversions<int32_t>(t, "s32"), add_integer_conversions<uint32_t>(t, "u32");
  add_integer_conversions<int64_t>(t, "s64"), add_integer_conversions<uint64_t>(t, "u64");
  t.exact["cvt.f32.bf16"] = unary<uint16_t, [](uint16_t a) { return float(widened(a, true)); }>;
  t.exact["cvt.f32.f16"] = unary<uint16_t, [](uint16_t a) { return float(widened(a, false)); }>;
  t.exact["cvt.rn.bf16.f32"] = unary<float, to_bfloat16>;
  t.exact["cvt.rn.f16.f32"] = unary<float, to_half>;
  // The first operand goes to the upper half.
  t.exact["cvt.rn.bf16x2.f32"] =
      binary<float, [](float a, float b) { return uint32_t(to_bfloat16(a)) << 16 | to_bfloat16(b); }>;
  t.exact["cvt.rn.f16x2.f32"] = binary<float, [](float a, float b) { return uint32_t(to_half(a)) << 16 | to_half(b); }>;
  t.exact["cvt.rn.f32.s32"] = unary<int32_t, [](int32_t a) { return float(a); }>;
  t.exact["cvt.rn.f32.u32"] = unary<uint32_t, [](uint32_t a) { return float(a); }>;
  t.exact["cvt.rn.f32.s64"] = unary<int64_t, [](int64_t a) { return float(a); }>;
  t.exact["cvt.f64.f32"] = unary<float, [](float a) { return double(a); }>;
  t.exact["cvt.rn.f32.f64"] = unary<double, [](double a) { return float(a); }>;
  t.families["mov"] = add_move;
  // Addresses are the same in every space that is meant here.
  for (const char* name : {"cvta.to.global.u64", "cvta.param.u64", "cvta.global.u64"}) t.exact[name] = move<8>;

  t.families["selp"] = [](Parsed& p, Instruction& i) {
    const std::string type = p.one_of({"b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64"});
    p.finish();
    const int bits = std::stoi(type.substr(1));
    if (bits == 16)
      i.run = [](Frame& f, const Instruction& i) { put(f, i.at[0], get<uint16_t>(f, i.at[get<bool>(f, i.at[3]) ? 1 : 2])); };
    else if (bits == 32)
      i.run = [](Frame& f, const Instruction& i) { put(f, i.at[0], get<uint32_t>(f, i.at[get<bool>(f, i.at[3]) ? 1 : 2])); };
    else
      i.run = [](Frame& f, const Instruction& i) { put(f, i.at[0], get<uint64_t>(f, i.at[get<bool>(f, i.at[3]) ? 1 : 2])); };
  };

  t.exact["bra"] = t.exact["bra.uni"] = [](Frame& f, const Instruction& i) { f.next = i.target; };
  t.exact["ret"] = t.exact["exit"] = [](Frame& f, const Instruction&) { f.next = UINT32_MAX; };
  t.exact["nanosleep.u32"] = [](Frame&, const Instruction&) {};
}

}  // namespace ptx
