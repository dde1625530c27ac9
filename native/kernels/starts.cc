#include "native/kernels/starts.h"

#include <algorithm>
#include <limits>

#include "native/core/random.h"
#include "native/core/shape.h"
#include "native/kernels/unit_rows.h"

namespace cluster_attention::kernels {

namespace {

/// Rows whose distances are computed at once, one in each lane of a few vectors. Here, where no
/// time is spent compared with the clustering itself, the lanes are left to the compiler, so that
/// all instruction sets start from the same rows.
constexpr int64_t kLanes = 16;
/// Rows whose distances one task updates, and whose sum is a step of the running sum.
constexpr int64_t kRowsPerTask = 1024;
static_assert(kRowsPerTask % kLanes == 0, "a task has whole blocks");
/// Distances in float32 are as good as those of the definition while the largest is at least this:
/// far from where they underflow.
constexpr double kSmallestInFloat = 0x1p-100;

int64_t chunks_of(int64_t length) { return divide_up(length, kRowsPerTask); }

/// Rows of one sequence with the distance of each to its nearest chosen row.
class StartRows {
 public:
  /// `scratch` has start_scratch(length, dim) bytes.
  StartRows(const float* rows, int64_t row_stride, int64_t length, int64_t dim, Steps steps,
            char* scratch)
      : rows_(rows), row_stride_(row_stride), length_(length), dim_(dim), steps_(steps) {
    packed_ = reinterpret_cast<float*>(scratch);
    distances_ = reinterpret_cast<double*>(packed_ + round_up(length, kLanes) * dim);
    sums_ = distances_ + round_up(length, kLanes);
    farthest_ = reinterpret_cast<int64_t*>(sums_ + chunks_of(length));
    taken_ = reinterpret_cast<uint8_t*>(farthest_ + chunks_of(length));
  }

  static int64_t scratch_bytes(int64_t length, int64_t dim) {
    const int64_t rows = round_up(length, kLanes);
    return rows *
               (dim * static_cast<int64_t>(sizeof(float)) + static_cast<int64_t>(sizeof(double))) +
           chunks_of(length) * static_cast<int64_t>(sizeof(double) + sizeof(int64_t)) + length;
  }

  Status open(bool normalize_rows) {
    std::fill(distances_, distances_ + length_, kInfinity);
    std::fill(taken_, taken_ + length_, 0);
    return steps_.run(chunks_of(length_), operations(), [this, normalize_rows](int64_t task) {
      const Range range = chunk(task);
      for (int64_t i = range.begin; i < range.end; ++i) pack(i, normalize_rows);
    });
  }

  /// Lowers every distance by chosen[count - 1], the newly chosen row. Once distances leave the
  /// range of float32, all those so far are measured again in double.
  Status choose(const int64_t* chosen, int64_t count) {
    const int64_t row = chosen[count - 1];
    taken_[row] = 1;
    CA_RETURN_IF_ERROR(wide_ ? lower<double>(row) : lower<float>(row));
    const double largest = distances_[farthest_row()];
    if (wide_ || (largest >= kSmallestInFloat && largest < kInfinity)) return Status::success();
    wide_ = true;
    std::fill(distances_, distances_ + length_, kInfinity);
    for (int64_t j = 0; j < count; ++j) CA_RETURN_IF_ERROR(lower<double>(chosen[j]));
    return Status::success();
  }

  /// The first row at which the running sum of the distances exceeds `share` of their total, -1
  /// when no distance is positive.
  int64_t draw(double share) const {
    double total = 0.0;
    for (int64_t c = 0; c < chunks_of(length_); ++c) total += sums_[c];
    const double target = share * total;
    double before = 0.0;
    int64_t last_positive = -1;
    for (int64_t c = 0; c < chunks_of(length_); before += sums_[c], ++c) {
      if (!(sums_[c] > 0.0)) continue;
      const Range range = chunk(c);
      last_positive = farthest_[c];
      if (!(before + sums_[c] > target)) continue;
      double sum = before;
      for (int64_t i = range.begin; i < range.end; ++i) {
        sum += distances_[i];
        if (distances_[i] > 0.0) last_positive = i;
        if (sum > target) return i;
      }
    }
    return last_positive;
  }

  /// The row with the largest distance (tie: lowest), -1 when no distance is positive.
  int64_t farthest() const {
    const int64_t best = farthest_row();
    return distances_[best] > 0.0 ? best : -1;
  }

  int64_t lowest_unchosen() {
    while (taken_[lowest_unchosen_] != 0) ++lowest_unchosen_;
    return lowest_unchosen_;
  }

 private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  Range chunk(int64_t index) const {
    return {index * kRowsPerTask, std::min((index + 1) * kRowsPerTask, length_)};
  }

  double operations() const { return 3.0 * static_cast<double>(length_ * dim_); }

  /// Element 0 of a row in its block; the next ones are kLanes apart.
  float* packed_row(int64_t row) const {
    return packed_ + row / kLanes * kLanes * dim_ + row % kLanes;
  }

  void pack(int64_t i, bool normalize) {
    const float* row = rows_ + i * row_stride_;
    float* packed = packed_row(i);
    const double scale = normalize ? inverse_length(row, dim_) : 1.0;
    for (int64_t d = 0; d < dim_; ++d) packed[d * kLanes] = static_cast<float>(row[d] * scale);
  }

  int64_t farthest_row() const {
    int64_t best = farthest_[0];
    for (int64_t c = 1; c < chunks_of(length_); ++c) {
      if (distances_[farthest_[c]] > distances_[best]) best = farthest_[c];
    }
    return best;
  }

  /// Lowers every distance by that from `row`, as `Distance` measures it.
  template <typename Distance>
  Status lower(int64_t row) {
    distances_[row] = 0.0;  // even where the row holds NaN: no row is chosen twice
    return steps_.run(chunks_of(length_), operations(), [this, row](int64_t task) {
      const Range range = chunk(task);
      double sum = 0.0;
      int64_t farthest = range.begin;
      for (int64_t first = range.begin; first < range.end; first += kLanes) {
        Distance distances[kLanes];
        squared_distances(first, row, distances);
        const int64_t count = std::min(kLanes, range.end - first);
        for (int64_t i = 0; i < count; ++i) {
          const double distance = std::min<double>(distances_[first + i], distances[i]);
          distances_[first + i] = distance;
          sum += distance;
          if (distance > distances_[farthest]) farthest = first + i;
        }
      }
      sums_[task] = sum;
      farthest_[task] = farthest;
    });
  }

  /// Squared distances of the block that begins with row `first` from row `chosen`.
  template <typename Distance>
  void squared_distances(int64_t first, int64_t chosen, Distance* distances) const {
    const float* block = packed_row(first);
    const float* origin = packed_row(chosen);
    Distance sums[kLanes] = {};
    for (int64_t d = 0; d < dim_; ++d) {
      const Distance element = origin[d * kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const Distance difference = block[d * kLanes + i] - element;
        sums[i] += difference * difference;
      }
    }
    std::copy(sums, sums + kLanes, distances);
  }

  const float* rows_;
  int64_t row_stride_;
  int64_t length_;
  int64_t dim_;
  Steps steps_;
  float* packed_;      // (blocks,dim,kLanes), unit rows if so wanted
  double* distances_;  // (length), float32 numbers unless wide_
  double* sums_;       // (chunks), of the distances
  int64_t* farthest_;  // (chunks)
  uint8_t* taken_;     // (length)
  int64_t lowest_unchosen_ = 0;
  bool wide_ = false;  // distances are measured in double
};

}  // namespace

void sample_positions(uint64_t seed, int64_t length, int64_t count, int64_t* positions) {
  for (int64_t j = 0; j < count; ++j) {
    positions[j] = random_position(seed, RandomStream::start_positions, length, j);
  }
}

int64_t start_scratch(int64_t length, int64_t dim) { return StartRows::scratch_bytes(length, dim); }

Status plus_plus_start(const float* rows, int64_t row_stride, int64_t length, int64_t dim,
                       int64_t count, uint64_t seed, bool normalize_rows, Steps steps,
                       char* scratch, int64_t* chosen) {
  if (count == 0) return Status::success();
  StartRows start(rows, row_stride, length, dim, steps, scratch);
  CA_RETURN_IF_ERROR(start.open(normalize_rows));
  const double first = random_uniform(seed, RandomStream::plus_plus, 0);
  chosen[0] = static_cast<int64_t>(first * static_cast<double>(length));
  for (int64_t j = 1; j < count; ++j) {
    CA_RETURN_IF_ERROR(start.choose(chosen, j));
    const int64_t row = start.draw(random_uniform(seed, RandomStream::plus_plus, j));
    chosen[j] = row >= 0 ? row : start.lowest_unchosen();
  }
  return Status::success();
}

Status plus_plus_start(const float* rows, int64_t row_stride, int64_t length, int64_t dim,
                       int64_t count, uint64_t seed, bool normalize_rows, Context& context,
                       int64_t* chosen) {
  char* scratch = context.workspace().allocate<char>(start_scratch(length, dim));
  if (scratch == nullptr) return Status::out_of_memory();
  return plus_plus_start(rows, row_stride, length, dim, count, seed, normalize_rows,
                         Steps(context, false), scratch, chosen);
}

Status farthest_start(const float* rows, int64_t row_stride, int64_t length, int64_t dim,
                      int64_t count, bool normalize_rows, Context& context, int64_t* chosen) {
  if (count == 0) return Status::success();
  char* scratch = context.workspace().allocate<char>(start_scratch(length, dim));
  if (scratch == nullptr) return Status::out_of_memory();
  StartRows start(rows, row_stride, length, dim, Steps(context, false), scratch);
  CA_RETURN_IF_ERROR(start.open(normalize_rows));
  chosen[0] = 0;
  for (int64_t j = 1; j < count; ++j) {
    CA_RETURN_IF_ERROR(start.choose(chosen, j));
    const int64_t row = start.farthest();
    chosen[j] = row >= 0 ? row : start.lowest_unchosen();
  }
  return Status::success();
}

void stride_start(const float* rows, int64_t row_stride, int64_t length, int64_t dim, int64_t count,
                  float* centroids) {
  constexpr int64_t kBlock = 64;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t begin = j * length / count;
    const int64_t end = (j + 1) * length / count;
    for (int64_t first = 0; first < dim; first += kBlock) {
      const int64_t columns = std::min(kBlock, dim - first);
      double sums[kBlock] = {};
      for (int64_t i = begin; i < end; ++i) {
        const float* row = rows + i * row_stride + first;
        for (int64_t d = 0; d < columns; ++d) sums[d] += row[d];
      }
      for (int64_t d = 0; d < columns; ++d) {
        centroids[j * dim + first + d] =
            static_cast<float>(sums[d] / static_cast<double>(end - begin));
      }
    }
  }
}

}  // namespace cluster_attention::kernels
