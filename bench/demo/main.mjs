// Denoises a picture by attention and shows what each kind costs: a table, a PNG and a page.

import { relative } from 'node:path';

import { prepareFolder, writeFiles } from './files.mjs';
import { formatDecibel, formatTable, formatTime } from './format.mjs';
import { measureExtraMemory } from './memory.mjs';
import { ATTENTIONS, BEST, POOLING, timeMethod } from './methods.mjs';
import { nonLocalMeans } from './non-local-means.mjs';
import { parseOptions, UsageError } from './options.mjs';
import { writePage } from './page.mjs';
import { paint, paintingProblem } from './painting.mjs';
import { addNoise, difference, drawPicture, psnr, readPicture, toPng } from './picture.mjs';
import { Progress } from './progress.mjs';
import { drawSheet } from './sheet.mjs';

const PAINTING_SIZE = 768;

/** A path from here, unless it leads elsewhere. */
function shorten(path) {
  const fromHere = relative('', path);
  return fromHere.startsWith('..') ? path : fromHere;
}

async function loadPackage() {
  try {
    return (await import('cluster-attention')).default;
  } catch (error) {
    throw new UsageError(
      `the package is not built: npm run build (${error.code ?? error.message})`,
    );
  }
}

/** Runs one kind of attention on the noisy picture; returns its row of the table. */
async function runAttention(api, method, problem, { settings, original, noisy, progress }) {
  progress.begin(method.label);
  const options = { ...problem, ...method.options(settings) };
  const counted = () => progress.step();
  const { result, milliseconds } = await timeMethod(api, method, options, counted);
  const picture = { ...original, pixels: result };
  const after = psnr(picture, original);
  progress.note(`${formatTime(milliseconds)}, ${formatDecibel(after)}`);
  return {
    ...method,
    problem: options,
    outputLength: result.length,
    picture,
    png: await toPng(picture),
    milliseconds,
    before: psnr(noisy, original),
    after,
    best: method.id === BEST,
  };
}

/** One after the other, and each against the first, which is exact. */
async function runAttentions(api, problem, context) {
  const rows = [];
  for (const method of ATTENTIONS) {
    // oxlint-disable-next-line no-await-in-loop -- runs that overlap cannot be timed
    rows.push(await runAttention(api, method, problem, context));
  }
  const [exact] = rows;
  for (const row of rows) {
    row.speedup = exact.milliseconds / row.milliseconds;
    row.error = difference(row.picture, exact.picture);
  }
  return rows;
}

/** Pools the best result and paints it. */
async function runPainting(api, picture, { settings, progress }) {
  progress.begin(POOLING.label);
  const problem = paintingProblem(picture, settings.seed);
  const options = { ...problem, details: true };
  const counted = () => progress.step();
  const { result, milliseconds } = await timeMethod(api, POOLING, options, counted);
  const { png, strokes } = await paint(picture, result, PAINTING_SIZE);
  progress.note(`${formatTime(milliseconds)}, ${strokes} strokes`);
  const outputLength = result.output.length;
  return { png, strokes, row: { ...POOLING, milliseconds, problem, outputLength } };
}

async function runAll(settings, original, folder, progress) {
  const api = await loadPackage();
  const noisy = addNoise(original, settings.noise, settings.seed);
  const context = { settings, original, noisy, progress };
  const rows = await runAttentions(api, nonLocalMeans(noisy, settings), context);
  const painting = await runPainting(api, rows.find((row) => row.best).picture, context);
  for (const row of [...rows, painting.row]) {
    progress.begin(`Memory of ${row.label}`);
    // oxlint-disable-next-line no-await-in-loop -- side by side they would compete for memory
    row.memory = await measureExtraMemory(row.operation, row.problem, row.outputLength);
    progress.step();
  }
  progress.begin('Writing');
  const report = {
    settings,
    rows,
    painting,
    picture: original,
    original: { png: await toPng(original) },
    noisy: { png: await toPng(noisy), psnr: rows[0].before },
    info: api.info(),
  };
  const files = { 'demo.png': await drawSheet(report), 'demo.html': writePage(report) };
  const paths = writeFiles(folder, files);
  progress.step();
  return { report, paths };
}

async function main(argv) {
  const settings = parseOptions(argv);
  if (settings.help) return process.stdout.write(settings.help);
  const steps = [...ATTENTIONS, POOLING].reduce((sum, { runs }) => sum + runs + 1, 2);
  const drawn = settings.picture === undefined;
  // Reading checks the picture before the folder is made and the bar is shown.
  const read = drawn ? undefined : await readPicture(settings.picture, settings.size);
  const folder = prepareFolder(settings.output);
  const progress = new Progress(steps, process.stdout);
  try {
    progress.begin(drawn ? 'Drawing the test picture' : 'Reading the picture');
    const original = read ?? (await drawPicture(settings.size));
    const tokens = original.width * original.height;
    settings.clusters = Math.min(settings.clusters ?? Math.round(2 * Math.sqrt(tokens)), tokens);
    settings.topK = Math.min(settings.topk, tokens);
    progress.step();
    progress.note(`${original.width} × ${original.height} pixels`);
    const { report, paths } = await runAll(settings, original, folder, progress);
    progress.stop();
    const table = formatTable([...report.rows, report.painting.row]);
    process.stdout.write(`\n${table}\n\n${paths.map(shorten).join('\n')}\n`);
  } finally {
    progress.stop();
  }
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  process.stderr.write(`demo: ${error.message}\n`);
  process.exitCode = 2;
}
