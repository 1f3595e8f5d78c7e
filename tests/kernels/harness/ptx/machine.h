// Executes PTX on a CPU: what a thread holds, and the table of instructions. ptx_reader.py makes the program.
//
// A thread of emulate.h is a fiber that runs execute(): its registers are slots of 8 bytes, constants and special registers
// among them. Instructions that the table does not have stop the program from loading.
//
// A register that an asynchronous product (wgmma) still has holds a token in place of its value (products.h): who reads it
// before the wait is found out, while a mere copy from register to register, which compilers leave to the assembler to
// remove, hands the token on.
#pragma once

#include "emulator/emulate_hopper.h"
#include "emulator/emulate_tensor_cores.h"

namespace ptx {

using emulate::Machine;

struct Frame {
  uint64_t* r;
  uint32_t next;
};

struct Instruction {
  void (*run)(Frame&, const Instruction&) = nullptr;
  int32_t guard = -1;
  bool negated = false;
  uint32_t line = 0, target = 0, count = 0;
  const uint32_t* at = nullptr;  // slots of the operands, one after the other
  uint64_t a = 0, b = 0;         // what its modifiers say
  const char* place = nullptr;   // "line 12", the name under which a barrier can be left out
};

// An instruction while it is loaded: operands are groups of slots, of vectors and addresses ({base, offset}) several.
struct Parsed {
  std::string opcode;
  std::vector<std::string> parts;  // of the opcode, between the points
  std::vector<std::vector<uint32_t>> operands;
  const std::string* widths;  // bytes of each slot

  [[noreturn]] void refuse(const std::string& what) const { throw std::runtime_error(opcode + ": " + what); }

  // Takes the modifier if it is there.
  bool takes(const std::string& name) {
    const auto found = std::find(parts.begin(), parts.end(), name);
    if (found == parts.end()) return false;
    parts.erase(found);
    return true;
  }

  // The one modifier among these that is there.
  std::string one_of(std::initializer_list<const char*> names) {
    for (const char* name : names)
      if (takes(name)) return name;
    refuse("a modifier is missing");
  }

  // All modifiers have been understood.
  void finish() const {
    if (!parts.empty()) refuse("modifier ." + parts[0] + " is not known");
  }

  size_t size(size_t operand) const { return operand < operands.size() ? operands[operand].size() : 0; }
  uint32_t width(uint32_t slot) const { return (*widths)[slot] - '0'; }
};

using Builder = std::function<void(Parsed&, Instruction&)>;

// By the whole opcode, or by its first part.
struct Table {
  std::unordered_map<std::string, void (*)(Frame&, const Instruction&)> exact;
  std::unordered_map<std::string, Builder> families;
};

// ---- slots -----------------------------------------------------------------------------------------------------------

[[noreturn]] inline void held() {
  throw std::runtime_error("a register is used that an asynchronous product has: no wgmma.wait_group in between");
}

template <typename T>
T get(const Frame& f, uint32_t slot) {
  const uint64_t value = f.r[slot];
  if constexpr (sizeof(T) == 4)
    if (value >> 32) held();
  if constexpr (std::is_same_v<T, bool>) {
    return value & 1;
  } else {
    T out;
    std::memcpy(&out, &value, sizeof(T));
    return out;
  }
}

template <typename T>
void put(Frame& f, uint32_t slot, T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  f.r[slot] = bits;
}

// An address operand: base and offset.
inline uint64_t address(const Frame& f, const uint32_t* at) { return f.r[at[0]] + f.r[at[1]]; }
inline uint32_t shared_address(const Frame& f, const uint32_t* at) {
  return get<uint32_t>(f, at[0]) + uint32_t(f.r[at[1]]);
}

}  // namespace ptx
