import { describe, expect, test } from 'vitest';
import { compareRecordings } from '../../dist/bench/compare.js';
import { run, temporaryFolder } from './support/cli.mjs';
import { recording, result, store } from './support/recording.mjs';

const verdicts = (before, after) =>
  compareRecordings(recording(before), recording(after)).map(({ verdict }) => verdict);

const withError = (error) => [result(10, {}, { accuracy: { rows: 1, rounding: 0, error } })];

const worse = (a, b) =>
  compareRecordings(recording(withError(a)), recording(withError(b)))[0].worse;

describe('compareRecordings', () => {
  test.each([
    ['faster', 100, 80],
    ['slower', 80, 100],
    ['same', 100, 105], // the middle halves overlap
    ['same', 105, 100],
  ])('%s', (verdict, before, after) => {
    expect(verdicts([result(before)], [result(after)])).toEqual([verdict]);
  });

  test('cases are told apart by everything that describes them', () => {
    const [one, two] = [result(10), result(10, { threads: 2 })];
    const three = result(10, { method: 'clustered', parameters: { clusters: 4 } });
    const four = result(10, { method: 'clustered', parameters: { clusters: 5 } });
    expect(verdicts([one, three], [two, four])).toEqual(['gone', 'gone', 'new', 'new']);
    const other = { ...one, case: { ...one.case, seed: 7 } };
    expect(verdicts([one], [other])).toEqual(['gone', 'new']);
  });

  test('a result that became wrong is broken', () => {
    const { case: one } = result(10);
    expect(verdicts([result(10)], [{ case: one, status: 'wrong', reason: 'off' }])).toEqual([
      'broken',
    ]);
  });

  test('an error that grew is named, rounding is not', () => {
    expect(worse(0.1, 0.2)).toBeCloseTo(2, 12);
    expect(worse(0.1, 0.1005)).toBeUndefined();
    expect(worse(0.2, 0.1)).toBeUndefined();
    expect(worse(1e-7, 3e-7)).toBeUndefined();
    expect(worse(0, 0.5)).toBe(Infinity);
  });

  test('an error that was not known before did not grow', () => {
    expect(worse(undefined, 0.5)).toBeUndefined();
    expect(worse(0.5, undefined)).toBeUndefined();
  });
});

describe('the command', () => {
  test('says what changed, and fails when something became slower', () => {
    const folder = temporaryFolder();
    const a = store(folder, 'a.json', recording([result(100), result(10, { length: 64 })]));
    const b = store(folder, 'b.json', recording([result(50), result(10, { length: 64 })]));
    const better = run('compare', a, b);
    expect(better.stdout).toMatch(/^faster .*N=1024.*100 ms → 50\.0 ms \(2\.00×\)$/m);
    expect(better.stdout).toContain('1 faster, 0 slower, 1 the same');
    expect(better.status).toBe(0);
    expect(run('compare', b, a)).toMatchObject({ status: 1, stderr: '' });
  });

  test('takes recordings without errors', () => {
    const folder = temporaryFolder();
    const a = store(folder, 'a.json', recording(withError(undefined)));
    const b = store(folder, 'b.json', recording(withError(0.5)));
    expect(run('compare', a, b)).toMatchObject({ status: 0, stderr: '' });
    const c = store(folder, 'c.json', recording(withError(0)));
    expect(run('compare', c, b).stdout).toContain('ERROR GREW 0 → 0.500');
  });

  test('says so when the machines differ', () => {
    const folder = temporaryFolder();
    const a = store(folder, 'a.json', recording([result(1)]));
    const b = store(folder, 'b.json', recording([result(1)], { processor: 'another' }));
    expect(run('compare', a, b).stdout).toMatch(/^Another machine: .* → another/);
  });

  test.each([
    ['one file', ['good.json'], /expects two files/],
    ['a missing file', ['good.json', 'none.json'], /cannot read/],
    ['no JSON', ['good.json', 'text.json'], /it is not JSON/],
    ['other JSON', ['good.json', 'other.json'], /is no recording/],
    ['another version', ['good.json', 'version.json'], /has version 2/],
    ['a result without a time', ['good.json', 'broken.json'], /result 0 lacks/],
  ])('refuses %s', (_, names, message) => {
    const folder = temporaryFolder();
    const files = {
      'good.json': recording([result(1)]),
      'text.json': 'no json',
      'other.json': { results: [] },
      'version.json': { ...recording([]), version: 2 },
      'broken.json': recording([{ ...result(1), time: {} }]),
    };
    for (const [name, content] of Object.entries(files)) store(folder, name, content);
    const { status, stdout, stderr } = run('compare', ...names.map((name) => `${folder}/${name}`));
    expect(stderr).toMatch(message);
    expect(stderr.trim().split('\n')).toHaveLength(1);
    expect([status, stdout]).toEqual([2, '']);
  });
});
