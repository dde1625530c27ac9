#pragma once

// The GPUs that a build has code for, as CMake lists them: "75", "90a" is machine code,
// "90-ptx" is code that the driver translates for any newer GPU.

#include <cstdint>

namespace cluster_attention::cuda {

/// Whether one of the targets of a list ("75,80,90a,120-ptx") runs on a device: machine code on
/// the same major version from its minor version on, with an "a" on exactly that one.
bool runs_on(const char* targets, int32_t major, int32_t minor);

/// The newest of the targets that run there, without its letter; 0 where none does.
int32_t code_for(const char* targets, int32_t major, int32_t minor);

/// The targets of this build.
const char* compiled_targets();

}  // namespace cluster_attention::cuda
