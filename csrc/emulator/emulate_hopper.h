// Hopper's asynchronous operations, for emulate.h: mbarriers, bulk copies of tiles (TMA), wgmma, after the PTX ISA 8.x.
//
// - A tile's copy happens at a random time after it was issued, and then counts its bytes at its mbarrier.
// - A tile's store happens at a random time between its issue and the wait for its group; its thread's stores are one agent.
// - A product reads shared memory at a random time between its issue and its wait. Until the wait its accumulators hold
//   NaNs, and it is an error if they, or the registers of A, have changed.
// - All belong to the asynchronous proxy, and the race detector treats them as separate agents: each mbarrier's copies, each
//   warp's products. A wait for the mbarrier, or for the warp's products, orders their accesses.
#pragma once

#include "emulator/emulate_wgmma.h"

namespace emulate {

// As a CUtensorMap describes it: four dimensions, the first one adjacent; a box of it is copied, zeros beyond the edges.
struct TensorMap {
  unsigned char* base;
  int64_t sizes[4], strides[4];  // elements; bytes
  int box[4], element;
  uint32_t swizzle = 128;  // bytes of the span within which 16-byte pieces change places; 16: they stay
};

struct Mbarrier {
  uint32_t count = 0, pending = 0, agent = 0, maker = 0, made = 0, fenced = 0;
  int64_t bytes = 0;     // expected less arrived
  unsigned phases = 0;   // completed
  Knowledge told, of_phase;  // by the arrivals of the phase under way, and of the last completed one
};

struct Hopper : Wgmma {
  // Copies need fence.mbarrier_init between the making of an mbarrier and themselves. Not every compiler thinks so.
  static inline bool fences_made = true;
  // Whether a fence.proxy.async counts that is executed after the barrier, by those who then issue products and copies, rather
  // than before it by those who wrote. The PTX ISA's memory model has it anywhere on the way; csrc/ keeps to the second.
  static inline bool fences_of_readers = false;

  struct Accumulators {
    std::vector<float> values[kGroup];
    uint64_t last = 0;  // product that writes them
  };
  struct Fragment {
    const uint32_t* registers;
    uint32_t values[4];
    uint64_t product;
  };
  struct Store {
    uint64_t unit;
    uint32_t clock;
  };
  struct OfThread {
    std::vector<Store> stores;               // issued since the last group of stores
    std::vector<std::vector<Store>> groups_of_stores;  // committed and not waited for
    uint32_t store_agent = 0;
    bool fenced = false;
    uint64_t issued = 0;
    std::vector<uint64_t> groups;  // committed and not waited for: the last product of each
    std::map<float*, std::shared_ptr<Accumulators>> accumulators;
    std::vector<Fragment> fragments;
    std::shared_ptr<Knowledge> at_fence;  // what it knew at its last fence.proxy.async, where fences_of_readers
    uint64_t fences = 0;
  };
  struct OfWarpgroup {
    uint64_t issued = 0, executed = 0;
    std::vector<uint32_t> clocks{0};  // of the products
    std::shared_ptr<Knowledge> common, fenced;
    uint64_t common_version = 0, fences = 0;
  };

  static constexpr uint64_t kCopies = 1000;  // their units' numbers come after those of products

  uint64_t block = 0;
  uint32_t agents = 0;           // of mbarriers, so far
  std::map<uint32_t, Mbarrier> mbarriers;
  std::vector<OfThread> threads;
  std::vector<OfWarpgroup> warpgroups;

  static Hopper& get() {
    static Hopper hopper;
    Machine& m = Machine::get();
    if (hopper.block != m.blocks_run) {
      hopper.block = m.blocks_run;
      hopper.mbarriers.clear();
      hopper.agents = 0;
      hopper.threads.assign(m.threads.size(), OfThread{});
      hopper.warpgroups.assign(m.threads.size() / kGroup + 1, OfWarpgroup{});
    }
    m.race_detector.exact = true;
    return hopper;
  }

  // Other threads may run before each of these.
  static Thread& thread() {
    Machine& m = Machine::get();
    if (m.random() % 8 == 0) m.pause();
    return *m.current;
  }

  // ---- mbarriers -----------------------------------------------------------------------------------------------------

  void make(uint32_t address, uint32_t count) {
    Thread& t = thread();
    shared(address, 8);
    if (address % 8) Machine::get().fail("an mbarrier must be aligned to 8 bytes");
    Mbarrier& b = mbarriers[address];
    if (b.count) Machine::get().fail("an mbarrier is initialised twice");
    b.count = b.pending = count;
    b.agent = next_agent();
    b.maker = t.id;
    b.made = t.clock;
  }

  uint32_t next_agent() { return Machine::get().threads.size() * 33 / 32 + 1 + ++agents; }

  // Its memory may be reused afterwards.
  void unmake(uint32_t address) {
    Thread& t = thread();
    const Mbarrier& b = at(address, t);
    if (b.bytes) Machine::get().fail("an mbarrier is invalidated while copies to it are on their way");
    mbarriers.erase(address);
  }

  void fence_made(const char* reason) {
    Machine& m = Machine::get();
    Thread& t = thread();
    if (m.drops(reason)) return;
    for (auto& [address, b] : mbarriers)
      if (b.maker == t.id && !b.fenced) b.fenced = t.clock;
    t.clock = m.race_detector.tick();
  }

  Mbarrier& at(uint32_t address, const Thread& t) {
    Machine& m = Machine::get();
    const auto found = mbarriers.find(address);
    if (found == mbarriers.end()) m.fail("an mbarrier is used before it is initialised");
    Mbarrier& b = found->second;
    if (!m.race_detector.learned({t.id, t.clock, &t.knows}, b.maker, b.made))
      m.fail("race: an mbarrier's use and its initialisation");
    return b;
  }

  void complete(Mbarrier& b) {
    if (b.pending || b.bytes) return;
    b.pending = b.count;
    b.of_phase = b.told;
    b.told = Knowledge{};
    ++b.phases;
  }

  void arrive(uint32_t address, uint32_t bytes, const char* reason) {
    Machine& m = Machine::get();
    Thread& t = thread();
    if (m.drops(reason)) return;
    Mbarrier& b = at(address, t);
    if (b.pending == 0) m.fail("more arrivals at an mbarrier than it counts");
    b.bytes += bytes;
    t.release(b.told, m.race_detector);
    --b.pending;
    complete(b);
  }

  void wait(uint32_t address, uint32_t parity, const char* reason) {
    Machine& m = Machine::get();
    Thread& t = thread();
    if (m.drops(reason)) return;
    Mbarrier& b = at(address, t);
    while ((b.phases & 1) == (parity & 1)) m.wait(&b.phases, b.phases + 1);  // a fresh one has completed a phase of parity 1
    t.knows.learn(b.of_phase);
  }

  // ---- copies --------------------------------------------------------------------------------------------------------

  void load(uint32_t to, const TensorMap& map, uint32_t address, const int (&from)[4]) {
    Machine& m = Machine::get();
    if (to % (map.swizzle > 16 ? 8 * map.swizzle : 128)) m.fail("a tile must be aligned to the period of its swizzle");
    if (map.swizzle > 16 && map.box[0] * map.element != int(map.swizzle))
      m.fail("the inner side of a box must have the bytes of its swizzle");
    if (map.box[0] * map.element % 16) m.fail("the inner side of a box must be a multiple of 16 bytes");
    const std::array<int, 4> start{from[0], from[1], from[2], from[3]};
    send(address, int64_t(map.element) * map.box[0] * map.box[1] * map.box[2] * map.box[3],
         [=](const Actor& actor) { copy(to, map, start, actor); });
  }

  void load_bytes(uint32_t to, const unsigned char* from, uint32_t bytes, uint32_t address) {
    Machine& m = Machine::get();
    if (to % 16 || bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16) m.fail("a bulk copy must be aligned to 16 bytes");
    send(address, bytes, [=, &m](const Actor& actor) {
      if (!m.inside(from, bytes)) m.fail("a bulk copy reads outside the tensors of the launch");
      m.touch(actor, from, bytes, false, false);
      m.touch(actor, shared(to, bytes), bytes, true, true);
      std::memcpy(shared(to, bytes), from, bytes);
    });
  }

  // A tile of shared memory to global memory; its group tells when it has been read.
  void store(uint32_t from, const TensorMap& map, const int (&to)[4]) {
    Machine& m = Machine::get();
    Thread& t = thread();
    if (from % (8 * map.swizzle)) m.fail("a tile must be aligned to the period of its swizzle");
    OfThread& mine = threads[t.id];
    if (!mine.store_agent) mine.store_agent = next_agent();
    auto knows = std::make_shared<Knowledge>(t.knows);
    knows->learn(t.id, t.clock);
    const uint32_t clock = m.race_detector.tick();
    mine.stores.push_back({kCopies + ++m.units, clock});
    const std::array<int, 4> start{to[0], to[1], to[2], to[3]};
    m.in_flight[mine.stores.back().unit].push_back([=, agent = mine.store_agent, fenced = mine.at_fence] {
      put(from, map, start, Actor{agent, clock, knows.get(), true, false, fenced.get()});
    });
  }

  void commit_stores(const char* reason) {
    Thread& t = thread();
    OfThread& mine = threads[t.id];
    if (Machine::get().drops(reason)) return;
    mine.groups_of_stores.push_back(std::move(mine.stores));
    mine.stores.clear();
  }

  // Until at most `left` groups of this thread's stores are on their way.
  void wait_stores(size_t left, const char* reason) {
    Machine& m = Machine::get();
    Thread& t = thread();
    auto& groups = threads[t.id].groups_of_stores;
    if (m.drops(reason) || groups.size() <= left) return;
    for (auto group = groups.begin(); group != groups.end() - left; ++group)
      for (const Store& store : *group) {
        if (auto unit = m.in_flight.find(store.unit); unit != m.in_flight.end()) {
          auto work = std::move(unit->second.front());
          m.in_flight.erase(unit);
          work();
        }
        t.knows.learn(threads[t.id].store_agent, store.clock);
      }
    groups.erase(groups.begin(), groups.end() - left);
  }

  // Has a copy happen at some time, and its bytes counted then.
  void send(uint32_t address, int64_t bytes, std::function<void(const Actor&)> copies) {
    Machine& m = Machine::get();
    Thread& t = thread();
    Mbarrier& b = at(address, t);
    if (fences_made && (!b.fenced || !m.race_detector.learned({t.id, t.clock, &t.knows}, b.maker, b.fenced + (b.maker != t.id))))
      m.fail("the asynchronous proxy meets an mbarrier without fence.mbarrier_init in between");
    auto knows = std::make_shared<Knowledge>(t.knows);
    knows->learn(t.id, t.clock);
    const uint32_t clock = m.race_detector.tick();
    m.in_flight[kCopies + ++m.units].push_back([=, this, &b, fenced = threads[t.id].at_fence] {
      copies(Actor{b.agent, clock, knows.get(), true, false, fenced.get()});
      b.bytes -= bytes;
      b.told.learn(b.agent, clock);
      complete(b);
    });
  }

  // Calls row(address in shared memory, where in global memory, first byte and number of bytes inside of the tensor) for each.
  template <typename F>
  static void each_row(uint32_t address, const TensorMap& map, const std::array<int, 4>& start, F&& row) {
    const int inner = map.box[0] * map.element;
    for (int i3 = 0; i3 < map.box[3]; ++i3)
      for (int i2 = 0; i2 < map.box[2]; ++i2)
        for (int i1 = 0; i1 < map.box[1]; ++i1, address += inner) {
          const int64_t at[3] = {start[1] + i1, start[2] + i2, start[3] + i3};
          bool inside = true;
          int64_t offset = 0;
          for (int d = 0; d < 3; ++d) {
            inside = inside && at[d] >= 0 && at[d] < map.sizes[d + 1];
            offset += at[d] * map.strides[d + 1];
          }
          const int64_t low = std::max<int64_t>(0, -start[0]), high = std::min<int64_t>(map.box[0], map.sizes[0] - start[0]);
          const size_t bytes = inside && low < high ? (high - low) * map.element : 0;
          row(address, map.base + offset + (start[0] + low) * map.element, low * map.element, bytes);
        }
  }

  static void copy(uint32_t to, const TensorMap& map, const std::array<int, 4>& start, const Actor& actor) {
    Machine& m = Machine::get();
    const int inner = map.box[0] * map.element;
    std::vector<unsigned char> row(inner);
    each_row(to, map, start, [&](uint32_t address, const unsigned char* source, size_t first, size_t bytes) {
      std::fill(row.begin(), row.end(), 0);
      if (bytes) {
        if (!m.inside(source, bytes)) m.fail("a bulk copy reads outside the tensors of the launch");
        m.touch(actor, source, bytes, false, false);
        std::memcpy(row.data() + first, source, bytes);
      }
      for (int chunk = 0; chunk < inner; chunk += 16) {
        unsigned char* where = shared(swizzled(address + chunk, map.swizzle), 16);
        m.touch(actor, where, 16, true, true);
        std::memcpy(where, row.data() + chunk, 16);
      }
    });
  }

  // All of the box is read, though what lies outside of the tensor goes nowhere.
  static void put(uint32_t from, const TensorMap& map, const std::array<int, 4>& start, const Actor& actor) {
    Machine& m = Machine::get();
    const int inner = map.box[0] * map.element;
    std::vector<unsigned char> row(inner);
    each_row(from, map, start, [&](uint32_t address, unsigned char* target, size_t first, size_t bytes) {
      for (int chunk = 0; chunk < inner; chunk += 16) {
        const unsigned char* where = shared(swizzled(address + chunk, map.swizzle), 16);
        m.touch(actor, where, 16, false, true);
        std::memcpy(row.data() + chunk, where, 16);
      }
      if (!bytes) return;
      if (!m.inside(target, bytes)) m.fail("a bulk copy writes outside the tensors of the launch");
      m.touch(actor, target, bytes, true, false);
      std::memcpy(target, row.data() + first, bytes);
    });
  }

  void fence_async(const char* reason) {
    Machine& m = Machine::get();
    Thread& t = thread();
    if (m.drops(reason)) return;
    m.race_detector.fence(t.id, t.clock);
    if (fences_of_readers) {
      OfThread& mine = threads[t.id];
      mine.at_fence = std::make_shared<Knowledge>(t.knows);
      mine.at_fence->learn(t.id, t.clock);
      ++mine.fences;
    }
    t.clock = m.race_detector.tick();
  }

  // ---- products ------------------------------------------------------------------------------------------------------

  void fence_registers(const char* reason) {
    Machine& m = Machine::get();
    Thread& t = thread();
    if (!m.drops(reason)) threads[t.id].fenced = true;
  }

  void issue(Product mine) {
    thread();
    Machine::get().together(kGroup, mine, [this](const std::vector<Product*>& all) { start(all); });
  }

  void start(const std::vector<Product*>& all) {
    Machine& m = Machine::get();
    const uint32_t group = m.current->id / kGroup, first = group * kGroup;
    OfWarpgroup& w = warpgroups[group];
    const Product product = *all[0];
    const uint64_t number = ++w.issued;
    w.clocks.push_back(m.race_detector.tick());
    auto fragments = std::make_shared<Fragments>();
    std::shared_ptr<Accumulators> accumulators;
    for (int lane = 0; lane < kGroup; ++lane) {
      const Product& p = *all[lane];
      OfThread& t = threads[first + lane];
      if (!p.same(product)) m.fail("the threads of a warpgroup issue different products");
      if (!t.fenced) m.fail("wgmma after other use of registers, and no wgmma.fence in between");
      t.issued = number;
      if (p.a) {
        std::copy(p.a, p.a + 4, (*fragments)[lane].begin());
        t.fragments.push_back({p.a, {p.a[0], p.a[1], p.a[2], p.a[3]}, number});
      }
      auto& held = t.accumulators[p.d];
      if (lane == 0) accumulators = held ? held : std::make_shared<Accumulators>();
      if (!held) {
        held = accumulators;
        held->values[lane].assign(p.d, p.d + p.N / 2);
        std::fill(p.d, p.d + p.N / 2, poison());
      }
      if (held != accumulators || held->values[lane].size() != size_t(p.N / 2)) m.fail("accumulators that overlap others'");
      held->last = number;
    }
    auto knows = common(group), fenced = fences_of_readers ? common_fence(group) : nullptr;
    const uint32_t warps = m.threads.size() + group * 4;
    const Actor actor{warps | kWarpgroup, w.clocks.back(), nullptr, true};
    m.in_flight[group].push_back([=, &w] {
      Actor reader = actor;
      reader.knows = knows.get();
      reader.fenced = fenced.get();
      multiply(product, product.a ? fragments.get() : nullptr, accumulators->values, reader);
      ++w.executed;
    });
  }

  // What every thread of the warpgroup knows, and is thus past for a product of theirs.
  std::shared_ptr<Knowledge> common(uint32_t group) {
    Machine& m = Machine::get();
    uint64_t version = 1;
    size_t agents = m.threads.size();
    for (int lane = 0; lane < kGroup; ++lane) {
      const Knowledge& of = m.threads[group * kGroup + lane].knows;
      version += of.version;
      agents = std::max(agents, of.of.size());
    }
    OfWarpgroup& w = warpgroups[group];
    if (w.common && w.common_version == version) return w.common;
    w.common_version = version;
    return w.common = least(group, agents, false, [&](uint32_t id) -> const Knowledge& { return m.threads[id].knows; });
  }

  // What every thread of the warpgroup knew at its last fence; null where one never executed any.
  std::shared_ptr<Knowledge> common_fence(uint32_t group) {
    uint64_t version = 0;
    size_t agents = Machine::get().threads.size();
    for (uint32_t id = group * kGroup; id < (group + 1) * kGroup; ++id) {
      if (!threads[id].at_fence) return nullptr;
      version += threads[id].fences;
      agents = std::max(agents, threads[id].at_fence->of.size());
    }
    OfWarpgroup& w = warpgroups[group];
    if (w.fences == version) return w.fenced;
    w.fences = version;
    return w.fenced = least(group, agents, true, [&](uint32_t id) -> const Knowledge& { return *threads[id].at_fence; });
  }

  // own: what a thread knows of itself is stated; else it is all past.
  template <typename Of>
  std::shared_ptr<Knowledge> least(uint32_t group, size_t agents, bool own, Of&& knowledge) const {
    const Machine& m = Machine::get();
    auto all = std::make_shared<Knowledge>();
    all->threads = UINT32_MAX;
    all->of.assign(agents, UINT32_MAX);
    for (uint32_t id = group * kGroup; id < (group + 1) * kGroup; ++id) {
      const Knowledge& of = knowledge(id);
      all->threads = std::min(all->threads, of.threads);
      for (size_t a = 0; a < agents; ++a) {
        const uint32_t known = a < of.of.size() ? of.of[a] : 0;
        if (a != id || own) all->of[a] = std::min(all->of[a], a < m.threads.size() ? std::max(known, of.threads) : known);
      }
    }
    return all;
  }

  void commit(const char* reason) {
    Thread& t = thread();
    if (!Machine::get().drops(reason)) threads[t.id].groups.push_back(threads[t.id].issued);
  }

  // Until at most `left` groups are on their way.
  void wait_products(size_t left, const char* reason) {
    Machine& m = Machine::get();
    Thread& now = thread();
    if (m.drops(reason)) return;
    OfThread& t = threads[now.id];
    OfWarpgroup& w = warpgroups[now.id / kGroup];
    t.fenced = false;
    if (t.groups.size() <= left) return;
    const uint64_t wanted = t.groups[t.groups.size() - 1 - left];
    t.groups.erase(t.groups.begin(), t.groups.end() - left);
    while (w.executed < wanted) {
      auto unit = m.in_flight.find(now.id / kGroup);
      auto work = std::move(unit->second.front());
      unit->second.pop_front();
      if (unit->second.empty()) m.in_flight.erase(unit);
      work();
    }
    for (auto it = t.accumulators.begin(); it != t.accumulators.end();) {
      if (it->second->last > wanted) {
        ++it;
        continue;
      }
      const auto& values = it->second->values[now.id % kGroup];
      for (size_t i = 0; i < values.size(); ++i) {
        if (!poisoned(it->first[i])) m.fail("accumulators are written while a product has them");
        it->first[i] = values[i];
      }
      it = t.accumulators.erase(it);
    }
    std::erase_if(t.fragments, [&](const Fragment& f) {
      if (f.product > wanted) return false;
      if (!std::equal(f.values, f.values + 4, f.registers)) m.fail("registers of A are written while a product reads them");
      return true;
    });
    now.knows.learn(m.threads.size() + now.id / kLanes, w.clocks[wanted]);
  }
};

}  // namespace emulate
