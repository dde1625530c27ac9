/**
 * Recordings as one HTML page: machine and versions, charts, tables. Everything is in the file, so
 * it works offline; what draws the charts is bundled when the package is built.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  describeData,
  describeGroup,
  digits,
  formatError,
  formatMemory,
  formatTime,
  labelOf,
} from './labels';
import { tensorBytes } from './memory';
import { isMethod, methodOf } from './methods';
import type { Recording, Result } from './record';
import { compareTrials } from './search';
import { cellsOf } from './table';
import { UsageError } from './usage';

const escape = (text: string): string =>
  text.replace(/[&<>"']/g, (character) => `&#${character.codePointAt(0)};`);

/** Exact peers and exact attention count as approximations without error. */
const approximates = ({ case: { method } }: Result): boolean =>
  !isMethod(method) || methodOf(method).approximates;

/** A result as the charts need it. */
function pointOf(result: Result): object {
  const { case: one, time, accuracy, speedup, share, memory } = result;
  const { problem, threads, precision, gradient, data, seed = 0, device } = one;
  return {
    series: labelOf(one),
    length: problem.keyLength,
    threads,
    data: seed === 0 ? data : `${data}, seed ${seed}`,
    mode: [
      precision,
      ...(device === 'cpu' ? [] : [device]),
      ...(gradient ? ['with gradients'] : []),
    ].join(', '),
    approximates: approximates(result),
    time: time!.median,
    lower: time!.lower,
    upper: time!.upper,
    error: accuracy?.error,
    speedup,
    share,
    memory,
    tensors: tensorBytes(problem),
  };
}

/** The cases of all recordings; of a case that was measured twice, the last. */
function merge(recordings: readonly Recording[]): Result[] {
  const byCase = new Map<string, Result>();
  for (const result of recordings.flatMap(({ results }) => results)) {
    byCase.set(JSON.stringify(result.case), result);
  }
  return Array.from(byCase.values());
}

function groupsOf(results: readonly Result[]): Result[][] {
  const groups = new Map<string, Result[]>();
  for (const result of results) {
    const name = describeGroup(result.case);
    groups.set(name, [...(groups.get(name) ?? []), result]);
  }
  return Array.from(groups.values());
}

/** The largest error that the headline prefers speed within. */
const CLOSE = 0.1;

/**
 * One sentence about the longest comparison with exact attention: the fastest clustered attention
 * with an error within CLOSE; where there is none, the most exact.
 */
function lead(results: readonly Result[]): string {
  const [best] = results
    .flatMap(({ case: one, time, speedup, accuracy }) =>
      speedup !== undefined && accuracy?.error !== undefined && one.method !== 'exact'
        ? [{ one, cost: time!.median, speedup, error: accuracy.error }]
        : [],
    )
    .filter(({ one: { method } }) => isMethod(method))
    .toSorted(
      (a, b) =>
        b.one.problem.keyLength - a.one.problem.keyLength ||
        b.one.threads - a.one.threads ||
        compareTrials(a, b, CLOSE),
    );
  if (best === undefined) return 'Every time stands beside the error that it is bought with.';
  const { one, cost, speedup, error } = best;
  return `With ${one.problem.keyLength.toLocaleString('en')} tokens of ${escape(describeData(one))} and ${one.threads} thread${one.threads === 1 ? '' : 's'}, ${escape(labelOf(one))} takes
    <b>${formatTime(cost)}</b>: <b>${digits(speedup)} times</b> as fast as exact attention, with an error of
    <b>${formatError(error)}</b>. Every time stands beside the error that it is bought with.`;
}

function machineFacts(recordings: readonly Recording[]): string {
  const { machine, command } = recordings[0]!;
  const commits = new Set(recordings.map(({ machine: { commit } }) => commit).filter(Boolean));
  const days = recordings.map(({ started }) => String(started).slice(0, 10)).toSorted();
  const facts: [string, string][] = [
    ['Processor', `${machine.processor}, ${machine.cores} cores`],
    ['Memory', formatMemory(machine.memory)],
    ['Instruction set', machine.instructionSet],
    ['System', `${machine.system}, Node ${machine.node}`],
    [
      'cluster-attention',
      [machine.package, ...commits].join(', commit ') +
        (machine.build === 'local' ? ', built here' : ''),
    ],
    ['GPU', machine.cuda],
    ['Measured', Array.from(new Set(days)).join(', ')],
  ];
  const list = facts.map(([name, value]) => `<div><dt>${name}</dt><dd>${escape(value)}</dd></div>`);
  const commands = recordings.length === 1 ? [command] : recordings.map((one) => one.command);
  const states = recordings.some(({ complete }) => !complete)
    ? '<p><b>The run was interrupted; what is here was measured whole.</b></p>'
    : '';
  return `<dl class="machine">${list.join('')}</dl>
${states}<p>${commands.map((text) => `<code>${escape(text)}</code>`).join('<br>')}</p>`;
}

function tableOf(group: readonly Result[]): string {
  const measured = group.filter(({ status }) => status === 'measured');
  const others = group.filter(({ status }) => status !== 'measured');
  const [titles, ...rows] = cellsOf(measured) as [string[], ...string[][]];
  const head = titles.map((title) => `<th scope="col">${title}</th>`).join('');
  const body = rows.map(([label, ...cells]) => {
    const columns = cells.map((cell) => `<td>${escape(cell)}</td>`).join('');
    return `<tr><th scope="row">${escape(label!)}</th>${columns}</tr>`;
  });
  const absent = others.map(({ case: one, status, reason }) =>
    escape(`${labelOf(one)}: ${status}, ${reason ?? ''}`),
  );
  const table =
    measured.length > 0
      ? `<thead><tr>${head}</tr></thead>\n<tbody>\n${body.join('\n')}\n</tbody>`
      : '';
  return `<div class="scroll"><table><caption>${escape(describeGroup(group[0]!.case))}</caption>
${table}</table></div>${absent.length > 0 ? `\n<p class="absent">${absent.join('<br>')}</p>` : ''}`;
}

const CHARTS: readonly (readonly [id: string, title: string, text: string])[] = [
  [
    'time',
    'Time and length',
    'Median of a call, both axes logarithmic; the bar is the middle half of the samples. The exponents are fitted: exact attention grows like N², the others should like N.',
  ],
  [
    'pareto',
    'Speed and error',
    'Up is faster, left is more exact. What lies on the dotted stairs is beaten by nothing in both.',
  ],
  [
    'error',
    'Error and length',
    'Relative L2 distance of the output to exact attention on sampled rows. It belongs to these data.',
  ],
  [
    'memory',
    'Extra memory',
    'How far the process rises above its inputs and results during a call.',
  ],
  [
    'share',
    'Share of the peak',
    'Floating-point operations per second over those of multiply-adds in registers, measured in the same processes.',
  ],
  ['threads', 'Threads', 'At the chosen length; the dashed line is perfect.'],
];

const DEFINITIONS = `<dl>
<dt>error</dt><dd>‖output − exact‖₂ / ‖exact‖₂ over sampled rows, exact attention in double precision.</dd>
<dt>weights L1</dt><dd>Mean over the rows of Σ |weight − exact weight|, from 0 to 2.</dd>
<dt>recall</dt><dd>Share of the keys of largest exact weight that are among those of largest own weight.</dd>
<dt>rounding</dt><dd>Relative L2 distance to the method itself in double precision, given its groups and keys. A case that fails this check is not timed.</dd>
<dt>spread</dt><dd>Third quartile minus first, over the median.</dd>
<dt>GFLOP/s</dt><dd>By the formulas in docs/benchmark.md; what a method spends on grouping, selecting and exponentials is time without operations.</dd>
</dl>`;

function asset(name: string): string {
  try {
    return readFileSync(join(__dirname, name), 'utf8');
  } catch {
    throw new UsageError(
      `the report needs dist/bench/${name}, which is not there: npm run build:lib`,
    );
  }
}

/** @param recordings at least one, all of one machine */
export function writeReport(recordings: readonly Recording[]): string {
  const processors = new Set(recordings.map(({ machine }) => machine.processor));
  if (processors.size > 1) {
    throw new UsageError(`one report shows one machine, received ${[...processors].join(' and ')}`);
  }
  const results = merge(recordings);
  const measured = results.filter(({ status }) => status === 'measured');
  const series = Array.from(new Set(measured.map(({ case: one }) => labelOf(one))));
  const data = JSON.stringify({ series, points: measured.map(pointOf) });
  const figures = CHARTS.map(
    ([id, title, text]) =>
      `<section class="chart" id="${id}"><h2>${title}</h2><p>${text}</p><div class="plot"></div></section>`,
  );
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Attention: time, error and memory</title>
<style>
${asset('page.css')}</style>
</head>
<body>
<main>
<p class="eyebrow">cluster-attention bench</p>
<h1>How fast, and how far from exact</h1>
<p class="lead">${lead(measured)}</p>
${machineFacts(recordings)}
<div class="controls"><div class="legend"></div><div class="choices"></div></div>
<div class="charts">
${figures.join('\n')}
</div>
<h2 class="section">All results</h2>
${groupsOf(results).map(tableOf).join('\n')}
<footer>${DEFINITIONS}</footer>
</main>
<script type="application/json" id="data">${data.replaceAll('<', '\\u003c')}</script>
<script>
${asset('page.js')}</script>
</body>
</html>
`;
}
