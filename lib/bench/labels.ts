/** How cases and numbers are written, in tables, in the report and, bundled, in its charts. */
import type { Case, Parameters, Problem } from './record';

function describeParameters(method: string, parameters: Parameters): string {
  const { clusters, topK, grouping, threshold, bits, iterations, centroids, clusterSize } =
    parameters;
  const parts = [
    clusters !== undefined && method !== 'cast' && `C=${clusters}`,
    topK !== undefined && `k=${topK}`,
    grouping === 'euclidean' && 'euclidean',
    threshold === 'data' && 'data thresholds',
    bits !== undefined && bits !== 63 && `${bits} bits`,
    iterations !== undefined && `${iterations} iteration${iterations === 1 ? '' : 's'}`,
    centroids !== undefined && `M=${centroids}`,
    clusterSize !== undefined && `κ=${clusterSize}`,
  ];
  return parts.filter((part) => part !== false).join(', ');
}

/** "improved C=100, k=32", a peer's with its name before it. */
export function labelOf({ implementation, method, parameters }: Case): string {
  const peer = implementation === 'cluster-attention' ? '' : `${implementation} `;
  return `${peer}${method} ${describeParameters(method, parameters)}`.trim();
}

/** What the inputs are, "mixture data, seed 7". */
export const describeData = ({ data, seed = 0 }: Case): string =>
  `${data} data${seed === 0 ? '' : `, seed ${seed}`}`;

/** What all cases of a group have in common. */
export function describeGroup(one: Case): string {
  const { problem, threads, device, precision, gradient } = one;
  const { batch, heads, queryLength, keyLength, headDim, valueDim } = problem as Problem;
  const length = queryLength === keyLength ? `N=${keyLength}` : `L=${queryLength} S=${keyLength}`;
  const dim = headDim === valueDim ? `D=${headDim}` : `D=${headDim} E=${valueDim}`;
  return [
    `B=${batch} H=${heads} ${length} ${dim}`,
    gradient ? `${precision}, forward and backward` : precision,
    `${threads} thread${threads === 1 ? '' : 's'}`,
    ...(device === 'cpu' ? [] : [device]),
    describeData(one),
  ].join(', ');
}

/** Three significant digits without an exponent. */
export function digits(x: number): string {
  if (x === 0) return '0';
  const decimals = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(x))));
  return x.toFixed(Math.min(decimals, 6));
}

export function formatTime(milliseconds: number): string {
  if (milliseconds < 1) return `${digits(milliseconds * 1000)} µs`;
  return milliseconds < 10_000 ? `${digits(milliseconds)} ms` : `${digits(milliseconds / 1000)} s`;
}

export const formatShare = (share: number): string => `${(100 * share).toFixed(0)} %`;

export function formatMemory(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB'];
  const unit = Math.max(0, Math.min(Math.floor(Math.log2(bytes) / 10), 3));
  return `${digits(bytes / 1024 ** unit)} ${units[unit]}`;
}

/** Errors span many orders of magnitude. */
export const formatError = (error: number): string =>
  error === 0 || error >= 1e-3 ? digits(error) : error.toExponential(0);
