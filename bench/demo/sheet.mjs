// All pictures side by side on one sheet, with captions.

import sharp from 'sharp';

import { formatCount, formatDecibel, formatSpeedup, formatTime } from './format.mjs';
import { textSvg, textWidth } from './lettering.mjs';

const PAPER = '#f6f2e9';
const INK = '#23211d';
const FADED = '#7d766a';
const ACCENT = '#c2560c';
const COLUMNS = 4;
const MARGIN = 40;
const GAP = 28;
const HEADER = 112;
const CAPTION = 62;
/** About how long the longest side of a picture is on the sheet. */
const LONGEST = 384;

/** How many pixels of the sheet a pixel of the picture becomes in each direction. */
function sheetScale({ width, height }) {
  return Math.max(1, Math.round(LONGEST / Math.max(width, height)));
}

/** The height at which the text is no wider than `width`, at most `height`. */
function fit(text, width, height) {
  return height * Math.min(1, width / textWidth(text, height));
}

/** Two lines under a picture; narrow pictures get smaller letters. */
function caption({ label, note, best }, x, y, width) {
  const title = label.toUpperCase();
  return (
    textSvg(title, { x, y: y + 16, height: fit(title, width, 13), color: best ? ACCENT : INK }) +
    textSvg(note, { x, y: y + 39, height: fit(note, width, 11.5), color: FADED, weight: 0.12 })
  );
}

/** What stands under the picture of a row of the table. */
function figures({ milliseconds, speedup, after }) {
  const parts = [formatDecibel(after), formatTime(milliseconds)];
  if (speedup !== 1) parts.push(formatSpeedup(speedup));
  return parts.join(' · ');
}

function header({ picture, settings }, width) {
  const { width: columns, height: rows } = picture;
  const title = 'NON-LOCAL MEANS AS ATTENTION';
  const facts =
    `${columns} × ${rows} PIXELS = ${formatCount(columns * rows)} TOKENS · NOISE ${settings.noise}` +
    ` · ${settings.clusters} CLUSTERS · TOP ${settings.topK}`;
  return (
    textSvg(title, { x: MARGIN, y: 36, height: fit(title, width, 23), color: INK, weight: 0.12 }) +
    textSvg(facts, {
      x: MARGIN,
      y: 75,
      height: fit(facts, width, 11.5),
      color: FADED,
      weight: 0.12,
    })
  );
}

/**
 * @param {object} report
 * @returns {Promise<Buffer>} a PNG
 */
export async function drawSheet(report) {
  const { rows, original, noisy, painting } = report;
  const scale = sheetScale(report.picture);
  const [width, height] = [report.picture.width * scale, report.picture.height * scale];
  const tiles = [
    { png: original.png, label: 'Original', note: 'GROUND TRUTH' },
    { png: noisy.png, label: 'With noise', note: formatDecibel(noisy.psnr) },
    ...rows.map((row) => ({ png: row.png, label: row.label, note: figures(row), best: row.best })),
    {
      png: painting.png,
      kernel: 'lanczos3',
      label: 'Painted',
      note: `${formatCount(painting.strokes)} STROKES · ${formatTime(painting.row.milliseconds)}`,
    },
  ];
  const left = (index) => MARGIN + (index % COLUMNS) * (width + GAP);
  const top = (index) => HEADER + Math.floor(index / COLUMNS) * (height + CAPTION + GAP);
  const sheetWidth = left(COLUMNS - 1) + width + MARGIN;
  const sheetHeight = top(tiles.length - 1) + height + CAPTION + MARGIN / 2;
  const captions = tiles.map((tile, index) =>
    caption(tile, left(index), top(index) + height, width),
  );
  const lettering =
    `<svg xmlns="http://www.w3.org/2000/svg" width="${sheetWidth}" height="${sheetHeight}">` +
    `${header(report, sheetWidth - 2 * MARGIN)}${captions.join('')}</svg>`;
  const pictures = await Promise.all(
    tiles.map(async ({ png, kernel = 'nearest' }, index) => ({
      input: await sharp(png).resize(width, height, { kernel }).toBuffer(),
      left: left(index),
      top: top(index),
    })),
  );
  return sharp({
    create: { width: sheetWidth, height: sheetHeight, channels: 3, background: PAPER },
  })
    .composite([...pictures, { input: Buffer.from(lettering), left: 0, top: 0 }])
    .png({ compressionLevel: 9 })
    .toBuffer();
}
