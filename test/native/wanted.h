#pragma once

// Gradients that are not wanted: they cost nothing, and leave the others as they are.

#include <string>
#include <vector>

#include "native/core/gradient_problem.h"
#include "test/native/compare.h"
#include "test/native/harness.h"

namespace cluster_attention::test {

/// The problem with those gradients alone whose bit is set, in the order of the problem.
inline CentroidPoolGradientProblem only(CentroidPoolGradientProblem problem, int wanted) {
  if ((wanted & 1) == 0) problem.inputs = nullptr;
  if ((wanted & 2) == 0) problem.initial = nullptr;
  return problem;
}
inline CentroidEncodeGradientProblem only(CentroidEncodeGradientProblem problem, int wanted) {
  float** const gradients[] = {&problem.inputs,     &problem.initial,      &problem.query_weight,
                               &problem.key_weight, &problem.value_weight, &problem.output_weight};
  for (int i = 0; i < 6; ++i) {
    if ((wanted >> i & 1) == 0) *gradients[i] = nullptr;
  }
  return problem;
}
/// Query, key and value of an attention kind.
template <typename Problem>
Problem only(Problem problem, int wanted) {
  if ((wanted & 1) == 0) problem.gradients.query.data = nullptr;
  if ((wanted & 2) == 0) problem.gradients.key.data = nullptr;
  if ((wanted & 4) == 0) problem.gradients.value.data = nullptr;
  return problem;
}
inline CentroidAttentionGradientProblem only(CentroidAttentionGradientProblem problem, int wanted) {
  if ((wanted & 8) == 0) problem.weights = nullptr;
  return only<CentroidAttentionGradientProblem>(problem, wanted);
}
inline CastAttentionGradientProblem only(CastAttentionGradientProblem problem, int wanted) {
  if ((wanted & 8) == 0) problem.surrogates = nullptr;
  if ((wanted & 16) == 0) problem.gate = nullptr;
  return only<CastAttentionGradientProblem>(problem, wanted);
}

/// What is not wanted does not change the others. run(problem) writes the fixture's gradients, and
/// fixture.results() reads them, in the order of the problem. Each is wanted alone, and all but
/// it; with `every_set` all sets of them are.
template <typename Fixture, typename Run>
void check_wanted_alone(const Fixture& fixture, Run run, bool every_set = false) {
  run(fixture.problem);
  const std::vector<std::vector<float>> expected = fixture.results();
  const int all = (1 << expected.size()) - 1;
  for (int wanted = 0; wanted <= all; ++wanted) {
    const int rest = all - wanted;
    const bool single = (wanted & (wanted - 1)) == 0 || (rest & (rest - 1)) == 0;
    if (!single && !every_set) continue;
    const Scope scope("wanted " + std::to_string(wanted));
    run(only(fixture.problem, wanted));
    const std::vector<std::vector<float>> actual = fixture.results();
    for (size_t i = 0; i < expected.size(); ++i) {
      if ((wanted >> i & 1) != 0) CHECK_SAME(actual[i], expected[i]);
    }
  }
}

}  // namespace cluster_attention::test
