// Build information of this library, for `emergence-train doctor`: readable without torch.

extern "C" __attribute__((visibility("default"))) const char* emergence_build() { return EMERGENCE_BUILD; }

#ifndef __CUDACC__
#include "emulator/emulate.h"

// The reasons of the barriers that kernels met so far, one a line.
extern "C" __attribute__((visibility("default"))) const char* emergence_barriers() {
  static std::string lines;
  lines.clear();
  for (const std::string& reason : emulate::Machine::get().barriers) lines += reason + "\n";
  return lines.c_str();
}

// Launches go to `other` from now on, or with null to the kernels as they were compiled here.
extern "C" __attribute__((visibility("default"))) void emergence_launch_elsewhere(emulate::Elsewhere other) {
  emulate::elsewhere = other;
}
#endif
