#pragma once

// Makes requests that the decoder of an operation accepts, knowing nothing of the operation: it
// sends a wrong request, reads in the error what is expected, mends that, and sends it again. The
// bytes of a fuzzer choose among what is accepted.

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "test/fuzz/fake_node_api.h"

namespace cluster_attention::fuzz {

/// The bytes of a fuzzer by place; zero where there are no more.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint8_t at(size_t place) const { return place < size_ ? data_[place] : 0; }
  size_t size() const { return size_; }

 private:
  const uint8_t* data_;
  size_t size_;
};

class RequestLearner {
 public:
  explicit RequestLearner(std::string operation);

  /// A request made of the bytes from `place` on. The call that accepted it has been computed:
  /// `outcome` is its result, or, when the bytes ask for more than a test can have, a refusal.
  Plan learn(const Bytes& bytes, size_t place, Outcome& outcome);
  /// Whether the sizes of a request ask for more work than a test has time for, though its arrays
  /// may be empty.
  bool is_large(const Plan& plan) const;
  /// Lets the kernel end as soon as it looks.
  static void raise_abort(Plan& plan);
  /// Gives every array its first content again.
  void refill(Plan& plan, const Bytes& bytes, size_t place) const;

  const std::vector<std::string>& names() const { return names_; }

  /// Sees every request before it is sent.
  void (*watch)(const Plan&) = nullptr;

 private:
  static constexpr size_t kBytesOfAProperty = 2;

  /// What is known of the arrays of a request, which follows from its numbers.
  struct Expected {
    napi_typedarray_type type = napi_float32_array;
    size_t elements = 0;
    bool is_required = false;
  };
  using Arrays = std::map<std::string, Expected>;

  size_t place_of(const std::string& name, size_t place) const;
  void fill(const std::string& name, Array& array, const Bytes& bytes, size_t place) const;
  /// Mends what the message names; false when a test cannot have it.
  bool mend(Plan& plan, const std::string& message, const Bytes& bytes, size_t place);
  bool mend_number(Value& value, const std::string& name, const std::string& expected,
                   uint8_t choice);
  bool mend_array(Plan& plan, const std::string& name, const std::string& expected,
                  const Bytes& bytes, size_t place);
  void place_arrays(Plan& plan, const Arrays& arrays, const Bytes& bytes, size_t place) const;

  std::string operation_;
  std::vector<std::string> names_;  // of properties, in the order of their first fault
  // What is expected of numbers, as the first request was told: nothing that later ones bring may
  // change what an input means.
  std::map<std::string, std::string> numbers_;
  bool knows_numbers_ = false;
  std::map<std::string, Arrays> arrays_;  // by the numbers of a request: only to be quicker
  // Of the request that is being learnt.
  std::map<std::string, int> faults_;
  std::map<std::string, uint32_t> most_;  // of the values of arrays that hold lengths
};

}  // namespace cluster_attention::fuzz
