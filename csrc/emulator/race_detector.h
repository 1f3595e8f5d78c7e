// The emulator's race detector: the accesses to each byte of memory, and whether they are ordered.
//
// Vector clocks, as FastTrack keeps them (Flanagan and Freund, PLDI 2009). An agent is a thread of the block or an
// asynchronous unit: a warp's products, the copies that an mbarrier counts. Every access has its agent's clock, which a
// release (arriving at a barrier) increments. An agent's vector clock has, for each agent of the block, the clock up to which
// that agent's accesses happened before; an acquire (leaving a barrier) joins the clocks of the releases. Two accesses to a
// byte, one a write, are a race where the earlier did not happen before the later, in any actual order. Nothing in a launch
// orders the threads of different blocks.
//
// The generic proxy (loads and stores of threads) and the asynchronous one (bulk copies, wgmma) are separate: a
// thread's write reaches the other only over fence.proxy.async of that thread (PTX ISA, "Async proxy").
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace emulate {

constexpr uint32_t kWarpgroup = 0x800;  // in an agent's number: this one and the three after it, which act as one
constexpr uint32_t kAgents = 0x1000;

struct Knowledge {
  uint32_t threads = 0;      // accesses of all threads up to this clock happened before: set by a whole-block barrier
  std::vector<uint32_t> of;  // by agent; empty where there are whole-block barriers only
  uint64_t version = 0;      // counts the changes

  void learn(uint32_t agent, uint32_t clock) {
    if (of.size() <= agent) of.resize(agent + 1);
    of[agent] = std::max(of[agent], clock);
    ++version;
  }

  void learn(const Knowledge& other) {
    threads = std::max(threads, other.threads);
    if (of.size() < other.of.size()) of.resize(other.of.size());
    for (size_t i = 0; i < other.of.size(); ++i) of[i] = std::max(of[i], other.of[i]);
    ++version;
  }
};

// The agent of an access.
struct Actor {
  uint32_t agent, clock;
  const Knowledge* knows;
  bool asynchronous = false;
  bool for_both = false;  // its writes need no fence to reach the asynchronous proxy
  const Knowledge* fenced = nullptr;  // its clock at its last fence.proxy.async
};

class RaceDetector {
 public:
  void begin_launch() {
    ++launch_;
    if (pages_.size() > 1024) pages_.clear();
    page_ = nullptr;
    page_number_ = 0;
  }

  void begin_block(uint32_t number, uint32_t threads) {
    block_ = number;
    threads_ = threads;
    now_ = 1;
    exact = false;
    sets_.assign(1, {});
    grown_.clear();
    last_step_ = Step{};
    last_grown_ = 0;
    fences_.clear();
  }

  uint32_t tick() { return ++now_; }
  uint32_t now() const { return now_; }

  // Synchronisation finer than whole-block barriers is in use: sets of readers are kept.
  bool exact = false;

  // The thread's writes up to `clock` reach the asynchronous proxy, for those who learn of a later clock of it.
  void fence(uint32_t thread, uint32_t clock) { fences_[thread].push_back(clock); }

  // Whether the agent's access at that clock happened before.
  bool learned(const Actor& actor, uint32_t agent, uint32_t clock) const {
    return knows(actor, int64_t(block_) * kAgents + agent, clock);
  }

  // Whether the byte of global memory was accessed in this launch.
  bool touched(uintptr_t at) {
    const Byte& byte = remember(at, uint64_t(launch_) << 32);
    return byte.writer >= 0 || byte.reader >= 0;
  }

  enum Verdict { kFine, kUnwritten, kUnfenced, kRaceWithWrite, kRaceWithRead };

  // value: the bytes to be written, where a write of what another just wrote there, as compilers of whole tiles make it, is
  // no race between the two.
  Verdict touch(const Actor& actor, uintptr_t address, size_t bytes, bool writes, bool shared,
                const unsigned char* value = nullptr) {
    const int64_t mine = int64_t(block_) * kAgents + actor.agent;
    const uint64_t stamp = uint64_t(launch_) << 32 | (shared ? block_ + 1 : 0);
    Byte before, after;  // of the last byte: most accesses meet the same again and again
    for (uintptr_t at = address; at < address + bytes; ++at) {
      Byte& byte = remember(at, stamp);
      if (at > address && !value && byte == before) {
        byte = after;
        continue;
      }
      before = byte;
      if (byte.writer < 0) {
        if (shared && !writes) return kUnwritten;
      } else if (byte.writer != mine || byte.write_clock != actor.clock || actor.asynchronous) {
        const bool agrees = value && writes && value[at - address] == *reinterpret_cast<const unsigned char*>(at);
        if (!agrees && !knows(actor, byte.writer, byte.write_clock)) return kRaceWithWrite;
        if (actor.asynchronous && byte.writer % kAgents < threads_ && !byte.for_both && !fenced(actor, byte))
          return kUnfenced;
      }
      if (writes) {
        if (!readers_known(actor, byte)) return kRaceWithRead;
        byte.writer = mine;
        byte.write_clock = actor.clock;
        byte.reader = -1;
        byte.set = 0;
        byte.many = false;
        byte.for_both = actor.for_both;
      } else if (byte.reader != mine || byte.read_clock != actor.clock) {
        add_reader(actor, mine, byte);
      }
      after = byte;
    }
    return kFine;
  }

 private:
  struct Byte {
    uint64_t stamp = 0;  // of the launch, or of the block for shared memory: what is older is forgotten
    int64_t writer = -1, reader = -1;
    uint32_t write_clock = 0, read_clock = 0;
    uint32_t set = 0;   // the readers before `reader` that it did not know, in sets_
    bool for_both = false;
    bool many = false;  // too many: only a whole-block barrier later than read_clock orders a write after them
    bool operator==(const Byte&) const = default;
  };
  using Readers = std::vector<std::pair<int64_t, uint32_t>>;
  using Step = std::tuple<uint32_t, int64_t, int64_t, uint32_t, uint32_t>;
  static constexpr uintptr_t kPage = 4096;
  static constexpr size_t kReaders = 512;  // that a set holds: all threads of a block of four warpgroups

  Byte& remember(uintptr_t address, uint64_t stamp) {
    if (address / kPage != page_number_ || page_ == nullptr) {
      auto& page = pages_[address / kPage];
      if (!page) page.reset(new Byte[kPage]);
      page_ = page.get();
      page_number_ = address / kPage;
    }
    Byte& byte = page_[address % kPage];
    if (byte.stamp != stamp) {
      byte = Byte{};
      byte.stamp = stamp;
    }
    return byte;
  }

  bool knows(const Actor& actor, int64_t who, uint32_t clock) const {
    if (who / kAgents != block_) return false;
    const uint32_t agent = who % kAgents & ~kWarpgroup, count = who & kWarpgroup ? 4 : 1;
    const auto& of = actor.knows->of;
    for (uint32_t a = agent; a < agent + count; ++a) {
      const bool thread = a < threads_;
      if (thread && ((a == actor.agent && !actor.asynchronous) || clock <= actor.knows->threads)) continue;
      if (a >= of.size() || of[a] < clock) return false;
    }
    return true;
  }

  bool fenced(const Actor& actor, const Byte& byte) const {
    if (actor.fenced && knows({actor.agent, actor.clock, actor.fenced, true}, byte.writer, byte.write_clock)) return true;
    const auto found = fences_.find(byte.writer % kAgents);
    if (found == fences_.end()) return false;
    const auto fence = std::lower_bound(found->second.begin(), found->second.end(), byte.write_clock);
    return fence != found->second.end() && knows(actor, byte.writer, *fence + 1);
  }

  bool readers_known(const Actor& actor, const Byte& byte) const {
    if (byte.reader < 0) return true;
    if (byte.many) return byte.read_clock <= actor.knows->threads;
    if (!knows(actor, byte.reader, byte.read_clock)) return false;
    for (const auto& [who, clock] : sets_[byte.set])
      if (!knows(actor, who, clock)) return false;
    return true;
  }

  // Earlier readers that happened before this one are dropped: what is ordered after this one is ordered after them.
  void add_reader(const Actor& actor, int64_t mine, Byte& byte) {
    if (byte.reader >= 0 && byte.reader / kAgents != block_) {  // another block's: no write can come after both
      byte.many = true;
      byte.read_clock = UINT32_MAX;
      return;
    }
    const bool alone = byte.reader < 0 || byte.reader == mine || knows(actor, byte.reader, byte.read_clock);
    if (byte.many) {
      if (byte.read_clock > actor.knows->threads) {
        byte.read_clock = std::max(byte.read_clock, actor.clock);
        return;
      }
      byte.many = false;
    } else if (!exact) {
      byte.many = !alone;
    } else if (!alone || byte.set) {
      byte.set = grow(actor, mine, byte);
      byte.many = sets_[byte.set].size() > kReaders;
    }
    byte.reader = mine;
    byte.read_clock = byte.many ? std::max(byte.read_clock, actor.clock) : actor.clock;
  }

  // The set with the byte's last reader added. Many bytes go the same way, so each step is remembered.
  uint32_t grow(const Actor& actor, int64_t mine, const Byte& byte) {
    const Step step{byte.set, mine, byte.reader, byte.read_clock, actor.clock};
    if (step == last_step_) return last_grown_;
    last_step_ = step;
    uint32_t& next = grown_[step];
    if (next == 0) {
      Readers readers;
      for (const auto& reader : sets_[byte.set])
        if (reader.first != mine && !knows(actor, reader.first, reader.second)) readers.push_back(reader);
      if (byte.reader != mine && !knows(actor, byte.reader, byte.read_clock))
        readers.emplace_back(byte.reader, byte.read_clock);
      next = sets_.size();
      sets_.push_back(std::move(readers));
    }
    return last_grown_ = next;
  }

  uint32_t launch_ = 0, block_ = 0, threads_ = 0, now_ = 1;
  std::unordered_map<uintptr_t, std::unique_ptr<Byte[]>> pages_;
  Byte* page_ = nullptr;  // the last one
  uintptr_t page_number_ = 0;
  std::vector<Readers> sets_{1};
  std::map<Step, uint32_t> grown_;
  Step last_step_{};
  uint32_t last_grown_ = 0;
  std::unordered_map<uint32_t, std::vector<uint32_t>> fences_;  // by thread, rising
};

}  // namespace emulate
