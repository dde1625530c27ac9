#pragma once

// A problem of centroid attention, made from a case of the table: M centroids are its queries, N
// inputs its keys. One input in five has weight 0 and NaN in its rows; lists of neighbours hold
// repeats, -1 and (with lengths) padded inputs.

#include "native/core/problem.h"
#include "test/native/attention_arrays.h"

namespace cluster_attention::test {

/// What the options of one run are.
struct CentroidOptions {
  Normalize normalize = Normalize::centroids;
  Collect aggregate = Collect::sum;
  bool weights = false;
  bool neighbors = false;

  std::string name() const;
};

/// All 16 of them.
std::vector<CentroidOptions> all_centroid_options();

struct CentroidArrays : AttentionArrays {
  CentroidArrays(const Case& which, const CentroidOptions& options, Fill fill = Fill::gaussian);

  CentroidAttentionProblem problem;
  float* weights = nullptr;
  int32_t* neighbors = nullptr;

  int64_t sequences() const { return inputs.shape.batch * inputs.shape.heads; }
  std::vector<float> result() const { return read_output(output, inputs.shape); }
  std::vector<int32_t> labels() const {
    return read(problem.labels, sequences() * inputs.shape.key_length);
  }
  std::vector<float> masses() const {
    return read(problem.masses, sequences() * inputs.shape.query_length);
  }

 private:
  void add_weights(const Case& which);
  void add_neighbors(const Case& which);
};

/// Three sequences of narrow rows, of whose `centroids` each lists 1000 inputs.
Case many_neighbors_case(int64_t centroids);
/// Few inputs, and so many centroids that a chain of floats over them loses digits; each lists all.
Case long_softmax_case();
/// Of all centroids but one an input then has the same share, which is no power of two.
void even_out(CentroidArrays& fixture);
/// A problem ("tile-25") whose centroids list every input, in descending order.
CentroidArrays all_listed(Normalize normalize, Fill fill = Fill::integer);

/// The part of a problem that is batch entry b.
CentroidAttentionProblem one_centroid_batch(CentroidAttentionProblem problem, int64_t b);

}  // namespace cluster_attention::test
