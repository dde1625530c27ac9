#pragma once

// Problem + device -> kernel. The only door to the kernels for the binding: it applies the
// precision, runs the kernel, and turns "something non-finite came out" into the name of the
// argument that holds it.

#include "native/core/context.h"
#include "native/core/gradient_problem.h"
#include "native/core/problem.h"
#include "native/core/settings.h"
#include "native/core/status.h"

namespace cluster_attention {

Status run(const AttentionProblem& problem, const CallSettings& settings, Context& context);
Status run(const ClusteredAttentionProblem& problem, const CallSettings& settings,
           Context& context);
Status run(const CentroidAttentionProblem& problem, const CallSettings& settings, Context& context);
Status run(const CastAttentionProblem& problem, const CallSettings& settings, Context& context);
Status run(const CentroidPoolProblem& problem, const CallSettings& settings, Context& context);
Status run(const CentroidEncodeProblem& problem, const CallSettings& settings, Context& context);
Status run(const HashProblem& problem, const CallSettings& settings, Context& context);
Status run(const HammingKMeansProblem& problem, const CallSettings& settings, Context& context);
Status run(const KMeansProblem& problem, const CallSettings& settings, Context& context);
Status run(const AggregateProblem& problem, const CallSettings& settings, Context& context);
Status run(const BroadcastProblem& problem, const CallSettings& settings, Context& context);
Status run(const TopKProblem& problem, const CallSettings& settings, Context& context);
Status run(const SparseDotProblem& problem, const CallSettings& settings, Context& context);
Status run(const SparseWeightedSumProblem& problem, const CallSettings& settings, Context& context);
Status run(const MatmulProblem& problem, const CallSettings& settings, Context& context);

Status run(const AttentionGradientProblem& problem, const CallSettings& settings, Context& context);
Status run(const ClusteredAttentionGradientProblem& problem, const CallSettings& settings,
           Context& context);
Status run(const AggregateGradientProblem& problem, const CallSettings& settings, Context& context);
Status run(const BroadcastGradientProblem& problem, const CallSettings& settings, Context& context);
Status run(const SparseDotGradientProblem& problem, const CallSettings& settings, Context& context);
Status run(const SparseWeightedSumGradientProblem& problem, const CallSettings& settings,
           Context& context);
Status run(const CentroidAttentionGradientProblem& problem, const CallSettings& settings,
           Context& context);
Status run(const CastAttentionGradientProblem& problem, const CallSettings& settings,
           Context& context);
Status run(const CentroidEncodeGradientProblem& problem, const CallSettings& settings,
           Context& context);
Status run(const CentroidPoolGradientProblem& problem, const CallSettings& settings,
           Context& context);

}  // namespace cluster_attention
