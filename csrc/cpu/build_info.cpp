// What this library was built of, for `emergence-train doctor`: readable without torch.

extern "C" __attribute__((visibility("default"))) const char* emergence_build() { return EMERGENCE_BUILD; }
