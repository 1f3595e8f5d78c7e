// Build information of this library, for `emergence-train doctor`: readable without torch.

extern "C" __attribute__((visibility("default"))) const char* emergence_build() { return EMERGENCE_BUILD; }
