// The report as one self-contained HTML page: pictures as data URIs, no network.

import { readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { basename } from 'node:path';

import {
  COLUMNS,
  formatCount,
  formatDecibel,
  formatMemory,
  formatSpeedup,
  formatTime,
} from './format.mjs';

const STYLE = readFileSync(new URL('page/style.css', import.meta.url), 'utf8');
const SCRIPT = readFileSync(new URL('page/script.js', import.meta.url), 'utf8');

const escape = (text) =>
  String(text).replace(/[&<>"']/g, (character) => `&#${character.codePointAt(0)};`);

const dataUri = (png) => `data:image/png;base64,${png.toString('base64')}`;

/** Everything that can be put side by side: the original, the noisy one, and the results. */
function views({ original, noisy, rows }) {
  return [
    { id: 'original', label: 'Original', note: 'before the noise', png: original.png },
    { id: 'noisy', label: 'With noise', note: formatDecibel(noisy.psnr), png: noisy.png },
    ...rows.map((row) => ({
      ...row,
      note: `${formatDecibel(row.after)} · ${formatTime(row.milliseconds)}`,
    })),
  ];
}

function lead({ picture, rows }) {
  const tokens = formatCount(picture.width * picture.height);
  const exact = rows[0];
  const best = rows.find((row) => row.best);
  const gap = exact.after - best.after;
  const closeness =
    gap > 0.005 ? `within ${gap.toFixed(2)} dB of it` : 'without losing a hundredth of a decibel';
  const pace =
    best.speedup >= 1.05 ? `${formatSpeedup(best.speedup)} faster` : 'no faster at this size';
  return `Each of the ${tokens} pixels attends to all ${tokens}. Exact attention takes
    <b>${formatTime(exact.milliseconds)}</b>; improved clustered attention
    <b>${formatTime(best.milliseconds)}</b>, ${pace}, and ${closeness}.`;
}

function comparison(all, { width, height }) {
  const choices = (selected) =>
    all.map(({ id, label }) => {
      const mark = id === selected ? ' selected' : '';
      return `<option value="${id}"${mark}>${escape(label)}</option>`;
    });
  const best = all.find((view) => view.best);
  const noisy = all.find(({ id }) => id === 'noisy');
  return `<section class="compare">
  <div class="stage" style="aspect-ratio: ${width} / ${height}; --ratio: ${width / height}">
    <img class="after" alt="${escape(best.label)}" src="${dataUri(best.png)}">
    <img class="before" alt="${escape(noisy.label)}" src="${dataUri(noisy.png)}">
    <i class="handle" aria-hidden="true"></i>
    <input type="range" min="0" max="100" step="0.1" value="50"
      aria-label="How much of the left picture is shown">
  </div>
  <div class="choices">
    <label>left <select name="before">${choices('noisy').join('')}</select></label>
    <label>right <select name="after">${choices(best.id).join('')}</select></label>
  </div>
</section>`;
}

function table(rows, pooling) {
  const fastest = Math.max(...rows.map((row) => row.speedup));
  const sharpest = Math.max(...rows.map((row) => row.after));
  const share = {
    'speed-up': (row) => row.speedup && row.speedup / fastest,
    after: (row) => row.after && (row.after - row.before) / (sharpest - row.before),
  };
  const cell = (row, { heading, text }, index) => {
    if (index === 0) return `<th scope="row">${escape(text(row))}</th>`;
    const part = share[heading]?.(row);
    const bar = part > 0 ? ` class="bar" style="--share: ${(100 * part).toFixed(1)}%"` : '';
    return `<td${bar}>${escape(text(row))}</td>`;
  };
  const line = (row) =>
    `<tr${row.best ? ' class="best"' : ''}>${COLUMNS.map((column, index) => cell(row, column, index)).join('')}</tr>`;
  return `<div class="scroll"><table>
<thead><tr>${COLUMNS.map(({ heading }) => `<th scope="col">${heading}</th>`).join('')}</tr></thead>
<tbody>${[...rows, pooling].map(line).join('\n')}</tbody>
</table></div>`;
}

function gallery(all, { width, height }) {
  const figure = ({ id, label, note, png, best }) => `<figure${best ? ' class="best"' : ''}>
  <div class="lens" style="aspect-ratio: ${width} / ${height}"><img data-view="${id}" alt="${escape(label)}" src="${dataUri(png)}"></div>
  <figcaption><b>${escape(label)}</b><span>${escape(note)}</span></figcaption>
</figure>`;
  return `<section class="gallery" aria-label="All pictures">${all.map(figure).join('\n')}</section>`;
}

function explanation({ settings, picture }) {
  const { clusters, topK, patch } = settings;
  const tokens = picture.width * picture.height;
  return `<section class="prose">
<h2>How a picture becomes attention</h2>
<p>Non-local means replaces each pixel by a mean of all pixels, weighted by how alike the
${patch}×${patch} patches around them are. That <em>is</em> softmax attention: patches are queries and
keys, pixels are values, and one extra dimension carries the −|k|² of the distance.</p>
<p class="formula">exp(−|p<sub>i</sub> − p<sub>j</sub>|² ⁄ h²) ∝ exp(2 ⁄ h² · ⟨[p<sub>i</sub>, 1], [p<sub>j</sub>, −½|p<sub>j</sub>|²]⟩)</p>
<p><b>Exact</b> attention compares ${formatCount(tokens)} queries with ${formatCount(tokens)} keys; the matrix alone would be
${formatMemory(tokens * tokens * 4)}, so it is never stored. <b>Clustered</b> attention groups the queries
into ${formatCount(clusters)} clusters and lets only the mean of each attend. <b>Improved</b> clustered attention
then lets every query attend exactly to the ${formatCount(topK)} keys that matter most to its cluster.
Clusters come from 63-bit hashes (<b>Hamming</b>) or from the patches themselves
(<b>Euclidean</b>).</p>
</section>`;
}

function painted({ png, strokes, row }) {
  return `<section class="painted">
<img alt="The picture as a painting of ${strokes} strokes" src="${dataUri(png)}">
<div><h2>Painted by centroids</h2>
<p><code>centroidPool</code> gathers all pixels around ${formatCount(strokes)} centroids, by colour and
place, in ${formatTime(row.milliseconds)}. Each centroid is one brush stroke: it gives the colour and the place, and
the pixels that chose it give the length, the width and the direction. What is painted is the picture
denoised by improved clustered attention.</p></div>
</section>`;
}

function colophon({ settings, picture, info }) {
  const name = settings.picture === undefined ? 'the test picture' : basename(settings.picture);
  const { size, noise, clusters, topK, patch, strength, seed } = settings;
  const options = `--size ${size} --noise ${noise} --clusters ${clusters} --topk ${topK} --patch ${patch} --strength ${strength} --seed ${seed}`;
  const argument = settings.picture === undefined ? '' : `${escape(basename(settings.picture))} `;
  return `<footer>
<p>${escape(name)}, ${picture.width}×${picture.height} · ${escape(cpus()[0]?.model.trim() ?? 'unknown processor')},
${info.threads} threads, ${escape(info.instructionSets.used)} · cluster-attention ${escape(info.version)}, Node ${process.version}</p>
<p>Times are of the asynchronous call, from call to result, after a warm-up: one run of exact
attention, the median of five of the others. Extra memory is how far a fresh process rises above its
inputs and outputs during one call. PSNR and the error (root mean square, in grey levels of 255) are
those of the pictures as saved.</p>
<p><code>npm run demo -- ${argument}${options}</code></p>
</footer>`;
}

/**
 * @param {object} report
 * @returns {string} the page
 */
export function writePage(report) {
  const all = views(report);
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>A picture denoised by attention</title>
<style>
${STYLE}</style>
</head>
<body>
<main>
<div class="hero">
<header>
<p class="eyebrow">cluster-attention</p>
<h1>A picture, denoised by attention</h1>
<p class="lead">${lead(report)}</p>
<p class="hint">Move the handle, or choose what it compares.</p>
</header>
${comparison(all, report.picture)}
</div>
${table(report.rows, report.painting.row)}
<h2>Look closely</h2>
<p class="hint">Move over a picture to magnify all of them in the same place.</p>
${gallery(all, report.picture)}
${explanation(report)}
${painted(report.painting)}
${colophon(report)}
</main>
<script>
${SCRIPT}</script>
</body>
</html>
`;
}
