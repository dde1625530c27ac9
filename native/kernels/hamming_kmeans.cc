#include "native/kernels/hamming_kmeans.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "native/core/random.h"
#include "native/core/shape.h"
#include "native/kernels/steps.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kBits = 64;
/// Hashes that are assigned before their bits are counted.
constexpr int64_t kBlock = 128;
/// Clusters whose centroids one task of an update recomputes.
constexpr int64_t kClustersPerTask = 16;

/// How often each bit is set among the members of each cluster. Counted in bytes, which are emptied
/// into wider counters before they can overflow.
class BitCounts {
 public:
  static int64_t bytes(int64_t clusters) {
    return clusters * static_cast<int64_t>(kBits + kBits * sizeof(int32_t) + 2 * sizeof(int32_t));
  }
  void place(char* memory, int64_t clusters) {
    clusters_ = clusters;
    narrow_ = reinterpret_cast<uint8_t*>(memory);
    ones_ = reinterpret_cast<int32_t*>(narrow_ + clusters * kBits);
    members_ = ones_ + clusters * kBits;
    narrow_members_ = members_ + clusters;
  }

  void clear() { std::memset(narrow_, 0, static_cast<size_t>(bytes(clusters_))); }

  /// Counts at most kBlock hashes: no byte can overflow, since one that may be over half full at
  /// the end is emptied.
  void add(const uint64_t* hashes, const int32_t* labels, int64_t count) {
    static_assert(2 * kBlock <= 256, "a block must fit twice");
    simd().count_bits(hashes, labels, count, narrow_);
    for (int64_t i = 0; i < count; ++i) {
      if (++narrow_members_[labels[i]] >= kBlock) widen(labels[i]);
    }
  }
  void add_members(const int32_t* labels, int64_t count) {
    for (int64_t i = 0; i < count; ++i) ++members_[labels[i]];
  }

  /// Empties the bytes of every cluster: ones() and members() are complete afterwards.
  void finish() {
    for (int64_t c = 0; c < clusters_; ++c) widen(c);
  }
  const int32_t* ones(int64_t cluster) const { return ones_ + cluster * kBits; }
  int32_t members(int64_t cluster) const { return members_[cluster]; }

 private:
  void widen(int64_t cluster) {
    if (narrow_members_[cluster] == 0) return;
    uint8_t* narrow = narrow_ + cluster * kBits;
    int32_t* ones = ones_ + cluster * kBits;
    for (int64_t bit = 0; bit < kBits; ++bit) ones[bit] += narrow[bit];
    std::memset(narrow, 0, kBits);
    members_[cluster] += narrow_members_[cluster];
    narrow_members_[cluster] = 0;
  }

  int64_t clusters_ = 0;
  uint8_t* narrow_ = nullptr;          // (clusters,kBits)
  int32_t* ones_ = nullptr;            // (clusters,kBits)
  int32_t* members_ = nullptr;         // (clusters)
  int32_t* narrow_members_ = nullptr;  // (clusters): counted in bytes so far
};

/// What one part of a sequence finds in an assignment.
struct Part {
  BitCounts counts;
  bool changed = false;
};

struct Sequence {
  const uint64_t* hashes = nullptr;  // (length)
  const uint64_t* initial = nullptr;
  int64_t length = 0;             // real
  int64_t clusters = 0;           // at most length
  int32_t* labels = nullptr;      // (length)
  int32_t* counts = nullptr;      // (clusters)
  uint64_t* centroids = nullptr;  // (clusters)
  Part* parts = nullptr;
  int32_t updates = 0;
};

void start(const HammingKMeansProblem& problem, Sequence& sequence) {
  for (int64_t c = 0; c < sequence.clusters; ++c) {
    sequence.centroids[c] =
        sequence.initial != nullptr
            ? sequence.initial[c]
            : sequence.hashes[random_position(problem.seed, RandomStream::start_positions,
                                              sequence.length, c)];
  }
  std::fill(sequence.labels, sequence.labels + sequence.length, -1);
}

/// Assigns the hashes of `range` to their nearest centroids and counts members, and their bits
/// unless this is the last assignment.
void assign(Sequence& sequence, Range range, bool last, const Steps& steps, Part& part) {
  part.counts.clear();
  part.changed = false;
  int32_t labels[kBlock];
  for (int64_t first = range.begin; first < range.end && !steps.cancelled(); first += kBlock) {
    const int64_t count = std::min(kBlock, range.end - first);
    const uint64_t* hashes = sequence.hashes + first;
    simd().assign_hamming(hashes, count, sequence.centroids, sequence.clusters, labels);
    const size_t bytes = static_cast<size_t>(count) * sizeof(int32_t);
    part.changed = part.changed || std::memcmp(labels, sequence.labels + first, bytes) != 0;
    std::memcpy(sequence.labels + first, labels, bytes);
    if (last) {
      part.counts.add_members(labels, count);
    } else {
      part.counts.add(hashes, labels, count);
    }
  }
  part.counts.finish();
}

bool changed(const Sequence& sequence, int64_t parts) {
  return std::any_of(sequence.parts, sequence.parts + parts,
                     [](const Part& part) { return part.changed; });
}

int32_t members(const Sequence& sequence, int64_t parts, int64_t cluster) {
  int32_t total = 0;
  for (int64_t p = 0; p < parts; ++p) total += sequence.parts[p].counts.members(cluster);
  return total;
}

/// Sets the centroids of `range` to the majority of their members; an empty one stays.
void update(Sequence& sequence, Range range, int64_t parts) {
  const float zeros[kBits] = {};
  for (int64_t c = range.begin; c < range.end; ++c) {
    const int32_t count = members(sequence, parts, c);
    if (count == 0) continue;
    int32_t ones[kBits] = {};
    for (int64_t p = 0; p < parts; ++p) {
      const int32_t* added = sequence.parts[p].counts.ones(c);
      for (int64_t bit = 0; bit < kBits; ++bit) ones[bit] += added[bit];
    }
    // A float keeps the sign of any integer: more ones than zeros?
    float majority[kBits];
    for (int64_t bit = 0; bit < kBits; ++bit) {
      majority[bit] = static_cast<float>(ones[bit] - (count - ones[bit]));
    }
    simd().sign_bits(majority, 1, zeros, kBits, sequence.centroids + c);
  }
}

/// Arithmetic of one assignment of a whole sequence.
double operations(const HammingKMeansProblem& problem) {
  const int64_t clusters = std::min(problem.clusters, problem.length);
  return static_cast<double>(problem.length) * static_cast<double>(4 * clusters + 16);
}

/// Iterates the sequences of a group until each is at its fixpoint or at the limit. `active` is
/// used up.
Status iterate(const HammingKMeansProblem& problem, Sequence** active, int64_t count, int64_t parts,
               Steps steps) {
  const int64_t blocks = divide_up(problem.clusters, kClustersPerTask);
  for (int64_t updates = 0; count > 0; ++updates) {
    const bool last = updates == problem.max_iterations;
    const auto assign_part = [&](int64_t task) {
      Sequence& sequence = *active[task / parts];
      const int64_t p = task % parts;
      assign(sequence, split(sequence.length, parts, p), last, steps, sequence.parts[p]);
    };
    CA_RETURN_IF_ERROR(
        steps.run(count * parts, static_cast<double>(count) * operations(problem), assign_part));
    int64_t remaining = 0;
    for (int64_t i = 0; i < count; ++i) {
      Sequence* sequence = active[i];
      if (!last && changed(*sequence, parts)) {
        active[remaining++] = sequence;
        continue;
      }
      sequence->updates = static_cast<int32_t>(updates);
      for (int64_t c = 0; c < sequence->clusters; ++c) {
        sequence->counts[c] = members(*sequence, parts, c);
      }
    }
    count = remaining;
    const auto update_block = [&](int64_t task) {
      Sequence& sequence = *active[task / blocks];
      const int64_t first = std::min(task % blocks * kClustersPerTask, sequence.clusters);
      update(sequence, {first, std::min(first + kClustersPerTask, sequence.clusters)}, parts);
    };
    const double counters = static_cast<double>(problem.clusters * kBits * (parts + 2));
    CA_RETURN_IF_ERROR(
        steps.run(count * blocks, static_cast<double>(count) * counters, update_block));
  }
  return Status::success();
}

/// Points `sequence` at its arrays; everything past the real length and the clamp gets its value.
void open(const HammingKMeansProblem& problem, int64_t b, Sequence& sequence) {
  const int64_t length = real_length(problem.lengths, b, problem.length);
  const int64_t clusters = std::min(problem.clusters, length);
  sequence = Sequence();
  sequence.hashes = problem.hashes + b * problem.length;
  sequence.initial = problem.initial != nullptr ? problem.initial + b * problem.clusters : nullptr;
  sequence.length = length;
  sequence.clusters = clusters;
  sequence.labels = problem.labels + b * problem.length;
  sequence.counts = problem.counts + b * problem.clusters;
  sequence.centroids = problem.centroids + b * problem.clusters;
  std::fill(sequence.labels + length, sequence.labels + problem.length, -1);
  std::fill(sequence.counts + clusters, sequence.counts + problem.clusters, 0);
  std::fill(sequence.centroids + clusters, sequence.centroids + problem.clusters, 0);
}

/// Parts for `sets` sequences at work at once.
Part* allocate_parts(int64_t sets, int64_t parts, int64_t clusters, Workspace& workspace) {
  const int64_t size = round_up(BitCounts::bytes(clusters), 64);
  Part* result = workspace.allocate<Part>(checked_size(sets, parts));
  char* memory = workspace.allocate<char>(checked_size(sets, parts, size));
  if (result == nullptr || memory == nullptr) return nullptr;
  for (int64_t i = 0; i < sets * parts; ++i) {
    result[i] = Part();
    result[i].counts.place(memory + i * size, clusters);
  }
  return result;
}

}  // namespace

Status hamming_kmeans(const HammingKMeansProblem& problem, Context& context) {
  const int64_t batch = problem.batch;
  if (batch == 0) return Status::success();
  const int64_t clusters = std::min(problem.clusters, problem.length);
  const bool alone = Steps::prefer_alone(context, batch, operations(problem));
  const int64_t sets = alone ? std::min<int64_t>(context.workers(), batch) : batch;
  Steps steps(context, alone);
  // A part has counters for every cluster: with fewer hashes than that they would cost the most.
  const int64_t rows_per_part = std::max(kBlock, clusters);
  const int64_t parts =
      std::min(steps.parts(batch), std::max<int64_t>(divide_up(problem.length, rows_per_part), 1));

  Sequence* sequences = context.workspace().allocate<Sequence>(batch);
  Sequence** active = context.workspace().allocate<Sequence*>(batch);
  Part* all_parts = allocate_parts(sets, parts, clusters, context.workspace());
  if (sequences == nullptr || active == nullptr || all_parts == nullptr) {
    return Status::out_of_memory();
  }
  const auto open_sequence = [&](int64_t b, int worker) {
    active[b] = &sequences[b];
    open(problem, b, sequences[b]);
    start(problem, sequences[b]);
    sequences[b].parts = all_parts + (alone ? worker : b) * parts;
    if (!alone) return;
    const Status status = iterate(problem, active + b, 1, parts, steps);
    if (!status.ok()) context.fail(status);
  };
  const double rounds = 1.0 + static_cast<double>(problem.max_iterations);
  CA_RETURN_IF_ERROR(
      context.parallel(batch, open_sequence,
                       alone ? static_cast<double>(batch) * operations(problem) * rounds : 0.0));
  if (!alone) CA_RETURN_IF_ERROR(iterate(problem, active, batch, parts, steps));
  if (problem.iterations != nullptr) {
    for (int64_t b = 0; b < batch; ++b) problem.iterations[b] = sequences[b].updates;
  }
  return Status::success();
}

}  // namespace cluster_attention::kernels
