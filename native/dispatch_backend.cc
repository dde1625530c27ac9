#include "native/dispatch_backend.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#if defined(__linux__)
#include <dlfcn.h>
#include <elf.h>
#endif

// Newer C libraries have given these functions a new version, which older ones lack; the first one
// is in all of them (Node itself brings the library that holds it).
#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
#if defined(__x86_64__)
#define CA_FIRST_VERSION "GLIBC_2.2.5"
#else
#define CA_FIRST_VERSION "GLIBC_2.17"
#endif
__asm__(".symver dlopen,dlopen@" CA_FIRST_VERSION);
__asm__(".symver dlsym,dlsym@" CA_FIRST_VERSION);
__asm__(".symver dlerror,dlerror@" CA_FIRST_VERSION);
__asm__(".symver dladdr,dladdr@" CA_FIRST_VERSION);
#endif

namespace cluster_attention {
namespace {

#if defined(__linux__)

/// The path of the backend: what the variable says, else beside this very library.
bool find_path(char (&path)[kMaximumPath]) {
  const char* wanted = std::getenv(kBackendPathVariable);
  if (wanted != nullptr && wanted[0] != '\0') {
    const int length = std::snprintf(path, sizeof path, "%s", wanted);
    return wanted[0] == '/' && length < kMaximumPath;
  }
  Dl_info own;
  if (dladdr(reinterpret_cast<const void*>(&backend_library), &own) == 0) return false;
  const char* slash = std::strrchr(own.dli_fname, '/');
  if (slash == nullptr) return false;
  const int folder = static_cast<int>(slash - own.dli_fname);
  return std::snprintf(path, sizeof path, "%.*s/%s", folder, own.dli_fname, kBackendFile) <
         kMaximumPath;
}

/// Whether the end of a 64-bit ELF file is missing, which would crash the loader of the system: its
/// last part, the table of sections, says where the end is.
bool is_truncated(std::FILE* file) {
  Elf64_Ehdr header;
  if (std::fread(&header, sizeof header, 1, file) != 1) return true;
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return false;  // for dlopen to refuse
  if (std::fseek(file, 0, SEEK_END) != 0) return false;
  const uint64_t sections = uint64_t{header.e_shnum} * header.e_shentsize;
  return header.e_shoff + sections > static_cast<uint64_t>(std::ftell(file));
}

void open(BackendLibrary& library) {
  char path[kMaximumPath];
  const auto fail = [&library](const char* what, const char* more) {
    std::snprintf(library.reason, sizeof library.reason, what, more);
  };
  if (!find_path(path)) return fail("the path of the CUDA backend%s is not known", "");
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr) return fail("this build has no CUDA backend: cannot open %s", path);
  const bool truncated = is_truncated(file);
  std::fclose(file);
  if (truncated) return fail("the file of the CUDA backend is truncated: %s", path);
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = dlerror();
    return fail("the CUDA backend does not load: %s", why != nullptr ? why : path);
  }
  const auto function =
      reinterpret_cast<cuda::BackendFunction>(dlsym(handle, cuda::kBackendFunctionName));
  if (function == nullptr) {
    return fail("the file is no CUDA backend: it lacks cluster_attention_cuda_backend(): %s", path);
  }
  const cuda::Backend* backend = function(cuda::kBackendVersion);
  if (backend == nullptr || backend->version != cuda::kBackendVersion) {
    return fail("the CUDA backend belongs to another version of the addon: %s", path);
  }
  library.backend = backend;
}

#else

void open(BackendLibrary& library) {
  std::snprintf(library.reason, sizeof library.reason, "the CUDA backend needs Linux");
}

#endif

BackendLibrary open_library() {
  BackendLibrary library;
  open(library);
  if (library.backend == nullptr) return library;
  cuda::BackendInfo& info = library.info;
  library.backend->describe(&info);
  if (info.status.ok() && info.device_count > 0) return library;
  const char* words = info.reason != nullptr ? info.reason : "no device was found";
  const char* name = info.status.argument != nullptr ? info.status.argument : "no device";
  std::snprintf(library.reason, sizeof library.reason, "CUDA finds no device: %s (%s)", words,
                name);
  return library;
}

/// Why a device that is there cannot be used, in words that live as long as the process.
const char* describe_fault(int32_t device, const cuda::DeviceInfo& info) {
  static std::mutex lock;
  static char reasons[cuda::kMaximumDevices][512];
  const std::lock_guard<std::mutex> guard(lock);
  char(&reason)[512] = reasons[device];
  if (reason[0] == '\0') {
    const char* targets = backend_library().info.targets;
    std::snprintf(reason, sizeof reason,
                  "this build has no code for %s of compute capability %d.%d, but for %s (%s)",
                  info.name, static_cast<int>(info.compute_major),
                  static_cast<int>(info.compute_minor), targets != nullptr ? targets : "none",
                  info.status.argument != nullptr ? info.status.argument : "no image");
  }
  return reason;
}

}  // namespace

Status BackendLibrary::status() const {
  if (usable()) return Status::success();
  return {StatusCode::cuda_unavailable, reason, -1};
}

const BackendLibrary& backend_library() {
  static const BackendLibrary library = open_library();
  return library;
}

Status device_status(int32_t device) {
  const BackendLibrary& library = backend_library();
  if (!library.usable()) return library.status();
  if (device >= library.info.device_count || device >= cuda::kMaximumDevices) {
    return {StatusCode::cuda_unavailable, "no CUDA device has this number", -1};
  }
  cuda::DeviceInfo info;
  library.backend->describe_device(device, &info);
  if (info.status.code != StatusCode::cuda_unavailable) return info.status;
  return {StatusCode::cuda_unavailable, describe_fault(device, info), -1};
}

}  // namespace cluster_attention
