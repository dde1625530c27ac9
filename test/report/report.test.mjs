// The report in a real browser: every chart is drawn, no script fails, nothing is fetched.

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { chromium } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { writeReport } from '../../dist/bench/report.js';
import { recording, result } from '../bench/support/recording.mjs';

const CHARTS = ['time', 'pareto', 'error', 'memory', 'share', 'threads'];
const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--no-first-run']; // prettier-ignore

function findBrowser() {
  const names = [process.env.CHROMIUM, 'chromium', 'chromium-browser', 'google-chrome'];
  for (const name of names.filter(Boolean)) {
    const { stdout } = spawnSync('sh', ['-c', 'command -v "$1"', 'sh', name], { encoding: 'utf8' });
    if (stdout.trim() !== '') return stdout.trim();
  }
  throw new Error(
    'this test needs Chromium (Debian: apt-get install chromium; or its path in CHROMIUM)',
  );
}

/** Times that grow like a power of the length, halved by a second thread. */
function measured() {
  const methods = [
    ['exact', {}, 1e-3, 2, 1e-7],
    ['clustered', { clusters: 100 }, 1e-1, 1, 0.5],
    ['improved', { clusters: 100, topK: 32 }, 2e-1, 1, 0.2],
    ['cast', { clusters: 4, clusterSize: 256 }, 1e-1, 1.2, undefined],
  ];
  return [1024, 4096, 16384].flatMap((length) =>
    [1, 2].flatMap((threads) =>
      methods.map(([method, parameters, factor, power, error]) => {
        const time = (threads_) => (factor * (length / 64) ** power) / threads_;
        const exact = (1e-3 * (length / 64) ** 2) / threads;
        return result(
          time(threads),
          { method, parameters, length, threads },
          {
            accuracy: { rows: 64, rounding: 1e-7, error },
            speedup: exact / time(threads),
          },
        );
      }),
    ),
  );
}

/** Names that would end the script or the page, were they not escaped. */
const HOSTILE = '</script><script>throw new Error("escaped")</script>';

let browser;
let folder;
let address;

beforeAll(async () => {
  folder = mkdtempSync(path.join(tmpdir(), 'cluster-attention-report-'));
  const file = path.join(folder, 'report.html');
  const hostile = result(1, { method: HOSTILE, data: '<b>data</b>', length: 4096 });
  const missing = { ...result(1, { method: 'PyTorch' }), status: 'missing', reason: 'no <python>' };
  writeFileSync(file, writeReport([recording([...measured(), hostile, missing])]));
  address = pathToFileURL(file).href;
  browser = await chromium.launch({ executablePath: findBrowser(), args: FLAGS });
});

afterAll(async () => {
  await browser?.close();
  rmSync(folder, { recursive: true, force: true });
});

async function open(width, height, colorScheme) {
  const page = await browser.newPage({ viewport: { width, height }, colorScheme });
  const faults = [];
  page.on('pageerror', (error) => faults.push(error.message));
  page.on('console', (message) => faults.push(message.text()));
  page.on('request', (request) => {
    if (request.url() !== address) faults.push(request.url());
  });
  await page.goto(address);
  return { page, faults };
}

/** How many lines, dots and such a chart has, and where its drawing lies. */
const drawn = (page, id) =>
  page.$eval(`#${id}`, (section) => {
    const svg = section.querySelector('.plot > svg, .plot > figure svg');
    const { width, height } = svg.getBoundingClientRect();
    return {
      width,
      height,
      marks: svg.querySelectorAll('[aria-label="line"] path, [aria-label="dot"] circle').length,
      broken: /NaN|Infinity|undefined/.test(svg.outerHTML),
    };
  });

describe.each([
  ['a wide window', 1360, 900, 'light'],
  ['a wide window at night', 1360, 900, 'dark'],
  ['a phone', 390, 844, 'light'],
  ['a phone at night', 390, 844, 'dark'],
])('in %s', (_, width, height, colorScheme) => {
  test('all charts are drawn, nothing fails, nothing is fetched', async () => {
    const { page, faults } = await open(width, height, colorScheme);
    const all = await Promise.all(CHARTS.map((id) => drawn(page, id)));
    for (const [i, chart] of all.entries()) {
      const id = CHARTS[i];
      expect(chart.broken, id).toBe(false);
      expect(chart.marks, id).toBeGreaterThan(2);
      expect(chart.height, id).toBeGreaterThan(200);
      expect(chart.width, id).toBeGreaterThan(Math.min(width, 400) * 0.75);
    }
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(width);
    const shade = await page.evaluate(() => {
      const [red] = getComputedStyle(document.body).backgroundColor.match(/\d+/g);
      return Number(red);
    });
    expect(shade > 128).toBe(colorScheme === 'light');
    expect(faults).toEqual([]);
    await page.close();
  });
});

describe('the page', () => {
  test('shows machine, versions, the command, and fitted exponents', async () => {
    const { page, faults } = await open(1360, 900, 'light');
    const text = await page.innerText('main');
    for (const fact of [
      'Test <processor> & "more", 2 cores',
      'Node v20.17.0',
      '16.0 GiB',
      '0.1.0',
    ]) {
      expect(text).toContain(fact);
    }
    expect(text).toContain('npx cluster-attention bench');
    expect(text).toContain('no <python>');
    expect(text).toContain(HOSTILE);
    const exponents = await page.innerText('.exponents');
    expect(exponents).toContain('exact: N^2.00');
    expect(exponents).toContain('improved C=100, k=32: N^1.00');
    expect(exponents).toContain('cast κ=256: N^1.20');
    expect(faults).toEqual([]);
    await page.close();
  });

  test('hides a series when its name is pressed, and brings it back', async () => {
    const { page, faults } = await open(1360, 900, 'light');
    const before = await drawn(page, 'time');
    const button = page.locator('.legend button', { hasText: 'exact' });
    await button.click();
    expect((await drawn(page, 'time')).marks).toBeLessThan(before.marks);
    await button.click();
    expect(await drawn(page, 'time')).toEqual(before);
    expect(faults).toEqual([]);
    await page.close();
  });

  test('draws the chosen length and threads', async () => {
    const { page, faults } = await open(1360, 900, 'light');
    const dots = () => page.$$eval('#time svg circle', (all) => all.map((dot) => dot.outerHTML));
    const before = await dots();
    await page.selectOption('select[name=threads]', '1');
    expect(await dots()).not.toEqual(before);
    await page.selectOption('select[name=length]', '1024');
    expect((await drawn(page, 'pareto')).marks).toBeGreaterThan(2);
    expect(faults).toEqual([]);
    await page.close();
  });

  test('says what a dot is when the pointer is on it', async () => {
    const { page, faults } = await open(1360, 900, 'light');
    await page.locator('#pareto').scrollIntoViewIfNeeded();
    const box = await page.locator('#pareto svg circle').first().boundingBox();
    await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
    await expect.poll(() => page.textContent('#pareto svg [aria-label="tip"]')).toMatch(/×/);
    expect(faults).toEqual([]);
    await page.close();
  });
});
