// The report as text; test/report opens it in a browser.

import { readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { formatMemory } from '../../dist/bench/labels.js';
import { writeReport } from '../../dist/bench/report.js';
import { root } from '../lib/support/package.mjs';
import { run, temporaryFolder } from './support/cli.mjs';
import { recording, result, store } from './support/recording.mjs';

const dataOf = (html) => JSON.parse(/id="data">(.*?)<\/script>/s.exec(html)[1]);

/** A clustered attention beside exact attention that takes 100 ms. */
const setting = (median, error, clusters, changes = {}) =>
  result(
    median,
    { method: 'improved', parameters: { clusters }, ...changes },
    { speedup: 100 / median, accuracy: { rows: 64, rounding: 0, error } },
  );

describe('writeReport', () => {
  test('holds everything: no address, no file is referred to', () => {
    const html = writeReport([recording([result(10)])]);
    expect(html).not.toMatch(/<(link|img|iframe)|src=|@import|url\(\s*['"]?http/);
    expect(html).toContain('Observable'); // its licence
    expect(Buffer.byteLength(html)).toBeLessThan(600_000);
  });

  test('gives the charts what was measured, and lists the rest', () => {
    const { case: one } = result(1, { method: 'improved' });
    const skipped = { case: one, status: 'skipped', reason: 'too <long>' };
    const html = writeReport([recording([result(10, {}, { speedup: 1 }), skipped])]);
    const { series, points } = dataOf(html);
    expect(series).toEqual(['exact']);
    expect(points).toHaveLength(1);
    expect(points[0]).toMatchObject({
      length: 1024,
      threads: 1,
      time: 10,
      speedup: 1,
      error: 1e-7,
    });
    expect(html).toContain('improved: skipped, too &#60;long&#62;');
  });

  test('of a case that was measured twice, the last counts', () => {
    const first = recording([result(10), result(7, { length: 64 })]);
    const { points } = dataOf(writeReport([first, recording([result(20)])]));
    expect(points.map(({ time }) => time)).toEqual([20, 7]);
  });

  test('another seed is another case', () => {
    const one = result(10);
    const other = { ...result(20), case: { ...one.case, seed: 7 } };
    const html = writeReport([recording([one, other])]);
    const data = dataOf(html).points.map((point) => point.data);
    expect(data).toEqual(['gaussian', 'gaussian, seed 7']);
    expect(html).toContain('gaussian data, seed 7</caption>');
  });

  test('escapes what came from outside', () => {
    const html = writeReport([recording([result(1, { data: '</script><b>' })])]);
    expect(html).not.toContain('</script><b>');
    expect(dataOf(html).points[0].data).toBe('</script><b>');
    expect(html).toContain('Test &#60;processor&#62; &#38; &#34;more&#34;');
  });

  describe('the headline', () => {
    const exact = result(100, {}, { speedup: 1 });
    const headline = (...results) =>
      /class="lead">([^]*?)<\/p>/
        .exec(writeReport([recording([exact, ...results])]))[1]
        .replaceAll(/<\/?b>|\s+/g, ' ')
        .replaceAll(/ +/g, ' ');

    test('names the fastest within a small error', () => {
      const text = headline(
        setting(120, 0.001, 400),
        setting(25, 0.09, 100),
        setting(50, 0.02, 200),
        setting(10, 0.5, 20),
      );
      expect(text).toMatch(/improved C=100 takes 25\.0 ms : 4\.00 times as fast/);
      expect(text).toMatch(/with an error of 0\.0900 /);
      const clustered = setting(20, 0.05, 50, { method: 'clustered' });
      expect(headline(setting(25, 0.09, 100), clustered)).toContain('clustered C=50 takes 20.0 ms');
    });

    test('names the most exact where none is', () => {
      expect(headline(setting(10, 0.9, 10), setting(30, 0.7, 20))).toContain('C=20 takes 30.0 ms');
    });

    test('is about the longest inputs, and needs no errors', () => {
      const longer = setting(60, 0.4, 10, { length: 2048 });
      expect(headline(setting(10, 0.01, 10), longer)).toContain('With 2,048 tokens');
      expect(headline(setting(10, undefined, 10))).toMatch(/^Every time stands beside/);
    });
  });

  test('says when the run was interrupted', () => {
    const html = writeReport([{ ...recording([result(1)]), complete: false }]);
    expect(html).toContain('The run was interrupted');
  });
});

test.each([
  [0, '0 B'],
  [1000, '1000 B'],
  [8192, '8.00 KiB'],
  [1.5 * 2 ** 20, '1.50 MiB'],
  [2 ** 40, '1024 GiB'],
])('%d bytes are written as %s', (bytes, text) => {
  expect(formatMemory(bytes)).toBe(text);
});

describe('the command', () => {
  test('makes one page of several recordings', () => {
    const folder = temporaryFolder();
    const a = store(folder, 'a.json', recording([result(10)]));
    const b = store(folder, 'b.json', recording([result(20, { length: 2048 })]));
    const out = path.join(folder, 'page.html');
    expect(run('report', a, b, '--out', out)).toEqual({ status: 0, stdout: '', stderr: '' });
    expect(dataOf(readFileSync(out, 'utf8')).points).toHaveLength(2);
  });

  test('docs/scaling.html is what the command in docs/benchmark.md makes', () => {
    const text = readFileSync(path.join(root, 'docs', 'benchmark.md'), 'utf8');
    const [, parameters] = /^node dist\/cli\.js (report [^`]+ docs\/scaling\.html)$/m.exec(text);
    const out = path.join(temporaryFolder(), 'page.html');
    const words = parameters
      .split(/[\s\\]+/)
      .map((word) =>
        word.endsWith('.json') ? path.join(root, word) : word.replace('docs/scaling.html', out),
      );
    expect(run(...words)).toEqual({ status: 0, stdout: '', stderr: '' });
    const page = path.join(root, 'docs', 'scaling.html');
    expect(readFileSync(out).equals(readFileSync(page))).toBe(true);
  });

  test.each([
    ['no recording', ['--out', 'x.html'], /expects recordings/],
    ['no place', ['a.json'], /expects --out/],
    ['a folder that is not there', ['a.json', '--out', 'no/x.html'], /cannot write/],
    ['two machines', ['a.json', 'b.json', '--out', 'x.html'], /one report shows one machine/],
    ['no JSON', ['c.json', '--out', 'x.html'], /it is not JSON/],
  ])('refuses %s', (_, names, message) => {
    const folder = temporaryFolder();
    store(folder, 'a.json', recording([result(1)]));
    store(folder, 'b.json', recording([result(1)], { processor: 'another' }));
    store(folder, 'c.json', '{');
    const parameters = names.map((name) =>
      name.startsWith('--') ? name : path.join(folder, name),
    );
    const { status, stdout, stderr } = run('report', ...parameters);
    expect(stderr).toMatch(message);
    expect([status, stdout]).toEqual([2, '']);
  });
});
