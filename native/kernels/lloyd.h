#pragma once

// The steps of Lloyd's K-means on one sequence; kmeans.cc runs them. A step is cut into parts that
// may run at the same time; the result of none depends on the cut.

#include <cstdint>

#include "native/core/problem.h"
#include "native/core/shape.h"
#include "native/core/workspace.h"
#include "native/kernels/steps.h"

namespace cluster_attention::kernels {

/// Scratch of one sequence, sized for the longest one.
struct LloydScratch {
  int64_t* chosen = nullptr;   // (C), starting rows
  char* start = nullptr;       // start_scratch(), until the rows are packed in its place
  float* packed = nullptr;     // (tiles,dim,lanes), rows in lanes
  double* scales = nullptr;    // (length), cosine: inverse lengths
  float* origin = nullptr;     // (dim), what rows and centroids are measured from
  float* shifted = nullptr;    // (C,dim), centroids measured from it
  float* bias = nullptr;       // (C), -|shifted|²/2
  double* sums = nullptr;      // (C,dim), of the members
  double* movement = nullptr;  // (C), squared
  int32_t* offsets = nullptr;  // (C+1), counting sort by label
  int32_t* order = nullptr;    // (length)
  double* moments = nullptr;   // (chunks,2,dim), with a tolerance
  double* inertia = nullptr;   // (chunks)
  uint8_t* changed = nullptr;  // (parts)

  Status allocate(const KMeansProblem& problem, int64_t parts, Workspace& workspace);
};

class Lloyd {
 public:
  /// Sequence `sequence` = batch * heads + head; writes all that lies past its real length and
  /// past the clamp of its clusters.
  void open(const KMeansProblem& problem, int64_t sequence, const LloydScratch& scratch);

  int64_t clusters() const { return clusters_; }
  int64_t tiles() const;
  int64_t chunks() const;

  /// Chooses the first centroids, and with them the origin.
  Status start(Steps steps);
  /// Packs the rows of some tiles.
  void pack(Range tiles);
  /// Gives the rows of some tiles the labels of their nearest centroids. False if a score is not
  /// finite.
  bool assign(Range tiles, int64_t part, const Steps& steps);
  /// Whether the last assignment changed a label.
  bool changed(int64_t parts) const;
  /// Sorts the rows by label.
  void sort();
  /// Moves some centroids to the means of their members. False if one is not finite.
  bool update(Range clusters);
  /// Sum of the squared movements of the centroids in the last update.
  double movement() const;

  /// Contributions of one chunk of rows to the variance and to the inertia, and their totals.
  void measure_moments(int64_t chunk);
  double mean_variance() const;
  void measure_inertia(int64_t chunk);
  /// Writes counts, inertia and iterations. False if a centroid, or its square, is not finite.
  bool finish();

  double tolerance = 0.0;  // the iteration ends when the movement is no larger
  int64_t updates = 0;     // of the centroids that were made

 private:
  const float* row(int64_t i) const { return rows_ + i * row_stride_; }
  bool cosine() const { return problem_->metric == Metric::cosine; }
  Range chunk_rows(int64_t chunk) const;
  void normalize_centroid(int64_t c);
  void choose_origin();
  void refresh(int64_t c);

  const KMeansProblem* problem_ = nullptr;
  LloydScratch scratch_;
  const float* rows_ = nullptr;     // (length,dim)
  const float* initial_ = nullptr;  // (C,dim)
  int64_t sequence_ = 0;
  int64_t row_stride_ = 0;
  int64_t dim_ = 0;
  int64_t length_ = 0;          // real
  int64_t clusters_ = 0;        // at most length
  float* centroids_ = nullptr;  // (C,dim)
  int32_t* labels_ = nullptr;   // (length)
};

}  // namespace cluster_attention::kernels
