/** The learning curves of all runs as one page that needs no network. */
import { buildSync } from 'esbuild';
import type { Outcome } from './trainer';

const SCRIPT = `
import * as Plot from '@observablehq/plot';
const outcomes = JSON.parse(document.querySelector('#outcomes').textContent);
const records = outcomes.flatMap(({ attention, history }) =>
  history.map((record) => ({ attention, ...record })));
const chart = (y, label, type) => Plot.plot({
  width: 900, height: 380, marginLeft: 60, grid: true,
  color: { legend: true, scheme: 'observable10', domain: outcomes.map((o) => o.attention) },
  x: { label: 'step' }, y: { label, type, tickFormat: '~r' },
  marks: [Plot.ruleY(type === 'log' ? [] : [0]),
    Plot.lineY(records, { x: 'step', y, stroke: 'attention', strokeWidth: 2 })],
});
document.querySelector('#accuracy').append(chart('accuracy', 'accuracy (while training)'));
document.querySelector('#loss').append(chart('loss', 'loss', 'log'));
`;

const STYLE = `
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 58rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 0.3rem 0.6rem; text-align: right; border-bottom: 1px solid #8885; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 2rem 0; overflow-x: auto; }
`;

export const COLUMNS = ['attention', 'accuracy', 'loss', 'ms per step', 'memory, MB', 'parameters'];

/** The cells of a row of the closing table. */
export function cells(outcome: Outcome): string[] {
  return [
    outcome.attention,
    `${(100 * outcome.accuracy).toFixed(2)} %`,
    outcome.loss.toFixed(4),
    outcome.millisecondsPerStep?.toFixed(1) ?? '–',
    outcome.megabytes.toFixed(0),
    String(outcome.parameters),
  ];
}

export function chartPage(title: string, outcomes: readonly Outcome[]): string {
  const script = buildSync({
    stdin: { contents: SCRIPT, resolveDir: __dirname },
    bundle: true,
    minify: true,
    write: false,
    logLevel: 'error',
  }).outputFiles[0]!.text;
  const row = (tag: string, texts: readonly string[]): string =>
    `<tr>${texts.map((text) => `<${tag}>${text}</${tag}>`).join('')}</tr>`;
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title>
<style>${STYLE}</style>
<h1>${title}</h1>
<figure><table>${row('th', COLUMNS)}${outcomes.map((outcome) => row('td', cells(outcome))).join('')}</table></figure>
<figure id="accuracy"></figure>
<figure id="loss"></figure>
<script type="application/json" id="outcomes">${JSON.stringify(outcomes)}</script>
<script>${script.replaceAll('</script', '<\\/script')}</script>
</html>
`;
}
