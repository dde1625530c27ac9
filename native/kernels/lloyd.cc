#include "native/kernels/lloyd.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>

#include "native/kernels/aggregate.h"
#include "native/kernels/counting_sort.h"
#include "native/kernels/finite.h"
#include "native/kernels/starts.h"
#include "native/kernels/unit_rows.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

/// Rows whose contributions to a sum over all rows are added first: fixed, as sums in double round.
constexpr int64_t kRowsPerChunk = 1024;
/// Centroids that a tile is scored against at a time.
constexpr int64_t kCentroidBlock = 64;

/// Sum over d of term(d) in four interleaved parts.
template <typename Term>
double sum_terms(int64_t count, Term&& term) {
  double sums[4] = {};
  int64_t d = 0;
  for (; d + 4 <= count; d += 4) {
    for (int64_t j = 0; j < 4; ++j) sums[j] += term(d + j);
  }
  for (; d < count; ++d) sums[0] += term(d);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/// The mean rounded to a multiple of a power of two no less than the deviation: near the mean on
/// the scale of the data, and an integer for integers that are spread at all.
float grid_mean(double mean, double deviation, float any_value) {
  if (deviation == 0.0) return any_value;  // all the same
  int exponent = 0;
  const double fraction = std::frexp(deviation, &exponent);
  const double grid = std::ldexp(1.0, fraction == 0.5 ? exponent - 1 : exponent);
  const double rounded = std::nearbyint(mean / grid) * grid;
  return std::isfinite(rounded) ? static_cast<float>(rounded) : 0.0f;
}

}  // namespace

Status LloydScratch::allocate(const KMeansProblem& problem, int64_t parts, Workspace& workspace) {
  const int64_t length = problem.length;
  const int64_t clusters = std::min(problem.clusters, length);
  const int64_t dim = problem.dim;
  const int64_t chunk_count = divide_up(length, kRowsPerChunk);
  const int64_t lanes = simd().lanes;
  const bool cosine = problem.metric == Metric::cosine;
  const bool plus_plus = problem.start == KMeansStart::plus_plus;
  const bool given = problem.start == KMeansStart::given;
  chosen = workspace.allocate<int64_t>(given ? 0 : clusters);
  const int64_t packed_bytes = checked_size(round_up(length, lanes), dim, sizeof(float));
  start = workspace.allocate<char>(plus_plus ? std::max(start_scratch(length, dim), packed_bytes)
                                             : packed_bytes);
  packed = reinterpret_cast<float*>(start);
  scales = workspace.allocate<double>(cosine ? length : 0);
  origin = workspace.allocate<float>(dim);
  shifted = workspace.allocate<float>(checked_size(clusters, dim));
  bias = workspace.allocate<float>(clusters);
  sums = workspace.allocate<double>(checked_size(clusters, dim));
  movement = workspace.allocate<double>(clusters);
  offsets = workspace.allocate<int32_t>(clusters + 1);
  order = workspace.allocate<int32_t>(length);
  moments =
      workspace.allocate<double>(problem.tolerance > 0.0 ? checked_size(chunk_count, 2, dim) : 0);
  inertia = workspace.allocate<double>(problem.inertia != nullptr ? chunk_count : 0);
  changed = workspace.allocate<uint8_t>(parts);
  const void* const all[] = {chosen,   start,   scales, origin,  shifted, bias,   sums,
                             movement, offsets, order,  moments, inertia, changed};
  const bool complete = std::all_of(std::begin(all), std::end(all),
                                    [](const void* memory) { return memory != nullptr; });
  return complete ? Status::success() : Status::out_of_memory();
}

void Lloyd::open(const KMeansProblem& problem, int64_t sequence, const LloydScratch& scratch) {
  const int64_t batch = sequence / problem.heads;
  const int64_t first_centroid = sequence * problem.clusters;
  problem_ = &problem;
  scratch_ = scratch;
  sequence_ = sequence;
  rows_ = problem.inputs.sequence(batch, sequence % problem.heads);
  row_stride_ = problem.inputs.row_stride;
  dim_ = problem.dim;
  length_ = real_length(problem.lengths, batch, problem.length);
  clusters_ = std::min(problem.clusters, length_);
  initial_ = problem.initial != nullptr ? problem.initial + first_centroid * dim_ : nullptr;
  centroids_ = problem.centroids + first_centroid * dim_;
  labels_ = problem.labels + sequence * problem.length;
  std::fill(labels_, labels_ + problem.length, -1);
  std::fill(centroids_ + clusters_ * dim_, centroids_ + problem.clusters * dim_, 0.0f);
  std::fill(problem.counts + first_centroid + clusters_,
            problem.counts + first_centroid + problem.clusters, 0);
}

int64_t Lloyd::tiles() const { return divide_up(length_, simd().lanes); }
int64_t Lloyd::chunks() const { return divide_up(length_, kRowsPerChunk); }

Range Lloyd::chunk_rows(int64_t chunk) const {
  return {chunk * kRowsPerChunk, std::min((chunk + 1) * kRowsPerChunk, length_)};
}

// ---- start --------------------------------------------------------------------------------------

Status Lloyd::start(Steps steps) {
  if (problem_->start == KMeansStart::plus_plus) {
    CA_RETURN_IF_ERROR(plus_plus_start(rows_, row_stride_, length_, dim_, clusters_, problem_->seed,
                                       cosine(), steps, scratch_.start, scratch_.chosen));
  } else if (problem_->start == KMeansStart::sample) {
    sample_positions(problem_->seed, length_, clusters_, scratch_.chosen);
  }
  for (int64_t c = 0; c < clusters_; ++c) {
    const float* source =
        problem_->start == KMeansStart::given ? initial_ + c * dim_ : row(scratch_.chosen[c]);
    std::copy(source, source + dim_, centroids_ + c * dim_);
    if (cosine()) normalize_centroid(c);
  }
  if (clusters_ > 0) choose_origin();
  for (int64_t c = 0; c < clusters_; ++c) refresh(c);
  return Status::success();
}

void Lloyd::normalize_centroid(int64_t c) {
  float* centroid = centroids_ + c * dim_;
  const double scale = inverse_length(centroid, dim_);
  for (int64_t d = 0; d < dim_; ++d) centroid[d] = static_cast<float>(centroid[d] * scale);
}

void Lloyd::choose_origin() {
  for (int64_t d = 0; d < dim_; ++d) {
    const float first = centroids_[d];
    double sum = 0.0;
    double squares = 0.0;
    for (int64_t c = 0; c < clusters_; ++c) {
      const double offset = static_cast<double>(centroids_[c * dim_ + d]) - first;
      sum += offset;
      squares += offset * offset;
    }
    const double mean = sum / static_cast<double>(clusters_);
    const double variance = squares / static_cast<double>(clusters_) - mean * mean;
    const float origin = grid_mean(first + mean, std::sqrt(std::max(variance, 0.0)), first);
    scratch_.origin[d] = std::isfinite(origin) ? origin : 0.0f;
  }
}

void Lloyd::refresh(int64_t c) {
  const float* centroid = centroids_ + c * dim_;
  const float* origin = scratch_.origin;
  float* shifted = scratch_.shifted + c * dim_;
  for (int64_t d = 0; d < dim_; ++d) shifted[d] = centroid[d] - origin[d];
  const auto square = [](const float* x) {
    return [x](int64_t d) { return static_cast<double>(x[d]) * x[d]; };
  };
  double distance = sum_terms(dim_, square(shifted));
  // A centroid of zeros has cosine 0 with everything, as if it were a unit vector at a right angle.
  if (cosine() && sum_terms(dim_, square(centroid)) == 0.0) distance += 1.0;
  scratch_.bias[c] = static_cast<float>(-0.5 * distance);
}

// ---- assignment ---------------------------------------------------------------------------------

void Lloyd::pack(Range tiles) {
  const int64_t lanes = simd().lanes;
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const int64_t first = tile * lanes;
    const int64_t columns = std::min(lanes, length_ - first);
    const int64_t used = round_up(columns, simd().width);
    float* packed = scratch_.packed + first * dim_;
    simd().pack(row(first), row_stride_, nullptr, columns, dim_, packed);
    double scales[kMaximumLanes] = {};
    for (int64_t i = 0; i < columns && cosine(); ++i) {
      scales[i] = inverse_length(row(first + i), dim_);
      scratch_.scales[first + i] = scales[i];
    }
    for (int64_t d = 0; d < dim_; ++d) {
      float* element = packed + d * lanes;
      const float origin = scratch_.origin[d];
      if (cosine()) {
        for (int64_t i = 0; i < used; ++i) {
          element[i] = static_cast<float>(element[i] * scales[i] - origin);
        }
      } else {
        for (int64_t i = 0; i < used; ++i) element[i] -= origin;
      }
    }
  }
}

bool Lloyd::assign(Range tiles, int64_t part, const Steps& steps) {
  // packed: (tiles,dim,lanes), centroids: (C,dim) -> score: (C block,lanes)
  alignas(64) float score[kCentroidBlock * kMaximumLanes];
  alignas(64) float best[kMaximumLanes];
  alignas(64) int32_t nearest[kMaximumLanes];
  const int64_t lanes = simd().lanes;
  bool finite = true;
  bool changed = false;
  for (int64_t tile = tiles.begin; tile < tiles.end && !steps.cancelled(); ++tile) {
    const int64_t first = tile * lanes;
    const int64_t columns = std::min(lanes, length_ - first);
    std::fill(best, best + lanes, -std::numeric_limits<float>::infinity());
    std::fill(nearest, nearest + lanes, 0);
    for (int64_t c = 0; c < clusters_; c += kCentroidBlock) {
      const int64_t block = std::min(kCentroidBlock, clusters_ - c);
      simd().multiply(scratch_.shifted + c * dim_, dim_, 1, block, dim_,
                      scratch_.packed + first * dim_, lanes, columns, score, lanes, false);
      simd().argmax_rows(score, block, columns, 1.0f, scratch_.bias + c, c, best, nearest);
    }
    // A row that holds NaN or -Inf beats no centroid and keeps the -Inf; one with +Inf shows it.
    finite = finite && all_finite(best, columns);
    for (int64_t i = 0; i < columns && cosine(); ++i) {
      if (scratch_.scales[first + i] == 0.0) nearest[i] = 0;  // cosine 0 with every centroid
    }
    changed = changed || !std::equal(nearest, nearest + columns, labels_ + first);
    std::copy(nearest, nearest + columns, labels_ + first);
  }
  scratch_.changed[part] = changed ? 1 : 0;
  return finite;
}

bool Lloyd::changed(int64_t parts) const {
  return std::any_of(scratch_.changed, scratch_.changed + parts,
                     [](uint8_t changed) { return changed != 0; });
}

// ---- update -------------------------------------------------------------------------------------

void Lloyd::sort() {
  // These labels were made by assign(): none is out of range.
  sort_by_label(labels_, length_, clusters_, nullptr, 0, scratch_.offsets, scratch_.order);
}

bool Lloyd::update(Range clusters) {
  bool finite = true;
  for (int64_t c = clusters.begin; c < clusters.end; ++c) {
    const int64_t first = scratch_.offsets[c];
    const int64_t count = scratch_.offsets[c + 1] - first;
    scratch_.movement[c] = 0.0;
    if (count == 0) continue;
    double* sums = scratch_.sums + c * dim_;
    sum_members(rows_, row_stride_, scratch_.order + first, count,
                cosine() ? scratch_.scales : nullptr, dim_, sums);
    double divisor = static_cast<double>(count);
    if (cosine()) {
      divisor = std::sqrt(sum_terms(dim_, [sums](int64_t d) { return sums[d] * sums[d]; }));
      if (divisor <= kZeroMean * static_cast<double>(count)) continue;
    }
    float* centroid = centroids_ + c * dim_;
    scratch_.movement[c] = sum_terms(dim_, [=](int64_t d) {
      const double old = centroid[d];
      centroid[d] = static_cast<float>(sums[d] / divisor);
      return (centroid[d] - old) * (centroid[d] - old);
    });
    finite = finite && all_finite(centroid, dim_);
    refresh(c);
  }
  return finite;
}

double Lloyd::movement() const {
  return std::accumulate(scratch_.movement, scratch_.movement + clusters_, 0.0);
}

// ---- what is measured over all rows
// --------------------------------------------------------------

void Lloyd::measure_moments(int64_t chunk) {
  double* sums = scratch_.moments + chunk * 2 * dim_;
  double* squares = sums + dim_;
  std::fill(sums, squares + dim_, 0.0);
  const Range range = chunk_rows(chunk);
  for (int64_t i = range.begin; i < range.end; ++i) {
    for (int64_t d = 0; d < dim_; ++d) {
      const double offset = row(i)[d] * (cosine() ? scratch_.scales[i] : 1.0) - scratch_.origin[d];
      sums[d] += offset;
      squares[d] += offset * offset;
    }
  }
}

double Lloyd::mean_variance() const {
  double total = 0.0;
  const double rows = static_cast<double>(length_);
  for (int64_t d = 0; d < dim_; ++d) {
    double sum = 0.0;
    double squares = 0.0;
    for (int64_t c = 0; c < chunks(); ++c) {
      sum += scratch_.moments[2 * c * dim_ + d];
      squares += scratch_.moments[(2 * c + 1) * dim_ + d];
    }
    total += squares / rows - (sum / rows) * (sum / rows);
  }
  return total / static_cast<double>(dim_);
}

void Lloyd::measure_inertia(int64_t chunk) {
  const Range range = chunk_rows(chunk);
  double inertia = 0.0;
  for (int64_t i = range.begin; i < range.end; ++i) {
    const float* x = row(i);
    const float* centroid = centroids_ + labels_[i] * dim_;
    if (cosine()) {
      // 1 - cos as half the squared distance of unit vectors, which does not cancel. A zero vector
      // has cosine 0 with everything; it lacks the half that its own length would add.
      const double scale = scratch_.scales[i];
      const double distance = sum_terms(dim_, [=](int64_t d) {
        const double difference = x[d] * scale - centroid[d];
        return difference * difference;
      });
      const bool zero_centroid =
          std::all_of(centroid, centroid + dim_, [](float c) { return c == 0.0f; });
      inertia += 0.5 * (distance + (scale == 0.0 ? 1.0 : 0.0) + (zero_centroid ? 1.0 : 0.0));
    } else {
      inertia += sum_terms(dim_, [=](int64_t d) {
        const double difference = static_cast<double>(x[d]) - centroid[d];
        return difference * difference;
      });
    }
  }
  scratch_.inertia[chunk] = inertia;
}

bool Lloyd::finish() {
  int32_t* counts = problem_->counts + sequence_ * problem_->clusters;
  std::fill(counts, counts + clusters_, 0);
  for (int64_t i = 0; i < length_; ++i) ++counts[labels_[i]];
  if (problem_->iterations != nullptr) {
    problem_->iterations[sequence_] = static_cast<int32_t>(updates);
  }
  if (problem_->inertia != nullptr) {
    problem_->inertia[sequence_] =
        std::accumulate(scratch_.inertia, scratch_.inertia + chunks(), 0.0);
  }
  // A given centroid without members shows in no score, and one whose square overflows has none.
  return all_finite(centroids_, clusters_ * dim_) && all_finite(scratch_.bias, clusters_);
}

}  // namespace cluster_attention::kernels
