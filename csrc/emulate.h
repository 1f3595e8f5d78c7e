// Runs the kernels' own source on a CPU, for tests: threads, blocks, warps, barriers and shuffles, and a referee.
//
// Every CUDA thread of a block is a fiber (ucontext). A fiber runs until a barrier or a shuffle, or until a memory access
// at which a coin falls on "let somebody else go on", and then the scheduler picks any fiber that can run. So the order of
// threads is as bad as it gets, and the same for the same seed (EMERGENCE_EMULATE_SEED).
//
// The referee looks at every access that goes through load(), store() or shared memory:
//   - two threads touch a byte, one of them writes, and no barrier lies between: a race, whatever the order happened to be;
//   - an address outside the tensors of the launch, or outside the shared array: out of bounds;
//   - shared memory that is read before this block wrote it;
//   - a barrier that some threads of the block never reach.
// Each ends the launch with an exception that names the kernel's place. EMERGENCE_EMULATE_DROP=text leaves out the barriers
// of that reason: a test drops each in turn and expects the referee to object.
//
// Not modelled: time, memory order within a warp (lanes are fibers like others), textures, and anything asynchronous.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#define __global__ static
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = void*;

namespace emulate {

constexpr int kLanes = 32;
constexpr size_t kStack = 128 << 10;

struct Warp {
  int lanes = 0, arrived = 0;
  unsigned generation = 0;      // shuffles completed
  uint64_t slots[2][kLanes]{};  // by parity: a lane may deposit for the next shuffle while others still read this one's
};

struct Thread {
  ucontext_t context{};
  std::unique_ptr<char[]> stack{new char[kStack]};
  dim3 index;
  uint32_t id = 0;  // within the block
  enum { kRuns, kAtBarrier, kInShuffle, kDone } state = kRuns;
  const unsigned* completed = nullptr;  // what it waits for in a shuffle or collective, and the count that lets it go on
  unsigned wanted = 0;
};

// Threads that execute an instruction as one.
struct Group {
  unsigned generation = 0;  // instructions completed
  std::vector<void*> operands;  // of those that have arrived, by lane
  uint32_t arrived = 0;
};

// What is remembered of a byte. A thread's number is unique over the launch; `epoch` counts barriers over the launch.
struct Byte {
  uint64_t stamp = 0;  // of the launch, or of the block for shared memory: what is older is forgotten
  int64_t writer = -1, reader = -1;
  uint32_t write_epoch = 0, read_epoch = 0;
  bool many_readers = false;
};

struct Machine {
  ucontext_t scheduler{};
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::unordered_map<uint64_t, Group> groups;  // by first thread and size
  Thread* current = nullptr;
  dim3 grid, block, block_index;
  uint32_t launch = 0, epoch = 0, block_number = 0;
  std::mt19937_64 random;
  std::function<void()> body;
  std::string failure, dropped;
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
  std::vector<unsigned char> dynamic;
  std::unordered_map<uintptr_t, std::unique_ptr<Byte[]>> pages;
  std::set<std::string> barriers;  // reasons of those that were met, over the process
  std::mutex mutex;

  static Machine& get() {
    static Machine machine;
    return machine;
  }

  int64_t number(const Thread& t) const { return int64_t(block_number) * 4096 + t.id; }

  void pause() { swapcontext(&current->context, &scheduler); }

  [[noreturn]] void fail(const std::string& what) {
    throw std::runtime_error(what + " (block " + std::to_string(block_index.x) + "," + std::to_string(block_index.y) +
                             ", thread " + std::to_string(current->id) + ")");
  }

  void barrier(const char* reason) {
    barriers.insert(reason);
    if (dropped == reason) return;
    current->state = Thread::kAtBarrier;
    pause();
  }

  uint64_t shuffle(uint64_t value, int from) {
    Warp& warp = warps[current->id / kLanes];
    const unsigned generation = warp.generation;
    warp.slots[generation & 1][current->id % kLanes] = value;
    if (++warp.arrived == warp.lanes) {
      warp.arrived = 0;
      ++warp.generation;
    } else {
      wait(&warp.generation, generation + 1);
    }
    return warp.slots[generation & 1][from];
  }

  void wait(const unsigned* completed, unsigned wanted) {
    current->completed = completed;
    current->wanted = wanted;
    current->state = Thread::kInShuffle;
    pause();
  }

  // For instructions that `count` neighbours (a warp, a warpgroup) execute as one. Each brings its operands, the last to
  // arrive runs act(operands of all, by lane) for everybody, and only then does any of them go on.
  template <typename T, typename F>
  void together(uint32_t count, T& mine, F&& act) {
    const uint32_t lane = current->id % count;
    Group& group = groups[uint64_t(current->id - lane) << 32 | count];
    group.operands.resize(count);
    group.operands[lane] = &mine;
    if (++group.arrived < count) return wait(&group.generation, group.generation + 1);
    group.arrived = 0;
    ++group.generation;
    std::vector<T*> operands(count);
    for (uint32_t i = 0; i < count; ++i) operands[i] = static_cast<T*>(group.operands[i]);
    act(operands);
  }

  Byte& remember(uintptr_t address, bool shared) {
    const uint64_t stamp = uint64_t(launch) << 32 | (shared ? block_number + 1 : 0);
    constexpr uintptr_t kPage = 4096;
    auto& page = pages[address / kPage];
    if (!page) page.reset(new Byte[kPage]);
    Byte& byte = page[address % kPage];
    if (byte.stamp != stamp) {
      byte = Byte{};
      byte.stamp = stamp;
    }
    return byte;
  }

  // Another thread's access is ordered before ours only by a barrier of our own block.
  bool unordered(int64_t other, uint32_t at, int64_t mine) const {
    return other >= 0 && other != mine && (other / 4096 != mine / 4096 || at == epoch);
  }

  void touch(const void* pointer, size_t bytes, bool writes, bool shared) {
    if (random() % 8 == 0) pause();
    const int64_t mine = number(*current);
    for (size_t i = 0; i < bytes; ++i) {
      Byte& byte = remember(reinterpret_cast<uintptr_t>(pointer) + i, shared);
      if (shared && !writes && byte.writer < 0) fail("shared memory read before this block wrote it");
      if (unordered(byte.writer, byte.write_epoch, mine) ||
          (writes && (unordered(byte.reader, byte.read_epoch, mine) || (byte.many_readers && byte.read_epoch == epoch))))
        fail(std::string("race in ") + (shared ? "shared" : "global") + " memory: a byte is " + (writes ? "written" : "read") +
             " that another thread touched, and no barrier lies between");
      if (writes) {
        byte.writer = mine;
        byte.write_epoch = epoch;
      } else {
        byte.many_readers = byte.reader >= 0 && byte.read_epoch == epoch && (byte.many_readers || byte.reader != mine);
        byte.reader = mine;
        byte.read_epoch = epoch;
      }
    }
  }

  void global(const void* pointer, size_t bytes, bool writes) {
    const auto first = reinterpret_cast<uintptr_t>(pointer);
    bool inside = false;
    for (auto& [low, high] : ranges) inside = inside || (low <= first && first + bytes <= high);
    if (!inside) fail(std::string(writes ? "write" : "read") + " outside the tensors of the launch");
    if (first % bytes) fail("address not aligned to the " + std::to_string(bytes) + " bytes of the access");
    touch(pointer, bytes, writes, false);
  }

  static void enter() {
    Machine& m = get();
    try {
      m.body();
    } catch (const std::exception& error) {
      if (m.failure.empty()) m.failure = error.what();
    }
    m.current->state = Thread::kDone;
    m.pause();
  }

  void run_block() {
    ++epoch;
    const uint32_t count = block.x * block.y * block.z;
    threads.resize(count);
    warps.assign((count + kLanes - 1) / kLanes, Warp{});
    groups.clear();
    for (uint32_t id = 0; id < count; ++id) {
      Thread& t = threads[id];
      t.id = id;
      t.index = dim3(id % block.x, id / block.x % block.y, id / (block.x * block.y));
      t.state = Thread::kRuns;
      ++warps[id / kLanes].lanes;
      getcontext(&t.context);
      t.context.uc_stack.ss_sp = t.stack.get();
      t.context.uc_stack.ss_size = kStack;
      t.context.uc_link = nullptr;
      makecontext(&t.context, &Machine::enter, 0);
    }
    std::vector<Thread*> ready;
    while (true) {
      ready.clear();
      size_t done = 0, waiting = 0;
      for (Thread& t : threads) {
        if (t.state == Thread::kInShuffle && int(*t.completed - t.wanted) >= 0) t.state = Thread::kRuns;
        if (t.state == Thread::kRuns) ready.push_back(&t);
        done += t.state == Thread::kDone;
        waiting += t.state == Thread::kAtBarrier;
      }
      if (done == count) return;
      if (ready.empty()) {
        if (waiting < count) {
          failure = "a barrier or shuffle that some threads of the block never reach";
          return;
        }
        ++epoch;
        for (Thread& t : threads) t.state = Thread::kRuns;
        continue;
      }
      // A round in shuffled order rather than one thread a scan, or large blocks would take for ever.
      std::shuffle(ready.begin(), ready.end(), random);
      for (Thread* t : ready) {
        current = t;
        swapcontext(&scheduler, &t->context);
        if (!failure.empty()) return;
      }
    }
  }
};

// Shared memory: each element remembers, through the referee, who touched it.
template <typename T>
class Shared {
 public:
  struct Element {
    T* pointer;
    operator T() const {
      Machine::get().touch(pointer, sizeof(T), false, true);
      return *pointer;
    }
    void operator=(const T& value) const {
      Machine::get().touch(pointer, sizeof(T), true, true);
      *pointer = value;
    }
    void operator=(const Element& other) const { *this = T(other); }
  };
  Shared(T* data, size_t count) : data_(data), count_(count) {}
  Element operator[](size_t i) const {
    if (i >= count_) Machine::get().fail("index " + std::to_string(i) + " outside a shared array of " + std::to_string(count_));
    return {data_ + i};
  }

 private:
  T* data_;
  size_t count_;
};

template <typename T>
Shared<T> dynamic_shared() {
  auto& bytes = Machine::get().dynamic;
  return {reinterpret_cast<T*>(bytes.data()), bytes.size() / sizeof(T)};
}

struct Range {
  const void* pointer;
  size_t bytes;
};

inline void run(dim3 grid, dim3 block, size_t shared_bytes, const std::vector<Range>& ranges, std::function<void()> body) {
  Machine& m = Machine::get();
  std::lock_guard<std::mutex> lock(m.mutex);
  const char* seed = std::getenv("EMERGENCE_EMULATE_SEED");
  const char* dropped = std::getenv("EMERGENCE_EMULATE_DROP");
  m.random.seed(seed ? std::strtoull(seed, nullptr, 10) : 0);
  m.dropped = dropped ? dropped : "";
  m.failure.clear();
  m.body = std::move(body);
  m.grid = grid;
  m.block = block;
  m.dynamic.assign(shared_bytes + 16, 0xff);  // NaN, were it read
  m.dynamic.resize(shared_bytes);
  m.ranges.clear();
  for (const Range& r : ranges)
    if (r.pointer) m.ranges.emplace_back(reinterpret_cast<uintptr_t>(r.pointer), reinterpret_cast<uintptr_t>(r.pointer) + r.bytes);
  ++m.launch;
  if (m.pages.size() > 1024) m.pages.clear();
  m.epoch = 0;
  std::vector<uint32_t> order(size_t(grid.x) * grid.y);
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), m.random);
  for (uint32_t number : order) {
    m.block_number = number;
    m.block_index = dim3(number % grid.x, number / grid.x);
    m.run_block();
    if (!m.failure.empty()) break;
  }
  m.body = nullptr;
  if (!m.failure.empty()) throw std::runtime_error("emulated launch: " + m.failure);
}

}  // namespace emulate

#define threadIdx (emulate::Machine::get().current->index)
#define blockIdx (emulate::Machine::get().block_index)
#define blockDim (emulate::Machine::get().block)
#define gridDim (emulate::Machine::get().grid)
