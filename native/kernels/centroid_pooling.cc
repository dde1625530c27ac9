#include "native/kernels/centroid_pooling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "native/core/shape.h"
#include "native/core/softmax_state.h"
#include "native/kernels/centroid_sequence.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

int64_t CentroidPooling::centroids(int64_t batch) const {
  return std::min(problem_.centroids, inputs(batch));
}

int64_t CentroidPooling::parts(int64_t batch) const {
  return input_parts(inputs(batch), centroids(batch));
}

Status CentroidPooling::prepare() {
  CA_RETURN_IF_ERROR(start());
  CA_RETURN_IF_ERROR(similarity_.prepare(problem_, problem_.output, context_));
  CA_RETURN_IF_ERROR(allocate());
  return for_centroids([this](int64_t batch, int64_t j, int) { prepare_centroid(batch, j); });
}

Status CentroidPooling::step(int32_t* labels) {
  CA_RETURN_IF_ERROR(pass(Pass::update, labels));
  return for_centroids([this](int64_t batch, int64_t j, int worker) {
    update(batch, j, rows_ + worker * problem_.dim);
  });
}

Status CentroidPooling::assign(int32_t* labels) { return pass(Pass::assign, labels); }

CentroidStart CentroidPooling::start_of(int64_t batch) const {
  CentroidStart sequence;
  sequence.start = problem_.start;
  sequence.seed = problem_.seed;
  sequence.normalize_rows = problem_.similarity == Similarity::cosine;
  sequence.inputs = problem_.inputs + batch * problem_.length * problem_.dim;
  if (problem_.start == PoolStart::given) {
    sequence.initial = problem_.initial + batch * problem_.centroids * problem_.dim;
  }
  sequence.length = inputs(batch);
  sequence.dim = problem_.dim;
  return sequence;
}

Status CentroidPooling::start() {
  chosen_ = context_.workspace().allocate<int64_t>(problem_.batch * problem_.centroids);
  if (chosen_ == nullptr) return Status::out_of_memory();
  for (int64_t b = 0; b < problem_.batch; ++b) {
    std::fill(centroid(b, 0), centroid(b + 1, 0), 0.0f);
    CA_RETURN_IF_ERROR(start_centroids(start_of(b), centroids(b), chosen_ + b * problem_.centroids,
                                       context_, centroid(b, 0)));
  }
  return Status::success();
}

void CentroidPooling::add_start_gradient(const float* gradient, float* inputs) const {
  for (int64_t b = 0; b < problem_.batch; ++b) {
    const int64_t first = b * problem_.centroids;
    kernels::add_start_gradient(start_of(b), centroids(b), chosen_ + first, nullptr,
                                gradient + first * problem_.dim,
                                inputs + b * problem_.length * problem_.dim);
  }
}

Status CentroidPooling::allocate() {
  for (int64_t b = 0; b < problem_.batch; ++b) parts_ = std::max(parts_, parts(b));
  Workspace& workspace = context_.workspace();
  operands_ = workspace.allocate<float>(problem_.batch * problem_.centroids * similarity_.dim());
  rows_ = workspace.allocate<float>(context_.workers() * problem_.dim);
  tiles_ = workspace.allocate<AssignmentTile>(context_.workers());
  const int64_t block = checked_size(problem_.centroids, block_columns());
  const bool hard = problem_.temperature == 0.0f;
  blocks_ = workspace.allocate<float>(hard ? checked_size(context_.workers(), block) : 0);
  if (operands_ == nullptr || rows_ == nullptr || tiles_ == nullptr || blocks_ == nullptr ||
      !sums_.allocate(problem_.batch * parts_, problem_.centroids, problem_.dim, true, workspace)) {
    return Status::out_of_memory();
  }
  for (int worker = 0; worker < context_.workers(); ++worker) {
    tiles_[worker] = AssignmentTile();
    if (!tiles_[worker].allocate(problem_.centroids, similarity_.dim(), problem_.dim, workspace)) {
      return Status::out_of_memory();
    }
  }
  return Status::success();
}

Status CentroidPooling::pass(Pass purpose, int32_t* labels) {
  return context_.parallel(problem_.batch * parts_, [&](int64_t task, int worker) {
    pass_part(purpose, task / parts_, task % parts_, labels, worker);
  });
}

void CentroidPooling::pass_part(Pass purpose, int64_t batch, int64_t part, int32_t* labels,
                                int worker) {
  // operands: (M,dim) rows x (dim,lanes) inputs; values: (N,d) rows
  if (part >= parts(batch) || centroids(batch) == 0) return;
  const Simd& cpu = simd();
  const int64_t count = centroids(batch);
  const float* values = problem_.inputs + batch * problem_.length * problem_.dim;
  const AssignmentSums sums = sums_.at(batch * parts_ + part);
  AssignmentTile& tile = tiles_[worker];
  const bool hard = problem_.temperature == 0.0f;
  if (hard) {
    clear(count, sums);
    clear(count, block(worker));
  }
  const Range range = split(inputs(batch), parts(batch), part);
  for (int64_t first = range.begin; first < range.end; first += cpu.lanes) {
    if (context_.cancelled()) return;
    if (hard && first > range.begin && (first - range.begin) % kInputsPerBlock == 0) {
      add_block(count, block(worker), sums);
    }
    const int64_t columns = std::min(cpu.lanes, range.end - first);
    similarity_.pack(batch, first, columns, tile.packed);
    prefetch_rows(values + (first + columns) * problem_.dim, problem_.dim,
                  std::min(cpu.lanes, range.end - first - columns), problem_.dim);
    cpu.multiply(operand(batch, 0), similarity_.dim(), 1, count, similarity_.dim(), tile.packed,
                 cpu.lanes, columns, tile.scores, cpu.lanes, false);
    if (hard || labels != nullptr) tile.find_best(count, columns, 1.0f, nullptr);
    if (labels != nullptr) {
      std::copy(tile.best_row, tile.best_row + columns, labels + batch * problem_.length + first);
    }
    if (hard) {
      add_hard(purpose, columns, values + first * problem_.dim, tile, block(worker));
      continue;
    }
    cpu.softmax_rows(tile.scores, count, columns, kLog2E / problem_.temperature, tile.maximum,
                     tile.sum, tile.minimum);
    if (std::count(tile.minimum, tile.minimum + columns, -kInfinity) > 0) {
      context_.mark_non_finite();
    }
    // An assignment pass sums the masses alone: values of dimension 0.
    const int64_t value_dim = purpose == Pass::update ? problem_.dim : 0;
    const TileRows rows =
        tile_rows(values, problem_.dim, nullptr, nullptr, first, columns, value_dim, tile);
    add_tile(tile, count, columns, rows, value_dim, first > range.begin, sums);
  }
  if (hard) add_block(count, block(worker), sums);
}

int64_t CentroidPooling::block_columns() const {
  return round_up(problem_.dim, simd().width) + simd().width;
}

AssignmentSums CentroidPooling::block(int worker) const {
  AssignmentSums sums;
  sums.values = blocks_ + worker * problem_.centroids * block_columns();
  sums.masses = sums.values + problem_.centroids * round_up(problem_.dim, simd().width);
  return sums;
}

void CentroidPooling::clear(int64_t centroids, const AssignmentSums& sums) const {
  std::fill_n(sums.values, centroids * round_up(problem_.dim, simd().width), 0.0f);
  std::fill_n(sums.masses, centroids * simd().width, 0.0f);
}

/// Adds what a block holds, so that no sum runs over all inputs in one chain, and clears it.
void CentroidPooling::add_block(int64_t centroids, const AssignmentSums& block,
                                const AssignmentSums& sums) const {
  const int64_t width = simd().width;
  const int64_t count = centroids * round_up(problem_.dim, width);
  for (int64_t i = 0; i < count; ++i) sums.values[i] += block.values[i];
  for (int64_t i = 0; i < centroids * width; ++i) sums.masses[i] += block.masses[i];
  clear(centroids, block);
}

/// Adds every input of a tile to its most similar centroid.
void CentroidPooling::add_hard(Pass purpose, int64_t columns, const float* rows,
                               const AssignmentTile& tile, const AssignmentSums& sums) const {
  const int64_t width = simd().width;
  const int64_t stride = round_up(problem_.dim, width);
  for (int64_t i = 0; i < columns; ++i) {
    if (!(std::fabs(tile.best[i]) < kInfinity)) context_.mark_non_finite();
    sums.masses[tile.best_row[i] * width] += 1.0f;
    if (purpose == Pass::assign) continue;
    float* sum = sums.values + tile.best_row[i] * stride;
    for (int64_t d = 0; d < problem_.dim; ++d) sum[d] += rows[i * problem_.dim + d];
  }
}

/// u_j <- its mean; without mass it stays.
void CentroidPooling::update(int64_t batch, int64_t j, float* mean) {
  const float mass = sums_.total_mass(batch * parts_, parts(batch), j);
  if (mass == 0.0f) return;
  sums_.total_values(batch * parts_, parts(batch), j, mean);
  float* row = centroid(batch, j);
  for (int64_t d = 0; d < problem_.dim; ++d) row[d] = mean[d] / mass;
  prepare_centroid(batch, j);
}

void CentroidPooling::prepare_centroid(int64_t batch, int64_t j) {
  float* row = operand(batch, j);
  similarity_.prepare_centroid(batch, centroid(batch, j), row);
  // One whose square overflows would lose every input, its own too.
  const bool has_bias = problem_.similarity == Similarity::euclidean;
  if (has_bias && !std::isfinite(row[problem_.dim])) context_.mark_non_finite();
}

}  // namespace cluster_attention::kernels
