import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

const DEMO = fileURLToPath(new URL('../../bench/demo/main.mjs', import.meta.url));
const METHODS = [
  'Exact',
  'Clustered · Hamming',
  'Clustered · Euclidean',
  'Improved · Hamming',
  'Improved · Euclidean',
  'Centroid pooling',
];
const FILES = ['demo.html', 'demo.png'];
/** Small enough for seconds, with clusters to spare: 32×32 pixels have 64 by default. */
const SMALL = ['--size', '32', '--topk', '32'];

let folder;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'demo-test-'));
});

afterAll(() => rm(folder, { recursive: true, force: true }));

function runDemo(...args) {
  return new Promise((resolve) => {
    execFile(process.execPath, [DEMO, ...args], (error, stdout, stderr) =>
      resolve({ code: error ? error.code : 0, stdout, stderr }),
    );
  });
}

/** Stripes and a disc: a picture with edges and repeats. */
function drawing(width, height) {
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}">
    <rect width="100%" height="100%" fill="#dcd2be"/>
    ${Array.from({ length: 12 }, (_, i) => `<rect x="${i * 10}" width="5" height="100%" fill="#a8322d"/>`).join('')}
    <circle cx="${width / 2}" cy="${height / 2}" r="${height / 3}" fill="#24539f"/></svg>`;
  return sharp(Buffer.from(svg));
}

/** The rows of the printed table, method → cells. */
function tableRows(stdout) {
  const lines = stdout.split('\n').map((line) => line.split(/ {2,}/));
  return Object.fromEntries(
    lines.filter((cells) => cells.length === 7).map(([name, ...cells]) => [name, cells]),
  );
}

/** What a run computed: the table without times and memory. */
function quality({ stdout }) {
  return Object.entries(tableRows(stdout)).map(([name, cells]) => [name, cells.slice(3)]);
}

const decibels = (cell) => Number.parseFloat(cell);

async function expectOutput(output, { width, height }) {
  expect((await readdir(output)).toSorted()).toEqual(FILES);
  const sheet = await sharp(join(output, 'demo.png')).metadata();
  expect(sheet.format).toBe('png');
  // Two rows of four pictures, each as wide and high as it was asked to be, or a multiple.
  expect(sheet.width).toBeGreaterThan(4 * width);
  expect(sheet.height).toBeGreaterThan(2 * height);
  const page = await readFile(join(output, 'demo.html'), 'utf8');
  for (const method of METHODS) expect(page).toContain(method);
  const sources = [...page.matchAll(/src="([^"]{0,40})/g)].map(([, source]) => source);
  expect(sources).toHaveLength(10);
  for (const source of sources) expect(source).toMatch(/^data:image\/png;base64,/);
  expect(page).not.toMatch(/https?:/);
  const [, first] = /data-view="exact"[^>]*base64,([^"]+)"/.exec(page);
  const picture = await sharp(Buffer.from(first, 'base64')).metadata();
  expect([picture.width, picture.height]).toEqual([width, height]);
}

describe('a run', () => {
  test('without a picture denoises the test picture', async () => {
    const output = join(folder, 'drawn');
    const { code, stdout, stderr } = await runDemo(...SMALL, '--output', output);
    expect(stderr).toBe('');
    expect(code).toBe(0);
    const rows = tableRows(stdout);
    for (const method of METHODS) expect(rows).toHaveProperty([method]);
    expect(rows.Exact[5]).toBe('0.00');
    const before = decibels(rows.Exact[3]);
    const after = decibels(rows.Exact[4]);
    expect(after).toBeGreaterThan(before + 1);
    expect(decibels(rows['Improved · Euclidean'][4])).toBeGreaterThan(after - 0.5);
    await expectOutput(output, { width: 32, height: 32 });
  });

  test.each(['png', 'jpeg'])('denoises a %s of the user, and repeats', async (format) => {
    const path = join(folder, `wide.${format}`);
    await writeFile(path, await drawing(120, 60).toFormat(format).toBuffer());
    const output = join(folder, format);
    const first = await runDemo(path, ...SMALL, '--output', output);
    expect(first).toMatchObject({ code: 0, stderr: '' });
    await expectOutput(output, { width: 32, height: 16 });
    const second = await runDemo(path, ...SMALL, '--output', output);
    expect(quality(second)).toEqual(quality(first));
    await expectOutput(output, { width: 32, height: 16 });
  });

  test('takes a single pixel, transparency and shades of grey', async () => {
    const dot = { create: { width: 1, height: 1, channels: 4, background: '#12345680' } };
    const pixel = join(folder, 'pixel.png');
    await writeFile(pixel, await sharp(dot).png().toBuffer());
    const grey = join(folder, 'grey.png');
    await writeFile(grey, await drawing(9, 90).greyscale().png().toBuffer());
    const options = ['--size', '20', '--clusters', '500', '--patch', '3', '--output'];
    expect(await runDemo(pixel, ...options, join(folder, 'pixel'))).toMatchObject({ code: 0 });
    expect(await runDemo(grey, ...options, join(folder, 'grey'))).toMatchObject({ code: 0 });
    await expectOutput(join(folder, 'grey'), { width: 2, height: 20 });
  });
});

test('--help prints the options', async () => {
  const { code, stdout, stderr } = await runDemo('--help');
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  for (const name of ['size', 'noise', 'clusters', 'topk', 'patch', 'strength', 'seed', 'output']) {
    expect(stdout).toContain(`--${name} `);
  }
});

describe('bad input fails with one line and writes nothing', () => {
  const cases = {
    'a missing file': [['missing.png'], /missing\.png: no such file/],
    'a folder': [['.'], /it is a folder/],
    'a file that is no picture': [[DEMO], /not a picture/],
    'two pictures': [['a.png', 'b.png'], /one picture at a time/],
    'an unknown option': [['--sise', '32'], /'--sise'/],
    'an option without its value': [['--size'], /'--size/],
    'a size that is no number': [['--size', 'big'], /--size must be .* not "big"/],
    'an empty number': [['--noise', ''], /--noise must be/],
    'a size too small': [['--size', '8'], /--size must be .* from 16 to 512/],
    'a size too large': [['--size', '100000'], /--size must be/],
    'a broken size': [['--size', '32.5'], /--size must be a whole number/],
    'a negative noise': [['--noise=-1'], /--noise must be/],
    'no clusters': [['--clusters', '0'], /--clusters must be/],
    'no keys': [['--topk', '0'], /--topk must be/],
    'an even patch': [['--patch', '4'], /--patch must be odd/],
    'no strength': [['--strength', '0'], /--strength must be/],
    'a seed past the safe integers': [['--seed', '1e300'], /--seed must be/],
  };

  test.each(Object.entries(cases))('%s', async (_, [args, message]) => {
    const output = join(folder, 'nothing');
    const { code, stdout, stderr } = await runDemo(...args, '--output', output);
    expect(stderr).toMatch(message);
    expect(stderr).toMatch(/^demo: [^\n]+\n$/);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(await readdir(folder)).not.toContain('nothing');
  });

  test('a folder that cannot be written to', async () => {
    const file = join(folder, 'file');
    await writeFile(file, 'in the way');
    for (const output of [file, join(file, 'below')]) {
      // oxlint-disable-next-line no-await-in-loop -- two short runs
      const { code, stderr } = await runDemo('--output', output);
      expect(code).toBe(2);
      expect(stderr).toMatch(/^demo: cannot write to [^\n]+\n$/);
    }
    expect(await readFile(file, 'utf8')).toBe('in the way');
  });

  test('a result that cannot be put in its place', async () => {
    const output = join(folder, 'occupied');
    await sharp({ create: { width: 20, height: 20, channels: 3, background: '#777' } })
      .png()
      .toFile(join(folder, 'flat.png'));
    await mkdir(join(output, 'demo.html'), { recursive: true });
    const { code, stderr } = await runDemo(join(folder, 'flat.png'), ...SMALL, '--output', output);
    expect(code).toBe(2);
    expect(stderr).toMatch(/^demo: cannot write to [^\n]+\n$/);
    expect(await readdir(output)).toEqual(['demo.html']);
  });
});
