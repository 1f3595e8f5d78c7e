// Runs the kernels' own source on a CPU, for tests: threads, blocks, warps, barriers and shuffles, and a race detector.
//
// Every CUDA thread of a block is a fiber: ucontext gives it a stack, and _setjmp and _longjmp switch, without the two system
// calls of swapcontext. A fiber runs until a barrier or a shuffle, or until a memory access
// at which it yields at random, and then the scheduler picks a random fiber that can run. So the order of threads is
// adversarial, and the same for the same seed (EMERGENCE_EMULATE_SEED).
//
// The race detector (race_detector.h) checks every access that goes through load(), store() or shared memory:
//   - two threads touch a byte, one of them writes, and no barrier orders the two: a race, in any actual order;
//   - an address outside the tensors of the launch, or outside the shared array: out of bounds;
//   - shared memory that is read before this block wrote it;
//   - a barrier that some threads of the block never reach.
// Each ends the launch with an exception that names the kernel's place. EMERGENCE_EMULATE_DROP=text skips the barriers with
// that reason: a test drops each in turn and expects a report of the race detector. EMERGENCE_EMULATE_MULTIPROCESSORS: how
// many the host's part of a kernel counts, else 3.
//
// Asynchronous operations (bulk copies, wgmma) wait in queues and happen at a random time before they are due.
//
// Not modelled: time, memory order within a warp (lanes are fibers like others), textures.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "emulator/race_detector.h"

#define __global__ static
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = void*;
using std::max;
using std::min;

namespace emulate {

constexpr int kLanes = 32;
constexpr size_t kStack = 128 << 10;

struct Thread {
  ucontext_t context{};  // where it begins
  jmp_buf place;         // where it goes on, once it has begun
  bool begun = false;
  std::unique_ptr<char[]> stack{new char[kStack]};
  dim3 index;
  uint32_t id = 0;  // within the block
  enum { kRuns, kAtBarrier, kInShuffle, kDone } state = kRuns;
  const unsigned* completed = nullptr;  // what it waits for in a shuffle or collective, and the count that resumes it
  unsigned wanted = 0;
  const void* instruction = nullptr;  // what it executes, where that is known: threads that act as one must agree
  Knowledge knows;
  uint32_t clock = 0;

  // The clock that threads acquire which wait for this thread's current operation; its next one is later.
  void release(Knowledge& to, RaceDetector& race_detector) {
    to.learn(knows);
    to.learn(id, clock);
    clock = race_detector.tick();
  }
};

// A barrier of some threads of the block (bar.sync and bar.arrive with a count), or of a warp.
struct NamedBarrier {
  unsigned generation = 0, arrived = 0, count = 0;
  Knowledge told;
  std::vector<Thread*> waiting;
};

struct Warp {
  int lanes = 0, arrived = 0;
  unsigned generation = 0;      // shuffles completed
  uint64_t slots[2][kLanes]{};  // by parity: a lane may deposit for the next shuffle while others still read this one's
  NamedBarrier barrier;
};

// Threads that execute an instruction as one.
struct Group {
  unsigned generation = 0;  // instructions completed
  std::vector<void*> operands;  // of those that have arrived, by lane
  uint32_t arrived = 0;
  const void* instruction = nullptr;
};

struct Machine {
  jmp_buf scheduler;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::unordered_map<uint64_t, Group> groups;  // by first thread and size
  Thread* current = nullptr;
  dim3 grid, block, block_index;
  uint32_t block_number = 0;
  uint64_t blocks_run = 0;
  RaceDetector race_detector;
  NamedBarrier named[16];
  std::map<uint64_t, std::deque<std::function<void()>>> in_flight;  // by unit, each in order: what the hardware will do
  uint64_t units = 0;
  std::unordered_set<uintptr_t> arriving;  // 4-byte pieces of shared memory, by number, that copies are on their way to
  std::unordered_set<uintptr_t> added_to;  // bytes of global memory, by additions of this launch
  std::mt19937_64 random;
  std::function<void()> body;
  std::string failure, dropped;
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
  std::vector<unsigned char> dynamic;
  std::set<std::string> barriers;  // reasons of those that were met, over the process
  std::mutex mutex;

  static Machine& get() {
    static Machine machine;
    return machine;
  }

  // Not inlined: no local variable changes between a _setjmp and its second return.
  __attribute__((noinline)) void pause() {
    if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
  }

  __attribute__((noinline)) void resume(Thread* thread) {
    current = thread;
    if (_setjmp(scheduler) != 0) return;
    if (thread->begun) _longjmp(thread->place, 1);
    thread->begun = true;
    setcontext(&thread->context);
  }

  [[noreturn]] void fail(const std::string& what) {
    throw std::runtime_error(what + " (block " + std::to_string(block_index.x) + "," + std::to_string(block_index.y) +
                             ", thread " + std::to_string(current->id) + ")");
  }

  // Notes that a barrier, fence or wait of this reason was met. -> is it the one to leave out?
  bool drops(const char* reason) {
    barriers.insert(reason);
    return dropped == reason;
  }

  void barrier(const char* reason) {
    if (drops(reason)) return;
    current->state = Thread::kAtBarrier;
    pause();
  }

  void named_barrier(uint32_t id, uint32_t count, bool waits, const char* reason) {
    if (!drops(reason)) meet(named[id], count, waits);
  }

  void warp_barrier(const char* reason) {
    const uint32_t warp = current->id / kLanes;
    if (!drops(reason)) meet(warps[warp].barrier, kLanes, true);
  }

  void meet(NamedBarrier& b, uint32_t count, bool waits) {
    race_detector.exact = true;
    if (count % kLanes || (b.arrived && b.count != count)) fail("a barrier's threads must agree on their number, of whole warps");
    b.count = count;
    current->release(b.told, race_detector);
    if (waits) b.waiting.push_back(current);
    if (++b.arrived < count) return waits ? wait(&b.generation, b.generation + 1) : void();
    for (Thread* t : b.waiting) t->knows.learn(b.told);
    const unsigned generation = b.generation + 1;
    b = NamedBarrier{};
    b.generation = generation;
  }

  // All threads of the block know all that threads did, and what any of them knew of others.
  void everybody_knows() {
    Knowledge all;
    if (race_detector.exact)
      for (Thread& t : threads) all.learn(t.knows);
    all.threads = race_detector.now();
    for (Thread& t : threads) {
      t.knows.threads = all.threads;
      if (race_detector.exact) t.knows.learn(all);
      t.clock = all.threads + 1;
    }
    race_detector.tick();
  }

  // Executes one pending asynchronous operation of a random unit; false where there is none.
  bool advance() {
    if (in_flight.empty()) return false;
    auto unit = std::next(in_flight.begin(), random() % in_flight.size());
    auto work = std::move(unit->second.front());
    unit->second.pop_front();
    if (unit->second.empty()) in_flight.erase(unit);
    work();
    return true;
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
  // arrive runs act(operands of all, by lane) for all, and only then does any of them continue.
  template <typename T, typename F>
  void together(uint32_t count, T& mine, F&& act) {
    const uint32_t lane = current->id % count;
    Group& group = groups[uint64_t(current->id - lane) << 32 | count];
    group.operands.resize(count);
    group.operands[lane] = &mine;
    if (group.arrived && group.instruction != current->instruction) fail("threads that act as one execute different instructions");
    group.instruction = current->instruction;
    if (++group.arrived < count) return wait(&group.generation, group.generation + 1);
    group.arrived = 0;
    ++group.generation;
    std::vector<T*> operands(count);
    for (uint32_t i = 0; i < count; ++i) operands[i] = static_cast<T*>(group.operands[i]);
    act(operands);
  }

  void touch(const void* pointer, size_t bytes, bool writes, bool shared, const unsigned char* value = nullptr) {
    if (random() % 8 == 0) pause();
    touch({current->id, current->clock, &current->knows}, pointer, bytes, writes, shared, value);
  }

  void touch(const Actor& actor, const void* pointer, size_t bytes, bool writes, bool shared,
             const unsigned char* value = nullptr) {
    if (shared && !arriving.empty())
      for (auto at = reinterpret_cast<uintptr_t>(pointer) / 4; at <= (reinterpret_cast<uintptr_t>(pointer) + bytes - 1) / 4; ++at)
        if (arriving.count(at)) fail("race in shared memory: a copy to it is on its way, and nobody has waited for it");
    if (!shared && !added_to.empty())
      for (size_t byte = 0; byte < bytes; ++byte)
        if (added_to.count(reinterpret_cast<uintptr_t>(pointer) + byte))
          fail("race in global memory: a byte that is added to is read or written");
    const auto verdict = race_detector.touch(actor, reinterpret_cast<uintptr_t>(pointer), bytes, writes, shared, value);
    if (verdict == RaceDetector::kFine) return;
    if (verdict == RaceDetector::kUnwritten) fail("shared memory read before this block wrote it");
    if (verdict == RaceDetector::kUnfenced) fail("the asynchronous proxy meets a thread's write that no fence.proxy.async passed on");
    fail(std::string("race in ") + (shared ? "shared" : "global") + " memory: a byte is " + (writes ? "written" : "read") +
         " that another " + (verdict == RaceDetector::kRaceWithWrite ? "wrote" : "read") + ", and nothing orders the two");
  }

  bool inside(const void* pointer, size_t bytes) const {
    const auto first = reinterpret_cast<uintptr_t>(pointer);
    for (auto& [low, high] : ranges)
      if (low <= first && first + bytes <= high) return true;
    return false;
  }

  void global(const void* pointer, size_t bytes, bool writes, const unsigned char* value = nullptr) {
    check_place(pointer, bytes, writes ? "write" : "read");
    touch(pointer, bytes, writes, false, value);
  }

  // Of an access that need not be whole: some first bytes of it.
  void global_part(const void* pointer, size_t bytes) {
    if (!inside(pointer, bytes)) fail("read outside the tensors of the launch");
    touch(pointer, bytes, false, false);
  }

  // Additions to global memory need no order among themselves, but one to whatever else touches their bytes.
  void adds(const void* pointer, size_t bytes) {
    check_place(pointer, bytes, "addition");
    if (random() % 8 == 0) pause();
    const auto first = reinterpret_cast<uintptr_t>(pointer);
    for (auto at = first; at < first + bytes; ++at) {
      if (race_detector.touched(at)) fail("race in global memory: an addition to a byte that is read or written");
      added_to.insert(at);
    }
  }

  void check_place(const void* pointer, size_t bytes, const char* what) {
    if (!inside(pointer, bytes)) fail(std::string(what) + " outside the tensors of the launch");
    if (reinterpret_cast<uintptr_t>(pointer) % bytes) fail("address not aligned to the " + std::to_string(bytes) + " bytes of the access");
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
    const uint32_t count = block.x * block.y * block.z;
    race_detector.begin_block(block_number, count);
    ++blocks_run;
    for (NamedBarrier& b : named) b = NamedBarrier{};
    in_flight.clear();
    arriving.clear();
    threads.resize(count);
    warps.assign((count + kLanes - 1) / kLanes, Warp{});
    groups.clear();
    for (uint32_t id = 0; id < count; ++id) {
      Thread& t = threads[id];
      t.id = id;
      t.index = dim3(id % block.x, id / block.x % block.y, id / (block.x * block.y));
      t.state = Thread::kRuns;
      t.begun = false;
      t.instruction = nullptr;
      t.knows = Knowledge{};
      t.clock = race_detector.now();
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
      if (done == count) {
        if (!in_flight.empty() || !arriving.empty()) failure = "the block ends before all that it set in motion is done";
        return;
      }
      if (ready.empty() ? waiting < count : !in_flight.empty() && random() % 2 == 0) {
        bool moved = false;
        try {
          moved = advance();
        } catch (const std::exception& error) {
          failure = error.what();
        }
        if (ready.empty() && !moved && failure.empty())
          failure = "a barrier or shuffle that some threads of the block never reach";
        if (!failure.empty()) return;
        if (moved) continue;  // a thread can run now
      }
      if (ready.empty()) {
        everybody_knows();
        for (Thread& t : threads) t.state = Thread::kRuns;
        continue;
      }
      // A round in shuffled order, not one thread per scan, which would be quadratic in the block.
      std::shuffle(ready.begin(), ready.end(), random);
      for (Thread* t : ready) {
        resume(t);
        if (!failure.empty()) return;
      }
    }
  }
};

// Shared memory: the race detector keeps the last accesses to each element.
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

// A context bound to this thread, which the driver's functions require; on a GPU it stays with the thread, here for its lifetime.
struct Context {
  static inline thread_local int bound = 0;
  const bool binds = [] {
    const char* dropped = std::getenv("EMERGENCE_EMULATE_DROP");
    return dropped == nullptr || std::string(dropped) != "a context is bound before a tensor is encoded";
  }();
  Context() { bound += binds; }
  ~Context() { bound -= binds; }
  Context(const Context&) = delete;
};

// A test's replacement for launches: the same kernel by another compiler. shape: of the grid and of a block;
// values: the kernel's arguments. -> what went wrong, or null.
using Elsewhere = const char* (*)(const void* kernel, const unsigned* shape, size_t shared_bytes, const Range* ranges,
                                  size_t count, const void* const* values, const size_t* sizes, size_t parameters);
inline Elsewhere elsewhere = nullptr;

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
  m.race_detector.begin_launch();
  m.added_to.clear();
  std::vector<uint32_t> order(size_t(grid.x) * grid.y);
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), m.random);
  for (uint32_t number : order) {
    m.block_number = number;
    m.block_index = dim3(number % grid.x, number / grid.x);
    m.run_block();
    for (NamedBarrier& b : m.named)
      if (b.arrived && m.failure.empty()) m.failure = "the block ends, and a barrier waits for more threads";
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
