/** Results as text: one table per group, every speed beside its error. */
import {
  describeGroup,
  digits,
  formatError,
  formatMemory,
  formatShare,
  formatTime,
  labelOf,
} from './labels';
import type { Result } from './record';

type Column = readonly [title: string, cell: (result: Result) => string | undefined];

function when<T>(value: T | undefined, format: (value: T) => string): string | undefined {
  return value === undefined ? undefined : format(value);
}

/** The columns; those that no result fills are left out. */
const COLUMNS: readonly Column[] = [
  ['method', ({ case: one }) => labelOf(one)],
  ['time', ({ time }) => when(time, ({ median }) => formatTime(median))],
  [
    'spread',
    ({ time }) => when(time, ({ median, lower, upper }) => formatShare((upper - lower) / median)),
  ],
  ['speed-up', ({ speedup }) => when(speedup, (x) => `${digits(x)}×`)],
  ['error', ({ accuracy }) => when(accuracy?.error, formatError)],
  ['weights L1', ({ accuracy }) => when(accuracy?.weights, formatError)],
  ['recall', ({ accuracy }) => when(accuracy?.recall, formatShare)],
  ['gradient error', ({ accuracy }) => when(accuracy?.gradientError, formatError)],
  ['rounding', ({ accuracy }) => when(accuracy?.rounding, formatError)],
  ['GFLOP/s', ({ gflops }) => when(gflops, digits)],
  ['of peak', ({ share }) => when(share, formatShare)],
  ['extra memory', ({ memory }) => when(memory, formatMemory)],
];

/** Cells of the results, a title row first. */
export function cellsOf(results: readonly Result[]): string[][] {
  const columns = COLUMNS.map(([title, cell]) => ({ title, cells: results.map(cell) })).filter(
    ({ cells }) => cells.some((cell) => cell !== undefined),
  );
  return [
    columns.map(({ title }) => title),
    ...results.map((_, row) => columns.map(({ cells }) => cells[row] ?? '–')),
  ];
}

function alignColumns(rows: readonly string[][]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const pad = (cell: string, column: number): string =>
    column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!);
  return rows.map((row) => row.map(pad).join('  ').trimEnd()).join('\n');
}

/** The table of one group, and a line for each case that was not measured. */
export function formatGroup(results: readonly Result[]): string {
  if (results.length === 0) return '';
  const measured = results.filter(({ status }) => status === 'measured');
  const others = results.filter(({ status }) => status !== 'measured');
  return [
    describeGroup(results[0]!.case),
    ...(measured.length > 0 ? [alignColumns(cellsOf(measured))] : []),
    ...others.map(({ case: one, status, reason }) => `${labelOf(one)}: ${status}, ${reason ?? ''}`),
  ].join('\n');
}

/** What the columns mean, for the end of the output. */
export function legend(results: readonly Result[]): string {
  const k = results.find(({ accuracy }) => accuracy?.k !== undefined)?.accuracy?.k;
  return `time: median of a call, spread: its middle half; error: relative L2 distance to exact attention on sampled
rows; weights L1: of the attention weights, 0 to 2; recall: of the ${k ?? 'k'} keys of largest exact weight; rounding:
distance to the method itself in double precision. "–" under error: the method does not approximate attention.`;
}
