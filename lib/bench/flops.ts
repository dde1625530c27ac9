/**
 * Floating-point operations of one call, a multiply-add being two. Counted is what the method must
 * multiply; exponentials, comparisons, sums over members and the exclusive-ors of Hamming K-means
 * are not. docs/benchmark.md has the same formulas.
 */
import type { Parameters, Problem } from './record';

/** Scores and weighted values of `queries` × `keys`; backwards three products by D, two by E. */
function attentionFlops(
  queries: number,
  keys: number,
  { headDim, valueDim }: Problem,
  gradient: boolean,
): number {
  const forward = headDim + valueDim;
  const backward = gradient ? 3 * headDim + 2 * valueDim : 0;
  return 2 * queries * keys * (forward + backward);
}

function groupingFlops({ queryLength, headDim }: Problem, parameters: Parameters): number {
  const { grouping, bits = 63, iterations = 4 } = parameters;
  if (grouping !== 'euclidean') return 2 * queryLength * headDim * bits;
  return 2 * queryLength * clustersOf(queryLength, parameters) * headDim * (iterations + 1);
}

function clustersOf(queryLength: number, { clusters = 0 }: Parameters): number {
  return Math.min(clusters, queryLength);
}

function clusteredFlops(problem: Problem, parameters: Parameters, gradient: boolean): number {
  const clusters = clustersOf(problem.queryLength, parameters);
  return (
    groupingFlops(problem, parameters) +
    attentionFlops(clusters, problem.keyLength, problem, gradient)
  );
}

function improvedFlops(problem: Problem, parameters: Parameters, gradient: boolean): number {
  const topK = Math.min(parameters.topK ?? 0, problem.keyLength);
  return (
    clusteredFlops(problem, parameters, gradient) +
    attentionFlops(problem.queryLength, topK, problem, gradient)
  );
}

function castFlops(problem: Problem, parameters: Parameters, gradient: boolean): number {
  const { queryLength: tokens, headDim, valueDim } = problem;
  const size = Math.min(parameters.clusterSize ?? 0, tokens);
  const { clusters = 0 } = parameters;
  const passes = gradient ? 3 : 1; // each product of the forward pass has two backwards
  const surrogates = 4 * tokens * clusters * headDim;
  const summaries = 2 * clusters * size * valueDim;
  const combination = 2 * tokens * clusters * valueDim;
  const within = clusters * attentionFlops(size, size, problem, gradient);
  return passes * (surrogates + summaries + combination) + within;
}

/** Floating-point operations of one call of a method of this package. */
export function countFlops(
  method: string,
  problem: Problem,
  parameters: Parameters,
  gradient: boolean,
): number {
  const sequences = problem.batch * problem.heads;
  switch (method) {
    case 'clustered':
      return sequences * clusteredFlops(problem, parameters, gradient);
    case 'improved':
      return sequences * improvedFlops(problem, parameters, gradient);
    case 'centroid': {
      const centroids = Math.min(parameters.centroids ?? 0, problem.queryLength);
      return sequences * attentionFlops(centroids, problem.keyLength, problem, gradient);
    }
    case 'cast':
      return sequences * castFlops(problem, parameters, gradient);
    case 'kmeans': {
      const grouping = { ...parameters, grouping: 'euclidean' as const };
      return sequences * groupingFlops(problem, grouping);
    }
    default:
      return sequences * attentionFlops(problem.queryLength, problem.keyLength, problem, gradient);
  }
}
