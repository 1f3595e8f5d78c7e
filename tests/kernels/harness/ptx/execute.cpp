// Loads programs that ptx_reader.py made, and runs launches of them in csrc/emulator. A shared library, called by ctypes.

#include <sstream>

#include "moves.h"
#include "products.h"

namespace ptx {

struct Special {
  uint32_t slot;
  std::string name;
};

struct Program {
  std::vector<Instruction> code;
  std::deque<std::vector<uint32_t>> slots;
  std::deque<std::string> places;
  std::string widths;
  std::vector<uint64_t> initial;
  std::vector<Special> specials;
  std::vector<std::pair<uint32_t, uint64_t>> parameters;  // slot, offset
};

const Table& table() {
  static const Table all = [] {
    Table t;
    add_arithmetic(t), add_conversions(t), add_memory(t), add_warps(t), add_hopper(t);
    return t;
  }();
  return all;
}

struct Launch {
  const Program* program = nullptr;
  const unsigned char* parameters = nullptr;
  size_t parameter_bytes = 0;
  bool tiles = false;
  std::vector<std::vector<uint64_t>> registers;  // by thread
};

Launch launch;

const unsigned char* parameters(size_t& bytes) {
  bytes = launch.parameter_bytes;
  return launch.parameters;
}

bool tiles_agree() { return launch.tiles; }

void add_instruction(Program& program, std::istringstream& words) {
  Instruction i;
  Parsed parsed;
  std::string guard, word;
  words >> i.line >> guard >> parsed.opcode;
  if (guard != "-") {
    i.negated = guard[0] == '!';
    i.guard = std::stoi(guard.substr(i.negated));
  }
  auto& slots = program.slots.emplace_back();
  parsed.widths = &program.widths;
  while (words >> word) {
    if (word[0] == '@') {
      i.target = std::stoul(word.substr(1));
      continue;
    }
    std::istringstream group(word);
    auto& operand = parsed.operands.emplace_back();
    for (std::string slot; std::getline(group, slot, ',');) operand.push_back(std::stoul(slot));
    slots.insert(slots.end(), operand.begin(), operand.end());
  }
  i.at = slots.data();
  i.count = slots.size();
  i.place = program.places.emplace_back("line " + std::to_string(i.line)).c_str();
  const auto exact = table().exact.find(parsed.opcode);
  if (exact != table().exact.end()) {
    i.run = exact->second;
  } else {
    std::istringstream opcode(parsed.opcode);
    std::string first;
    std::getline(opcode, first, '.');
    for (std::string part; std::getline(opcode, part, '.');) parsed.parts.push_back(part);
    const auto family = table().families.find(first);
    if (family == table().families.end())
      throw std::runtime_error("line " + std::to_string(i.line) + ": no such instruction is emulated: " + parsed.opcode);
    try {
      family->second(parsed, i);
    } catch (const std::exception& error) {
      throw std::runtime_error("line " + std::to_string(i.line) + ": " + error.what());
    }
    if (i.run == multiply) finish_multiply(i, program.initial);
  }
  program.code.push_back(i);
}

std::unique_ptr<Program> load_program(const char* text) {
  auto program = std::make_unique<Program>();
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string what;
    words >> what;
    if (what == "widths") {
      words >> program->widths;
      program->initial.assign(program->widths.size(), 0);
      for (size_t slot = 1; slot < program->widths.size(); ++slot)  // NaNs, lest nobody should write them
        program->initial[slot] = program->widths[slot] == '8' ? 0x7ff8dead7fc0dead : program->widths[slot] == '4' ? 0x7fc0dead
                                 : program->widths[slot] == '2' ? 0x7fff : 0;
    } else if (what == "code") {
      add_instruction(*program, words);
    } else {
      uint32_t slot;
      std::string value;
      words >> slot >> value;
      if (what == "constant") program->initial[slot] = std::stoull(value);
      else if (what == "special") program->specials.push_back({slot, value});
      else if (what == "parameter") program->parameters.emplace_back(slot, std::stoull(value));
      else throw std::runtime_error("not understood: " + line);
    }
  }
  return program;
}

uint32_t special(const std::string& name, const emulate::Thread& t) {
  const Machine& m = Machine::get();
  if (name == "%laneid") return t.id % emulate::kLanes;
  if (name == "%warpid") return t.id / emulate::kLanes;
  const ::dim3 where = name.starts_with("%tid") ? t.index : name.starts_with("%ntid") ? m.block
                                 : name.starts_with("%ctaid") ? m.block_index : m.grid;
  return name.back() == 'x' ? where.x : name.back() == 'y' ? where.y : where.z;
}

void execute() {
  Machine& m = Machine::get();
  emulate::Thread& t = *m.current;
  const Program& p = *launch.program;
  auto& registers = launch.registers[t.id];
  registers = p.initial;
  for (const Special& s : p.specials) registers[s.slot] = special(s.name, t);
  for (const auto& [slot, offset] : p.parameters) registers[slot] = reinterpret_cast<uint64_t>(launch.parameters) + offset;
  Frame f{registers.data(), 0};
  const Instruction* now = nullptr;
  try {
    for (uint64_t steps = 0; f.next < p.code.size(); ++steps) {
      now = &p.code[f.next++];
      if (now->guard >= 0 && get<bool>(f, now->guard) == now->negated) continue;
      t.instruction = now;
      now->run(f, *now);
      if (steps > 200'000'000) m.fail("a thread does not come to an end");
    }
  } catch (const std::exception& error) {
    throw std::runtime_error(std::string(error.what()) + ", at " + now->place);
  }
}

void say(const char* what, char* to, size_t bytes) {
  std::strncpy(to, what, bytes - 1);
  to[bytes - 1] = 0;
}

}  // namespace ptx

extern "C" {

// -> the program, or null and why.
void* ptx_load(const char* text, char* error, size_t error_bytes) {
  try {
    return ptx::load_program(text).release();
  } catch (const std::exception& failure) {
    ptx::say(failure.what(), error, error_bytes);
    return nullptr;
  }
}

// Runs a launch; shared_bytes: static and dynamic. tiles: of a compiler of whole tiles (Triton), whose threads may store the same
// value where their copies of it meet, and which leaves fences out before copies to mbarriers and after cp.async, and has others
// after barriers. -> 0, or 1 and what went wrong.
int ptx_run(const void* program, const uint32_t* grid, const uint32_t* block, uint64_t shared_bytes, const void* parameters,
            uint64_t parameter_bytes, uint64_t count, const void* const* pointers, const uint64_t* bytes, int tiles,
            char* error, size_t error_bytes) {
  try {
    if (grid[2] != 1) throw std::runtime_error("grids of three dimensions are not emulated");
    std::vector<emulate::Range> ranges;
    for (uint64_t i = 0; i < count; ++i) ranges.push_back({pointers[i], bytes[i]});
    ptx::launch.program = static_cast<const ptx::Program*>(program);
    ptx::launch.parameters = static_cast<const unsigned char*>(parameters);
    ptx::launch.parameter_bytes = parameter_bytes;
    ptx::launch.registers.resize(block[0] * block[1] * block[2]);
    ptx::launch.tiles = tiles;
    emulate::Hopper::fences_made = !tiles;
    emulate::Hopper::fences_of_readers = tiles;
    emulate::Copies::for_both_proxies = tiles;
    emulate::run(dim3(grid[0], grid[1]), dim3(block[0], block[1], block[2]), shared_bytes, ranges, ptx::execute);
    return 0;
  } catch (const std::exception& failure) {
    ptx::say(failure.what(), error, error_bytes);
    return 1;
  }
}

}  // extern "C"
