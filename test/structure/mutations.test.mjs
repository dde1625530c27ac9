// The planted bugs (test/mutations.json) must fit the sources as they are: trying them all takes
// hours, so that it is only done now and then.

import { describe, expect, test } from 'vitest';
import { filesUnder, read } from './sources.mjs';

const mutations = JSON.parse(read('test/mutations.json'));

describe('every planted bug', () => {
  test('has one place in its file', () => {
    expect(mutations.length).toBeGreaterThan(60);
    const wrong = mutations.filter(({ file, find }) => read(file).split(find).length !== 2);
    expect(wrong).toEqual([]);
  });

  test('has a name of its own, and changes something', () => {
    const names = mutations.map(({ name }) => name);
    expect(names.filter((name, i) => names.indexOf(name) !== i)).toEqual([]);
    expect(mutations.filter(({ find, replace }) => find === replace)).toEqual([]);
  });

  test('is met by tests that there are', () => {
    const names = {
      native: filesUnder('test/native', ['.cc']).map(read),
      cuda: filesUnder('test/cuda', ['.cc', '.cu']).map(read),
      lib: filesUnder('test/lib', ['.test.mjs']),
    };
    const missing = mutations.flatMap(({ name, file, filter, suites }) => {
      const wanted = filter ?? suites;
      expect(wanted, name).not.toEqual([]);
      const there = names[file.split('/')[0]];
      return wanted
        .filter((one) => !there.some((text) => text.includes(one)))
        .map((one) => `${name}: ${one}`);
    });
    expect(missing).toEqual([]);
  });
});
