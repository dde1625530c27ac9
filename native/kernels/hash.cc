#include "native/kernels/hash.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "native/core/random.h"
#include "native/core/shape.h"
#include "native/kernels/finite.h"
#include "native/simd/simd.h"

namespace cluster_attention {

Status lsh_planes(int64_t bits, int64_t dim, uint64_t seed, bool bias, Context& context,
                  float* planes) {
  constexpr int64_t kDrawsPerTask = 4096;
  constexpr double kOperationsPerDraw = 100.0;
  const int64_t size = bits * (dim + 1);
  const auto draw = [=](int64_t task, int) {
    const int64_t end = std::min(size, (task + 1) * kDrawsPerTask);
    for (int64_t i = task * kDrawsPerTask; i < end; ++i) {
      const bool is_threshold = i % (dim + 1) == dim;
      planes[i] = is_threshold && !bias
                      ? 0.0f
                      : static_cast<float>(random_normal(seed, RandomStream::hash_planes, i));
    }
  };
  return context.parallel(divide_up(size, kDrawsPerTask), draw,
                          kOperationsPerDraw * static_cast<double>(size));
}

Status draw_missing_planes(ClusteredAttentionProblem& problem, Context& context) {
  if (problem.grouping != Grouping::hamming || problem.planes != nullptr) return Status::success();
  if (context.cancelled()) return Status::cancelled();  // before anything is allocated
  const int64_t dim = problem.inputs.shape.head_dim;
  float* planes = context.workspace().allocate<float>(problem.bits * (dim + 1));
  if (planes == nullptr) return Status::out_of_memory();
  problem.planes = planes;
  return lsh_planes(problem.bits, dim, problem.seed, problem.hash_bias, context, planes);
}

namespace kernels {

namespace {

/// Rows of a sequence that one task hashes.
constexpr int64_t kRowsPerTask = 1024;

/// Smallest and largest of values (count), none of which is NaN.
void find_bounds(const float* values, int64_t count, float& smallest, float& largest) {
  constexpr int64_t kLanes = 16;
  float low[kLanes];
  float high[kLanes];
  std::fill(low, low + kLanes, values[0]);
  std::fill(high, high + kLanes, values[0]);
  for (int64_t i = 0; i + kLanes <= count; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      low[j] = values[i + j] < low[j] ? values[i + j] : low[j];
      high[j] = values[i + j] > high[j] ? values[i + j] : high[j];
    }
  }
  const float* rest = values + count / kLanes * kLanes;
  smallest = *std::min_element(low, low + kLanes);
  largest = *std::max_element(high, high + kLanes);
  for (; rest < values + count; ++rest) {
    smallest = std::min(smallest, *rest);
    largest = std::max(largest, *rest);
  }
}

/// The value of rank `rank` (ascending, 0-based) of values (count), none of which is NaN. Counts
/// the values in equal intervals and goes on with the interval that holds the rank, which needs no
/// unpredictable branch. Uses values up.
float select_rank(float* values, int64_t count, int64_t rank) {
  constexpr int32_t kIntervals = 1024;
  while (count > kIntervals / 4) {
    float smallest;
    float largest;
    find_bounds(values, count, smallest, largest);
    if (smallest == largest) return smallest;
    const float scale = static_cast<float>(kIntervals) / (largest - smallest);
    if (!std::isfinite(scale) || scale == 0.0f) break;
    // Rounding is monotonic: a larger value never lies in a lower interval.
    const auto interval = [=](float value) {
      return std::min(static_cast<int32_t>((value - smallest) * scale), kIntervals - 1);
    };
    int32_t counts[kIntervals] = {};
    for (int64_t i = 0; i < count; ++i) ++counts[interval(values[i])];
    int32_t wanted = 0;
    while (rank >= counts[wanted]) rank -= counts[wanted++];
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float value = values[i];
      values[kept] = value;
      kept += interval(value) == wanted ? 1 : 0;
    }
    count = kept;
  }
  std::nth_element(values, values + rank, values + count);
  return values[rank];
}

/// Bits whose thresholds one task finds.
int64_t threshold_group() { return std::min(2 * simd().width, simd().lanes); }
/// threshold: 'data' for the group of bits from first_bit on: the projections of all rows, bit by
/// bit, and of each the value of rank floor(u_b count).
/// Returns false when a projection is no number of float32: it has no rank.
bool data_thresholds(const float* rows, int64_t row_stride, int64_t count, int64_t dim,
                     const float* packed_planes, int64_t first_bit, int64_t bits, uint64_t seed,
                     float* projections,  // (group,count), scratch
                     float* thresholds) {
  alignas(64) float product[kHashRows * kMaximumLanes];
  const int64_t group = threshold_group();
  const int64_t lanes = simd().lanes;
  for (int64_t first = 0; first < count; first += kHashRows) {
    const int64_t block = std::min(kHashRows, count - first);
    simd().multiply(rows + first * row_stride, row_stride, 1, block, dim, packed_planes + first_bit,
                    kHashColumns, group, product, lanes, false);
    simd().unpack(product, group, block, nullptr, projections + first, count, nullptr);
  }
  bool finite = true;
  for (int64_t bit = first_bit; bit < std::min(bits, first_bit + group); ++bit) {
    float* values = projections + (bit - first_bit) * count;
    finite = finite && all_finite(values, count);
    for (int64_t i = 0; i < count; ++i) {  // NaN (under 'propagate') ranks above every number
      values[i] = values[i] == values[i] ? values[i] : std::numeric_limits<float>::infinity();
    }
    const double u = random_uniform(seed, RandomStream::hash_thresholds, bit);
    const int64_t rank = static_cast<int64_t>(u * static_cast<double>(count));
    thresholds[bit] = select_rank(values, count, rank);
  }
  return finite;
}

/// The bits of one row of finite numbers of which some products (64) have left the range of float32
/// on the way: an Inf may have the sign of a part of the sum, a NaN has none.
uint64_t correct_signs(const float* row, int64_t dim, const float* packed_planes,
                       const float* thresholds, int64_t bits, const float* products,
                       uint64_t hash) {
  for (int64_t b = 0; b < bits; ++b) {
    if (std::isfinite(products[b])) continue;
    double sum = 0.0;
    for (int64_t d = 0; d < dim; ++d) {
      sum += static_cast<double>(row[d]) * packed_planes[d * kHashColumns + b];
    }
    const uint64_t bit = uint64_t{1} << b;
    hash = sum > thresholds[b] ? hash | bit : hash & ~bit;
  }
  return hash;
}

/// The real rows of every sequence of a call.
struct Sequences {
  InputRows inputs;
  int64_t batch;
  int64_t heads;
  int64_t length;
  int64_t dim;
  const int32_t* lengths;

  int64_t count() const { return batch * heads; }
  double products(int64_t bits) const {
    return 2.0 * static_cast<double>(count() * length) * static_cast<double>(dim * bits);
  }
  const float* rows(int64_t sequence) const {
    return inputs.sequence(sequence / heads, sequence % heads);
  }
  int64_t real(int64_t sequence) const { return real_length(lengths, sequence / heads, length); }
};

Status find_data_thresholds(const Sequences& sequences, const float* packed_planes, int64_t bits,
                            uint64_t seed, Context& context, float* thresholds) {
  const int64_t groups = divide_up(bits, threshold_group());
  const int64_t tasks = sequences.count() * groups;
  const int64_t size = threshold_group() * sequences.length;
  const int64_t workers = std::min<int64_t>(context.workers(), tasks);
  float* scratch = context.workspace().allocate<float>(checked_size(workers, size));
  if (scratch == nullptr) return Status::out_of_memory();
  const auto find_group = [&](int64_t task, int worker) {
    const int64_t sequence = task / groups;
    const int64_t count = sequences.real(sequence);
    if (count == 0) return;
    if (!data_thresholds(sequences.rows(sequence), sequences.inputs.row_stride, count,
                         sequences.dim, packed_planes, task % groups * threshold_group(), bits,
                         seed, scratch + worker * size, thresholds + sequence * kHashColumns)) {
      context.mark_non_finite();
    }
  };
  return context.parallel(tasks, find_group, 2.0 * sequences.products(bits));
}

}  // namespace

bool pack_planes(const float* planes, int64_t bits, int64_t dim, float* packed_planes,
                 float* thresholds) {
  std::fill(packed_planes, packed_planes + dim * kHashColumns, 0.0f);
  std::fill(thresholds, thresholds + kHashColumns, 0.0f);
  bool finite = true;
  for (int64_t b = 0; b < bits; ++b) {
    const float* plane = planes + b * (dim + 1);
    for (int64_t d = 0; d < dim; ++d) packed_planes[d * kHashColumns + b] = plane[d];
    thresholds[b] = plane[dim];
    finite = finite && all_finite(plane, dim + 1);
  }
  return finite;
}

bool hash_rows(const float* rows, int64_t row_stride, int64_t count, int64_t dim,
               const float* packed_planes, const float* thresholds, int64_t bits,
               float* product_scratch, uint64_t* hashes) {
  // rows: (count,dim) x packed_planes: (dim,64) -> 64 signs per row
  bool finite = true;
  for (int64_t first = 0; first < count; first += kHashRows) {
    const int64_t block = std::min(kHashRows, count - first);
    simd().multiply(rows + first * row_stride, row_stride, 1, block, dim, packed_planes,
                    kHashColumns, bits, product_scratch, kHashColumns, false);
    if (simd().sign_bits(product_scratch, block, thresholds, bits, hashes + first)) continue;
    // NaN or Inf in a row shows in each of its products, a sum that leaves the range of float32 in
    // its own: only the row itself tells the two apart.
    for (int64_t r = 0; r < block; ++r) {
      const float* products = product_scratch + r * kHashColumns;
      if (all_finite(products, bits)) continue;
      const float* row = rows + (first + r) * row_stride;
      if (all_finite(row, dim)) {
        hashes[first + r] =
            correct_signs(row, dim, packed_planes, thresholds, bits, products, hashes[first + r]);
      } else {
        finite = false;
      }
    }
  }
  return finite;
}

Status hash_sequences(const InputRows& inputs, int64_t batch, int64_t heads, int64_t length,
                      int64_t dim, const int32_t* lengths, const float* planes, int64_t bits,
                      Threshold threshold, uint64_t seed, Context& context, uint64_t* hashes) {
  const Sequences sequences{inputs, batch, heads, length, dim, lengths};
  const bool own_thresholds = threshold == Threshold::data;
  const int64_t threshold_rows = own_thresholds ? sequences.count() : 1;
  float* packed_planes = context.workspace().allocate<float>(dim * kHashColumns);
  float* thresholds = context.workspace().allocate<float>(
      checked_size(std::max<int64_t>(threshold_rows, 1), kHashColumns));
  if (packed_planes == nullptr || thresholds == nullptr) return Status::out_of_memory();
  if (!pack_planes(planes, bits, dim, packed_planes, thresholds)) context.mark_non_finite();
  if (own_thresholds) {
    CA_RETURN_IF_ERROR(
        find_data_thresholds(sequences, packed_planes, bits, seed, context, thresholds));
  }

  const int64_t chunks = divide_up(length, kRowsPerTask);
  const auto hash_chunk = [&](int64_t task, int) {
    alignas(64) float product[kHashRows * kHashColumns];
    const int64_t sequence = task / chunks;
    const int64_t first = task % chunks * kRowsPerTask;
    const int64_t count = std::min(kRowsPerTask, sequences.real(sequence) - first);
    if (count <= 0) return;
    const float* rows = sequences.rows(sequence) + first * inputs.row_stride;
    if (!hash_rows(rows, inputs.row_stride, count, dim, packed_planes,
                   thresholds + (own_thresholds ? sequence * kHashColumns : 0), bits, product,
                   hashes + sequence * length + first)) {
      context.mark_non_finite();
    }
  };
  return context.parallel(sequences.count() * chunks, hash_chunk, sequences.products(bits));
}

Status hash(const HashProblem& problem, Context& context) {
  const InputRows inputs = dense_rows(problem.inputs, problem.rows, problem.dim);
  return hash_sequences(inputs, 1, 1, problem.rows, problem.dim, nullptr, problem.planes,
                        problem.bits, Threshold::normal, 0, context, problem.hashes);
}

}  // namespace kernels
}  // namespace cluster_attention
