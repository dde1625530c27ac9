/**
 * The search of `tune`: which settings reach an error at the least work. It looks at errors and at
 * a count of operations alone, never at a clock, so the same inputs give the same settings tried.
 * A coarse grid comes first; then the families that did best are refined step by step.
 */
import { countFlops } from './flops';
import type { Parameters, Problem } from './record';

/** A setting of one of the clustered attentions. */
export interface Setting {
  readonly method: 'clustered' | 'improved';
  readonly parameters: Parameters & { readonly clusters: number };
}

export interface Trial extends Setting {
  readonly error: number;
  /** Operations: see {@link modelCost}. */
  readonly cost: number;
}

/** Multiply-adds that a core does in the time of comparing two 64-bit codes, roughly. */
const COMPARISON = 16;
/** Products with gathered rows, and the selection of those rows, against products of a whole matrix. */
const GATHERED = 3;
/** More modelled work than this share of exact attention's has not been seen to be faster. */
const WORTHWHILE = 0.5;
/** Families that are refined, and steps of each. */
const REFINED = 2;
const STEPS = 8;
const GRID_CLUSTERS = [32, 128, 512, 2048];
const GRID_TOP_K = [16, 64];
const FEWEST_CLUSTERS = 8;

/**
 * Floating-point operations of a call, those on gathered rows weighted, and the comparisons of
 * Hamming K-means in their measure.
 */
export function modelCost({ method, parameters }: Setting, problem: Problem): number {
  const shared = countFlops('clustered', problem, parameters, false);
  const gathered = countFlops(method, problem, parameters, false) - shared;
  const flops = shared + GATHERED * gathered;
  if (parameters.grouping === 'euclidean') return flops;
  const { batch, heads, queryLength } = problem;
  const { clusters, iterations = 10 } = parameters;
  return flops + COMPARISON * batch * heads * queryLength * clusters * (iterations + 1);
}

/** Bits of a hash, unless fewer do. */
const BITS = 63;

/** What the search starts with, beside clusters and keys. */
const FAMILIES: readonly Omit<Setting['parameters'], 'clusters'>[] = [
  { grouping: 'hamming', threshold: 'normal', bits: BITS, iterations: 10 },
  { grouping: 'hamming', threshold: 'data', bits: BITS, iterations: 10 },
  { grouping: 'euclidean', iterations: 4 },
];

function gridOf(problem: Problem): Setting[] {
  const fitting = GRID_CLUSTERS.filter((clusters) => 2 * clusters <= problem.queryLength);
  const counts = fitting.length > 0 ? fitting : [Math.max(1, Math.ceil(problem.queryLength / 4))];
  const keys = GRID_TOP_K.filter((k) => 2 * k <= problem.keyLength);
  return FAMILIES.flatMap((family) =>
    counts.flatMap((clusters): Setting[] => [
      { method: 'clustered', parameters: { clusters, ...family } },
      ...keys.map((topK): Setting => ({
        method: 'improved',
        parameters: { clusters, topK, ...family },
      })),
    ]),
  );
}

const familyOf = ({ method, parameters }: Setting): string =>
  [method, parameters.grouping, parameters.threshold].join(' ');

/** Neighbours of a setting: less of one thing, more of one thing, or one traded for another. */
function neighbors({ method, parameters }: Setting, problem: Problem): Setting[] {
  const { clusters, topK, iterations = 4, bits = BITS, grouping } = parameters;
  const scaled = (factor: number): number =>
    Math.min(
      Math.max(Math.round(clusters * factor), Math.min(FEWEST_CLUSTERS, problem.queryLength)),
      problem.queryLength,
    );
  const changes: Partial<Parameters>[] = [
    { clusters: scaled(0.5) },
    { clusters: scaled(Math.SQRT1_2) },
    { clusters: scaled(Math.SQRT2) },
    { clusters: scaled(2) },
    { iterations: Math.max(1, Math.round(iterations / 2)) },
    { iterations: Math.min(2 * iterations, 20) },
    { iterations: Math.min(2 * iterations, 20), clusters: scaled(Math.SQRT1_2) },
  ];
  if (grouping !== 'euclidean') changes.push({ bits: Math.max(8, bits >> 1) }, { bits: BITS });
  if (topK !== undefined) {
    const [fewer, more] = [Math.max(4, topK >> 1), Math.min(2 * topK, problem.keyLength)];
    changes.push(
      { topK: fewer },
      { topK: more },
      { topK: more, clusters: scaled(0.5) },
      { topK: more, clusters: scaled(Math.SQRT1_2) },
      { topK: fewer, clusters: scaled(2) },
    );
  }
  return changes.map((change) => ({ method, parameters: { ...parameters, ...change } }));
}

/** What a trial is judged by. */
type Judged = Pick<Trial, 'error' | 'cost'>;

/** The better of two first: within the target the cheaper, outside the more exact. */
export function compareTrials(a: Judged, b: Judged, target: number): number {
  const [within, other] = [a.error <= target, b.error <= target];
  if (within !== other) return within ? -1 : 1;
  return within ? a.cost - b.cost || a.error - b.error : a.error - b.error || a.cost - b.cost;
}

/** Names are sorted, so that the same setting reached by two ways is one. */
const keyOf = ({ method, parameters }: Setting): string =>
  JSON.stringify([method, Object.entries(parameters).toSorted()]);

/**
 * @param measure the error of a setting
 * @returns all settings tried, in the order tried; none that could not pay
 */
export function searchSettings(
  problem: Problem,
  target: number,
  measure: (setting: Setting) => number,
): Trial[] {
  const limit = WORTHWHILE * countFlops('exact', problem, {}, false);
  const trials = new Map<string, Trial>();
  const attempt = (setting: Setting): Trial | undefined => {
    const key = keyOf(setting);
    const known = trials.get(key);
    if (known !== undefined) return known;
    const cost = modelCost(setting, problem);
    if (cost >= limit) return undefined;
    const trial = { ...setting, cost, error: measure(setting) };
    trials.set(key, trial);
    return trial;
  };
  const best = (candidates: readonly Trial[]): Trial =>
    candidates.toSorted((a, b) => compareTrials(a, b, target))[0]!;
  const attemptAll = (settings: readonly Setting[]): Trial[] =>
    settings.map(attempt).filter((trial) => trial !== undefined);

  const families = new Map<string, Trial[]>();
  for (const trial of attemptAll(gridOf(problem))) {
    const name = familyOf(trial);
    families.set(name, [...(families.get(name) ?? []), trial]);
  }
  const starts = Array.from(families.values(), best)
    .toSorted((a, b) => compareTrials(a, b, target))
    .slice(0, REFINED);
  for (const start of starts) {
    let current = start;
    for (let step = 0; step < STEPS; ++step) {
      const next = best([current, ...attemptAll(neighbors(current, problem))]);
      if (next === current) break;
      current = next;
    }
  }
  return Array.from(trials.values());
}

/** Those that no other beats in both error and `cost`, the most exact first. */
export function paretoFront<T extends Judged>(trials: readonly T[]): T[] {
  let cheapest = Infinity;
  return trials
    .toSorted((a, b) => a.error - b.error || a.cost - b.cost)
    .filter(({ cost }) => {
      const better = cost < cheapest;
      cheapest = Math.min(cheapest, cost);
      return better;
    });
}

/**
 * The settings that are worth a clock: of the front those around the target, and the cheapest
 * within it of every family, since operations are not time.
 */
export function finalists(trials: readonly Trial[], target: number, most: number): Trial[] {
  const within = trials.filter(({ error }) => error <= target).toSorted((a, b) => a.cost - b.cost);
  const firsts = new Map<string, Trial>();
  for (const trial of within) {
    if (!firsts.has(familyOf(trial))) firsts.set(familyOf(trial), trial);
  }
  const front = paretoFront(trials).toSorted(
    (a, b) => Math.abs(Math.log(a.error / target)) - Math.abs(Math.log(b.error / target)),
  );
  const chosen = new Set([...firsts.values(), ...within.slice(0, 3), ...front]);
  return Array.from(chosen)
    .slice(0, most)
    .toSorted((a, b) => a.error - b.error);
}
