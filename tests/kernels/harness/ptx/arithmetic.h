// Arithmetic, logic and comparisons of PTX. Approximations (ex2.approx, rsqrt.approx, div.full ...) are computed exactly and
// rounded: hardware is within the ulp that the PTX ISA states of that. .ftz takes denormal inputs and results for 0.
#pragma once

#include <bit>
#include <limits>

#include "machine.h"

namespace ptx {

// ---- from slots to slots ---------------------------------------------------------------------------------------------

template <typename T, auto F>
void unary(Frame& f, const Instruction& i) {
  put(f, i.at[0], F(get<T>(f, i.at[1])));
}

template <typename T, auto F>
void binary(Frame& f, const Instruction& i) {
  put(f, i.at[0], F(get<T>(f, i.at[1]), get<T>(f, i.at[2])));
}

template <typename T, auto F>
void ternary(Frame& f, const Instruction& i) {
  put(f, i.at[0], F(get<T>(f, i.at[1]), get<T>(f, i.at[2]), get<T>(f, i.at[3])));
}

// ---- numbers ---------------------------------------------------------------------------------------------------------

inline float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

inline double widened(uint16_t bits, bool bfloat) {
  if (bfloat) return std::bit_cast<float>(uint32_t(bits) << 16);
  return std::bit_cast<_Float16>(bits);
}

inline uint16_t to_bfloat16(float x) {
  if (x != x) return 0x7fff;
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t to_half(float x) { return x != x ? 0x7fff : std::bit_cast<uint16_t>(_Float16(x)); }

// a b + c of 16-bit numbers, rounded once. The product is exact in double; where the sum is not, it is made odd, so that the
// second rounding goes as if it were the only one.
template <bool BFLOAT>
uint16_t fused(uint16_t a, uint16_t b, uint16_t c) {
  const double product = widened(a, BFLOAT) * widened(b, BFLOAT), addend = widened(c, BFLOAT);
  const auto odd = [](double sum, double error) {
    if (error == 0.0 || !std::isfinite(sum) || (std::bit_cast<uint64_t>(sum) & 1)) return sum;
    return std::nextafter(sum, error > 0 ? HUGE_VAL : -HUGE_VAL);
  };
  double sum = product + addend;
  const double back = sum - product;
  sum = odd(sum, (product - (sum - back)) + (addend - back));
  float narrow = float(sum);
  if (double(narrow) != sum && std::isfinite(narrow) && !(std::bit_cast<uint32_t>(narrow) & 1))
    narrow = std::nextafter(narrow, sum > narrow ? HUGE_VALF : -HUGE_VALF);
  return BFLOAT ? to_bfloat16(narrow) : to_half(narrow);
}

constexpr uint16_t kOne[2] = {0x3c00, 0x3f80}, kMinusZero = 0x8000;

template <bool BFLOAT, auto F>
uint32_t both(uint32_t a, uint32_t b, uint32_t c) {
  return F(uint16_t(a), uint16_t(b), uint16_t(c)) | uint32_t(F(uint16_t(a >> 16), uint16_t(b >> 16), uint16_t(c >> 16))) << 16;
}

template <bool BFLOAT>
uint16_t added(uint16_t a, uint16_t b, uint16_t = 0) {
  return fused<BFLOAT>(a, kOne[BFLOAT], b);
}

template <bool BFLOAT>
uint16_t subtracted(uint16_t a, uint16_t b, uint16_t = 0) {
  return fused<BFLOAT>(b, uint16_t(kOne[BFLOAT] | 0x8000), a);
}

template <bool BFLOAT>
uint16_t multiplied(uint16_t a, uint16_t b, uint16_t = 0) {
  return fused<BFLOAT>(a, b, uint16_t((a ^ b) & kMinusZero));
}

template <bool BFLOAT>
void add_16_bits(Table& t, const std::string& name) {
  for (const char* rounding : {"", ".rn"}) {
    t.exact[std::string("fma") + rounding + "." + name] = ternary<uint16_t, fused<BFLOAT>>;
    t.exact[std::string("add") + rounding + "." + name] = binary<uint16_t, [](uint16_t a, uint16_t b) { return added<BFLOAT>(a, b); }>;
    t.exact[std::string("sub") + rounding + "." + name] = binary<uint16_t, [](uint16_t a, uint16_t b) { return subtracted<BFLOAT>(a, b); }>;
    t.exact[std::string("mul") + rounding + "." + name] = binary<uint16_t, [](uint16_t a, uint16_t b) { return multiplied<BFLOAT>(a, b); }>;
    t.exact[std::string("fma") + rounding + "." + name + "x2"] =
        ternary<uint32_t, [](uint32_t a, uint32_t b, uint32_t c) { return both<BFLOAT, fused<BFLOAT>>(a, b, c); }>;
    t.exact[std::string("add") + rounding + "." + name + "x2"] =
        binary<uint32_t, [](uint32_t a, uint32_t b) { return both<BFLOAT, added<BFLOAT>>(a, b, 0); }>;
    t.exact[std::string("sub") + rounding + "." + name + "x2"] =
        binary<uint32_t, [](uint32_t a, uint32_t b) { return both<BFLOAT, subtracted<BFLOAT>>(a, b, 0); }>;
    t.exact[std::string("mul") + rounding + "." + name + "x2"] =
        binary<uint32_t, [](uint32_t a, uint32_t b) { return both<BFLOAT, multiplied<BFLOAT>>(a, b, 0); }>;
  }
}

// ---- integers --------------------------------------------------------------------------------------------------------

template <typename T>
T divided(T a, T b) {
  if (b == 0) throw std::runtime_error("division by zero");
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return T(0) - a;
  return a / b;
}

template <typename T>
T remainder(T a, T b) {
  if (b == 0) throw std::runtime_error("division by zero");
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return 0;
  return a % b;
}

// Unsigned inside, so that what overflows wraps.
template <typename T>
void add_integers(Table& t, const std::string& type) {
  using U = std::make_unsigned_t<T>;
  using W = std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                               std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
  t.exact["add." + type] = binary<U, [](U a, U b) { return U(a + b); }>;
  t.exact["sub." + type] = binary<U, [](U a, U b) { return U(a - b); }>;
  t.exact["mul.lo." + type] = binary<U, [](U a, U b) { return U(uint64_t(a) * b); }>;
  t.exact["mad.lo." + type] = ternary<U, [](U a, U b, U c) { return U(uint64_t(a) * b + c); }>;
  t.exact["div." + type] = binary<T, divided<T>>;
  t.exact["rem." + type] = binary<T, remainder<T>>;
  t.exact["min." + type] = binary<T, [](T a, T b) { return std::min(a, b); }>;
  t.exact["max." + type] = binary<T, [](T a, T b) { return std::max(a, b); }>;
  if constexpr (sizeof(T) < 8) {
    t.exact["mul.wide." + type] = binary<T, [](T a, T b) { return W(W(a) * W(b)); }>;
    t.exact["mul.hi." + type] = binary<T, [](T a, T b) { return T(W(W(a) * W(b)) >> 8 * sizeof(T)); }>;
    t.exact["mad.wide." + type] = [](Frame& f, const Instruction& i) {
      const W product = W(get<T>(f, i.at[1])) * W(get<T>(f, i.at[2]));
      put(f, i.at[0], std::make_unsigned_t<W>(product) + get<std::make_unsigned_t<W>>(f, i.at[3]));
    };
  } else {
    t.exact["mul.hi." + type] = binary<T, [](T a, T b) {
      using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
      return T(Wide(a) * Wide(b) >> 64);
    }>;
  }
  // Shifts by more than there are bits give what the sign fills.
  t.exact["shr." + type] = [](Frame& f, const Instruction& i) {
    const uint32_t by = std::min<uint32_t>(get<uint32_t>(f, i.at[2]), 8 * sizeof(T));
    const T value = get<T>(f, i.at[1]);
    put(f, i.at[0], by == 8 * sizeof(T) ? T(std::is_signed_v<T> && value < 0 ? -1 : 0) : T(value >> by));
  };
  if constexpr (std::is_signed_v<T>) {
    t.exact["neg." + type] = unary<U, [](U a) { return U(U(0) - a); }>;
    t.exact["abs." + type] = unary<T, [](T a) { return U(a < 0 ? U(0) - U(a) : U(a)); }>;
  }
}

template <typename T>
void add_bits(Table& t, const std::string& type) {
  t.exact["and." + type] = binary<T, [](T a, T b) { return T(a & b); }>;
  t.exact["or." + type] = binary<T, [](T a, T b) { return T(a | b); }>;
  t.exact["xor." + type] = binary<T, [](T a, T b) { return T(a ^ b); }>;
  if constexpr (std::is_same_v<T, bool>)
    t.exact["not." + type] = unary<T, [](T a) { return !a; }>;
  else
    t.exact["not." + type] = unary<T, [](T a) { return T(~a); }>;
  if constexpr (!std::is_same_v<T, bool>)
    t.exact["shl." + type] = [](Frame& f, const Instruction& i) {
      const uint32_t by = get<uint32_t>(f, i.at[2]);
      put(f, i.at[0], by >= 8 * sizeof(T) ? T(0) : T(uint64_t(get<T>(f, i.at[1])) << by));
    };
}

// Bits `from` and on, `length` of them; signed: the last one, or the word's, fills what is above.
template <typename T>
T extracted(T word, uint32_t from, uint32_t length) {
  constexpr int bits = 8 * sizeof(T);
  from &= 0xff, length &= 0xff;
  const bool sign = std::is_signed_v<T> && length > 0 && (word >> std::min<int>(from + length - 1, bits - 1) & 1);
  T out = 0;
  for (int i = 0; i < bits; ++i) {
    const bool bit = i < int(length) && int(from) + i < bits ? (word >> (from + i) & 1) : sign;
    out |= T(std::make_unsigned_t<T>(bit) << i);
  }
  return out;
}

template <typename T>
void add_fields(Table& t, const std::string& type) {
  t.exact["bfe." + type] = [](Frame& f, const Instruction& i) {
    put(f, i.at[0], extracted<T>(get<T>(f, i.at[1]), get<uint32_t>(f, i.at[2]), get<uint32_t>(f, i.at[3])));
  };
}

// The four bytes that the selector's digits name, of two words.
inline uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t digit = selector >> 4 * i & 15;
    const uint32_t byte = bytes >> 8 * (digit & 7) & 0xff;
    out |= (digit & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
  }
  return out;
}

// ---- comparisons -----------------------------------------------------------------------------------------------------

template <typename T, auto F>
void add_comparison(Table& t, const std::string& name, const std::string& type) {
  t.exact["setp." + name + "." + type] = binary<T, [](T a, T b) { return bool(F(a, b)); }>;
  for (const bool conjunction : {true, false})  // d = (a ? b) and c
    t.exact["setp." + name + (conjunction ? ".and." : ".or.") + type] =
        conjunction ? [](Frame& f, const Instruction& i) {
            put(f, i.at[0], bool(F(get<T>(f, i.at[1]), get<T>(f, i.at[2])) && get<bool>(f, i.at[3])));
          } : [](Frame& f, const Instruction& i) {
            put(f, i.at[0], bool(F(get<T>(f, i.at[1]), get<T>(f, i.at[2])) || get<bool>(f, i.at[3])));
          };
}

template <typename T>
void add_comparisons(Table& t, const std::string& type) {
  add_comparison<T, [](T a, T b) { return a == b; }>(t, "eq", type);
  add_comparison<T, [](T a, T b) { return (a < b) || (b < a); }>(t, "ne", type);
  add_comparison<T, [](T a, T b) { return a < b; }>(t, "lt", type);
  add_comparison<T, [](T a, T b) { return a <= b; }>(t, "le", type);
  add_comparison<T, [](T a, T b) { return b < a; }>(t, "gt", type);
  add_comparison<T, [](T a, T b) { return a >= b; }>(t, "ge", type);
  if constexpr (std::is_floating_point_v<T>) {  // true of what is not a number
    add_comparison<T, [](T a, T b) { return !((a < b) || (b < a)); }>(t, "equ", type);
    add_comparison<T, [](T a, T b) { return !(a == b); }>(t, "neu", type);
    add_comparison<T, [](T a, T b) { return !(a >= b); }>(t, "ltu", type);
    add_comparison<T, [](T a, T b) { return !(b < a); }>(t, "leu", type);
    add_comparison<T, [](T a, T b) { return !(a <= b); }>(t, "gtu", type);
    add_comparison<T, [](T a, T b) { return !(a < b); }>(t, "geu", type);
    add_comparison<T, [](T a, T b) { return a == a && b == b; }>(t, "num", type);
    add_comparison<T, [](T a, T b) { return a != a || b != b; }>(t, "nan", type);
  }
}

// ---- floating point --------------------------------------------------------------------------------------------------

// With and without .ftz, and under every spelling of "to nearest".
template <auto F>
void add_unary(Table& t, const std::string& name, std::initializer_list<const char*> roundings) {
  for (const std::string rounding : roundings) {
    t.exact[name + rounding + ".f32"] = unary<float, [](float a) { return float(F(a)); }>;
    t.exact[name + rounding + ".ftz.f32"] = unary<float, [](float a) { return flush(float(F(flush(a)))); }>;
  }
}

template <auto F>
void add_binary(Table& t, const std::string& name, std::initializer_list<const char*> roundings) {
  for (const std::string rounding : roundings) {
    t.exact[name + rounding + ".f32"] = binary<float, [](float a, float b) { return float(F(a, b)); }>;
    t.exact[name + rounding + ".ftz.f32"] =
        binary<float, [](float a, float b) { return flush(float(F(flush(a), flush(b)))); }>;
  }
}

inline void add_floats(Table& t) {
  add_binary<[](float a, float b) { return a + b; }>(t, "add", {"", ".rn"});
  add_binary<[](float a, float b) { return a - b; }>(t, "sub", {"", ".rn"});
  add_binary<[](float a, float b) { return a * b; }>(t, "mul", {"", ".rn"});
  add_binary<[](float a, float b) { return a / b; }>(t, "div", {".rn"});
  // Within 2 ulp, and 0 for a divisor beyond 2^126 (.approx only, in .full it is scaled).
  add_binary<[](float a, float b) { return a / b; }>(t, "div", {".full"});
  add_binary<[](float a, float b) {
    return (0x1p126f < std::abs(b)) && std::isfinite(b) ? (std::isinf(a) ? std::nanf("") : a * 0.0f) : a / b;
  }>(t, "div", {".approx"});
  add_binary<[](float a, float b) { return std::fmin(a, b); }>(t, "min", {""});
  add_binary<[](float a, float b) { return std::fmax(a, b); }>(t, "max", {""});
  add_binary<[](float a, float b) { return a != a || b != b ? std::nanf("") : std::fmin(a, b); }>(t, "min", {".NaN"});
  add_binary<[](float a, float b) { return a != a || b != b ? std::nanf("") : std::fmax(a, b); }>(t, "max", {".NaN"});
  add_unary<[](float a) { return -a; }>(t, "neg", {""});
  add_unary<[](float a) { return std::abs(a); }>(t, "abs", {""});
  add_unary<[](double a) { return std::exp2(a); }>(t, "ex2", {".approx"});
  add_unary<[](double a) { return std::log2(a); }>(t, "lg2", {".approx"});
  add_unary<[](double a) { return 1.0 / a; }>(t, "rcp", {".approx", ".rn"});
  add_unary<[](double a) { return 1.0 / std::sqrt(a); }>(t, "rsqrt", {".approx"});
  add_unary<[](float a) { return std::sqrt(a); }>(t, "sqrt", {".approx", ".rn"});
  t.exact["fma.rn.f32"] = ternary<float, [](float a, float b, float c) { return std::fma(a, b, c); }>;
  t.exact["fma.rn.ftz.f32"] =
      ternary<float, [](float a, float b, float c) { return flush(std::fma(flush(a), flush(b), flush(c))); }>;
  t.exact["copysign.f32"] = binary<float, [](float a, float b) { return std::copysign(b, a); }>;
  for (const std::string rounding : {"", ".rn"}) {
    t.exact["add" + rounding + ".f64"] = binary<double, [](double a, double b) { return a + b; }>;
    t.exact["sub" + rounding + ".f64"] = binary<double, [](double a, double b) { return a - b; }>;
    t.exact["mul" + rounding + ".f64"] = binary<double, [](double a, double b) { return a * b; }>;
  }
  t.exact["fma.rn.f64"] = ternary<double, [](double a, double b, double c) { return std::fma(a, b, c); }>;
}

inline void add_arithmetic(Table& t) {
  add_integers<int16_t>(t, "s16"), add_integers<uint16_t>(t, "u16");
  add_integers<int32_t>(t, "s32"), add_integers<uint32_t>(t, "u32");
  add_integers<int64_t>(t, "s64"), add_integers<uint64_t>(t, "u64");
  add_bits<bool>(t, "pred"), add_bits<uint16_t>(t, "b16"), add_bits<uint32_t>(t, "b32"), add_bits<uint64_t>(t, "b64");
  add_fields<int32_t>(t, "s32"), add_fields<uint32_t>(t, "u32"), add_fields<int64_t>(t, "s64"), add_fields<uint64_t>(t, "u64");
  add_comparisons<int16_t>(t, "s16"), add_comparisons<uint16_t>(t, "u16"), add_comparisons<uint16_t>(t, "b16");
  add_comparisons<int32_t>(t, "s32"), add_comparisons<uint32_t>(t, "u32"), add_comparisons<uint32_t>(t, "b32");
  add_comparisons<int64_t>(t, "s64"), add_comparisons<uint64_t>(t, "u64"), add_comparisons<uint64_t>(t, "b64");
  add_comparisons<float>(t, "f32"), add_comparisons<double>(t, "f64");
  add_floats(t);
  add_16_bits<true>(t, "bf16"), add_16_bits<false>(t, "f16");
  t.exact["prmt.b32"] = ternary<uint32_t, permuted>;
  t.exact["bfi.b32"] = [](Frame& f, const Instruction& i) {  // the low bits of a into b
    const uint32_t from = get<uint32_t>(f, i.at[3]) & 0xff, length = std::min(32u, get<uint32_t>(f, i.at[4]) & 0xff);
    const uint64_t mask = from < 32 ? ((uint64_t(1) << length) - 1) << from : 0;
    const uint64_t a = get<uint32_t>(f, i.at[1]), b = get<uint32_t>(f, i.at[2]);
    put(f, i.at[0], uint32_t((b & ~mask) | (from < 32 ? (a << from & mask) : 0)));
  };
  t.exact["lop3.b32"] = [](Frame& f, const Instruction& i) {  // any function of three bits, by its table
    const uint32_t a = get<uint32_t>(f, i.at[1]), b = get<uint32_t>(f, i.at[2]), c = get<uint32_t>(f, i.at[3]);
    const uint32_t table = get<uint32_t>(f, i.at[4]);
    uint32_t out = 0;
    for (int bit = 0; bit < 32; ++bit)
      out |= (table >> ((a >> bit & 1) * 4 + (b >> bit & 1) * 2 + (c >> bit & 1)) & 1) << bit;
    put(f, i.at[0], out);
  };
  for (const bool left : {true, false})
    t.exact[left ? "shf.l.wrap.b32" : "shf.r.wrap.b32"] =
        left ? ternary<uint32_t, [](uint32_t a, uint32_t b, uint32_t c) { return uint32_t((uint64_t(b) << 32 | a) << (c & 31) >> 32); }>
             : ternary<uint32_t, [](uint32_t a, uint32_t b, uint32_t c) { return uint32_t((uint64_t(b) << 32 | a) >> (c & 31)); }>;
}

}  // namespace ptx
