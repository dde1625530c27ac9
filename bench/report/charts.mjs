// The charts. Each takes the visible points and the chosen setting, and gives elements, or undefined
// when there is nothing to draw.

import * as Plot from '@observablehq/plot';
import {
  digits,
  formatError,
  formatMemory,
  formatShare,
  formatTime,
} from '../../lib/bench/labels.ts';
import { fittedExponent } from '../../lib/bench/statistics.ts';

const HEIGHT = 340;

/** As in the tables, without the zeros that line up their columns: 10 ms for 10.0 ms. */
const short = (format) => (value) => format(value).replace(/\.0+(?!\d)|(\.\d*[1-9])0+(?!\d)/, '$1');

const bytes = short(formatMemory);
const milliseconds = short(formatTime);
const percent = formatShare;
const times = short((value) => `${digits(value)}×`);
const count = (value) => value.toLocaleString('en');
const errorOf = short(formatError);

/** Points of the chosen setting; `except` names the settings that the chart spreads out. */
function chosen(points, choice, ...except) {
  const names = Object.keys(choice).filter((name) => !except.includes(name));
  return points.filter((point) => names.every((name) => point[name] === choice[name]));
}

const different = (points, name) => [...new Set(points.map((point) => point[name]))];

/** What all charts share: the size, the series' colours, no frame. */
function plot({ width, colors }, options) {
  return Plot.plot({
    width,
    height: width < 420 ? HEIGHT - 50 : HEIGHT,
    marginLeft: 62,
    marginRight: 18,
    marginBottom: 42,
    insetTop: 6,
    color: { domain: [...colors.keys()], range: [...colors.values()] },
    style: { background: 'none', color: 'var(--ink)', fontSize: '12px', overflow: 'visible' },
    ...options,
    y: { tickSize: 0, ...options.y },
  });
}

/** The axis of lengths: a tick at each length that was measured. */
const lengths = (points) => ({
  type: 'log',
  base: 2,
  label: 'N (tokens) →',
  ticks: different(points, 'length').toSorted((a, b) => a - b),
  tickFormat: count,
  inset: 8,
});

const channels = { series: 'series' };
const tip = (format) => ({ channels, tip: { format: { ...format, stroke: false, series: true } } });

/** Lines with dots, one per series. */
const lines = (points, y, format) => [
  Plot.gridY({ stroke: 'var(--line)', strokeOpacity: 1 }),
  Plot.lineY(points, { x: 'length', y, stroke: 'series', strokeWidth: 2 }),
  Plot.dot(points, {
    x: 'length',
    y,
    stroke: 'series',
    fill: 'var(--card)',
    r: 3.5,
    strokeWidth: 2,
    ...tip({ x: count, y: format }),
  }),
];

function exponents(points, colors) {
  const list = document.createElement('p');
  list.className = 'exponents';
  for (const series of different(points, 'series')) {
    const own = points.filter((point) => point.series === series);
    const exponent = fittedExponent(own.map(({ length, time }) => [length, time]));
    if (exponent === undefined) continue;
    const item = document.createElement('span');
    item.style.setProperty('--color', colors.get(series));
    item.textContent = `${series}: N^${exponent.toFixed(2)}`;
    list.append(item);
  }
  return list;
}

function timeChart({ points, choice, ...view }) {
  const shown = chosen(points, choice, 'length');
  if (shown.length === 0) return undefined;
  const chart = plot(view, {
    x: lengths(shown),
    y: { type: 'log', label: '↑ time of a call', tickFormat: milliseconds, ticks: 5 },
    marks: [
      Plot.ruleX(shown, {
        x: 'length',
        y1: 'lower',
        y2: 'upper',
        stroke: 'series',
        strokeWidth: 5,
        strokeOpacity: 0.35,
      }),
      ...lines(shown, 'time', milliseconds),
    ],
  });
  return [chart, exponents(shown, view.colors)];
}

/** Points that no other beats in both: the most speed for their error. */
function front(points) {
  const sorted = points.toSorted((a, b) => a.error - b.error || b.speedup - a.speedup);
  let best = -Infinity;
  return sorted.filter(({ speedup }) => {
    const better = speedup > best;
    best = Math.max(best, speedup);
    return better;
  });
}

function paretoChart({ points, choice, ...view }) {
  const shown = chosen(points, choice).filter(
    ({ speedup, error }) => speedup && error !== undefined,
  );
  if (shown.length < 2) return undefined;
  return [
    plot(view, {
      x: {
        type: 'sqrt', // shows small errors apart, and zero
        label: 'error (relative L2) →',
        tickFormat: errorOf,
        ticks: 6,
        zero: true,
        inset: 12,
      },
      y: {
        type: 'log',
        label: '↑ speed-up over exact attention',
        tickFormat: times,
        ticks: 5,
        inset: 10,
      },
      marks: [
        Plot.gridY({ stroke: 'var(--line)', strokeOpacity: 1 }),
        Plot.ruleY([1], { stroke: 'var(--faded)', strokeDasharray: '3 3' }),
        Plot.line(front(shown), {
          x: 'error',
          y: 'speedup',
          stroke: 'var(--faded)',
          strokeDasharray: '1 4',
          curve: 'step-after',
          strokeLinecap: 'round',
          strokeWidth: 1.5,
        }),
        Plot.dot(shown, {
          x: 'error',
          y: 'speedup',
          fill: 'series',
          r: 6,
          ...tip({ x: errorOf, y: times, fill: false }),
        }),
      ],
    }),
  ];
}

function errorChart({ points, choice, ...view }) {
  const shown = chosen(points, choice, 'length').filter(
    ({ approximates, error }) => approximates && error > 1e-3,
  );
  if (shown.length === 0) return undefined;
  return [
    plot(view, {
      x: lengths(shown),
      y: { label: '↑ error (relative L2)', zero: true, nice: true, ticks: 6 },
      marks: [Plot.ruleY([0], { stroke: 'var(--faded)' }), ...lines(shown, 'error', errorOf)],
    }),
  ];
}

function memoryChart({ points, choice, ...view }) {
  const shown = chosen(points, choice, 'length').filter(({ memory }) => memory > 0);
  if (shown.length === 0) return undefined;
  const tensors = different(shown, 'length').map((length) =>
    shown.find((point) => point.length === length),
  );
  return [
    plot(view, {
      x: lengths(shown),
      y: { type: 'log', base: 2, label: '↑ extra memory of a call', tickFormat: bytes, ticks: 6 },
      marks: [
        Plot.lineY(tensors, {
          x: 'length',
          y: 'tensors',
          stroke: 'var(--faded)',
          strokeDasharray: '3 4',
          sort: 'length',
        }),
        Plot.text([tensors.toSorted((a, b) => a.length - b.length)[0]], {
          x: 'length',
          y: 'tensors',
          text: ['inputs and output'],
          fill: 'var(--faded)',
          textAnchor: 'start',
          dy: -9,
        }),
        ...lines(shown, 'memory', bytes),
      ],
    }),
  ];
}

function shareChart({ points, choice, ...view }) {
  const shown = chosen(points, choice, 'length').filter(({ share }) => share !== undefined);
  if (shown.length === 0) return undefined;
  return [
    plot(view, {
      x: lengths(shown),
      y: {
        label: '↑ share of the multiply-add peak',
        domain: [0, 1],
        tickFormat: percent,
        ticks: 5,
      },
      marks: lines(shown, 'share', percent),
    }),
  ];
}

function threadsChart({ points, choice, ...view }) {
  const same = chosen(points, choice, 'threads');
  const least = Math.min(...different(same, 'threads'));
  const base = new Map(
    same.filter(({ threads }) => threads === least).map((point) => [point.series, point.time]),
  );
  const shown = same
    .filter(({ series }) => base.has(series))
    .map((point) => ({ ...point, gain: base.get(point.series) / point.time }));
  const counts = different(shown, 'threads').toSorted((a, b) => a - b);
  if (counts.length < 2) return undefined;
  return [
    plot(view, {
      x: { type: 'log', base: 2, label: 'threads →', ticks: counts, tickFormat: count, inset: 12 },
      y: {
        label: `↑ times as fast as with ${least} thread${least === 1 ? '' : 's'}`,
        zero: true,
        nice: true,
        tickFormat: times,
      },
      marks: [
        Plot.gridY({ stroke: 'var(--line)', strokeOpacity: 1 }),
        Plot.lineY(counts, {
          x: (n) => n,
          y: (n) => n / least,
          stroke: 'var(--faded)',
          strokeDasharray: '3 4',
        }),
        Plot.lineY(shown, {
          x: 'threads',
          y: 'gain',
          stroke: 'series',
          strokeWidth: 2,
          sort: 'threads',
        }),
        Plot.dot(shown, {
          x: 'threads',
          y: 'gain',
          stroke: 'series',
          fill: 'var(--card)',
          r: 3.5,
          strokeWidth: 2,
          ...tip({ x: count, y: times }),
        }),
      ],
    }),
  ];
}

export const charts = [
  { id: 'time', make: timeChart },
  { id: 'pareto', make: paretoChart },
  { id: 'error', make: errorChart },
  { id: 'memory', make: memoryChart },
  { id: 'share', make: shareChart },
  { id: 'threads', make: threadsChart },
];
