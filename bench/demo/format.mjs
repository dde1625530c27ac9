// Figures as text, the same on the terminal, in the PNG and on the page.

export function formatTime(milliseconds) {
  if (milliseconds >= 10_000) return `${(milliseconds / 1000).toFixed(1)} s`;
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toFixed(2)} s`;
  return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
}

export const formatSpeedup = (ratio) => `${ratio.toFixed(ratio < 99.5 ? 1 : 0)}×`;

export const formatMemory = (bytes) =>
  bytes < 2 ** 30 ? `${(bytes / 2 ** 20).toFixed(1)} MiB` : `${(bytes / 2 ** 30).toFixed(1)} GiB`;

export const formatDecibel = (value) => (value === Infinity ? '∞ dB' : `${value.toFixed(2)} dB`);

const formatLevels = (value) => value.toFixed(2);

/** 16384 as 16,384 */
export const formatCount = (value) => value.toLocaleString('en-US');

/** The columns of the table: heading, text of a row. */
export const COLUMNS = [
  { heading: 'method', text: (row) => row.label },
  { heading: 'time', text: (row) => formatTime(row.milliseconds) },
  { heading: 'speed-up', text: (row) => optional(row.speedup, formatSpeedup) },
  { heading: 'extra memory', text: (row) => formatMemory(row.memory) },
  { heading: 'PSNR before', text: (row) => optional(row.before, formatDecibel) },
  { heading: 'after', text: (row) => optional(row.after, formatDecibel) },
  { heading: 'error against exact', text: (row) => optional(row.error, formatLevels) },
];

function optional(value, format) {
  return value === undefined ? '–' : format(value);
}

/** The table as lines of text, the first column to the left, the others to the right. */
export function formatTable(rows) {
  const cells = [
    COLUMNS.map(({ heading }) => heading),
    ...rows.map((row) => COLUMNS.map(({ text }) => text(row))),
  ];
  const widths = COLUMNS.map((_, column) => Math.max(...cells.map((line) => line[column].length)));
  const pad = (text, column) =>
    column === 0 ? text.padEnd(widths[column]) : text.padStart(widths[column]);
  const lines = cells.map((line) => line.map(pad).join('  ').trimEnd());
  const rule = widths.map((width) => '─'.repeat(width)).join('  ');
  return [lines[0], rule, ...lines.slice(1)].join('\n');
}
