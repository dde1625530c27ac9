#pragma once

// Reads the request object of one call. lib/ has built and checked it; it is checked again here,
// because a wrong size would become a wrong memory access.
//
// Reading a property can run JavaScript, and JavaScript can detach an array. So every field is
// read first; arrays are only noted. resolve() then fetches all data pointers, and from there on
// no JavaScript runs until the operation is done (or, asynchronously, nothing that could reach
// the arrays).
//
// A call on a device may name device memory, by its number, in place of an array.

#include <node_api.h>

#include <cstdint>
#include <type_traits>

#include "native/binding/device_memory.h"
#include "native/core/tensor.h"

namespace cluster_attention {
namespace binding {

class Environment;

enum class Presence { required, optional };

/// The largest integer that a JavaScript number holds exactly.
constexpr int64_t kMaximumSafeInteger = (int64_t{1} << 53) - 1;

/// Labels, indices and lengths are int32: no dimension that they count may be larger.
constexpr int64_t kMaximumDimension = (int64_t{1} << 31) - 1;

/// Number of elements of a dense array; -1 when the product, zeros counted as ones, is no safe
/// integer: the strides inside an empty batch must not overflow either.
template <typename... Sizes>
int64_t element_count(Sizes... sizes) {
  int64_t count = 1;
  int64_t bound = 1;
  const auto multiply = [&](int64_t size) {
    const int64_t factor = size > 0 ? size : 1;
    if (size < 0 || bound < 0 || bound > kMaximumSafeInteger / factor) {
      bound = -1;
    } else {
      bound *= factor;
      count *= size;
    }
  };
  (multiply(static_cast<int64_t>(sizes)), ...);
  return bound < 0 ? -1 : count;
}

class Request {
 public:
  /// Takes the first argument of a callback.
  Request(napi_env env, napi_callback_info info);
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;

  napi_env env() const { return env_; }
  /// What the addon keeps of the environment; null, and the request is refused, when Node-API does
  /// not tell.
  Environment* environment();
  napi_value object() const { return object_; }

  /// From here on arrays may be of device memory too: of `device`, those that follow the storage
  /// of the call in `storage`. What is found in `memories` is kept in `used`.
  void accept_memory(const DeviceMemories& memories, int32_t device, cuda::Storage storage,
                     MemoryInUse& used);
  /// Device memory of whatever type and size, kept like the others; null when there is none.
  const DeviceMemory* memory(const char* name);

  /// False once something was wrong; a JavaScript exception is then pending and all further reads
  /// return zero.
  bool ok() const { return ok_; }

  /// Refuses `name` unless the condition holds.
  void require(bool condition, const char* name, const char* expected) {
    if (!condition) fail_range(name, expected);
  }

  bool flag(const char* name);
  double number(const char* name);
  int64_t integer(const char* name, int64_t minimum, int64_t maximum);
  /// A dimension whose positions may be listed in an Int32Array.
  int64_t size(const char* name, int64_t minimum = 0) {
    return integer(name, minimum, kMaximumDimension);
  }
  uint64_t seed(const char* name) {
    return static_cast<uint64_t>(integer(name, 0, kMaximumSafeInteger));
  }
  float real(const char* name);
  /// An enumeration is sent as the position of its name in the list of lib/.
  template <typename Enum>
  Enum choice(const char* name, Enum last) {
    return static_cast<Enum>(integer(name, 0, static_cast<int64_t>(last)));
  }

  /// Notes an array of exactly `elements` elements; resolve() stores its data pointer.
  template <typename T>
  void array(const char* name, T*& destination, int64_t elements,
             Presence presence = Presence::required);
  /// An array whose type is known at run time only.
  void any_array(const char* name, napi_typedarray_type type, void*& destination, int64_t elements);
  /// An Int32Array whose values must lie in [0, maximum].
  void lengths(const char* name, const int32_t*& destination, int64_t count, int64_t maximum);
  /// A (batch, heads, rows, columns) tensor in one of the two layouts.
  template <typename T>
  void rows(const char* name, RowView<T>& view, Layout layout, int64_t batch, int64_t heads,
            int64_t rows, int64_t columns, Presence presence = Presence::required);

  /// Fetches the pointers of all noted arrays. Nothing may be read from the request afterwards.
  bool resolve();

 private:
  struct Field {
    const char* name;
    napi_value value;
    napi_typedarray_type type;
    int64_t elements;
    int64_t maximum;  // of the values of a lengths array, -1 for any other
    int64_t memory;   // number of device memory, 0 for an array
    void* destination;
    void (*store)(void* destination, void* data);
  };
  static constexpr int kMaximumFields = 20;

  napi_value property(const char* name);
  void note(const char* name, napi_typedarray_type type, int64_t elements, int64_t maximum,
            Presence presence, void* destination, void (*store)(void*, void*));
  void resolve(const Field& field);
  void resolve_memory(const Field& field);
  void fail_type(const char* name, const char* expected);
  void fail_range(const char* name, const char* expected);
  /// Says what array was expected.
  void fail_array(const Field& field, void (Request::*fail)(const char*, const char*));
  bool check(napi_status status);

  napi_env env_;
  napi_value object_ = nullptr;
  bool ok_ = true;
  // Set by accept_memory().
  const DeviceMemories* memories_ = nullptr;
  MemoryInUse* used_ = nullptr;
  int32_t device_ = 0;
  cuda::Storage storage_ = cuda::Storage::float32;
  int fields_count_ = 0;
  Field fields_[kMaximumFields];
};

// ---- implementation ---------------------------------------------------------------------------

template <typename T>
struct TypedArrayType;
template <>
struct TypedArrayType<float> {
  static constexpr napi_typedarray_type value = napi_float32_array;
};
template <>
struct TypedArrayType<double> {
  static constexpr napi_typedarray_type value = napi_float64_array;
};
template <>
struct TypedArrayType<int32_t> {
  static constexpr napi_typedarray_type value = napi_int32_array;
};
template <>
struct TypedArrayType<uint64_t> {
  static constexpr napi_typedarray_type value = napi_biguint64_array;
};

template <typename T>
void Request::array(const char* name, T*& destination, int64_t elements, Presence presence) {
  note(name, TypedArrayType<std::remove_const_t<T>>::value, elements, -1, presence, &destination,
       [](void* target, void* data) { *static_cast<T**>(target) = static_cast<T*>(data); });
}

template <typename T>
void Request::rows(const char* name, RowView<T>& view, Layout layout, int64_t batch, int64_t heads,
                   int64_t rows, int64_t columns, Presence presence) {
  const int64_t elements = element_count(batch, heads, rows, columns);
  if (elements >= 0) view = dense_rows<T>(nullptr, layout, heads, rows, columns);
  array(name, view.data, elements, presence);
}

}  // namespace binding
}  // namespace cluster_attention
