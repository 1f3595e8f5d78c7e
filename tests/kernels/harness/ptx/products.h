// Hopper's asynchronous instructions of PTX (sm_90a): mbarriers, bulk copies by tensor maps, wgmma.
//
// A product's accumulators are registers that hold a token until they are waited for: the number of the product in the upper
// half of the slot, the element in the lower. Compilers copy such registers about and leave it to the assembler to see that
// copy and original are one; so the next product takes any registers that hold the tokens of one before, in order, and the
// tokens of that one are void from then on. The wait puts values in the place of the valid ones.
#pragma once

#include "warps.h"

namespace ptx {

using emulate::Hopper;

// As the stand-ins for drivers write it into the 128 bytes of a CUtensorMap.
struct MapParameter {
  uint64_t magic;
  emulate::TensorMap map;
};
constexpr uint64_t kMagic = 0x70616d726f736e74;
static_assert(sizeof(MapParameter) <= 128);

struct Chain {
  std::vector<float> values;
  uint32_t tag;
};

struct OfThread {
  std::vector<uint32_t> holders;  // slots that were given a token
  std::vector<std::unique_ptr<Chain>> chains;
  std::deque<std::array<uint32_t, 4>> fragments;
  uint32_t tags = 0;
};

struct OfBlock {
  uint64_t block = 0;
  std::deque<OfThread> threads;
  static OfThread& mine() {
    static OfBlock all;
    Machine& m = Machine::get();
    if (all.block != m.blocks_run) {
      all.block = m.blocks_run;
      all.threads.clear();
      all.threads.resize(m.threads.size());
    }
    return all.threads[m.current->id];
  }
};

inline std::vector<uint32_t>& holders() { return OfBlock::mine().holders; }

// ---- products --------------------------------------------------------------------------------------------------------

template <bool BFLOAT>
float from_bytes(const unsigned char* bytes) {
  uint16_t bits;
  std::memcpy(&bits, bytes, 2);
  return value_of<BFLOAT>(bits);
}

// The accumulators, as an array that the product keeps: a new one, or that of the product whose tokens the registers hold.
inline Chain& accumulators(Frame& f, OfThread& t, const uint32_t* at, uint32_t count) {
  const uint32_t tag = f.r[at[0]] >> 32;
  Chain* chain = nullptr;
  if (tag) {
    for (auto& c : t.chains)
      if (c->tag == tag) chain = c.get();
    if (!chain || chain->values.size() != count) held();
    for (uint32_t k = 0; k < count; ++k)
      if (f.r[at[k]] != (uint64_t(tag) << 32 | k)) held();
  } else {
    chain = t.chains.emplace_back(new Chain).get();
    for (uint32_t k = 0; k < count; ++k) chain->values.push_back(get<float>(f, at[k]));
  }
  chain->tag = ++t.tags;
  for (uint32_t k = 0; k < count; ++k) {
    f.r[at[k]] = uint64_t(chain->tag) << 32 | k;
    t.holders.push_back(at[k]);
  }
  return *chain;
}

inline float from_tf32(const unsigned char* bytes) {
  uint32_t bits;
  std::memcpy(&bits, bytes, 4);
  return std::bit_cast<float>(bits & 0xffffe000);
}

// i.a: N; i.b: 1 bfloat16, 2 A in registers, 4 A transposed, 8 B transposed, 16 tf32. Operands: d, a, b, whether to add.
inline void multiply(Frame& f, const Instruction& i) {
  OfThread& t = OfBlock::mine();
  const uint32_t count = i.a / 2;
  const bool registers = i.b & 2;
  const uint32_t* after = i.at + count + (registers ? 4 : 1);
  emulate::Product product{};
  product.N = int(i.a);
  product.descriptor_b = get<uint64_t>(f, after[0]);
  product.accumulate = get<bool>(f, after[1]);
  product.transposed_a = i.b & 4, product.transposed_b = i.b & 8;
  product.convert = i.b & 16 ? from_tf32 : i.b & 1 ? from_bytes<true> : from_bytes<false>;
  product.element = i.b & 16 ? 4 : 2;
  if (registers) {
    auto& a = t.fragments.emplace_back();
    for (int k = 0; k < 4; ++k) a[k] = get<uint32_t>(f, i.at[count + k]);
    product.a = a.data();
  } else {
    product.descriptor_a = get<uint64_t>(f, i.at[count]);
  }
  product.d = accumulators(f, t, i.at, count).values.data();
  Hopper::get().issue(product);
}

inline void build_multiply(Parsed& p, Instruction& i) {
  for (const char* part : {"mma_async", "sync", "aligned", "f32"})
    if (!p.takes(part)) p.refuse(std::string("without .") + part);
  if (p.parts.size() != 3 || p.parts[1] != p.parts[2] || (p.parts[1] != "bf16" && p.parts[1] != "f16" && p.parts[1] != "tf32"))
    p.refuse("only bfloat16, float16 and tf32 with sums in float32 are emulated");
  const bool tf32 = p.parts[1] == "tf32";
  int n = 0, read = 0;
  const std::string& shape = p.parts[0];
  const int found = std::sscanf(shape.c_str(), tf32 ? "m64n%dk8%n" : "m64n%dk16%n", &n, &read);
  if (found != 1 || read != int(shape.size()) || n % 8 || n > 256)
    p.refuse("no such shape");
  const bool registers = p.size(1) == 4;
  if (p.size(0) != size_t(n) / 2 || (p.size(1) != 1 && !registers) || p.operands.size() != (tf32 ? 6u : registers ? 7u : 8u))
    p.refuse("operands do not fit");
  i.a = n;
  i.b = (p.parts[1] == "bf16" ? 1 : 0) | (registers ? 2 : 0) | (tf32 ? 16 : 0);
  i.run = multiply;
}

// The last operands are immediates: signs of A and B, whether they are transposed. Read when constants are known.
inline void finish_multiply(Instruction& i, const std::vector<uint64_t>& constants) {
  const bool registers = i.b & 2;
  const uint32_t first = i.a / 2 + (registers ? 4 : 1) + 2;
  if (constants[i.at[first]] != 1 || constants[i.at[first + 1]] != 1) throw std::runtime_error("wgmma: signs other than 1");
  if (i.b & 16) return;
  if (!registers && constants[i.at[first + 2]]) i.b |= 4;
  if (constants[i.at[first + (registers ? 2 : 3)]]) i.b |= 8;
}

inline void wait_products(Frame& f, const Instruction& i) {
  OfThread& t = OfBlock::mine();
  Hopper& hopper = Hopper::get();
  hopper.wait_products(get<uint32_t>(f, i.at[0]), i.place);
  const auto& still = hopper.threads[Machine::get().current->id].accumulators;
  std::erase_if(t.holders, [&](uint32_t slot) {
    const uint32_t tag = f.r[slot] >> 32;
    if (!tag) return true;
    for (auto& c : t.chains)
      if (c->tag == tag && !still.count(c->values.data())) {
        put(f, slot, c->values[uint32_t(f.r[slot])]);
        return true;
      }
    return false;
  });
  std::erase_if(t.chains, [&](auto& c) { return !still.count(c->values.data()); });
  if (still.empty()) t.fragments.clear();
}

// ---- copies and mbarriers --------------------------------------------------------------------------------------------

// Operands: to, offset, map, offset, coordinates, mbarrier, offset.
template <int DIMENSIONS>
void load_tile(Frame& f, const Instruction& i) {
  Machine& m = Machine::get();
  const uint64_t map = address(f, i.at + 2);
  size_t bytes;
  const unsigned char* first = parameters(bytes);
  if (map % 64) m.fail("a tensor map must be aligned to 64 bytes");
  if (map < uint64_t(first) || map + 128 > uint64_t(first) + bytes) m.fail("a tensor map that is no parameter");
  MapParameter parameter;
  std::memcpy(&parameter, reinterpret_cast<const void*>(map), sizeof(parameter));
  if (parameter.magic != kMagic) m.fail("no tensor map lies where the copy looks for it");
  int coordinates[4] = {};
  for (int d = 0; d < DIMENSIONS; ++d) coordinates[d] = get<int32_t>(f, i.at[4 + d]);
  Hopper::get().load(shared_address(f, i.at), parameter.map, shared_address(f, i.at + 4 + DIMENSIONS), coordinates);
}

inline void add_hopper(Table& t) {
  const std::string bulk = "cp.async.bulk", to_mbarrier = ".mbarrier::complete_tx::bytes";
  for (const std::string space : {"shared::cta", "shared::cluster"}) {
    const std::string end = "." + space + ".global" + to_mbarrier;
    t.exact[bulk + ".tensor.1d" + end] = load_tile<1>;
    t.exact[bulk + ".tensor.2d" + end] = load_tile<2>;
    t.exact[bulk + ".tensor.3d" + end] = load_tile<3>;
    t.exact[bulk + ".tensor.4d" + end] = load_tile<4>;
    t.exact[bulk + end] = [](Frame& f, const Instruction& i) {
      Hopper::get().load_bytes(shared_address(f, i.at), reinterpret_cast<const unsigned char*>(address(f, i.at + 2)),
                               get<uint32_t>(f, i.at[4]), shared_address(f, i.at + 5));
    };
  }
  for (const std::string space : {".shared", ".shared::cta"}) {
    t.exact["mbarrier.init" + space + ".b64"] = [](Frame& f, const Instruction& i) {
      Hopper::get().make(shared_address(f, i.at), get<uint32_t>(f, i.at[2]));
    };
    t.exact["mbarrier.inval" + space + ".b64"] = [](Frame& f, const Instruction& i) {
      Hopper::get().unmake(shared_address(f, i.at));
    };
    t.exact["mbarrier.arrive" + space + ".b64"] = [](Frame& f, const Instruction& i) {
      if (i.at[0]) Machine::get().fail("the state that an arrival returns is not emulated");
      Hopper::get().arrive(shared_address(f, i.at + 1), 0, i.place);
    };
    t.exact["mbarrier.arrive.expect_tx" + space + ".b64"] = [](Frame& f, const Instruction& i) {
      if (i.at[0]) Machine::get().fail("the state that an arrival returns is not emulated");
      Hopper::get().arrive(shared_address(f, i.at + 1), get<uint32_t>(f, i.at[3]), i.place);
    };
    t.exact["mbarrier.try_wait.parity" + space + ".b64"] = [](Frame& f, const Instruction& i) {
      Hopper::get().wait(shared_address(f, i.at + 1), get<uint32_t>(f, i.at[3]), i.place);
      put(f, i.at[0], true);  // the hardware may give up after a while; this one waits
    };
  }
  t.exact["fence.mbarrier_init.release.cluster"] = [](Frame&, const Instruction& i) { Hopper::get().fence_made(i.place); };
  t.exact["fence.proxy.async.shared::cta"] = [](Frame&, const Instruction& i) { Hopper::get().fence_async(i.place); };
  t.exact["wgmma.fence.sync.aligned"] = [](Frame&, const Instruction& i) { Hopper::get().fence_registers(i.place); };
  t.exact["wgmma.commit_group.sync.aligned"] = [](Frame&, const Instruction& i) { Hopper::get().commit(i.place); };
  t.exact["wgmma.wait_group.sync.aligned"] = wait_products;
  t.families["wgmma"] = build_multiply;
  for (const char* hint : {"prefetch.tensormap", "setmaxnreg.inc.sync.aligned.u32", "setmaxnreg.dec.sync.aligned.u32"})
    t.exact[hint] = [](Frame&, const Instruction&) {};
}

}  // namespace ptx
