// What each gradient problem holds; what the others do is in dispatch_arrays.cc.

#include "native/dispatch_arrays.h"
#include "native/dispatch_reads.h"

namespace cluster_attention {

using namespace reading;

void ProblemArrays::add_gradients(AttentionGradients& gradients, const AttentionShape& shape) {
  add("queryGradient", gradients.query, elements_of(shape, shape.query_length, shape.head_dim));
  add("keyGradient", gradients.key, elements_of(shape, shape.key_length, shape.head_dim));
  add("valueGradient", gradients.value, elements_of(shape, shape.key_length, shape.value_dim));
}

void ProblemArrays::describe(AttentionGradientProblem& problem) {
  AttentionInputs& inputs = problem.forward.inputs;
  const AttentionShape& shape = inputs.shape;
  add_attention(inputs, reads<AttentionProblem, sees_keys>, reads<AttentionProblem, seen>);
  add("gradOutput", problem.output_gradient, shape, shape.query_length, shape.value_dim,
      inputs.query_lengths, reads<AttentionProblem, sees_keys>);
  add_lengths(inputs);
  add_state("output", problem.forward.output.data,
            elements_of(shape, shape.query_length, shape.value_dim));
  add_state("logsumexp", problem.forward.logsumexp, elements_of(shape, shape.query_length));
  add_gradients(problem.gradients, shape);
}

void ProblemArrays::describe(ClusteredAttentionGradientProblem& problem) {
  ClusteredAttentionProblem& forward = problem.forward;
  AttentionInputs& inputs = forward.inputs;
  const AttentionShape& shape = inputs.shape;
  add_attention(inputs, reads<ClusteredAttentionProblem, labelled>, nullptr);
  add("gradOutput", problem.output_gradient, shape, shape.query_length, shape.value_dim,
      inputs.query_lengths, reads<ClusteredAttentionProblem, labelled>);
  add_lengths(inputs);
  add_state("labels", forward.labels, elements_of(shape, shape.query_length));
  add_state("indices", forward.indices, elements_of(shape, forward.clusters, forward.top_k));
  add_state("clusterValues", forward.cluster_values,
            elements_of(shape, forward.clusters, shape.value_dim));
  add_state("clusterLogsumexp", forward.cluster_logsumexp, elements_of(shape, forward.clusters));
  add_gradients(problem.gradients, shape);
}

void ProblemArrays::describe(AggregateGradientProblem& problem) {
  AggregateProblem& forward = problem.forward;
  const int64_t sequences = forward.batch * forward.heads;
  add("gradOutput", problem.output_gradient, sequences, forward.clusters, forward.dim, nullptr,
      reads<AggregateProblem, have_members>);
  add("labels", forward.labels, sequences * forward.length);
  add("inputsGradient", problem.inputs, sequences * forward.length * forward.dim);
}

void ProblemArrays::describe(BroadcastGradientProblem& problem) {
  BroadcastProblem& forward = problem.forward;
  add("gradOutput", problem.output_gradient, forward.batch, forward.length, forward.dim, nullptr,
      reads<BroadcastProblem, takes>);
  add("labels", forward.labels, forward.batch * forward.length);
  add("inputsGradient", problem.inputs, forward.batch * forward.clusters * forward.dim);
}

void ProblemArrays::describe(SparseDotGradientProblem& problem) {
  SparseDotProblem& forward = problem.forward;
  const AttentionShape& shape = forward.shape;
  add("query", forward.query, shape, shape.query_length, shape.head_dim, forward.query_lengths,
      reads<SparseDotProblem, lists_key<SparseDotProblem>>);
  add("key", forward.key, shape, shape.key_length, shape.head_dim, forward.key_lengths,
      reads<SparseDotProblem, listed<SparseDotProblem>>);
  add("gradOutput", problem.output_gradient, shape.batch * shape.heads,
      shape.query_length * forward.sparse.k, 1, nullptr,
      reads<SparseDotProblem, filled<SparseDotProblem>>);
  add_lists(forward.sparse, shape);
  add("queryLengths", forward.query_lengths, shape.batch);
  add("keyLengths", forward.key_lengths, shape.batch);
  add("queryGradient", problem.query, elements_of(shape, shape.query_length, shape.head_dim));
  add("keyGradient", problem.key, elements_of(shape, shape.key_length, shape.head_dim));
}

void ProblemArrays::describe(SparseWeightedSumGradientProblem& problem) {
  SparseWeightedSumProblem& forward = problem.forward;
  const AttentionShape& shape = forward.shape;
  add("weights", forward.weights, shape.batch * shape.heads, shape.query_length * forward.sparse.k,
      1, nullptr, reads<SparseWeightedSumProblem, filled<SparseWeightedSumProblem>>);
  add("value", forward.value, shape, shape.key_length, shape.value_dim, forward.key_lengths,
      reads<SparseWeightedSumProblem, listed<SparseWeightedSumProblem>>);
  add("gradOutput", problem.output_gradient, shape, shape.query_length, shape.value_dim,
      forward.query_lengths, reads<SparseWeightedSumProblem, lists_key<SparseWeightedSumProblem>>);
  add_lists(forward.sparse, shape);
  add("queryLengths", forward.query_lengths, shape.batch);
  add("keyLengths", forward.key_lengths, shape.batch);
  add("weightsGradient", problem.weights, elements_of(shape, shape.query_length, forward.sparse.k));
  add("valueGradient", problem.value, elements_of(shape, shape.key_length, shape.value_dim));
}

void ProblemArrays::describe(CentroidAttentionGradientProblem& problem) {
  CentroidAttentionProblem& forward = problem.forward;
  AttentionInputs& inputs = forward.inputs;
  const AttentionShape& shape = inputs.shape;
  add_attention(inputs, nullptr, reads<CentroidAttentionProblem, active_inputs>);
  add("weights", forward.weights, shape.batch, shape.key_length, 1, inputs.key_lengths);
  add("gradOutput", problem.output_gradient, shape, shape.query_length, shape.value_dim,
      inputs.query_lengths);
  add_lengths(inputs);
  add("neighbors", forward.neighbors, shape.batch * shape.query_length * forward.neighbor_count);
  add_state("output", forward.output.data, elements_of(shape, shape.query_length, shape.value_dim));
  add_state("masses", forward.masses, elements_of(shape, shape.query_length));
  add_state("logsumexp", forward.logsumexp, elements_of(shape, shape.query_length));
  add_gradients(problem.gradients, shape);
  add("weightsGradient", problem.weights, shape.batch * shape.key_length);
}

void ProblemArrays::describe(CastAttentionGradientProblem& problem) {
  CastAttentionProblem& forward = problem.forward;
  AttentionInputs& inputs = forward.inputs;
  const AttentionShape& shape = inputs.shape;
  inputs.query_lengths = inputs.key_lengths;  // self-attention
  add_attention(inputs, nullptr, nullptr);
  add("surrogates", forward.surrogates, 1, shape.heads * forward.clusters, shape.head_dim);
  add("gate", forward.gate, shape.batch, shape.key_length, 1, inputs.key_lengths);
  add("gradOutput", problem.output_gradient, shape, shape.query_length, shape.value_dim,
      inputs.query_lengths);
  add_lengths(inputs);
  add_state("indices", forward.indices, shape.batch * forward.clusters * forward.cluster_size);
  add_gradients(problem.gradients, shape);
  add("surrogatesGradient", problem.surrogates, shape.heads * forward.clusters * shape.head_dim);
  add("gateGradient", problem.gate, shape.batch * shape.key_length);
}

void ProblemArrays::describe(CentroidEncodeGradientProblem& problem) {
  CentroidEncodeProblem& forward = problem.forward;
  const int64_t rows = forward.batch * forward.centroids * forward.dim;
  const int64_t weight = forward.heads * forward.head_dim * forward.dim;
  forward.output = nullptr;
  describe(forward);
  add("gradOutput", problem.output_gradient, forward.batch, forward.centroids, forward.dim, nullptr,
      reads<CentroidEncodeProblem, real_centroids>);
  add("inputsGradient", problem.inputs, forward.batch * forward.length * forward.dim);
  add("initialGradient", problem.initial, rows);
  add("queryWeightGradient", problem.query_weight, weight);
  add("keyWeightGradient", problem.key_weight, weight);
  add("valueWeightGradient", problem.value_weight, weight);
  add("outputWeightGradient", problem.output_weight, weight);
}

void ProblemArrays::describe(CentroidPoolGradientProblem& problem) {
  CentroidPoolProblem& forward = problem.forward;
  const int64_t rows = forward.batch * forward.centroids * forward.dim;
  forward.output = nullptr;
  forward.labels = nullptr;
  forward.masses = nullptr;
  describe(forward);
  add("gradOutput", problem.output_gradient, forward.batch, forward.centroids, forward.dim, nullptr,
      reads<CentroidPoolProblem, within_clamp>);
  add("inputsGradient", problem.inputs, forward.batch * forward.length * forward.dim);
  add("initialGradient", problem.initial, rows);
}

}  // namespace cluster_attention
