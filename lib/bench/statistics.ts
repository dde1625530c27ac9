/** Summaries of repeated measurements. */

/** A quantile of sorted numbers, linear between neighbours (type 7, as in R and NumPy). */
function quantile(sorted: readonly number[], share: number): number {
  const position = share * (sorted.length - 1);
  const low = Math.floor(position);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low]! + (position - low) * (sorted[high]! - sorted[low]!);
}

export interface Summary {
  readonly median: number;
  /** First and third quartile: half of the samples lie between them. */
  readonly lower: number;
  readonly upper: number;
}

/** @param samples at least one */
export function summarize(samples: readonly number[]): Summary {
  const sorted = samples.toSorted((a, b) => a - b);
  return {
    median: quantile(sorted, 0.5),
    lower: quantile(sorted, 0.25),
    upper: quantile(sorted, 0.75),
  };
}

export const median = (samples: readonly number[]): number => summarize(samples).median;

/** Whether the middle halves of two measurements have no number in common. */
export function isApart(a: Summary, b: Summary): boolean {
  return a.upper < b.lower || b.upper < a.lower;
}

/**
 * The exponent p of y ≈ c·xᵖ: slope of the least-squares line through the logarithms; undefined
 * with fewer than two different x.
 */
export function fittedExponent(points: readonly (readonly [number, number])[]): number | undefined {
  const logs = points.map(([x, y]) => [Math.log(x), Math.log(y)] as const);
  const mean = (at: 0 | 1): number => logs.reduce((sum, log) => sum + log[at], 0) / logs.length;
  const [meanX, meanY] = [mean(0), mean(1)];
  let covariance = 0;
  let variance = 0;
  for (const [x, y] of logs) {
    covariance += (x - meanX) * (y - meanY);
    variance += (x - meanX) ** 2;
  }
  return variance > 0 ? covariance / variance : undefined;
}
