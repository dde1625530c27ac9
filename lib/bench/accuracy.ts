/** Error metrics on sampled rows. docs/benchmark.md defines them. */
import type { Inputs } from './inputs';
import { uniforms } from './random';
import type { Accuracy } from './record';
import { exactWeights, type Row, weightedValues } from './weights';

/** ‖actual − expected‖₂ / ‖expected‖₂ over all rows together. */
export function relativeL2(
  pairs: readonly (readonly [actual: ArrayLike<number>, expected: ArrayLike<number>])[],
): number {
  let error = 0;
  let norm = 0;
  for (const [actual, expected] of pairs) {
    for (let i = 0; i < expected.length; ++i) {
      error += (actual[i]! - expected[i]!) ** 2;
      norm += expected[i]! ** 2;
    }
  }
  return norm === 0 ? Math.sqrt(error) : Math.sqrt(error / norm);
}

/** Σ_s |a_s − b_s|: 0 for equal distributions, 2 for disjoint ones. */
export function distanceL1(a: Float64Array, b: Float64Array): number {
  return a.reduce((sum, x, i) => sum + Math.abs(x - b[i]!), 0);
}

/** The k places of largest weight, best first; of equal weights the lower place first. */
export function largest(weights: Float64Array, k: number): number[] {
  const best: number[] = [];
  weights.forEach((weight, place) => {
    if (best.length === k && !(weight > weights[best[k - 1]!]!)) return;
    let slot = best.length;
    while (slot > 0 && weight > weights[best[slot - 1]!]!) --slot;
    best.splice(slot, 0, place);
    if (best.length > k) best.pop();
  });
  return best;
}

/** Share of the k places of largest exact weight that are among the k of largest own weight. */
export function recallOf(own: Float64Array, exact: Float64Array, k: number): number {
  const found = new Set(largest(own, k));
  const wanted = largest(exact, k);
  return wanted.filter((place) => found.has(place)).length / wanted.length;
}

/** Different rows of a (sequences, queries) array, drawn from `seed`; all when there are fewer. */
export function sampleRows(
  sequences: number,
  queries: number,
  wanted: number,
  seed: number,
): Row[] {
  const count = sequences * queries;
  const uniform = uniforms(seed);
  const chosen = new Set<number>();
  if (wanted >= count) for (let i = 0; i < count; ++i) chosen.add(i);
  while (chosen.size < Math.min(wanted, count)) chosen.add(Math.floor(uniform() * count));
  return Array.from(chosen)
    .toSorted((a, b) => a - b)
    .map((i) => ({ sequence: Math.floor(i / queries), query: i % queries }));
}

/** What a method gave on the sampled rows. */
export interface Sample {
  readonly row: Row;
  /** Of the output that is checked. */
  readonly output: ArrayLike<number>;
  /** The method's own result and, where it stands for exact attention, its weights, in double. */
  readonly own: Float64Array;
  readonly weights?: Float64Array;
}

/** Exact attention of sampled rows, computed once for all methods that are compared with it. */
export class ExactRows {
  readonly #inputs: Inputs;
  readonly #known = new Map<string, { weights: Float64Array; output: Float64Array }>();

  constructor(inputs: Inputs) {
    this.#inputs = inputs;
  }

  at(row: Row): { weights: Float64Array; output: Float64Array } {
    const name = `${row.sequence}/${row.query}`;
    const found = this.#known.get(name);
    if (found !== undefined) return found;
    const weights = exactWeights(this.#inputs, row);
    const exact = { weights, output: weightedValues(this.#inputs, row.sequence, weights) };
    this.#known.set(name, exact);
    return exact;
  }
}

/** @param k of the recall */
export function measureAccuracy(samples: readonly Sample[], exact: ExactRows, k: number): Accuracy {
  const rounding = relativeL2(samples.map(({ output, own }) => [output, own]));
  const rows = samples.length;
  if (!samples.every(({ weights }) => weights !== undefined)) return { rows, rounding };
  const pairs = samples.map((sample) => ({ ...sample, exact: exact.at(sample.row) }));
  const mean = (of: (pair: (typeof pairs)[number]) => number): number =>
    pairs.reduce((sum, pair) => sum + of(pair), 0) / pairs.length;
  return {
    rows,
    rounding,
    error: relativeL2(pairs.map((pair) => [pair.output, pair.exact.output])),
    weights: mean((pair) => distanceL1(pair.weights!, pair.exact.weights)),
    recall: mean((pair) => recallOf(pair.weights!, pair.exact.weights, k)),
    k,
  };
}
